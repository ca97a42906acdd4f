"""Templates for real models, unchanged but smaller, on tiny networks under the models' names."""

import copy
import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from comfy_cli.workflow_to_api import convert_ui_to_api
from PIL import Image

from guidekit.demo.server import PACK, Server
from guidekit.nodes.host.network.families import families_with_second_text
from guidekit.sweep import PromptError
from guidekit.templates import BLUEPRINTS, edits, models, real
from guidekit.tests.headless import stand_in_nodes as stand_ins
from guidekit.tests.schema.blueprint_use import workflow_with

NAMES = [made.name for made in (*real.TEMPLATES, *edits.TEMPLATES)]
TAUGHT = ("train_preference_sdxl", "train_preference_flux_dev")
NO_VOTE = r"There is no vote to train on\."
# The host knows the sizes of these beforehand: a tiny network stands in for their loader. All others are loaded by it.
FAMILIES = {
    models.SDXL_BASE.name: "unet sdxl",
    models.SD15_BASE.name: "unet",
    models.SD35_MEDIUM.name: "sd3",
    models.Z_IMAGE_TURBO.name: "lumina2",
    models.QWEN_IMAGE.name: "qwen_image",
    models.CHROMA_HD.name: "chroma",
}
SMALL = {"width": 64, "height": 64, "length": 5, "megapixels": 0.01, "steps": 6, "batch_size": 2}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(extra_nodes=[Path(__file__).parent / "stand_in_nodes"]) as running:
        write_files(running.models)
        photo = running.models.parent / "input" / "example.png"
        photo.parent.mkdir(exist_ok=True)
        # Half of it painted over, as the mask editor leaves it.
        image = Image.linear_gradient("L").convert("RGBA")
        image.putalpha(Image.linear_gradient("L").point(lambda level: 255 * (level > 127)))
        image.save(photo)
        yield running


def write_files(folder: Path) -> None:
    def path(file: models.File) -> Path:
        found = folder / file.directory / file.name
        found.parent.mkdir(parents=True, exist_ok=True)
        return found

    stand_ins.write_diffusion_model(path(models.FLUX_DEV), "flux", guidance_embed=True)
    stand_ins.write_diffusion_model(path(models.FLUX_SCHNELL), "flux", guidance_embed=False)
    for noise in ("high", "low"):
        stand_ins.write_diffusion_model(path(models.WAN22[noise]), "wan")
        inside = "diffusion_model.blocks.0.self_attn.q"
        keys = (f"{inside}.lora_down.weight", f"{inside}.lora_up.weight")
        stand_ins.write_lora(path(models.WAN22_4_STEPS[noise]), "wan", "blocks.0.self_attn.q.weight", *keys)
    inside = "transformer_blocks.0.attn.to_q"
    keys = (f"{inside}.lora_down.weight", f"{inside}.lora_up.weight")
    stand_ins.write_lora(path(models.QWEN_LIGHTNING), "qwen_image", f"{inside}.weight", *keys)
    inside = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    weight = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    stand_ins.write_lora(
        path(models.SPO_SDXL), "unet sdxl", weight, f"{inside}.lora.down.weight", f"{inside}.lora.up.weight"
    )
    stand_ins.write_lora(
        path(models.NPO_SDXL), "unet sdxl", weight, f"{inside}.lora_A.weight", f"{inside}.lora_B.weight"
    )
    stand_ins.write_whole_network(path(models.KTO_SD15), "unet")
    for file in (models.FLUX_VAE, models.Z_IMAGE_VAE):
        stand_ins.write_vae(path(file), of_video=False)
    for file in (models.QWEN_VAE, models.WAN_VAE):
        stand_ins.write_vae(path(file), of_video=True)


