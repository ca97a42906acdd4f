"""The templates: they load without a missing node, are laid out neatly, and do the same as their API twins."""

import asyncio
import copy
import itertools
import json
import re
from pathlib import Path

import comfyui_workflow_templates_json
import pytest
from comfy_cli.workflow_to_api import convert_ui_to_api
from PIL import Image

from guidekit import templates
from guidekit.demo.world.vocabulary import VOCABULARY
from guidekit.nodes import NODES
from guidekit.templates import demo
from guidekit.templates.files import WORKFLOWS, contents
from guidekit.tests.schema.catalogue import IN_NO_TEMPLATE, inputs, read

TEMPLATES = {made.name: WORKFLOWS / f"{made.title}.json" for made in templates.TEMPLATES}
TWINS = {made.name: WORKFLOWS / "api" / f"{made.name}.json" for made in templates.TEMPLATES}
ON_DEMO_MODELS = {made.name for made in demo.TEMPLATES}
REAL = [name for name in TEMPLATES if name not in ON_DEMO_MODELS]
ANYTHING = ("*", "COMFY_MATCHTYPE_V3")  # types of inputs that take anything
NOTES = ("Note", "MarkdownNote")  # exist in the frontend only
MANY_ROWS = ("cfgpp_inversion",)
TITLE_BAR = 30  # pixels above a node's position
# Files whose names at their authors' say nothing.
RENAMED = {"diffusion-kto.safetensors", "clip-vit-large-patch14.safetensors"}
# Files that no template of the host loads.
OUR_CHOICE = RENAMED | {
    "sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors",
    "spo_sdxl_10ep_4k-data_lora_diffusers.safetensors",
    "sdxl_beta2k_2kiter.safetensors",
}

every_template = pytest.mark.parametrize("name", TEMPLATES)
every_real_one = pytest.mark.parametrize("name", REAL)
every_twin = pytest.mark.parametrize("name", TWINS)


def test_the_files_are_as_the_descriptions_say(host_info):
    made = contents(host_info)
    found = {path for folder in ("workflows", "subgraphs") for path in (WORKFLOWS.parent / folder).rglob("*.json")}
    again = "python dev.py python -m guidekit.templates writes them"
    assert {path.name for path in found} == {path.name for path in made}, again
    assert not [path.name for path, text in made.items() if path.read_text("utf-8") != text], again


def test_thumbnails_are_of_templates():
    """Techniques without a demo template have none."""
    found = {path.stem: path for path in WORKFLOWS.glob("*.jpg")}
    wanted = {made.title: made for made in templates.TEMPLATES if made.image}
    assert set(found) == set(wanted)
    titles = {made.name: made.title for made in templates.TEMPLATES}
    for title, made in wanted.items():
        assert Image.open(found[title]).format == "JPEG"
        assert found[title].read_bytes() == found[titles[made.image]].read_bytes()


def test_titles_are_file_names_and_addresses_everywhere():
    """They appear unquoted in paths of the server, and in file names on every system."""
    titles = [path.stem for path in TEMPLATES.values()]
    assert len({title.lower() for title in titles}) == len(titles)
    assert not [title for title in titles if not re.fullmatch(r"[A-Za-z][A-Za-z0-9 .,()+-]{0,90} - [\w .-]+", title)]
    assert not [name for name in TWINS if not re.fullmatch(r"[a-z0-9_]+", name)]


def test_every_node_is_in_a_template():
    used = {node["class_type"] for path in TWINS.values() for node in read(path).values()}
    assert {node.GET_SCHEMA().node_id for node in NODES} - used == IN_NO_TEMPLATE


@every_template
def test_needs_nothing_but_the_host_and_this_pack(name, host):
    ours = {node.GET_SCHEMA().node_id for node in NODES}
    used = {node["type"] for node in read(TEMPLATES[name])["nodes"]} - set(NOTES)
    assert used & ours, "a template of this pack shows a node of it"
    assert not {kind for kind in used - ours if kind not in host.NODE_CLASS_MAPPINGS}
    assert not ours - set(host.NODE_CLASS_MAPPINGS)


