"""Concept Edit in the host: the right tokens of every encoder, the right maps of every network, the file that core
loads, and errors for bad lines."""

from contextlib import suppress

import comfy.lora
import comfy.model_detection
import comfy.model_management
import folder_paths
import pytest
import torch
from comfy.text_encoders.sd3_clip import SD3Tokenizer
from safetensors import safe_open

import nodes as core
from guidekit.benchmarks._nodes import run_node, run_node_all
from guidekit.nodes.concept_edit import ConceptEdit
from guidekit.nodes.host.concepts.lines import Edit, Keep, read_edits, read_keeps
from guidekit.nodes.host.concepts.maps import KEYS, POOLED, PUBLISHED, VALUES, maps_of
from guidekit.nodes.host.concepts.texts import Texts
from guidekit.tests.host import adapters, probes, texts, tiny
from guidekit.tests.host.adapters import weights_of

EVERY = pytest.mark.parametrize("family", texts.FAMILIES)
KEEP = "a tulip\na chair"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """models/loras"""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


def edited(family, model=None, **settings):
    given = {"edits": "a rose -> a blue rose", "keep": KEEP, **settings}
    return run_node(ConceptEdit, model=model or texts.model(family), clip=texts.clip(family), **given)


def merged(model):
    """All weights that a model has patches for, as the host would load them."""
    originals = weights_of(model)
    return {
        key: comfy.lora.calculate_weight(patches, originals[key].clone(), key) for key, patches in model.patches.items()
    }


def sample(model, family):
    encode = texts.clip(family).encode_from_tokens_scheduled
    positive, negative = (encode(texts.clip(family).tokenize(text)) for text in ("a photo of a rose", ""))
    return tiny.sample(model, family, steps=2, positive=positive, negative=negative)


# Lines


def test_lines():
    assert read_edits(" a rose -> a blue rose \n\nVan Gogh ->\n") == [
        Edit("a rose", "a blue rose", (), 1.0, "a rose \u2192 a blue rose"),
        Edit("Van Gogh", "", (), 1.0, "Van Gogh \u2192"),
    ]
    assert read_edits("a rose \u2192 a blue rose") == read_edits("a rose -> a blue rose")
    [weighted] = read_edits("a rose -> a blue rose * 2.5")
    assert (weighted.target, weighted.weight) == ("a blue rose", 2.5)
    [leaning] = read_edits("a doctor -> + 0.3 a woman - .1 a man + a well-known one * 3")
    assert leaning.target is None
    assert leaning.added == ((0.3, "a woman"), (-0.1, "a man"), (1.0, "a well-known one"))
    assert leaning.weight == 3
    for close in (
        "a doctor -> +0.3 a woman -.1 a man +1e0 a well-known one*3",
        "a doctor->+.3 a woman - 1e-1 a man + a well-known one * 3e0",
    ):
        assert read_edits(close)[0].added == leaning.added
        assert read_edits(close)[0].weight == 3
    [named] = read_edits("a doctor -> +a woman from Alsace-Lorraine")
    assert named.added == ((1.0, "a woman from Alsace-Lorraine"),)
    [starred] = read_edits("a*b -> f*ck * 2")
    assert (starred.source, starred.target, starred.weight) == ("a*b", "f*ck", 2.0)
    assert read_edits("a rose -> a blue rose * 1e6")[0].weight == 1e6
    assert read_keeps("a tulip\na chair * 10\n") == [Keep("a tulip", 1.0), Keep("a chair", 10.0)]
    assert read_keeps("") == []


