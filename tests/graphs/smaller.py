"""A sampler of a host's template with all that it depends on, at a size that a test can afford: tiny networks in the
place of loaders, small pictures, few steps. Nodes that only resize pictures, add LoRAs or preprocess by a model of
another kind are passed by; everything else is the template's own."""

import copy
import re

from guidekit.nodes.host.run.told import lineage
from guidekit.templates.graph import Info

from .selection import FILES, LORAS, Case, Graphs, Prompt

SIDE, FRAMES, STEPS = 64, 5, 4
SPLIT = STEPS // 2
# Inputs by name, whether they are numbers or links.
NUMBERS = {
    **dict.fromkeys(("width", "height", "resize_type.width", "resize_type.height", "resolution"), SIDE),
    **dict.fromkeys(("left", "right", "top", "bottom"), 16),
    **dict.fromkeys(("length", "num_frames", "frames", "video_frames", "chunk_length", "batch_length"), FRAMES),
    **dict.fromkeys(("steps",), STEPS),
    **dict.fromkeys(("step",), SPLIT),
    "megapixels": 0.01,
    **dict.fromkeys(("motion_frame_count", "previous_frame_count"), 1),
    "layers": 2,
}
# Passed by: the first input of the output's type goes through.
PASSED_BY = (
    *("FluxKontextImageScale", "ImageScale", "ImageScaleBy", "ImageScaleToMaxDimension", "ImageScaleToTotalPixels"),
    *("ImageStitch", "ImageUpscaleWithModel", "ResizeAndPadImage", "ResizeImageMaskNode", "ResizeImagesByLongerEdge"),
    *("LoraLoader", "LoraLoaderModelOnly", "USOStyleReference", "ColorTransfer", "Video Slice"),
)
PICTURE, VIDEO = {"class_type": "TestPicture", "inputs": {"frames": 1}}, {"class_type": "TestVideo", "inputs": {}}
# (channels, pixels to a side of one, video, colours), by a part of the file's name.
AUTOENCODERS = {
    r"flux2|full_encoder_small_decoder": (128, 16, False, 3),
    r"wan2\.2_vae": (48, 16, True, 3),
    r"hunyuanvideo15": (32, 16, True, 3),
    r"layered": (16, 8, True, 4),
    r"wan_2\.1|Wan2_1|wan_alpha|qwen_image_vae|hunyuan_video_vae": (16, 8, True, 3),
    r"^ae\.": (16, 8, False, 3),
    r"vae-ft-mse": (4, 8, False, 3),
}
CHECKPOINTS = {"SD3.5": 16, "Flux": 16, "Flux schnell": 16, "Lumina": 16}  # channels of their autoencoder; else 4
PATCHES = {
    r"qwen_image": "Qwen-Image",
    r"Z-Image.*2\.1": "Z-Image 2.1",
    r"Z-Image": "Z-Image",
    r"infiniteTalk": "InfiniteTalk",
}
# What is seen of pictures by models of another kind: outputs of (class, frames, output of the picture that stands in).
SEEN = {("SCAIL2ColoredMask", 0): (FRAMES, 0), ("SCAIL2ColoredMask", 1): (1, 0), ("SAM3_Detect", 0): (FRAMES, 1)}
CONTROL_WIDTH = {r"sd3": 128, r"[Qq]wen": 32}
_SOCKETS = ("IMAGE", "MASK", "LATENT", "CONDITIONING", "MODEL", "VAE", "CLIP_VISION_OUTPUT")


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def small(case: Case, graphs: Graphs) -> tuple[Prompt, str]:
    """The sampler of a case with all that it depends on, and its id."""
    prompt, info = copy.deepcopy(graphs.prompts[case.template]), graphs.info
    # The node of the case, or the one that it guides.
    target = next((i for i, n in prompt.items() if n["inputs"].get("guider") == [case.node, 0]), case.node)
    for node_id in list(prompt):
        _replace(prompt, node_id)
    for each in prompt.values():
        _complete(each, info)
        _shrink(each)
    for each in prompt.values():
        for name, value in each["inputs"].items():
            each["inputs"][name] = _past(prompt, value, info)
    _smaller_references(prompt)
    return {node_id: prompt[node_id] for node_id in lineage(prompt, target)}, target


def _named(table: dict, name: str):
    return next((value for pattern, value in table.items() if re.search(pattern, name)), None)