def small(name: str) -> dict[str, dict]:
    """The template with tiny networks, tiny images and few steps, and the latents of its samplers as numbers."""
    prompt = json.loads((PACK / "workflows" / "api" / f"{name}.json").read_text("utf-8"))
    for node_id, node in [*prompt.items()]:
        node["inputs"] |= {
            key: value for key, value in SMALL.items() if isinstance(node["inputs"].get(key), (int, float))
        }
        if node["class_type"] == "KSamplerAdvanced":
            middle = SMALL["steps"] // 2
            first = node["inputs"]["start_at_step"] == 0
            node["inputs"] |= {"start_at_step": 0 if first else middle, "end_at_step": middle if first else 10000}
        if node["class_type"] == "GuidekitFreCaSPlan":
            sizes = [int(size) // 16 for size in node["inputs"]["sizes"].split(",")]
            node["inputs"] |= {"sizes": ", ".join(map(str, sizes)), "steps": ", ".join(["2"] * len(sizes))}
        if node["inputs"].get("blocks", "").startswith("7"):  # of SD3.5 medium's 24
            node["inputs"]["blocks"] = "1"
        family = next((FAMILIES[v] for v in node["inputs"].values() if isinstance(v, str) and v in FAMILIES), None)
        kind = node["class_type"]
        if kind == "CheckpointLoaderSimple" or kind == "UNETLoader" and family:
            stand_in = "TestCheckpoint" if kind == "CheckpointLoaderSimple" else "TestDiffusionModel"
            node |= {"class_type": stand_in, "inputs": {"family": family}}
        elif kind in ("CLIPLoader", "DualCLIPLoader"):
            node |= {"class_type": "TestTextEncoder", "inputs": {}}
        elif kind == "CLIPVisionLoader":
            node |= {"class_type": "TestVision", "inputs": {}}
        elif kind in ("VAEDecode", "VAEDecodeTiled"):
            prompt[f"numbers {node_id}"] = {
                "class_type": "TestNumbers",
                "inputs": {"samples": node["inputs"]["samples"]},
            }
    return prompt


def bypassed(prompt: dict[str, dict]) -> dict[str, dict]:
    """Without the nodes that take a model and give one, as Ctrl+B does it."""
    prompt = copy.deepcopy(prompt)
    through = {
        node_id: node["inputs"]["model"]
        for node_id, node in prompt.items()
        if node["class_type"].startswith("Guidekit") and "model" in node["inputs"]
        if not node["class_type"].startswith("GuidekitFreCaS")  # which give none
    }
    for node in prompt.values():
        for key, value in node["inputs"].items():
            while isinstance(value, list) and value[0] in through:
                value = through[value[0]]
            node["inputs"][key] = value
    return {node_id: node for node_id, node in prompt.items() if node_id not in through}


def numbers(outputs: dict[str, dict]) -> list[str]:
    return [outputs[key]["text"][0] for key in sorted(outputs) if key.startswith("numbers")]


@pytest.mark.parametrize("blueprint", BLUEPRINTS, ids=lambda made: made.title)
def test_blueprints_run(server, blueprint):
    info = server.get("/object_info")
    prompt = convert_ui_to_api(workflow_with(blueprint, info), info)
    for node in prompt.values():
        node["inputs"] |= {"steps": 3} if isinstance(node["inputs"].get("steps"), int) else {}
    outputs = server.run(prompt)
    assert any(output.get("images") for output in outputs.values())


@pytest.mark.parametrize("name", TAUGHT)
def test_votes_by_hand_are_learned(server, name):
    """The first run shows images, and says that there is no vote on them yet; the second one trains and uses the
    LoRA."""
    prompt = small(name)
    for node in prompt.values():
        if "batch_size" in node["inputs"]:
            node["inputs"]["batch_size"] = 8
        if node["class_type"] == "GuidekitTrainPreference":
            node["inputs"] |= {"steps": 2, "preview_every": 1}
    with pytest.raises(PromptError, match=NO_VOTE):
        server.run(prompt)
    tag = next(node["inputs"]["tag"] for node in prompt.values() if node["class_type"] == "GuidekitVotes")
    shown = server.get(f"/guidekit/votes?tag={tag}")["images"]
    assert len(shown) == 16
    for vote, images in ((1, shown[::2]), (-1, shown[1::2])):
        post(server, {"do": "vote", "ids": [image["id"] for image in images], "vote": vote})
    outputs = server.run(prompt)
    [trainer] = [node_id for node_id, node in prompt.items() if node["class_type"] == "GuidekitTrainPreference"]
    assert f"{tag}.safetensors: {prompt[trainer]['inputs']['objective']} on " in server.told[trainer]
    assert all(text.startswith("True") for text in numbers(outputs))
    [kept] = (server.models / "loras" / "guidekit").glob(f"{tag}.safetensors")
    assert kept.stat().st_size > 1000


def post(server: Server, body: dict) -> None:
    request = urllib.request.Request(f"{server.url}/guidekit/votes", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    urllib.request.urlopen(request).close()


@pytest.mark.parametrize("name", sorted({*NAMES} - {*TAUGHT}))
def test_runs_and_acts(server, name):
    """It gives images without a warning, and its technique changes them."""
    if name == "nag_wan" and "Wan" not in families_with_second_text():
        pytest.skip("NAG does not reach Wan")
    prompt = small(name)
    outputs = server.run(prompt)
    saved = [output for output in outputs.values() if output.get("images")]
    assert len(saved) == sum(node["class_type"].startswith("Save") for node in prompt.values())
    found = numbers(outputs)
    assert found
    assert all(text.startswith("True") for text in found)
    plain = bypassed(prompt)
    if plain != prompt:
        assert numbers(server.run(plain)) != found


def test_negtome_keeps_away_from_an_image_of_an_earlier_run(server):
    """One image at a time: the saved image of the previous run, encoded, is the reference of the next one."""
    prompt = small("negtome_reference_z_image_turbo")
    kinds = {node["class_type"]: node_id for node_id, node in prompt.items()}
    prompt[kinds["EmptySD3LatentImage"]]["inputs"]["batch_size"] = 1
    saved = [image for output in server.run(prompt).values() for image in output.get("images", ())]
    assert len(saved) == 2
    found = [numbers(server.run(bypassed(prompt)))]
    vae = prompt[kinds["VAEDecode"]]["inputs"]["vae"]
    for image in saved:
        later = copy.deepcopy(prompt)
        name = f"{image['subfolder']}/{image['filename']} [output]"
        later["earlier"] = {"class_type": "LoadImage", "inputs": {"image": name}}
        later["encoded"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["earlier", 0], "vae": vae}}
        later[kinds["GuidekitNegToMe"]]["inputs"]["latent"] = ["encoded", 0]
        found.append(numbers(server.run(later)))
    first, second = zip(*found)
    assert (len(set(first)), len(set(second))) in ((1, 3), (3, 1)), "it changes the image that it is put before, alone"


def test_the_log_is_clean(server):
    bad = ("Error", "Exception", "Traceback", "lora key not loaded", "missing", "IMPORT FAILED")
    log = re.sub(f"(?s)!!! Exception during processing !!! {NO_VOTE}.*?ValueError: {NO_VOTE}", "", server.log)
    assert [line for line in log.splitlines() if any(word in line for word in bad)] == []
