"""Classifiers and candidates as the nodes make them."""

import json
import math
import tempfile
from pathlib import Path

import comfy.sd
import comfy.sdxl_clip
import comfy.supported_models_base
import pytest
import torch
import torchvision
from comfy.clip_vision import ClipVisionModel
from safetensors.torch import save_file

from guidekit.benchmarks._nodes import run_node
from guidekit.demo.world.classifier import there
from guidekit.demo.world.models import load
from guidekit.demo.world.render import draw
from guidekit.demo.world.scenes import COLOURS, FLOORS, SHAPES, TIMES, generator_of, random_scenes
from guidekit.nodes.candidate import Candidate
from guidekit.nodes.candidates import Candidates
from guidekit.nodes.clip_classifier import CLIPClassifier
from guidekit.nodes.host.classifiers.image import load_classifier
from guidekit.nodes.host.classifiers.labels import Label
from guidekit.nodes.image_classifier import ImageClassifier
from guidekit.tests.host import guides, tiny
from guidekit.tests.maths.test_resnet import weights

NAMES = ("ant", "bee", "cow", "dog", "elk", "fox", "gnu")
LABELS = {"labels": "\n".join(NAMES)}


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """models/classifiers of this test."""
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "classifiers", ([str(tmp_path)], {""}))
    return tmp_path


def put(folder, metadata=None, name="zoo.safetensors", change=lambda state: state):
    state = weights(torchvision.models.resnet18(num_classes=len(NAMES)))
    save_file({k: v.contiguous() for k, v in change(state).items()}, folder / name, metadata)
    return name


def images(n=2, height=40, width=56):
    return torch.rand((n, 3, height, width), generator=torch.Generator().manual_seed(3))


# Image classifiers


def test_a_file_of_torchvision(folder):
    """As torchvision prepares images: the middle square, resized, normalised; and only the classes asked for."""
    name = put(folder)
    (folder / "zoo.txt").write_text("\n".join(NAMES) + "\n")
    classifier = run_node(ImageClassifier, file=name)
    found = classifier.among(guides.labels("fox", "bee"))(images())
    theirs = torchvision.models.resnet18(num_classes=len(NAMES)).eval()
    theirs.load_state_dict(weights(theirs))
    prepare = torchvision.transforms.Compose(
        [
            torchvision.transforms.CenterCrop(40),
            torchvision.transforms.Resize(224, antialias=True),
            torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    with torch.no_grad():
        wanted = theirs(prepare(images()))[:, [5, 1]]
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max())


@pytest.mark.parametrize("where", ["metadata", "txt", "json list", "json dict", "node"])
def test_names_of_classes(folder, where):
    lines = "\n".join(NAMES)
    name = put(folder, {"labels": lines} if where == "metadata" else None)
    if where == "txt":
        (folder / "zoo.txt").write_text(lines)
    if where == "json list":
        (folder / "zoo.json").write_text(json.dumps(NAMES))
    if where == "json dict":
        (folder / "zoo.json").write_text(json.dumps({str(i): word for i, word in reversed([*enumerate(NAMES)])}))
    classifier = run_node(ImageClassifier, file=name, labels=lines if where == "node" else "")
    assert classifier.labels == NAMES


def test_how_images_are_prepared_may_be_said(folder):
    name = put(folder, {"labels": "\n".join(NAMES), "size": "64", "mean": "0.5 0.4 0.3", "std": "0.1 0.2 0.3"})
    classifier = run_node(ImageClassifier, file=name)
    assert (classifier.size, classifier.mean, classifier.std) == (64, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))


def not_a_number(state):
    return {**state, "fc.bias": state["fc.bias"] * torch.nan}


