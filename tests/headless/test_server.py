"""The pack in a real server: workflows give images, the log is clean, bad input is refused, the server goes on."""

import copy
import io
import json
import re
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from guidekit.demo.server import PACK, Server
from guidekit.sweep import PromptError
from guidekit.templates import TEMPLATES, demo

WEIGHTS = PACK / "demo" / "weights"
WORKFLOWS = {made.name: PACK / "workflows" / "api" / f"{made.name}.json" for made in demo.TEMPLATES}


@pytest.fixture(scope="module")
def server():
    with Server(extra_nodes=[Path(__file__).parent / "breaking_nodes"]) as running:
        yield running


def workflow(name: str = "apg", **changes) -> dict:
    """An API workflow of the pack with inputs changed by node class: `KSampler={"steps": 2}`."""
    prompt = json.loads(WORKFLOWS[name].read_text())
    few = {"KSampler": {"steps": 3}, "BasicScheduler": {"steps": 3}, "GuidekitLinearAGFit": {"trajectories": 4}}
    few["GuidekitTrainPreference"] = {"steps": 2}
    for class_type, inputs in (few | changes).items():
        for node in prompt.values():
            if node["class_type"] == class_type:
                node["inputs"].update(inputs)
    return prompt


def images(server: Server, prompt: dict) -> dict[str, np.ndarray]:
    """The saved images of a run by file name."""
    images = [image for output in server.run(prompt).values() for image in output.get("images", [])]
    return {i["filename"]: np.asarray(Image.open(io.BytesIO(server.view(i)))) for i in images}


def replace(prompt: dict, target: str, name: str, class_type: str, **inputs) -> dict:
    """Feeds input `name` of all nodes of class `target` from a new node; its own inputs may name the old source."""
    prompt = copy.deepcopy(prompt)
    for i, node in enumerate([n for n in prompt.values() if n["class_type"] == target]):
        old = node["inputs"][name]
        given = {k: old if v == "old" else v for k, v in inputs.items()}
        prompt[f"{class_type}{i}"] = {"class_type": class_type, "inputs": given}
        node["inputs"][name] = [f"{class_type}{i}", 0]
    return prompt


@pytest.mark.parametrize("family", ["unet", "dit"])
@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_run_to_images(server, name, family):
    # The one worse model is of the UNet; a rule finds images to like where they are more than noise.
    changes = {"GuidekitAutoguidance": {"weakness": "dropout"} if family == "dit" else {}}
    changes |= {"KSampler": {"steps": 10}} if name == "train_preference" else {}
    prompt = workflow(name, **changes)
    for node in prompt.values():
        if node["class_type"] == "GuidekitDemoModel" and node["inputs"]["family"] != "unet_early":
            node["inputs"]["family"] = family
    made = images(server, prompt)
    assert made  # 64 x 64 images, and 128 x 128 ones of FreCaS, enlarged by the templates
    sides = {256, 512} if name == "frecas" else {256}
    assert {image.shape for image in made.values()} == {(side, side, 3) for side in sides}
    assert all(image.std() > 0 for image in made.values())


def test_apg_and_cfg_differ_from_the_same_seed(server):
    made = images(server, workflow())
    cfg, apg = ([p for name, p in sorted(made.items()) if name.startswith(k)] for k in ("cfg", "apg"))
    assert len(cfg) == len(apg) == 4
    assert all((a != b).any() for a, b in zip(cfg, apg))


@pytest.mark.parametrize(
    ("name", "node", "text"),
    [
        (
            "in an interval",
            "GuidekitGuidanceInterval",
            r"\d+ of 12 steps guided, \d+ evaluations",
        ),
        (
            "adaptive_guidance",
            "GuidekitAdaptiveGuidance",
            r"crossed 0.9 \(x0\) in step \d+ of 12; \d+ evaluations saved",
        ),
        (
            "linear_ag",
            "GuidekitLinearAG",
            r"3 steps with an estimated negative, 6 with the positive alone: 9 evaluations",
        ),
    ],
)
def test_nodes_tell_what_they_did(server, name, node, text):
    """Under the node, over the websocket, and in the log, where it has the names of the nodes."""
    steps = {"KSampler": {"steps": 12}, "BasicScheduler": {"steps": 12}}
    if name == "in an interval":
        limits = {"limits": "percent", "sigma_high": 5.42, "sigma_low": 0.28, "start_percent": 0.2, "end_percent": 0.8}
        prompt = replace(guided_only(**steps), "KSampler", "model", node, model="old", **limits)
    else:
        prompt = workflow(name, GuidekitAdaptiveGuidance={"threshold": 0.9}, **steps)
    server.run(prompt)
    [node_id] = [key for key, n in prompt.items() if n["class_type"] == node and key in server.told]
    assert re.match(text, server.told[node_id])
    assert re.search(rf"\(node {node_id}, sampler node \d+\): {re.escape(server.told[node_id])}", server.log)