@every_template
def test_links_agree_with_the_nodes(name, host_info):
    """Each link is written in three places, and its type in a fourth; the frontend repairs or drops what differs."""
    template = read(TEMPLATES[name])
    nodes = {node["id"]: node for node in template["nodes"]}
    assert len(nodes) == len(template["nodes"])
    assert template["last_node_id"] == max(nodes)
    assert template["last_link_id"] == max(link[0] for link in template["links"])
    for node in nodes.values():
        if node["type"] not in NOTES:
            assert node["properties"]["Node name for S&R"] == node["type"]
            outputs = host_info[node["type"]]["output"][: len(node["outputs"])]
            assert [output["type"] for output in node["outputs"]] == outputs
            known = inputs(host_info[node["type"]])
            assert all(i["type"] == known[i["name"]][0] for i in node["inputs"])
    leave, arrive = set(), set()
    for node_id, node in nodes.items():
        leave |= {(link, node_id, slot) for slot, output in enumerate(node["outputs"]) for link in output["links"]}
        arrive |= {(i["link"], node_id, slot) for slot, i in enumerate(node["inputs"]) if i["link"] is not None}
    assert leave == {(link, source, slot) for link, source, slot, *_ in template["links"]}
    assert arrive == {(link, target, slot) for link, _, _, target, slot, _ in template["links"]}
    for _, source, out, target, into, kind in template["links"]:
        assert nodes[source]["outputs"][out]["type"] == kind
        assert nodes[target]["inputs"][into]["type"] in (kind, *ANYTHING)


@every_template
def test_every_widget_has_its_value(name, host_info):
    """Widget values are saved by position. One too few, and the converter and the frontend fill up with defaults."""
    for node in read(TEMPLATES[name])["nodes"]:
        if node["type"] not in NOTES:
            linked = {i["name"] for i in node["inputs"]}
            slots = 0
            for input_name, (kind, options) in inputs(host_info[node["type"]]).items():
                if options.get("forceInput"):
                    continue
                if isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
                    slots += 1 + bool(options.get("control_after_generate")) + bool(options.get("image_upload"))
                else:
                    assert input_name in linked, f"{node['type']} has no {input_name}"
            assert len(node["widgets_values"]) == slots, node["type"]


@every_template
def test_does_the_same_as_its_twin(name, host_info):
    """Converted as comfy-cli does it for `comfy run`, titles aside: some differ between hosts."""

    def essence(prompt: dict) -> dict:
        return {node_id: (node["class_type"], node["inputs"]) for node_id, node in prompt.items()}

    assert essence(convert_ui_to_api(read(TEMPLATES[name]), host_info)) == essence(read(TWINS[name]))


@every_template
def test_lies_neatly(name):
    """No two nodes overlap, and a node is inside a group or outside it."""
    template = read(TEMPLATES[name])
    boxes = {node["id"]: _node_box(node) for node in template["nodes"]}
    for (a, box_a), (b, box_b) in itertools.combinations(boxes.items(), 2):
        assert not _overlap(box_a, box_b), f"nodes {a} and {b}"
    frames = {group["title"]: _box(*group["bounding"]) for group in template["groups"]}
    for a, b in itertools.combinations(frames, 2):
        assert not _overlap(frames[a], frames[b]), f"groups {a} and {b}"
    for title, frame in frames.items():
        inside = [box for box in boxes.values() if _overlap(box, frame)]
        assert inside, f"group {title} is empty"
        for left, top, right, bottom in inside:
            assert frame[0] <= left
            assert frame[1] <= top
            assert right <= frame[2]
            assert bottom <= frame[3]


@every_template
def test_can_be_read_when_opened(name):
    """On a screen of 1920 x 1080: the frontend fits a template into three quarters of the canvas, about 1900 x 990, and
    hides all text below a scale of 0.57. Those with many rows take a turn of the wheel or two."""
    template = read(TEMPLATES[name])
    boxes = [_node_box(node) for node in template["nodes"]]
    boxes += [_box(*group["bounding"]) for group in template["groups"]]
    left, top = (min(box[i] for box in boxes) for i in (0, 1))
    right, bottom = (max(box[i] for box in boxes) for i in (2, 3))
    assert 0.75 * min(1900 / (right - left), 990 / (bottom - top)) >= (0.55 if name in MANY_ROWS else 0.57)