@pytest.mark.parametrize(
    ("about", "sentence"),
    [
        ({}, "does not name its classes. Put zoo.txt beside it"),
        ({"metadata": {"labels": "ant\nbee"}}, "has 7 classes, and there are 2 labels"),
        *(
            ({"metadata": LABELS | {"size": size}}, "its size is .*; the side")
            for size in ("wide", "0", "-5", "20000", "9" * 5000)
        ),
        *(
            ({"metadata": LABELS | {"mean": mean}}, "its mean is .*; R, G and B")
            for mean in ("0.5 0.5", "a b c", "nan 0 0")
        ),
        *(
            ({"metadata": LABELS | {"std": std}}, "its std is .*; R, G")
            for std in ("0 1 1", "1 -1 1", "1e-50 1 1", "inf 1 1")
        ),
        ({"metadata": {"labels": "\n".join(NAMES[:6]) + "\n" + "x" * 2000}}, "a name of 2000 characters"),
        ({"change": lambda state: {**state, "fc.bias": state["fc.bias"].int()}}, "fc.bias is in I32"),
        (
            {"change": lambda state: {**state, "conv1.weight": torch.zeros(64, 4, 7, 7)}},
            "not the weights of a ResNet.*channel",
        ),
        ({"change": not_a_number}, "holds NaN or infinity in fc.bias"),
        ({"change": lambda state: {"a": torch.zeros(2)}}, "not the weights of a ResNet"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_files_that_do_not_fit(folder, about, sentence):
    name = put(folder, **about)
    with pytest.raises(ValueError, match=sentence) as error:
        run_node(ImageClassifier, file=name)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("text", ["{", "3", '{"1": "ant"}', '["ant", 2]', "[" * 100_000, '{"0": "a", "0": "b"}'])
def test_names_that_cannot_be_read(folder, text):
    name = put(folder)
    (folder / "zoo.json").write_text(text)
    with pytest.raises(ValueError, match=r"zoo\.json"):
        run_node(ImageClassifier, file=name)


def test_names_in_other_letters(folder):
    """UTF-8, with the mark that editors on Windows put in front too; others are named."""
    name, words = put(folder), ("Ameise", "Bär", "Kuh", "Hündin", "Elch", "Füchsin", "蚂蚁")
    for encoding in ("utf-8", "utf-8-sig"):
        (folder / "zoo.txt").write_text("\n".join(words), encoding)
        assert run_node(ImageClassifier, file=name).labels == words
    for ending, encoding in ((".txt", "utf-16"), (".txt", "gb18030"), (".json", "utf-16")):
        for old in folder.glob("zoo.[tj]*"):
            old.unlink()
        (folder / f"zoo{ending}").write_text("\n".join(words), encoding)
        with pytest.raises(
            ValueError, match=rf"zoo{ending} is not in UTF-8 \(byte \d+ is 0x..\)\. Save it in UTF-8\.$"
        ):
            run_node(ImageClassifier, file=name)


def test_a_file_of_names_that_is_too_large(folder):
    name = put(folder)
    with (folder / "zoo.txt").open("wb") as file:
        file.truncate(2**25)
    with pytest.raises(ValueError, match=r"zoo\.txt has more than the \d+ bytes that are read"):
        run_node(ImageClassifier, file=name)


GIANTS = {
    "a convolution": {"conv1.weight": (2**20, 2**20, 7, 0)},
    "a convolution of any size": {"conv1.weight": (2**30, 2**30, 2, 0)},
    "a norm": {"conv1.weight": (2**36, 0, 7, 7)},
    "classes": {"fc.weight": (2**40, 0)},
    "another dimension": {"fc.weight": (2**40, 0, 3)},
    "5000 blocks": {f"layer1.{i}.conv1.weight": (64, 64, 1, 1) for i in range(5000)},
}


@pytest.mark.parametrize("what", GIANTS)
def test_giants_are_refused_before_memory_is_taken(folder, what):
    """Headers that promise more than the file has: without weights, since one side is 0."""
    shapes = {key: tuple(value.shape) for key, value in torchvision.models.resnet18(num_classes=7).state_dict().items()}
    about, end = {"__metadata__": LABELS}, 0
    for key, shape in (shapes | GIANTS[what]).items():
        size = 4 * math.prod(shape)
        about[key] = {"dtype": "F32", "shape": shape, "data_offsets": (end, end := end + size)}
    text = json.dumps(about).encode()
    with (folder / "giant.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    with pytest.raises(ValueError, match="not the weights of a ResNet") as error:
        run_node(ImageClassifier, file="giant.safetensors")
    assert len(str(error.value)) < 600


def test_files_that_are_none(folder):
    (folder / "half.safetensors").write_bytes(b"\x10")
    with pytest.raises(ValueError, match="half.safetensors is not a whole"):
        run_node(ImageClassifier, file="half.safetensors")
    with pytest.raises(ValueError, match="There is no file '../x' in models/classifiers. It has: half.safetensors"):
        run_node(ImageClassifier, file="../x")


def test_the_demo_s_classifier_knows_drawn_scenes():
    """And has not the judge's weights: it is another network."""
    classifier = run_node(ImageClassifier, file="demo")
    scenes = random_scenes(100, generator_of("tests", 77), "known", 1)
    drawn, _ = draw(scenes)
    for words, right, least in (
        (SHAPES, scenes.shape[:, 0], 0.85),
        (COLOURS, scenes.colour[:, 0], 0.95),
        (FLOORS, scenes.floor, 0.95),
        (TIMES, scenes.time, 0.95),
    ):
        said = classifier.among([Label(word, word) for word in words])(drawn).argmax(1)
        assert (said == right).float().mean() > least
    assert "peak.weight" not in classifier.network.state_dict()


def test_what_is_in_a_scene_is_labelled():
    classifier = run_node(ImageClassifier, file="demo")
    scenes = random_scenes(20, generator_of("tests", 78))
    for i, row in enumerate(there(scenes)):
        said = {classifier.labels[j] for j in row.nonzero()[:, 0].tolist()}
        solids = range(int(scenes.count[i]))
        expected = {SHAPES[scenes.shape[i, k]] for k in solids} | {COLOURS[scenes.colour[i, k]] for k in solids}
        assert expected <= said
        assert not ({*SHAPES, *COLOURS} - expected) & said
        assert {FLOORS[scenes.floor[i]], TIMES[scenes.time[i]]} <= said


def test_the_demo_s_classifier_reads_images_of_any_size():
    classifier = run_node(ImageClassifier, file="demo")
    drawn, _ = draw(random_scenes(4, generator_of("tests", 79)))
    large = torch.nn.functional.interpolate(drawn, 128, mode="nearest")
    small, big = (classifier.logits(p)[:, 16:20].argmax(1) for p in (drawn, large))
    assert torch.equal(small, big)


def test_loading_is_checked_before_use(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        load_classifier(tmp_path / "nothing.safetensors")


# CLIP

_TEXT = {"num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
WIDTHS = {"l": 24, "g": 32}


def clip_of_sdxl():
    """The host's SDXL text encoders, small, with random weights."""
    sizes = {f"clip_{name}_model_config": {**_TEXT, "hidden_size": width} for name, width in WIDTHS.items()}
    target = comfy.supported_models_base.ClipTarget(comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel)
    clip = comfy.sd.CLIP(target, model_options={**sizes, "dtype": torch.float32})
    generator = torch.Generator().manual_seed(6)
    for parameter in clip.cond_stage_model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    tiny.HANDED_OUT.append(clip.patcher)
    return clip


def vision(width):
    config = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "hidden_act": "quick_gelu",
        "image_size": 28,
        "patch_size": 14,
        "num_channels": 3,
        "projection_dim": width,
        "model_type": "clip_vision_model",
    }
    with tempfile.TemporaryDirectory() as folder:  # older hosts take a path, newer ones either
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config))
        found = ClipVisionModel(str(path))
    generator = torch.Generator().manual_seed(7)
    for parameter in found.model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    tiny.HANDED_OUT.append(found.patcher)
    return found


@pytest.mark.parametrize("encoder", ["l", "g"])
def test_clip(encoder):
    """100 times the cosine of the image's features and the text's, projected."""
    clip, see = clip_of_sdxl(), vision(WIDTHS[encoder])
    logits = run_node(CLIPClassifier, clip_vision=see, clip=clip).among(guides.labels("cat", "dog", "fox"))
    found = logits(images())
    seen = see.encode_image(images().movedim(1, -1))["image_embeds"]
    reader = getattr(clip.cond_stage_model, f"clip_{encoder}")
    for i, word in enumerate(("cat", "dog", "fox")):
        tokens = clip.tokenize(f"a photo of a {word}")[encoder]
        _, pooled = reader.encode_token_weights(tokens)
        if not reader.return_projected_pooled:
            pooled = reader.transformer.text_projection(pooled)
        wanted = 100 * torch.nn.functional.cosine_similarity(seen, pooled)
        assert torch.allclose(found[:, i], wanted, atol=1e-2)
    assert not torch.allclose(found[:, 0], found[:, 1], atol=1e-2)


def test_an_encoder_that_is_used_without_its_projection():
    """As SD3 uses clip_l."""
    clip, see = clip_of_sdxl(), vision(24)
    wanted = run_node(CLIPClassifier, clip_vision=see, clip=clip).among(guides.labels("cat", "dog"))(images())
    reader = clip.cond_stage_model.clip_l
    reader.return_projected_pooled = False
    reader.options_default = (*reader.options_default[:2], False)
    found = run_node(CLIPClassifier, clip_vision=see, clip=clip).among(guides.labels("cat", "dog"))(images())
    assert torch.equal(found, wanted)


def test_reading_leaves_the_encoder_as_it_was():
    clip = clip_of_sdxl()
    before = clip.encode_from_tokens(clip.tokenize("a cat"), return_pooled=True)
    run_node(CLIPClassifier, clip_vision=vision(24), clip=clip).among(guides.labels("cat", "dog"))
    after = clip.encode_from_tokens(clip.tokenize("a cat"), return_pooled=True)
    assert all(torch.equal(a, b) for a, b in zip(before, after))


def test_encoders_that_share_no_space():
    with pytest.raises(ValueError, match="None of the text encoders in this CLIP projects to the 48 dimensions"):
        run_node(CLIPClassifier, clip_vision=vision(48), clip=clip_of_sdxl()).among(guides.labels("cat", "dog"))
    _, words, _ = load("unet")  # a text encoder of its own kind
    with pytest.raises(ValueError, match="None of the text encoders"):
        run_node(CLIPClassifier, clip_vision=vision(24), clip=words).among(guides.labels("cat", "dog"))


def test_a_projection_that_was_not_in_the_file():
    """The host leaves it as found in memory, zeros for the most part."""
    clip = clip_of_sdxl()
    clip.cond_stage_model.clip_l.transformer.text_projection.weight.data.zero_()
    with pytest.raises(ValueError, match="from a file that has its text_projection"):
        run_node(CLIPClassifier, clip_vision=vision(24), clip=clip).among(guides.labels("cat", "dog"))


def test_a_vision_model_without_a_projection():
    see = vision(24)
    del see.model.visual_projection
    with pytest.raises(ValueError, match="no projection into a space"):
        run_node(CLIPClassifier, clip_vision=see, clip=clip_of_sdxl()).among(guides.labels("cat", "dog"))


# Candidates


def test_one_prompt_and_words():
    _, clip, _ = load("unet")
    found, positive = Candidates.execute(clip, "a large {slot} circle", "red\n\n  blue \ngreen").result
    assert [label.word for label in found.labels] == ["red", "blue", "green"]
    assert [label.text for label in found.labels] == [f"a large {word} circle" for word in ("red", "blue", "green")]
    for conditioning, label in zip(found.conditionings, found.labels):
        wanted = clip.encode_from_tokens_scheduled(clip.tokenize(label.text))
        assert torch.equal(conditioning[0][0], wanted[0][0])
    assert torch.equal(positive[0][0], found.conditionings[0][0][0])


@pytest.mark.parametrize(
    ("prompt", "words", "sentence"),
    [
        ("a circle", "red\nblue", "has no {slot}"),
        ("a {slot} circle", " \n", "There are no words"),
        ("a {slot} circle", "red", "There is one candidate, 'red'"),
        ("a {slot} circle", "red\nblue\nred", "name 'red' twice"),
    ],
)
def test_words_that_are_too_few(prompt, words, sentence):
    _, clip, _ = load("unet")
    with pytest.raises(ValueError, match=sentence):
        Candidates.execute(clip, prompt, words)


def test_a_growing_list():
    a, b, c = (tiny.conditioning("unet", seed) for seed in range(3))
    one = run_node(Candidate, label=" cat ", conditioning=a)
    two = run_node(Candidate, label="dog", conditioning=b, candidates=one)
    assert [label.word for label in two.labels] == ["cat", "dog"]
    assert two.conditionings == (a, b)
    assert len(one.labels) == 1
    with pytest.raises(ValueError, match="has no label"):
        run_node(Candidate, label=" ", conditioning=a)
    with pytest.raises(ValueError, match="name 'cat' twice"):
        run_node(Candidate, label="cat", conditioning=c, candidates=two)
