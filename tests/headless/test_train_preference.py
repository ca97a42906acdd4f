"""A taste from end to end, in a real server: images, votes by a rule, a LoRA of them, images with it; and what is left
when the server is killed while it trains."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from guidekit.benchmarks._demo import found_in
from guidekit.demo.server import PACK, Server
from guidekit.demo.world.scenes import COLOURS
from guidekit.sweep import PromptError, ServerError

LIKED = ("blue", "cyan")  # a solid of blue metal, which the rule likes, is taken for either
VOTED = 24


@pytest.fixture(scope="module")
def server():
    with Server() as running:
        yield running


def template(images: int = VOTED, **trained) -> dict[str, dict]:
    """The template on a demo model, with fewer images; `trained`: inputs of the trainer."""
    prompt = json.loads((PACK / "workflows" / "api" / "train_preference.json").read_text("utf-8"))
    for node in prompt.values():
        if node["inputs"].get("batch_size") == 16:
            node["inputs"]["batch_size"] = images // 2
        if "sampler_name" in node["inputs"]:
            node["inputs"]["steps"] = 10
        if node["class_type"] == "GuidekitTrainPreference":
            node["inputs"] |= {"steps": 2, **trained}
    return prompt


def node_of(prompt: dict, kind: str) -> str:
    return next(node_id for node_id, node in prompt.items() if node["class_type"] == kind)


def saved(server: Server, outputs: dict) -> dict[str, torch.Tensor]:
    """Images [n, 3, 64, 64] in 0..1, by the first letter of their names."""
    found: dict[str, list] = {}
    for image in (image for output in outputs.values() for image in output.get("images", ())):
        pixels = Image.open(io.BytesIO(server.view(image))).resize((64, 64), Image.Resampling.BOX)
        found.setdefault(image["filename"][0], []).append(np.asarray(pixels, dtype=np.float32) / 255)
    return {first: torch.from_numpy(np.stack(each)).movedim(-1, 1) for first, each in found.items()}


def liked(images: torch.Tensor) -> int:
    return sum(COLOURS[colour] in LIKED for colour in found_in(images).colour[:, 0].tolist())


def lora_file(server: Server, name: str) -> Path:
    return server.models / "loras" / "guidekit" / f"{name}.safetensors"


def test_a_taste_is_learned_and_used(server):
    prompt = template(steps=40, name="taught")
    trainer = node_of(prompt, "GuidekitTrainPreference")
    outputs = server.run(prompt)
    report = server.told[trainer]
    assert "guidekit" in report
    assert "taught.safetensors: KTO on " in report
    assert ", 40 steps" in report
    votes = server.get("/guidekit/votes")["counts"]
    assert votes["liked"] + votes["disliked"] == VOTED
    assert min(votes["liked"], votes["disliked"]) >= VOTED // 4
    images = saved(server, outputs)
    assert liked(images["1"]) <= 2
    assert liked(images["2"]) >= 3  # of four; the prompt says nothing of colours

    # The file, by core's loader, is what the trainer gave; no name in it is left over.
    loader = {"model": ["1", 0], "lora_name": [trainer, 1], "strength_model": 1.0}
    by_core = {**prompt, "core": {"class_type": "LoraLoaderModelOnly", "inputs": loader}}
    for node in by_core.values():
        if node["inputs"].get("model") == [trainer, 0]:
            node["inputs"]["model"] = ["core", 0]
    again = saved(server, server.run(by_core))
    assert (again["2"] - images["2"]).abs().max() <= 2 / 255
    assert "lora key not loaded" not in server.log


def test_too_few_votes_are_refused_with_a_sentence(server):
    prompt = template(images=2, name="few", random_seed=1)
    for node in prompt.values():
        if node["class_type"] in ("GuidekitVoteByRule", "GuidekitVotes"):
            node["inputs"]["tag"] = "few"
        if "seed" in node["inputs"]:
            node["inputs"]["seed"] += 100
    with pytest.raises(PromptError, match=r"There are \d liked and \d disliked images to train on"):
        server.run(prompt)
    assert not lora_file(server, "few").exists()


def test_a_server_that_is_killed_while_it_trains(tmp_path):
    """All votes are there, the LoRA of the last whole training, and the state to go on from."""
    options = ["--user-directory", str(tmp_path)]

    def interrupt(done, total, _node):
        if total == 5000 and done >= 2:
            running.interrupt()

    def kill(done, total, _node):
        if total == 5000 and done >= state["step"] + 2:
            running.process.process.kill()

    with Server(options=options) as running:
        running.run(template(name="kept"))
        kept, votes = lora_file(running, "kept").read_bytes(), running.get("/guidekit/votes")["counts"]
        assert votes["liked"] + votes["disliked"] == VOTED
        further = {"name": "kept", "steps": 5000, "random_seed": 1}
        with pytest.raises(PromptError, match="interrupted"):
            running.run(template(**further), interrupt)
        [path] = tmp_path.rglob("kept.safetensors")
        state = described(path)
        before = path.read_bytes()
        with pytest.raises(ServerError):
            running.run(template(**further), kill)
        assert lora_file(running, "kept").read_bytes() == kept
        assert path.read_bytes() == before
    with Server(options=options) as again:
        assert again.get("/guidekit/votes")["counts"] == votes
        prompt = template(**{**further, "steps": state["step"] + 2})
        again.run(prompt)
        assert f"It went on from step {state['step']}." in again.told[node_of(prompt, "GuidekitTrainPreference")]
        assert lora_file(again, "kept").exists()


def described(path: Path) -> dict:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["guidekit"])
