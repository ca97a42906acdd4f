"""The host's own templates for the families that this pack knows, in API form, and what is left out of them, by rule.

Taken: every template of the browser's index in which a sampler's model comes from a file that FILES names. Left out:
the index's parts for audio and 3D, templates with nodes that this host does not have (API nodes, those of other packs),
and samplers of models that FILES does not name.
"""

import json
import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path

import comfyui_workflow_templates_json
from comfy_cli.workflow_to_api import convert_ui_to_api

from guidekit.templates.graph import Info

# By a part of the name of the file: what stands in for the model (networks.py).
FILES = {
    r"v1-5-pruned|DreamShaper": "SD1.5",
    r"sd_xl_base|sd_xl_turbo": "SDXL",
    r"sd_xl_refiner": "SDXL refiner",
    r"lotus-depth": "Lotus",
    r"sd3\.5_large": "SD3.5",
    r"flux1-schnell": "Flux schnell",
    r"flux1-canny": "Flux canny",
    r"flux\.?1-fill|flux\.1-fill": "Flux fill",
    r"flux1-(dev|krea)": "Flux",
    r"flux2_dev": "Flux.2",
    r"flux-2-klein": "Flux.2 klein",
    r"chroma-radiance": "Chroma Radiance",
    r"Chroma1-HD": "Chroma",
    r"qwen_image_layered": "Qwen-Image-Layered",
    r"qwen_image_edit_2511": "Qwen-Image-Edit 2511",
    r"qwen_image|FireRed-Image-Edit-1.1": "Qwen-Image",
    r"wan2\.2_ti2v_5B": "Wan 2.2 5B",
    r"wan2\.2_fun_inpaint_5B": "Wan 2.2 5B inpaint",
    r"wan2\.2_fun_control_5B": "Wan 2.2 5B control",
    r"wan2\.1_fun_control": "Wan Fun Control",
    r"wan2\.2_fun_control": "Wan 2.2 Fun Control",
    r"wan2\.1_fun_camera": "Wan Camera",
    r"wan2\.2_fun_camera": "Wan 2.2 Camera",
    r"wan2\.1_vace": "Wan VACE",
    r"wan2\.2_s2v": "Wan S2V",
    r"humo_17B": "Wan HuMo",
    r"wan2\.2_dancer": "Wan Dancer",
    r"wan2\.1_14B_SCAIL_2": "Wan SCAIL-2",
    r"causal_forcing": "Wan causal",
    r"wan2\.1_flf2v": "Wan FLF2V",
    r"wan2\.2_(i2v|fun_inpaint)": "Wan 2.2 I2V",
    r"wan2\.1_(i2v|fun_inp)|chrono_edit|Wan2_1-I2V-ATI|WanMove": "Wan I2V",
    r"Wan2_1-I2V-14B": "Wan InfiniteTalk",
    r"wan2\.[12]_t2v|bernini": "Wan T2V",
    r"hunyuan_video_t2v": "HunyuanVideo",
    r"hunyuanvideo1\.5|capybara": "HunyuanVideo 1.5",
    r"NetaYume": "Lumina",
    r"z_image": "Z-Image",
    r"hidream_(i1|e1)": "HiDream",
}
# Models of other families, and two of these that are networks of their own: one samples text and pixels as tokens of a
# language model, the other's text is of two encoders.
OTHERS = (
    r"ltx|minimax|kandinsky|krea2|ideogram|anima|boogu|joyai|ernie|longcat|lens_|mage_flow|ovis|omnigen|pixeldit|"
    r"pid_|seedvr2|void_|svd|acestep|hunyuan_3d|sam3|hidream_o1|NewBie"
)
LOADERS = {"UNETLoader": "unet_name", "CheckpointLoaderSimple": "ckpt_name", "ImageOnlyCheckpointLoader": "ckpt_name"}
# A LoRA that changes what the network takes.
LORAS = {r"flux1-depth-dev-lora": "Flux canny"}
TAKE_A_MODEL = re.compile(r"(KSampler|SamplerCustom|Guider)")
_FOLDER = Path(comfyui_workflow_templates_json.__file__).parent / "templates"
_LEFT_OUT = ("audio", "3d")

Prompt = dict[str, dict]


@dataclass(frozen=True)
class Case:
    """A sampler of a template: `node` takes the model, a sampler or its guider. `kind`: of network (networks.py)."""

    template: str
    node: str
    kind: str


def names() -> list[str]:
    """Of all templates but those for audio and 3D."""
    index = json.loads((_FOLDER / "index.json").read_text("utf-8"))
    return [t["name"] for part in index if part.get("type") not in _LEFT_OUT for t in part["templates"]]


@dataclass(frozen=True)
class Graphs:
    """`prompts`: the templates that this host has all nodes of, in API form, as `comfy run` would queue them.
    `info`: /object_info."""

    info: Info
    prompts: dict[str, Prompt]

    def cases(self) -> list[Case]:
        """Every sampler of a model that FILES names."""
        kinds = {Case(t, n, ""): kind_of(p, n) for t, p in self.prompts.items() for n in model_takers(p)}
        return [replace(case, kind=kind) for case, kind in kinds.items() if kind]

    def files_that_no_rule_names(self) -> set[str]:
        """Of models that are sampled, and of which neither FILES nor OTHERS says what they are."""
        chains = (
            files_behind(prompt, prompt[node_id]["inputs"]["model"])
            for prompt in self.prompts.values()
            for node_id in model_takers(prompt)
            if kind_of(prompt, node_id) is None
        )
        return {" ".join(files) for files in chains if not re.search(OTHERS, " ".join(files))}


def graphs(info: Info) -> Graphs:
    logging.getLogger("comfy_cli").setLevel(logging.ERROR)  # of nodes that it does not know
    found = {}
    for name in names():
        prompt = convert_ui_to_api(json.loads((_FOLDER / f"{name}.json").read_text("utf-8")), info)
        if all(node["class_type"] in info for node in prompt.values()):
            found[name] = prompt
    return Graphs(info, found)


def model_takers(prompt: Prompt) -> list[str]:
    """The nodes that sample a model, or guide one that is sampled."""
    return [
        node_id
        for node_id, node in prompt.items()
        if TAKE_A_MODEL.search(node["class_type"]) and isinstance(node["inputs"].get("model"), list)
    ]


def files_behind(prompt: Prompt, link: list) -> list[str]:
    """The names of the files that a model is made of: loaders' and LoRAs', the nearest first."""
    node = prompt[link[0]]
    values = [node["inputs"].get(name) for name in (LOADERS.get(node["class_type"]), "lora_name") if name]
    found = [value for value in values if isinstance(value, str)]
    for name in ("model", "on_true", "on_false"):
        if isinstance(node["inputs"].get(name), list):
            found += files_behind(prompt, node["inputs"][name])
    return found


def kind_of(prompt: Prompt, node_id: str) -> str | None:
    """Of the model that a node takes; None for other families."""
    files = files_behind(prompt, prompt[node_id]["inputs"]["model"])
    for table, chosen in ((LORAS, files), (FILES, files[-1:])):
        for pattern, kind in table.items():
            if any(re.search(pattern, file) for file in chosen):
                return kind
    return None