def _node_box(node: dict) -> tuple[float, float, float, float]:
    width, height = (150, 0) if node["flags"].get("collapsed") else node["size"]
    return _box(*node["pos"], width, height, TITLE_BAR)


def _box(x: float, y: float, width: float, height: float, above: float = 0) -> tuple[float, float, float, float]:
    return x, y - above, x + width, y + height


def _overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@every_template
def test_explains_itself_in_five_lines(name):
    [note] = [node for node in read(TEMPLATES[name])["nodes"] if node["type"] == "MarkdownNote"]
    what, *lines = note["widgets_values"][0].split("\n\n")
    assert len(what) > 60
    assert [line.split("**")[1].rstrip(":") for line in lines] == ["Look at", "Try", "Cost", "Files"]
    assert all(len(line) < 500 for line in (what, *lines[:3]))
    assert all(line.endswith(".") for line in (what, *lines))


# Files of models


def _named_files(name: str) -> list[tuple[dict, dict]]:
    """(node, entry of its property `models`)"""
    nodes = read(TEMPLATES[name])["nodes"]
    return [(node, file) for node in nodes for file in node["properties"].get("models", ())]


@every_real_one
def test_every_file_is_named_with_its_address(name, host_info):
    """So that the frontend, which reads this property, says where a missing file can be downloaded."""
    named = {(node["id"], file["name"]) for node, file in _named_files(name)}
    values = {
        (node["id"], value.rsplit("/", 1)[-1])
        for node in read(TEMPLATES[name])["nodes"]
        for value in node["widgets_values"]
        if isinstance(value, str) and value.endswith(".safetensors")
    }
    assert named == values
    assert named
    for _, file in _named_files(name):
        assert file["url"].startswith("https://huggingface.co/")
        assert "/resolve/main/" in file["url"]
        assert file["url"].endswith(f"/{file['name']}") != (file["name"] in RENAMED)
        note = next(n for n in read(TEMPLATES[name])["nodes"] if n["type"] == "MarkdownNote")["widgets_values"][0]
        assert f"[{file['name']}]({file['url'].split('/resolve/')[0]}) in models/{file['directory']}" in note


def test_files_are_those_of_the_hosts_own_templates():
    """So that people who have run those have the files."""
    theirs = {}
    for path in Path(comfyui_workflow_templates_json.__file__).parent.rglob("*.json"):
        for name, folder, url in _models_in(json.loads(path.read_text("utf-8"))):
            theirs.setdefault((name, folder), set()).add(url.split("?")[0])
    ours = {(f["name"], f["directory"]): f["url"] for name in REAL for _, f in _named_files(name)}
    assert {name for name, _ in set(ours) - set(theirs)} == OUR_CHOICE
    assert not {name: url for (name, folder), url in ours.items() if url not in theirs.get((name, folder), {url})}


def _models_in(tree: object):
    """(name, directory, url) of the files of all nodes, those in subgraphs too."""
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    if isinstance(tree, dict) and "widgets_values" in tree:
        yield from ((f["name"], f["directory"], f["url"]) for f in tree["properties"].get("models") or ())
    for part in parts:
        yield from _models_in(part)


@every_real_one
def test_app_mode_has_what_it_can_show(name, host, host_info):
    """Widgets that are not linked, and that are not under "advanced", of which it shows the name alone; and images."""
    template = read(TEMPLATES[name])
    nodes = {node["id"]: node for node in template["nodes"]}
    app = template["extra"]["linearData"]
    assert 4 <= len(app["inputs"]) <= 5
    for node_id, widget in app["inputs"]:
        kind, options = inputs(host_info[nodes[node_id]["type"]])[widget]
        assert isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
        assert not options.get("advanced")
        assert widget not in {i["name"] for i in nodes[node_id]["inputs"]}
    ours = [nodes[node_id]["type"] for node_id, _ in app["inputs"] if nodes[node_id]["type"].startswith("Guidekit")]
    assert ours or name.startswith("exact_inversion"), "its main inputs are steps, denoise and the prompts"
    assert app["outputs"]
    assert all(host.NODE_CLASS_MAPPINGS[nodes[node_id]["type"]].OUTPUT_NODE for node_id in app["outputs"])