def test_the_report_is_in_the_history_of_every_run(server):
    """Of patched models and of nodes that report while executing, in the graph's order; repeated if all is cached."""
    prompt = workflow("adaptive_guidance", KSampler={"steps": 12})
    prompt = {key: node for key, node in prompt.items() if node["class_type"] not in ("GuidekitReport", "PreviewAny")}
    for sampler in [key for key, node in prompt.items() if node["class_type"] == "KSampler"]:
        prompt[f"report {sampler}"] = {"class_type": "GuidekitReport", "inputs": {"sampled": [sampler, 0]}}
    first, again = (report_of(server.run(prompt)) for _ in range(2))
    [adaptive] = [key for key, node in prompt.items() if node["class_type"] == "GuidekitAdaptiveGuidance"]
    assert first == again
    assert sum(f"Adaptive guidance (node {adaptive}, sampler node " in text for text in first.values()) == 1
    prompt["shown"] = {"class_type": "PreviewAny", "inputs": {"source": [next(iter(first)), 1]}}
    assert report_of(server.run(prompt)) == first | {"shown": next(iter(first.values()))}


def report_of(outputs: dict) -> dict[str, str]:
    """The texts among the outputs of a run, by node."""
    return {node_id: "".join(output["text"]) for node_id, output in outputs.items() if "text" in output}


def test_the_page_asks_which_messages_hold(server):
    server.run(prompt := workflow("adaptive_guidance", KSampler={"steps": 6}))
    [adaptive] = [key for key, node in prompt.items() if node["class_type"] == "GuidekitAdaptiveGuidance"]
    lines = [line for entry in server.get("/guidekit/told")["entries"] for line in entry["lines"]]
    assert server.told[adaptive] in [line["text"] for line in lines if line["node"] == adaptive]
    page = urllib.request.urlopen(f"{server.url}/extensions/guidekit/guidekit.js").read().decode()
    assert "/guidekit/told" in page


def test_help_templates_and_translations_are_served(server):
    # The frontend asks for the second in every language but English, and for the first in English.
    for path in ("GuidekitAPG/en.md", "GuidekitAPG.md"):
        help_page = urllib.request.urlopen(f"{server.url}/extensions/guidekit/docs/{path}").read().decode()
        assert help_page.startswith("# Adaptive Projected Guidance")
    titles = [made.title for made in TEMPLATES]
    assert sorted(server.get("/workflow_templates")["guidekit"]) == sorted(titles)
    assert "GuidekitAPG" in server.get("/i18n")["en"]["nodeDefs"]


def test_the_log_is_clean(server):
    bad = [
        line for line in server.log.splitlines() if any(word in line for word in ("Error", "Exception", "Traceback"))
    ]
    assert bad == []
    assert "guidekit" in server.log  # the import times: the pack was loaded
    assert "IMPORT FAILED" not in server.log


def guided_only(**changes) -> dict:
    """The workflow without its plain branch, which ComfyUI would otherwise run alone if the other one is invalid."""
    prompt = workflow(**changes)
    saves = [k for k, node in prompt.items() if node["inputs"].get("filename_prefix") == "guidekit/cfg"]
    return {k: node for k, node in prompt.items() if k not in saves}