def _replace(prompt: Prompt, node_id: str) -> None:
    """The tiny network, or what else stands in, for the node."""
    each = prompt[node_id]
    inputs, kind = each["inputs"], each["class_type"]
    if kind in ("UNETLoader", "CheckpointLoaderSimple"):
        name = inputs.get("unet_name") or inputs["ckpt_name"]
        model = _named(FILES, name)
        if model is None:
            return
        loras = " ".join(str(n["inputs"].get("lora_name", "")) for n in prompt.values())
        if model == "Flux":
            model = _named(LORAS, loras) or model
        prompt[node_id] = node("TestModel", kind=model)
        if kind == "CheckpointLoaderSimple":
            channels = CHECKPOINTS.get(model, 4)
            prompt[f"{node_id} texts"] = node("TestTexts")
            prompt[f"{node_id} vae"] = node("TestVAE", channels=channels, block=8, video=False, colours=3)
            _move(prompt, node_id, {1: [f"{node_id} texts", 0], 2: [f"{node_id} vae", 0]})
    elif kind.endswith("CLIPLoader"):
        prompt[node_id] = node("TestTexts")
    elif kind == "VAELoader":
        if inputs["vae_name"] != "pixel_space" and (made := _named(AUTOENCODERS, inputs["vae_name"])):
            channels, block, video, colours = made
            prompt[node_id] = node("TestVAE", channels=channels, block=block, video=video, colours=colours)
    elif kind == "CLIPVisionLoader":
        prompt[node_id] = node("TestVision")
    elif kind == "StyleModelLoader":
        prompt[node_id] = node("TestStyle")
    elif kind == "ControlNetLoader":
        prompt[node_id] = node("TestControlNet", width=_named(CONTROL_WIDTH, inputs["control_net_name"]))
    elif kind == "ModelPatchLoader":
        if patch := _named(PATCHES, inputs["name"]):
            prompt[node_id] = node("TestModelPatch", kind=patch)
    elif (kind, 0) in SEEN:
        outputs = {output: given for (name, output), given in SEEN.items() if name == kind}
        _move(prompt, node_id, {output: _picture(prompt, *given) for output, given in outputs.items()})
    elif kind in ("LoadImage", "LoadImageMask", "Painter", "DA3Render", "MoGeRender"):
        prompt[node_id] = copy.deepcopy(PICTURE)
    elif kind == "LoadVideo":
        prompt[node_id] = copy.deepcopy(VIDEO)
    elif kind == "LoadAudio":
        prompt[node_id] = node("TestAudio")
    elif kind == "AudioEncoderEncode":
        loader = prompt[inputs["audio_encoder"][0]]["inputs"]["audio_encoder_name"]
        encoder = next(name for name in ("wav2vec2_large", "wav2vec2-chinese", "whisper") if loader.startswith(name))
        prompt[node_id] = node("TestHeard", encoder=encoder)


def _move(prompt: Prompt, node_id: str, outputs: dict[int, list]) -> None:
    """Links from outputs of a node begin elsewhere."""
    for other in prompt.values():
        for key, value in other["inputs"].items():
            if isinstance(value, list) and value[:1] == [node_id] and value[1] in outputs:
                other["inputs"][key] = outputs[value[1]]


def _picture(prompt: Prompt, frames: int, output: int) -> list:
    prompt[f"pictures {frames}"] = node("TestPicture", frames=frames)
    return [f"pictures {frames}", output]


def _shrink(each: dict) -> None:
    inputs, kind = each["inputs"], each["class_type"]
    if kind.startswith("Test"):
        return
    for name, value in NUMBERS.items():
        if isinstance(inputs.get(name), (int, float, list)):
            inputs[name] = value
    if kind == "KSamplerAdvanced":
        first = inputs.get("add_noise") == "enable"
        inputs |= {"start_at_step": 0 if first else SPLIT, "end_at_step": SPLIT if first else 10000}


def _complete(each: dict, info: Info) -> None:
    """The values of widgets that a subgraph shows as its own, which the converter loses."""
    inputs = each["inputs"]
    for name, spec in info[each["class_type"]]["input"].get("required", {}).items():
        if name not in inputs and len(spec) > 1 and "default" in spec[1]:
            inputs[name] = spec[1]["default"]
    for name, spec in info[each["class_type"]]["input"].get("optional", {}).items():
        if isinstance(spec[0], str) and spec[0] in _SOCKETS and name in inputs and not isinstance(inputs[name], list):
            del inputs[name]  # the converter counts the widgets of older versions of a node
    for letter in re.findall(r"\b[a-z]\b", inputs.get("expression", "") if "ComfyMath" in each["class_type"] else ""):
        inputs.setdefault(f"values.{letter}", 1)


def _past(prompt: Prompt, value, info: Info):
    """A link past the nodes that are passed by."""
    while isinstance(value, list) and len(value) == 2 and value[0] in prompt:
        source = prompt[value[0]]
        if source["class_type"] not in PASSED_BY:
            return value
        wanted = info[source["class_type"]]["output"][value[1]]
        value = _first_of_type(prompt, source, wanted, info)
    return value


def _first_of_type(prompt: Prompt, source: dict, wanted: str, info: Info):
    for link in source["inputs"].values():
        if isinstance(link, list) and link[0] in prompt:
            outputs = info[prompt[link[0]]["class_type"]]["output"]
            kind = outputs[link[1]] if link[1] < len(outputs) else "*"
            if kind == wanted or "*" in (kind, wanted) or "MATCH" in kind or "MATCH" in wanted:
                return link
    raise LookupError(f"{source['class_type']} has no input of type {wanted}")


def _smaller_references(prompt: Prompt) -> None:
    """Text encoders for edits scale their pictures to a million pixels."""
    for node_id, each in list(prompt.items()):
        if each["class_type"].startswith("TextEncode"):
            moved = f"{node_id} whole"
            prompt[moved] = each
            prompt[node_id] = node("TestSmall", conditioning=[moved, 0], side=SIDE // 8)