@pytest.mark.parametrize(
    "line", ["1" * 300_000, "*1" * 150_000, " *" * 150_000, "+ " * 150_000, "*" + " " * 300_000 + "1"]
)
def test_long_lines_are_read_in_no_time(line):
    """Not in the square of their length, which would take minutes."""
    for text in (f"a -> {line} b", f"a -> + {line} b", f"{line} b -> a"):
        with suppress(ValueError):
            read_edits(text)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"edits": ""}, "There are no edits. Write one per line, such as a rose \u2192 a blue rose."),
        ({"edits": "a blue rose"}, "The line 'a blue rose' of edits has 0 arrows. It has one"),
        ({"edits": "a -> b -> c"}, "has 2 arrows"),
        ({"edits": "-> art"}, "has nothing before its arrow"),
        (
            {"edits": "a rose -> a blue rose * -1"},
            "has the weight '-1'. After [*] comes a number from 1e-06 to 1e[+]06",
        ),
        ({"edits": "a rose -> a blue rose * 0"}, "has the weight '0'"),
        ({"edits": "a rose -> a blue rose * many"}, "has the weight 'many'"),
        ({"edits": f"a rose -> + {10**9} blue"}, "adds '1000000000 blue'. After [+] or - comes a number"),
        ({"edits": "a rose -> + 1e9 blue"}, "adds '1e9 blue'. After"),
        ({"edits": "a rose -> + 0,3 blue"}, "adds '0,3 blue'. After"),
        ({"edits": "a rose -> + 30% blue"}, "adds '30% blue'. After"),
        ({"edits": "a rose -> -"}, "adds ''. After"),
        ({"edits": "a rose -> + blue +"}, "adds ''. After"),
        ({"edits": "a rose -> a blue rose*2x"}, "has the weight '2x'"),
        ({"keep": "a tulip -> a rose"}, "of keep has an arrow. What is to change belongs in edits"),
        ({"edits": "(a rose:1.2) -> a blue rose"}, "has a weight in brackets, which Concept Edit does not know"),
        ({"edits": "a rose -> a (blue) rose"}, "has a weight in brackets"),
        ({"keep": "(a tulip)"}, "has a weight in brackets"),
        ({"edits": f"{'rose ' * 90} -> a rose"}, "has more tokens than the encoder takes at once. Shorten it"),
        (
            {"edits": "a rose -> a rose"},
            "The edits change nothing: to the CLIP, both sides of every arrow are the same",
        ),
        ({"edits": "a blue rose -> a rose", "method": "TIME"}, "are not all behind it in the same order"),
        ({"edits": "a\nb -> c\n" * 2000}, "edits has 4000 lines. It may have up to 2000"),
        ({"clip": None}, "clip is None. Connect a CLIP"),
        ({"save_as": "a/b"}, "The file name is 'a/b'"),
    ],
)
def test_lines_that_are_not_edits_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        edited("unet", **{"model": texts.model("unet"), **settings}) if "clip" not in settings else run_node(
            ConceptEdit, model=texts.model("unet"), **settings
        )