BAD = {
    "range": (guided_only(GuidekitAPG={"start_percent": 0.8, "end_percent": 0.2}), "nothing lies between them"),
    "eta": (guided_only(GuidekitAPG={"eta": 3.0}), "bigger than max.*eta"),
    "family": (workflow(GuidekitDemoModel={"family": "sdxl"}), "Value not in list"),
    "nan": (replace(guided_only(), "GuidekitAPG", "model", "TestNaNModel", model="old"), "holds NaN or infinity"),
    "channels": (
        replace(guided_only(), "KSampler", "latent_image", "TestLatent", batch=1, channels=4),
        "The latent has 4 channels",
    ),
    "batch": (
        replace(guided_only(), "KSampler", "latent_image", "TestLatent", batch=0, channels=12),
        "batch of 0",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_answered_and_the_next_prompt_works(server, case):
    prompt, sentence = BAD[case]
    with pytest.raises(PromptError, match=sentence):
        server.run(prompt)
    seed = 100 + list(BAD).index(case)
    assert images(server, workflow(KSampler={"steps": 2, "seed": seed}))


# What feeds the sockets of a node under test, by their type.
SOURCES = {
    "MODEL": ["model", 0],
    "CLIP": ["model", 1],
    "VAE": ["model", 2],
    "CONDITIONING": ["prompt", 0],
    "GUIDER": ["guider", 0],
    "SAMPLER": ["sampler", 0],
    "SIGMAS": ["sigmas", 0],
    "LATENT": ["latent", 0],
    "MASK": ["mask", 0],
    "GUIDEKIT_CLASSIFIER": ["classifier", 0],
    "GUIDEKIT_CANDIDATES": ["candidates", 0],
}
FEEDING = {
    "model": ("GuidekitDemoModel", {"family": "unet"}),
    "prompt": ("CLIPTextEncode", {"text": "a small blue cube", "clip": ["model", 1]}),
    "guider": (
        "CFGGuider",
        {"model": ["model", 0], "positive": ["prompt", 0], "negative": ["prompt", 0], "cfg": 2.0},
    ),
    "sampler": ("KSamplerSelect", {"sampler_name": "euler"}),
    "sigmas": ("BasicScheduler", {"model": ["model", 0], "scheduler": "simple", "steps": 2, "denoise": 1.0}),
    "latent": ("TestLatent", {"batch": 1, "channels": 12}),
    "mask": ("SolidMask", {"value": 1.0, "width": 16, "height": 16}),
    "classifier": ("GuidekitImageClassifier", {"file": "demo", "labels": ""}),
    "candidates": (
        "GuidekitCandidates",
        {"clip": ["model", 1], "prompt": "a {slot} square", "words": "red\nblue"},
    ),
}
# In place of a link or a number.
LITERAL = {"null": None, "NaN": float("nan"), "dict": {}, "text": "<img src=x>\x1b[31m"}
LINKED = ("NaN", "null", "dict", "digits", "tensor")  # see breaking_nodes
TAKES_ANYTHING = ("STRING", "BOOLEAN")  # the host makes a text, or true or false, of what is literal


def one_input_of_each_type(server: Server) -> dict[str, tuple[str, dict, str]]:
    """(node, its right inputs, name of the input), by the type of the input."""
    found = {}
    for class_type, info in server.get("/object_info").items():
        if not class_type.startswith("Guidekit"):
            continue
        wanted = {name: (kind, *rest, {})[:2] for name, (kind, *rest) in info["input"].get("required", {}).items()}
        given = {n: SOURCES.get(kind, options.get("default", "demo")) for n, (kind, options) in wanted.items()}
        optional = {name: kind for name, (kind, *_) in info["input"].get("optional", {}).items()}
        for name, kind in {**{n: kind for n, (kind, _) in wanted.items()}, **optional}.items():
            found.setdefault(kind, (class_type, given, name))
    return found


def test_every_type_of_input(server):
    """Literally, as JSON can spell it, and through a link of any type: it is refused by the host's validation, or by a
    sentence of ours, at this node. tests/host/test_bad_input.py has every input of every node, without a server."""
    taken = []
    for kind, (class_type, given, name) in one_input_of_each_type(server).items():
        tried = {f"literally {what}": (value, None) for what, value in LITERAL.items()}
        tried |= {f"linked {what}": (["any", 0], what) for what in LINKED}
        for how, (value, what) in tried.items():
            nodes = {**FEEDING, "node": (class_type, {**given, name: value})}
            nodes |= {"shown": ("PreviewAny", {"source": ["node", 0]})}
            nodes |= {"any": ("TestAnything", {"what": what})} if what else {}
            try:
                server.run({key: {"class_type": node, "inputs": inputs} for key, (node, inputs) in nodes.items()})
                taken.append((kind, how))
            except PromptError as error:
                sentence = str(error).split(f"node node ({class_type}): ")[1]
                if sentence.startswith("ValueError: "):
                    assert sentence.isprintable(), (kind, how)
                    assert sentence.endswith("."), (kind, how)
                    assert len(sentence) < 2100, (kind, how)
                else:
                    assert how.startswith("literally"), (kind, how, sentence[:500])
    allowed = {(kind, f"literally {what}") for kind in TAKES_ANYTHING for what in LITERAL}
    # Passed on, or not looked at.
    allowed |= {(kind, how) for kind, how in taken if kind in ("COMFY_MATCHTYPE_V3", "*")}
    allowed |= {(kind, f"{how} null") for kind in ("VAE", "MASK", "CURVE") for how in ("literally", "linked")}
    assert set(taken) <= allowed | {("STRING", "linked digits")}
    assert images(server, workflow(KSampler={"steps": 2, "seed": 77}))


def test_metadata_of_files_is_shown_as_text(server):
    """In the frontend of the oldest host it would run as a script."""
    folder = server.models / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    title = {"modelspec.title": "<img src=x onerror=alert(1)> [[safe|https://example.org]]"}
    save_file(load_file(WEIGHTS / "liked_unet.safetensors"), folder / "titled.safetensors", title)
    prompt = workflow("preference_lora", GuidekitPreferenceLoraLoader={"file": "titled.safetensors"})
    server.run(prompt)
    told = [text for text in server.told.values() if "Title" in text]
    assert told
    assert not any(markup in text for text in told for markup in ("<", "[["))


def test_an_interrupted_prompt_leaves_no_trace(server):
    def stop(done, _total, _node):
        if done >= 2:  # the host tells of steps at most ten times a second
            server.interrupt()

    with pytest.raises(PromptError, match="interrupted"):
        server.run(guided_only(KSampler={"steps": 1000, "seed": 900}), stop)
    prompt = workflow(KSampler={"steps": 4, "seed": 900})
    again = images(server, prompt)
    with Server() as fresh:
        reference = images(fresh, prompt)
    assert len(again) == len(reference)
    for (_, ours), (_, theirs) in zip(sorted(again.items()), sorted(reference.items())):
        assert (ours == theirs).all()


def test_unusual_but_valid_settings_work(server):
    for settings in ({"cfg": 0.0}, {"cfg": 1.0}, {"steps": 1}, {"sampler_name": "heun"}, {"denoise": 0.5}):
        assert images(server, workflow(KSampler={"steps": 2, "seed": 7} | settings))


def test_an_inversion_of_an_earlier_run_is_loaded(server):
    """By its name, which the running server has to find."""
    prompt = workflow("save_inversion")
    made = images(server, prompt)
    unwanted = ("GuidekitExactInvert", "GuidekitSaveInversion", "SaveImage")
    later = {k: v for k, v in prompt.items() if v["class_type"] not in unwanted or "3_" in str(v["inputs"])}
    [load] = [node for node in later.values() if node["class_type"] == "GuidekitLoadInversion"]
    load["inputs"]["file"] = "demo_inversion.safetensors"
    again = images(server, later)
    first, second = ([p for name, p in sorted(run.items()) if name.startswith("3_")] for run in (made, again))
    assert len(second) == 4
    assert all((a == b).all() for a, b in zip(first, second))
    load["inputs"]["file"] = "another.safetensors"
    with pytest.raises(PromptError, match="another.safetensors"):
        server.run(later)


def test_files_of_any_kind_are_answered(server):
    """Each is refused with a sentence and the server goes on; then the valid file."""
    folder = server.models / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    good = (WEIGHTS / "liked_unet.safetensors").read_bytes()
    prompt = workflow("preference_lora")
    files = {
        "cut.safetensors": (good[:5000], "is not a whole safetensors file"),
        "half.safetensors": (good[: len(good) // 2], "is not a whole safetensors file"),
        "pickle.safetensors": (b"\x80\x02}q\x00.aaaaaaaaaa", "is a pickle"),
        "huge.safetensors": ((2**50).to_bytes(8, "little") + b"{}", "header too large"),
        "other.safetensors": ((WEIGHTS / "judge.safetensors").read_bytes(), "Accepted: LoRA"),
        "dit.safetensors": ((WEIGHTS / "liked_dit.safetensors").read_bytes(), "none of its .* names belongs"),
    }
    for name, (content, sentence) in files.items():
        (folder / name).write_bytes(content)
        bad = copy.deepcopy(prompt)
        for node in bad.values():
            if node["class_type"] == "GuidekitPreferenceLoraLoader":
                node["inputs"]["file"] = name
        with pytest.raises(PromptError, match=sentence):
            server.run(bad)
    (folder / "good.safetensors").write_bytes(good)
    [liked] = [n for n in prompt.values() if n["inputs"].get("file") == "demo: liked"]

    def third_row() -> list[np.ndarray]:
        return [image for name, image in sorted(images(server, prompt).items()) if name.startswith("3_")]

    first = third_row()
    liked["inputs"]["file"] = "good.safetensors"
    assert [(a == b).all() for a, b in zip(first, third_row(), strict=True)] == [True] * 4