# The API workflows


def validate(prompt: dict) -> tuple[bool, dict, list[str], dict]:
    """The host's validation of a prompt before it is queued: (valid, error, outputs, errors by node)."""
    import execution

    return asyncio.run(execution.validate_prompt("00000000-0000-0000-0000-000000000000", prompt, None))


@every_twin
def test_the_host_accepts_it(name, host, named_files):
    prompt = read(TWINS[name])
    valid, error, outputs, node_errors = validate(copy.deepcopy(prompt))
    assert valid, (error, node_errors)
    assert not node_errors
    classes = {node_id: host.NODE_CLASS_MAPPINGS[node["class_type"]] for node_id, node in prompt.items()}
    assert set(outputs) == {node_id for node_id, kind in classes.items() if getattr(kind, "OUTPUT_NODE", False)}


def test_the_host_accepts_prompts_without_a_preset(host):
    for path in TWINS.values():
        prompt = read(path)
        for node in prompt.values():
            node["inputs"].pop("preset", None)
        valid, error, _, node_errors = validate(prompt)
        assert (valid, node_errors) == (True, {}), (path, error)


@pytest.mark.parametrize(
    ("changed", "kind", "text"),
    [
        ({"eta": 1.5}, "value_bigger_than_max", "eta"),
        ({"momentum": -1.0}, "value_smaller_than_min", "momentum"),
        ({"norm_unit": "furlongs"}, "value_not_in_list", "furlongs"),
        ({"start_percent": 0.6, "end_percent": 0.4}, "custom_validation_failed", "Set start_percent below end_percent"),
        ({"model": ["4", 0]}, "return_type_mismatch", "LATENT"),
    ],
    ids=str,
)
def test_the_host_refuses_bad_input_at_the_node(changed, kind, text, host):
    """So that the test above can fail, and a node's own checks do not switch off those of the host."""
    prompt = read(TWINS["apg"])
    [apg] = [node_id for node_id, node in prompt.items() if node["class_type"] == "GuidekitAPG"]
    prompt[apg]["inputs"].update(changed)
    *_, node_errors = validate(prompt)
    assert [*node_errors] == [apg]
    reasons = node_errors[apg]["errors"]
    assert {reason["type"] for reason in reasons} == {kind}
    assert text in " ".join(f"{reason['message']} {reason['details']}" for reason in reasons)


@every_twin
def test_prompts_are_in_the_demo_models_words(name):
    """Others are left out with a line in the log, and the log of the demo should be clean."""
    prompt = read(TWINS[name])
    if name in ON_DEMO_MODELS:
        texts = [node["inputs"]["text"] for node in prompt.values() if node["class_type"] == "CLIPTextEncode"]
        for slots in (node["inputs"] for node in prompt.values() if node["class_type"] == "GuidekitCandidates"):
            texts += [slots["prompt"].replace("{slot}", word) for word in slots["words"].splitlines()]
        assert any(texts)
        assert not {word for text in texts for word in re.findall(r"\w+|,", text)} - set(VOCABULARY)


def test_apg_compares_like_with_like():
    """Two samplers that differ in the model only: as the loader gives it, and through APG."""
    prompt = read(TWINS["apg"])
    plain, guided = (node["inputs"] for node in prompt.values() if node["class_type"] == "KSampler")
    assert {key for key in plain if plain[key] != guided[key]} == {"model"}
    assert prompt[plain["model"][0]]["class_type"] == "GuidekitDemoModel"
    apg = prompt[guided["model"][0]]
    assert apg["class_type"] == "GuidekitAPG"
    assert apg["inputs"]["model"] == plain["model"]
    prefixes = [node["inputs"]["filename_prefix"] for node in prompt.values() if node["class_type"] == "SaveImage"]
    assert prefixes == ["guidekit/cfg", "guidekit/apg"]
