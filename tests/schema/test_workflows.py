"""The templates: they load without a missing node, lie neatly, and do the same as their API twins."""

import asyncio
import copy
import itertools
import re

import pytest
from comfy_cli.workflow_to_api import convert_ui_to_api
from PIL import Image

from guidekit.demo.world.vocabulary import VOCABULARY
from guidekit.nodes import NODES
from guidekit.tests.schema.catalogue import PACK, inputs, read

TEMPLATES = {path.stem: path for path in sorted((PACK / "workflows").glob("*.json"))}
TWINS = {path.stem: path for path in sorted((PACK / "workflows" / "api").glob("*.json"))}
NOTES = ("Note", "MarkdownNote")  # exist in the frontend only
MANY_ROWS = ("cfgpp_inversion", "exact_inversion_methods", "save_inversion")
TITLE_BAR = 30  # pixels above a node's position

every_template = pytest.mark.parametrize("name", TEMPLATES)
every_twin = pytest.mark.parametrize("name", TWINS)


def test_every_template_has_a_twin_and_a_thumbnail():
    assert TEMPLATES
    assert [*TEMPLATES] == [*TWINS]
    missing = [name for name, path in TEMPLATES.items() if not path.with_suffix(".jpg").is_file()]
    assert not missing, f"no workflows/*.jpg for {missing}"
    for path in TEMPLATES.values():
        assert Image.open(path.with_suffix(".jpg")).format == "JPEG"


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
        assert nodes[source]["outputs"][out]["type"] == nodes[target]["inputs"][into]["type"] == kind


@every_template
def test_every_widget_has_its_value(name, host_info):
    """Widget values are saved by position. One too few, and the converter and the frontend fill up with defaults."""
    for node in read(TEMPLATES[name])["nodes"]:
        if node["type"] not in NOTES:
            linked = {i["name"] for i in node["inputs"]}
            slots = 0
            for input_name, (kind, options) in inputs(host_info[node["type"]]).items():
                if isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
                    slots += 1 + bool(options.get("control_after_generate"))
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
    assert 0.75 * min(1900 / (right - left), 990 / (bottom - top)) >= (0.4 if name in MANY_ROWS else 0.57)


def _node_box(node: dict) -> tuple[float, float, float, float]:
    width, height = node["size"]
    return _box(*node["pos"], width, 0 if node["flags"].get("collapsed") else height, TITLE_BAR)


def _box(x: float, y: float, width: float, height: float, above: float = 0) -> tuple[float, float, float, float]:
    return x, y - above, x + width, y + height


def _overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@every_template
def test_explains_itself(name):
    notes = [node for node in read(TEMPLATES[name])["nodes"] if node["type"] == "MarkdownNote"]
    assert any(len(note["widgets_values"][0]) > 200 for note in notes)


# The API workflows


def validate(prompt: dict) -> tuple[bool, dict, list[str], dict]:
    """What the host does with a prompt before it queues it: (valid, error, outputs, errors by node)."""
    import execution

    return asyncio.run(execution.validate_prompt("00000000-0000-0000-0000-000000000000", prompt, None))


@every_twin
def test_the_host_accepts_it(name, host):
    prompt = read(TWINS[name])
    valid, error, outputs, node_errors = validate(copy.deepcopy(prompt))
    assert valid, (error, node_errors)
    assert not node_errors
    classes = {node_id: host.NODE_CLASS_MAPPINGS[node["class_type"]] for node_id, node in prompt.items()}
    assert set(outputs) == {node_id for node_id, kind in classes.items() if getattr(kind, "OUTPUT_NODE", False)}


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
    """So that the test above can fail, and that what a node checks itself does not switch off what the host checks."""
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
    if any(node["class_type"] == "GuidekitDemoModel" for node in prompt.values()):
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