def test_thousands_of_texts_can_be_interrupted(monkeypatch):
    monkeypatch.setattr(comfy.model_management, "interrupt_processing", True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        edited("unet")


def test_words_that_the_encoder_does_not_know():
    from guidekit.tests.host.right import demo

    model, clip, _ = demo()
    for lines in ({"edits": "rose -> blue"}, {"edits": "ball -> + rose"}, {"edits": "ball -> blue", "keep": "rose"}):
        with pytest.raises(ValueError, match="nothing is left of 'rose' as tokens: the CLIP knows none of its words"):
            run_node(ConceptEdit, model=model, clip=clip, **lines)


def test_the_clip_of_another_model():
    with pytest.raises(
        ValueError, match="gives tokens of 12 channels, and BaseModel takes 16. Connect the CLIP of this"
    ):
        run_node(ConceptEdit, model=texts.model("unet"), clip=texts.clip("flux"))


def test_a_model_that_reads_no_text():
    with pytest.raises(ValueError, match="WanModel does not read them in a way that it knows. It works on UNets, SD3"):
        run_node(ConceptEdit, model=tiny.model("wan"), clip=texts.clip("flux"))


# Texts


# By family: the first place of the words, how many come before it of what the encoder is given, and what is given of
# it.
FIRST = {"unet": (1, 0), "sd3": (1, 0), "flux": (0, 0), "chroma": (0, 0), "qwen_image": (34, 34), "lumina2": (3, 0)}


@EVERY
def test_the_last_word_is_found_by_what_the_encoder_says(family):
    """The tokens of the words alone, whatever the template, the padding and the end token are."""
    first, cut = FIRST[family]
    read = Texts(texts.clip(family))
    for text in ("a rose", "a blue rose", "an old, well-known rose"):
        found = read[text]
        [stretch] = found.stretches
        name = next(iter(texts.clip(family).tokenize(text))) if family not in ("flux", "sd3") else None
        tokenizer = texts.clip(family).tokenizer
        part = {"flux": "t5xxl", "sd3": "clip_l"}.get(family) or next(
            n for n in (f"clip_{name}", name) if hasattr(tokenizer, n)
        )
        bare = getattr(tokenizer, part).tokenizer(text)["input_ids"]
        special = {getattr(tokenizer, part).start_token, getattr(tokenizer, part).end_token}
        words = tuple(token for token in bare if token not in special)
        assert stretch.words == (first, first + len(words))
        assert stretch.ids[slice(*stretch.words)] == words
        assert stretch.last_word == first + len(words) - 1 - cut
        assert not found.empty
        assert torch.equal(found.last_words, found.tokens[stretch.last_word][None])
    assert read[""].empty


@pytest.mark.parametrize("family", ["unet", "sd3"])
def test_the_last_word_of_a_causal_encoder_does_not_see_what_follows(family):
    """So its output is that of the same words at the beginning of a longer text."""
    read = Texts(texts.clip(family))
    short, long = read["a blue rose"], read["a blue rose in a vase"]
    last = short.stretches[0].last_word
    torch.testing.assert_close(short.last_words[0], long.tokens[last], rtol=0, atol=1e-5)
    assert probes.differ(short.tokens[last + 2], long.tokens[last + 2])


def test_two_encoders_behind_each_other():
    """SD3 with T5: a stretch for CLIP's two, which lie side by side, and one for T5's."""
    tokenizer = SD3Tokenizer()
    read = Texts(texts.clip("sd3"))
    ids = {
        name: tuple(token for token, _ in batches[0])
        for name, batches in tokenizer.tokenize_with_weights("a rose").items()
    }
    read.clip = type("Clip", (), {"tokenizer": tokenizer, "cond_stage_model": None})()
    one, two = read._stretches(ids, 77 + 77)
    assert (one.first, one.words, one.last_word) == (0, (1, 3), 2)
    assert (two.first, two.words[0], two.last_word) == (77, 0, 77 + two.words[1] - 1)
    [alone] = read._stretches({"l": ids["l"], "t5xxl": (*ids["t5xxl"], 0)}, 78)  # Flux
    assert (alone.first, alone.words) == (0, two.words)
    with pytest.raises(ValueError, match="gives 5 tokens for lists of .*, and which are which is not known"):
        [*read._stretches(ids, 5)]


def test_time_takes_each_word_to_itself():
    read = Texts(texts.clip("unet"))
    [source], [target] = (read[text].stretches for text in ("a pack of roses", "a pack of blue roses"))
    pairs = source.aligned(target)
    ids = [(source.ids[a], target.ids[b]) for a, b in pairs]
    assert all(a == b for a, b in ids)
    assert pairs[:4] == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert pairs[4] == (4, 5)  # roses
    assert pairs[5] == (5, 6)  # the end
    assert pairs[-2:] == [(75, 76), (76, 76)]
    assert target.aligned(source) is None
    [source], [target] = (read[text].stretches for text in ("red red roses", "red red blue roses"))
    assert source.aligned(target)[:4] == [(0, 0), (1, 1), (2, 2), (3, 4)]


# Maps


WANTED = {
    "sd3": {"context_embedder", "y_embedder.mlp.0"},
    "flux": {"txt_in", "vector_in.in_layer"},
    "chroma": {"txt_in"},
    "qwen_image": {"txt_in"},
    "lumina2": {"cap_embedder.1"},
}


@EVERY
def test_the_maps_are_those_that_are_given_the_text(family):
    """The edit uses the same inputs for a text as the network's own layers get in a run."""
    model, seen = texts.model(family), {}
    maps = maps_of(model, PUBLISHED)
    if family != "unet":
        assert {each.path for each in maps} == {f"diffusion_model.{name}" for name in WANTED[family]}
    hooks = [
        model.model.get_submodule(each.path).register_forward_pre_hook(
            lambda layer, args, path=each.path: seen.setdefault(path, args[0].detach().clone())
        )
        for each in maps
    ]
    tokens = texts.clip(family).tokenize("a blue rose")
    positive = texts.clip(family).encode_from_tokens_scheduled(tokens)
    tiny.sample(model, family, steps=1, cfg=1.0, positive=positive)
    for hook in hooks:
        hook.remove()
    encoded = Texts(texts.clip(family))["a blue rose"]
    for each in maps:
        given = each.given(model, encoded.pooled[None] if each.pooled else encoded.tokens)
        found = seen[each.path].reshape(-1, given.shape[1])[: len(given)]
        torch.testing.assert_close(given, found, rtol=1e-5, atol=1e-5)


def test_keys_and_values_of_a_unet():
    model = texts.model("unet")
    both, keys, values = ({each.path for each in maps_of(model, which)} for which in (PUBLISHED, KEYS, VALUES))
    assert both == keys | values
    assert not keys & values
    known = {name for name, _ in model.model.named_modules()}
    assert both == {name for name in known if name.endswith((".attn2.to_k", ".attn2.to_v"))}
    assert keys == {name for name in known if name.endswith(".attn2.to_k")}
    assert set(edited("unet", maps=KEYS).patches) == {f"{name}.weight" for name in keys}


def test_the_pooled_text_of_sdxl():
    """The pooled text is the beginning of the layer's input; the rest of the layer stays."""
    import comfy.supported_models

    network = {**tiny.FAMILIES["unet"].network, "num_classes": "sequential", "adm_in_channels": 6 * 256 + 16}
    model = tiny.build(network, "unet", config=comfy.supported_models.SDXL)
    plain, pooled = (edited("unet", model, maps=which) for which in (PUBLISHED, POOLED))
    [key] = set(pooled.patches) - set(plain.patches)
    assert key == "diffusion_model.label_emb.0.0.weight"
    change = merged(pooled)[key] - weights_of(model)[key]
    assert change[:, :16].abs().max() > 1e-3
    assert change[:, 16:].abs().max() == 0


# The edit


@EVERY
@pytest.mark.parametrize("method", ["UCE", "TIME"])
def test_weights_are_those_of_the_dense_formula(family, method):
    model, read = texts.model(family), Texts(texts.clip(family))
    found = merged(edited(family, method=method, edit_lambda=0.3, expand="off"))
    originals = weights_of(model)
    for each in maps_of(model, PUBLISHED):
        given, wanted = [], []
        for source, target in (("a rose", "a blue rose"), ("a tulip", "a tulip"), ("a chair", "a chair")):
            a, b = read[source], read[target]
            if each.pooled:
                one, other = a.pooled[None], b.pooled[None]
            elif method == "UCE":
                one, other = a.last_words, b.last_words
            else:
                pairs = a.stretches[0].aligned(b.stretches[0])
                one, other = a.tokens[[i for i, _ in pairs]], b.tokens[[j for _, j in pairs]]
            given.append(each.given(model, one).double())
            wanted.append(each.given(model, other).double())
        c, g = torch.cat(given).T, torch.cat(wanted).T
        weight = originals[each.key].double()
        identity = torch.eye(len(c)).double()
        dense = (0.3 * weight + weight @ g @ c.T) @ torch.linalg.inv(0.3 * identity + c @ c.T)
        assert probes.distance(found[each.key].double(), dense) < 1e-4
        assert probes.distance(dense, weight) > 1e-3


def test_a_lean_is_so_much_of_an_attribute():
    model, read = texts.model("unet"), Texts(texts.clip("unet"))
    found = merged(edited("unet", edits="a doctor -> + 0.5 a woman - 0.25 a man", keep="", edit_lambda=1e-6))
    doctor, woman, man = (read[text].last_words[0] for text in ("a doctor", "a woman", "a man"))
    for key, weight in found.items():
        wanted = weights_of(model)[key] @ (doctor + 0.5 * woman - 0.25 * man)
        torch.testing.assert_close(weight @ doctor, wanted, rtol=1e-4, atol=1e-4)


def test_the_weight_of_a_line():
    """A kept text that counts for much more stays where it is."""
    model, read = texts.model("unet"), Texts(texts.clip("unet"))
    chair = read["a chair"].last_words[0]

    def moved(keep):
        return max(
            ((weight - weights_of(model)[key]) @ chair).abs().max().item()
            for key, weight in merged(edited("unet", keep=keep)).items()
        )

    assert moved("") > 5 * moved("a chair") > 100 * moved("a chair * 10000")


@EVERY
def test_loras_on_the_model_are_part_of_it(family):
    model = texts.model(family)
    key = maps_of(model, PUBLISHED)[0].key
    change = 0.3 * torch.randn(weights_of(model)[key].shape, generator=torch.Generator().manual_seed(7))
    model.add_patches({key: ("diff", (change,))}, 0.5)
    tuned = texts.model(family)
    found = merged(edited(family, model))[key]
    rank = len(edited(family, tuned).patches[key][0][1].weights[1])
    down = edited(family, tuned).patches[key][0][1].weights[1]
    up = edited(family, model).patches[key][-1][1].weights[0]
    assert up.shape[1] == rank
    plain = weights_of(model)[key] + 0.5 * change
    torch.testing.assert_close(found, plain + up @ down, rtol=1e-4, atol=1e-5)
    bare = edited(family, tuned).patches[key][0][1].weights[0]
    assert probes.differ(up, bare)


@EVERY
@pytest.mark.parametrize("method", ["UCE", "TIME"])
def test_the_file_in_core_s_loader_gives_the_same_weights_to_the_bit(family, method, folder):
    model = texts.model(family)
    ours = edited(family, model, method=method, save_as="rose")
    assert "guidekit/rose.safetensors" in folder_paths.get_filename_list("loras")
    loaded = core.LoraLoaderModelOnly().load_lora_model_only(model, "guidekit/rose.safetensors", 1.0)[0]
    one, other = merged(ours), merged(loaded)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert all(probes.differ(one[key], weights_of(model)[key]) for key in one)
    back = edited(family, model, method=method, strength=-1.0)
    loaded = core.LoraLoaderModelOnly().load_lora_model_only(back, "guidekit/rose.safetensors", 1.0)[0]
    for key, weight in merged(loaded).items():
        torch.testing.assert_close(weight, weights_of(model)[key], rtol=0, atol=1e-5)


def test_the_file_says_what_it_is(folder):
    edited("unet", save_as="rose")
    with safe_open(folder / "guidekit" / "rose.safetensors", "pt") as file:
        about = file.metadata()
    assert about["modelspec.title"] == "a rose \u2192 a blue rose (UCE)"
    assert '"lambda": "0.5"' in about["guidekit"]
    assert '"edits": "a rose -> a blue rose"' in about["guidekit"]
    assert '"keep": "a tulip\\na chair"' in about["guidekit"]


def test_the_file_has_strength_1(folder):
    whole, half, none = (edited("unet", save_as="rose", strength=s) for s in (1.0, 0.5, 0.0))
    loaded = core.LoraLoaderModelOnly().load_lora_model_only(texts.model("unet"), "guidekit/rose.safetensors", 1.0)[0]
    assert not none.patches
    for key, weight in merged(loaded).items():
        assert torch.equal(weight, merged(whole)[key])
        middle = (weight + weights_of(whole)[key]) / 2
        torch.testing.assert_close(merged(half)[key], middle, rtol=0, atol=1e-6)


def test_rank_is_the_number_of_edited_texts():
    edits = "a rose -> a blue rose\na doctor -> + a woman"
    for keep in ("", KEEP, "\n".join(f"{i} chairs" for i in range(40))):
        model = edited("unet", edits=edits, keep=keep)
        assert {len(patches[0][1].weights[1]) for patches in model.patches.values()} == {2}
    model = edited("unet", edits=edits, expand="object")
    assert {len(patches[0][1].weights[1]) for patches in model.patches.values()} == {12}


def test_prefixes_that_expand_adds():
    """The beginnings of TIME in TIME, of UCE in UCE; auto as published."""
    typed = "a rose -> a blue rose\nphoto of a rose -> photo of a blue rose"
    typed += "".join(f"\n{p} of a rose -> {p} of a blue rose" for p in ("image", "portrait", "picture", "painting"))
    one, other = merged(edited("unet", expand="object")), merged(edited("unet", edits=typed))
    assert all(torch.allclose(one[key], other[key], atol=1e-6) for key in one)
    auto, off = merged(edited("unet")), merged(edited("unet", expand="off"))
    assert all(torch.equal(auto[key], off[key]) for key in auto)
    typed = "a rose -> a blue rose" + "".join(
        f"\n{p} of a rose -> {p} of a blue rose" for p in ("A photo", "An image", "A picture")
    )
    one = merged(edited("unet", method="TIME"))
    other = merged(edited("unet", method="TIME", edits=typed, expand="off"))
    assert all(torch.allclose(one[key], other[key], atol=1e-5) for key in one)


@EVERY
def test_images_change_and_without_strength_do_not(family):
    model = texts.model(family)
    plain = sample(model, family)
    none, report = run_node_all(ConceptEdit, model=model, clip=texts.clip(family), strength=0.0)
    assert torch.equal(sample(none, family), plain)
    assert "nothing is changed" in report
    found = edited(family)
    seen = probes.count_evaluations(found)
    assert probes.differ(sample(found, family), plain)
    assert seen.total == 4
    assert torch.equal(sample(model, family), plain)
    assert "guidekit" not in found.model_options


def test_the_report(caplog):
    caplog.set_level("INFO")
    _, report = run_node_all(
        ConceptEdit, model=texts.model("unet"), clip=texts.clip("unet"), keep=KEEP, edit_lambda=1e-9
    )
    assert "UCE: 14 maps of tokens edited, rank 1. Edited texts go 100% of the way" in report
    assert "what is kept moves by up to 0.00% of its length" in report
    assert "Experimental" not in report
    _, report = run_node_all(ConceptEdit, model=texts.model("flux"), clip=texts.clip("flux"), maps=KEYS)
    assert "Experimental on this model" in report
    assert "maps is not used: Flux has its own" in report
    _, report = run_node_all(ConceptEdit, model=texts.model("unet"), clip=texts.clip("unet"), maps=POOLED)
    assert "is given no pooled text, so that only tokens are edited" in report


def test_beside_a_lora():
    model = adapters.lora(texts.model("unet"))
    assert probes.differ(sample(edited("unet", model), "unet"), sample(model, "unet"))
