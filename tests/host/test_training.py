"""Training on votes through the host: the outputs it compares, its gradient, what it changes and what it leaves alone,
and that it goes on to the bit."""

import dataclasses
import math
from pathlib import Path

import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from comfy_api.torch_helpers import set_torch_compile_wrapper

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.host.files.folders import Folder
from guidekit.nodes.host.run.raw_predictions import to_raw
from guidekit.nodes.host.training import lora_file, state_file
from guidekit.nodes.host.training.adapters import REFERENCE
from guidekit.nodes.host.training.layers import layers_of
from guidekit.nodes.host.training.lora_file import patches_of, read_start, save_lora, tensors_of
from guidekit.nodes.host.training.remarks import remarks
from guidekit.nodes.host.training.score import accuracy, errors, scores
from guidekit.nodes.host.training.session import in_session
from guidekit.nodes.host.training.step import Tuning, noise_of
from guidekit.nodes.host.training.trainer import Trainer, pairs_of
from guidekit.nodes.host.votes.digest import policy_digest
from guidekit.nodes.host.weights.read import read_tuned
from guidekit.nodes.preference_cfg import PreferenceCFG
from guidekit.samplers.preference.errors import mean_square
from guidekit.samplers.preference.objectives import DPO, KTO, NFT, SFT
from guidekit.samplers.preference.window import Draw
from guidekit.tests.device.layers import WEIGHTS
from guidekit.tests.host import adapters, tiny, toy
from guidekit.tests.host.votes import perturb, trainer, vote_set

OBJECTIVES = {"KTO": KTO(100.0), "NFT": NFT(0.1), "SFT": SFT(), "DPO": DPO(100.0)}
FAMILIES = ("unet", "flux")


def folder(path) -> Folder:
    return Folder(path.name, lambda: [str(path)])


def inside(found: Trainer, work):
    """`work(session)` as in a training, but without its steps."""
    example = found.votes.rows[0]
    shape = (found.settings.batch, *example.latent.shape[1:])
    with torch.inference_mode(False), found.adapters.on(found.model) as model:
        return in_session(model, example.positive, shape, work)


def part_of(found: Trainer, session, number: int = 4, **draw):
    window = [Draw(row, (row + 0.5) / number, row, False) for row in range(number)]
    window = [dataclasses.replace(each, **draw) for each in window]
    return found.images.part(Tuning(session, found.adapters), window, range(number))


# What is compared


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_reference_is_the_model_to_the_bit(family):
    """At the start, where the tuned model is it too, and when much has been learned."""
    found = trainer(family)
    plain = in_session(
        found.model,
        found.votes.rows[0].positive,
        (4, *tiny.of(family).latent),
        lambda s: output(found, s, "tuned", None),
    )
    assert torch.equal(inside(found, lambda s: output(found, s, "tuned")), plain)
    perturb(found)
    assert torch.equal(inside(found, lambda s: output(found, s, "reference")), plain)
    assert not torch.equal(inside(found, lambda s: output(found, s, "tuned")), plain)


def output(found: Trainer, session, which: str, adapters=True):
    part = part_of(found, session)
    with torch.no_grad():
        return getattr(Tuning(session, found.adapters if adapters else None), which)(part)


@pytest.mark.parametrize(("kind", "model_type"), [("eps", ModelType.EPS), ("v", ModelType.V_PREDICTION)])
def test_targets_are_in_the_networks_units(kind, model_type):
    found = trainer("unet", model=tiny.model("unet", model_type))

    def work(session):
        part = part_of(found, session, number=4)
        sigma = part.given.sigma.reshape(-1, 1, 1, 1)
        noise = torch.cat([noise_of(row, (1, 4, 8, 8)) for row in range(4)])
        x0 = torch.cat([row.latent for row in found.votes.rows[:4]]) * 0.18215  # SD1.5's factor
        torch.testing.assert_close(part.given.x, x0 + sigma * noise, rtol=1e-5, atol=1e-5)
        wanted = noise if kind == "eps" else (noise - sigma * x0) / (1 + sigma**2).sqrt()
        torch.testing.assert_close(part.target, wanted, rtol=1e-3, atol=1e-3)
        return True

    assert inside(found, work)


def test_targets_of_a_flow_are_velocities():
    found = trainer("sd3")

    def work(session):
        part = part_of(found, session)
        t = part.given.sigma.reshape(-1, 1, 1, 1)
        noise = torch.cat([noise_of(row, (1, 16, 8, 8)) for row in range(4)])
        x0 = session.enter(torch.cat([row.latent for row in found.votes.rows[:4]]))
        torch.testing.assert_close(part.given.x, (1 - t) * x0 + t * noise)
        torch.testing.assert_close(part.target, noise - x0, rtol=1e-4, atol=1e-4)
        return True

    assert inside(found, work)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_image_has_its_own_prompt_noise_and_level(family):
    """In one network call as alone."""
    together = trainer(family)
    perturb(together)

    def one_by_one(session):
        window = [Draw(row, (row + 0.5) / 4, row, row == 2) for row in range(4)]
        tuning = Tuning(session, together.adapters)
        whole = together.images.part(tuning, window, range(4))
        alone = [together.images.part(tuning, window, [row]) for row in range(4)]
        with torch.no_grad():
            return tuning.tuned(whole), torch.cat([tuning.tuned(part) for part in alone]), whole.given.prompts

    found, wanted, prompts = inside(together, one_by_one)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert len({id(prompt) for prompt in prompts}) == 3  # two prompts, and the empty one of the third image


@pytest.mark.parametrize("family", FAMILIES)
def test_guidance_is_taken_out_of_the_target(family):
    """target - (cfg - 1)(c - u), of the reference, at cfg 3; not of an image without its prompt."""
    found = trainer(family, guided=True)
    perturb(found)

    def work(session):
        tuning, rows = Tuning(session, found.adapters), found.votes.rows
        window = [Draw(row, 0.6, row, False) for row in range(4)]
        part = found.images.part(tuning, window, range(4))
        plain = dataclasses.replace(found.images, guided=False).part(tuning, window, range(4))
        shape = tuple(rows[0].latent.shape)
        with torch.no_grad(), found.adapters.at(REFERENCE):
            x, sigma = plain.given.x, plain.given.sigma
            cond = session.output([session.prompt(row.positive, shape) for row in rows[:4]], x, sigma)
            uncond = session.output([session.prompt(row.negative, shape) for row in rows[:4]], x, sigma)
        torch.testing.assert_close(part.target, plain.target - 2.0 * (cond - uncond), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(part.old, cond)
        empty = found.images.part(tuning, [Draw(0, 0.6, 0, True)], [0])
        assert empty.old is None
        torch.testing.assert_close(empty.target, plain.target[:1], rtol=1e-4, atol=1e-4)
        return True

    assert inside(found, work)


# Its gradient


def gradient(found: Trainer, **changes) -> torch.Tensor:
    """Of the first window."""
    found.settings = dataclasses.replace(found.settings, rate=0.0, clip=0.0, steps=1, **changes)
    found.images = dataclasses.replace(found.images, batch=found.settings.batch)
    found.run()
    return torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in found.adapters.parameters()]
    )


def perturbed(family: str, **settings) -> Trainer:
    found = trainer(family, **settings)
    perturb(found)
    return found


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_does_not_depend_on_how_many_images_go_together(family, objective):
    whole, each = (gradient(perturbed(family, objective=OBJECTIVES[objective], batch=n)) for n in (4, 1))
    assert whole.norm() > 0
    assert (whole - each).norm() <= 1e-5 * whole.norm()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_checkpointing_leaves_the_gradient_as_it_is(family):
    """Blocks that add in place included; all linear layers have products, so that what comes in has a gradient."""
    with_it, without = (gradient(perturbed(family, layers="all linear", checkpointing=c)) for c in (True, False))
    assert without.norm() > 0
    assert (with_it - without).norm() <= 1e-5 * without.norm()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_gradient_is_the_slope_of_the_loss(family):
    """By finite differences along it, for plain training, whose loss is one number."""
    settings = {"objective": SFT(), "batch": 4}
    found = perturbed(family, **settings)
    direction = gradient(found)
    direction = direction / direction.norm()
    moved = []
    for sign in (1, -1):
        other, i = perturbed(family, **settings), 0
        for p in other.adapters.parameters():
            p.data += sign * 2e-2 * direction[i : i + p.numel()].view_as(p)
            i += p.numel()
        gradient(other)
        moved.append(other.curve[0].loss)
    slope = (moved[0] - moved[1]) / 4e-2
    assert slope == pytest.approx(gradient(found).norm().item(), rel=0.02)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_network_has_attention(family):
    """And products on nothing else, unless all linear layers are wanted."""
    model = tiny.model(family)
    attention, everything = (layers_of(model, kind) for kind in ("attention", "all linear"))
    assert 0 < len(attention) < len(everything)
    assert attention.items() <= everything.items()
    assert not any("ff" in path.split(".") or "mlp" in path for path in attention)


def test_cross_attention_is_where_words_come_in():
    paths = [*layers_of(tiny.model("unet"), "cross-attention")]
    assert paths
    assert all(".attn2." in path for path in paths)
    with pytest.raises(ValueError, match=r"Flux has no layers of the kind 'cross-attention'.*attention, all linear"):
        layers_of(tiny.model("flux"), "cross-attention")


def test_gradients_are_clipped_and_the_rate_rises():
    found = trainer("unet", steps=1, clip=1e-4, warm_up=4, rate=1e-2)
    perturb(found)
    found.run()
    norms = torch.stack([p.grad.norm() for p in found.adapters.parameters()])
    assert norms.norm().item() == pytest.approx(1e-4, rel=1e-3)
    assert found.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 / 4)


# What it changes


def test_sft_copies_likes_alone():
    """Whatever the disliked images are, the same is learned."""

    def learned(change):
        votes = vote_set("unet")
        rows = tuple(
            row if row.label > 0 else dataclasses.replace(row, latent=row.latent + change) for row in votes.rows
        )
        found = trainer("unet", votes=dataclasses.replace(votes, rows=rows), objective=SFT())
        found.run()
        assert found.curve[-1].loss > 0
        return found.adapters.factors()

    one, other = learned(0.0), learned(5.0)
    assert all(torch.equal(a, b) for path in one for a, b in zip(one[path], other[path]))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_likes_gain_and_dislikes_lose(objective):
    votes = vote_set("unet")  # of bright and dark images
    rows = tuple(dataclasses.replace(row, latent=0.3 * row.latent + 8.0 * row.label) for row in votes.rows)
    settings = {"layers": "all linear", "steps": 40, "window": 8, "batch": 8, "rate": 1e-2, "dropout": 0.0}
    found = trainer("unet", votes=dataclasses.replace(votes, rows=rows), objective=OBJECTIVES[objective], **settings)
    found.run()
    rows = found.votes.rows
    gains = inside(
        found,
        lambda s: (
            errors(s, rows, Tuning(s, found.adapters).reference, 8)
            - errors(s, rows, Tuning(s, found.adapters).tuned, 8)
        ),
    )
    liked = torch.tensor([row.label > 0 for row in rows])
    assert gains[liked].mean() > gains[~liked].mean()
    assert accuracy(gains, liked) > 0.9
    if objective != "SFT":
        assert found.curve[-1].liked > found.curve[-1].disliked


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_as_it_was(family):
    model = tiny.model(family)
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    plain = tiny.sample(model, family)
    trainer(family, model=model, checkpointing=True).run()
    assert torch.equal(tiny.sample(model, family), plain)
    after = model.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    assert not model.injections
    assert all(m.forward.__func__ is type(m).forward for m in model.model.diffusion_model.modules())
    assert not comfy.model_management.in_training


@pytest.mark.parametrize("weights", WEIGHTS)
def test_weights_in_fewer_bits_stay_as_they_are(weights):
    model = tiny.model("flux", kind=WEIGHTS[weights])
    before = {
        name: weight.clone() for name, weight in model.model.state_dict().items() if isinstance(weight, torch.Tensor)
    }
    found = trainer("flux", model=model, rate=1e-2)
    found.run()
    after = found.model.model.state_dict()
    for name, weight in before.items():
        assert after[name].dtype == weight.dtype
        assert bytes_of(after[name]) == bytes_of(weight)
    assert all(p.up.dtype == torch.float32 and p.up.abs().max() > 0 for p in found.adapters.products.values())


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else str(tensor.item())


def test_half_precision_computes_in_a_wider_range():
    found = trainer("unet", model=tiny.model("unet", kind=tiny.Kind(torch.float16, torch.float16)))
    found.run()
    assert found.model.object_patches["manual_cast_dtype"] in (torch.bfloat16, torch.float32)
    assert all(math.isfinite(point.loss) for point in found.curve)


def test_weights_made_by_a_node_are_trained():
    """A loader runs in torch's inference mode, whose tensors have no gradient; here they are used as they are."""
    with torch.inference_mode():
        model = tiny.build(tiny.of("unet").network)
    assert next(model.model.parameters()).is_inference()
    with torch.inference_mode():
        votes = vote_set("unet")
        assert votes.rows[0].positive[0][0].is_inference()
        found = trainer("unet", model=model, votes=votes, batch=1)
        found.run()
    assert found.curve[-1].step == 4
    assert next(model.model.parameters()).is_inference()


class Dynamic(ModelPatcher):
    """As ModelPatcherDynamic, which wants a card: the host loads it anew, without dynamic VRAM, by its loader."""

    def is_dynamic(self):
        return True


def load_anew(disable_dynamic=False) -> ModelPatcher:
    assert disable_dynamic
    return tiny.build(tiny.of("unet").network)


def dynamic(loader) -> ModelPatcher:
    made = tiny.build(tiny.of("unet").network)
    model = Dynamic(made.model, made.load_device, made.offload_device)
    model.cached_patcher_init = loader
    return adapters.lora(model)


def test_dynamic_vram_is_left_out_of_a_training():
    model = dynamic((load_anew, ()))
    found = trainer("unet", model=model)
    assert not found.model.is_dynamic()
    assert found.model.model is not model.model
    wanted = trainer("unet", model=adapters.lora(tiny.model("unet")))
    found.run()
    wanted.run()
    assert [point.loss for point in found.curve] == [point.loss for point in wanted.curve]


def test_a_model_that_cannot_be_loaded_anew_is_told():
    with pytest.raises(ValueError, match="start ComfyUI with --disable-dynamic-vram"):
        trainer("unet", model=dynamic(None))


def test_weights_of_other_layers_stay_where_they_are(monkeypatch):
    """The host's streams would put one layer's weights where another's were."""
    monkeypatch.setattr(comfy.model_management, "NUM_STREAMS", 2)
    seen, found = [], trainer("unet")
    found.run(lambda *_: seen.append((comfy.model_management.NUM_STREAMS, comfy.model_management.in_training)))
    assert set(seen) == {(0, True)}
    assert comfy.model_management.NUM_STREAMS == 2


LORA = {
    "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_up.weight": (32, 4),
    "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_down.weight": (4, 32),
}


def with_bypassed_lora(model):
    """On a layer that is trained: the host replaces its `forward`, as training once did."""
    chance = torch.Generator().manual_seed(0)
    lora = {name: torch.randn(shape, generator=chance) for name, shape in LORA.items()}
    return [load(model, None, dict(lora), 1.0, 0.0)[0] for load in (LOAD_BYPASSED, comfy.sd.load_lora_for_models)]


LOAD_BYPASSED = getattr(comfy.sd, "load_bypass_lora_for_models", None)
bypasses = pytest.mark.skipif(LOAD_BYPASSED is None, reason="this host merges all LoRAs")


@bypasses
def test_a_lora_that_is_not_merged_is_part_of_the_reference_and_stays():
    plain = tiny.build(tiny.of("unet").network)
    bypassed, merged = with_bypassed_lora(plain)
    before = [tiny.sample(model, "unet") for model in (plain, bypassed)]
    found, wanted = trainer("unet", model=bypassed), trainer("unet", model=merged)
    found.run()
    wanted.run()
    assert found.curve[0].loss == pytest.approx(wanted.curve[0].loss, rel=1e-4)
    assert [torch.equal(tiny.sample(model, "unet"), b) for model, b in zip((plain, bypassed), before)] == [True, True]


@bypasses
def test_a_copy_without_what_is_in_its_layers_is_refused():
    with torch.inference_mode():
        model = tiny.build(tiny.of("unet").network)
    bypassed, _ = with_bypassed_lora(model)
    with pytest.raises(ValueError, match="bypass_lora.*Load LoRAs without bypass"):
        trainer("unet", model=bypassed)


@pytest.mark.parametrize("family", FAMILIES)
def test_nodes_that_act_inside_a_call_act_in_the_gradient_too(family):
    """A LoRA of the model that the negative does not have is not merged, and added in the network call alone."""

    def model():
        return run_node(PreferenceCFG, model=adapters.lora(tiny.model(family)), lora_strength=0.0)

    one, other, merged = (
        perturbed(family, model=given, layers="all linear", checkpointing=checkpointing)
        for given, checkpointing in ((model(), True), (model(), False), (adapters.lora(tiny.model(family)), True))
    )
    assert not one.checkpointing
    assert merged.checkpointing
    one_, other_, merged_ = map(gradient, (one, other, merged))
    assert torch.equal(one_, other_)
    assert (one_ - merged_).norm() <= 1e-3 * merged_.norm()
    assert "checkpointing was off" in " ".join(remarks(one))
    assert "checkpointing" not in " ".join(remarks(merged))


@pytest.mark.parametrize("family", FAMILIES)
def test_patches_that_depend_on_the_block_do_so_in_the_gradient_too(family):
    """The host writes into one dict which block is next, and a block is run again when the last one is over."""

    def patched(checkpointing: bool) -> Trainer:
        model = tiny.model(family)
        if family == "unet":
            model.set_model_attn1_output_patch(lambda out, extra: out * (2.0 if extra["block"][0] == "input" else 1.0))
        else:
            model.set_model_attn1_patch(_first_block_queries)
        return perturbed(family, model=model, layers="all linear", checkpointing=checkpointing)

    one, other = (gradient(patched(checkpointing)) for checkpointing in (True, False))
    assert (one - other).norm() <= 1e-5 * other.norm()
    assert (one - gradient(perturbed(family, layers="all linear"))).norm() > 1e-3 * one.norm()


def _first_block_queries(q, k, v, pe=None, attn_mask=None, extra_options=None, **_):
    scale = 2.0 if extra_options["block_index"] == 0 else 1.0
    return {"q": q * scale, "k": k, "v": v, "pe": pe, "attn_mask": attn_mask}


@pytest.mark.parametrize("kind", ["plain", "of a node", "dynamic"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_compiled_network_is_trained_as_it_is(kind, checkpointing):
    """Or its copy is, which nobody has compiled."""
    if kind == "dynamic":
        made = tiny.build(tiny.of("unet").network)
        compiled = Dynamic(made.model, made.load_device, made.offload_device)
        compiled.cached_patcher_init = load_anew, ()
    else:
        with torch.inference_mode(kind == "of a node"):
            compiled = tiny.build(tiny.of("unet").network)
    set_torch_compile_wrapper(model=compiled, backend="eager")
    found, wanted = (perturbed("unet", model=m, checkpointing=checkpointing) for m in (compiled, tiny.model("unet")))
    assert torch.equal(gradient(found), gradient(wanted))


def test_a_lora_of_the_model_is_part_of_the_reference():
    plain, tuned = tiny.model("unet"), adapters.lora(tiny.model("unet"))
    found = [trainer("unet", model=model) for model in (plain, tuned)]
    a, b = (inside(each, lambda s, each=each: output(each, s, "reference")) for each in found)
    assert not torch.allclose(a, b)


# Rounds


def test_a_training_that_goes_on_from_a_lora_has_it_as_its_reference():
    first = trainer("unet", steps=3, rate=5e-2)
    first.run()
    learned = first.adapters.factors()
    second = trainer("unet", start=learned, rank=9)
    assert second.adapters.rank == 4
    wanted = inside(first, lambda s: output(first, s, "tuned"))
    assert torch.equal(inside(second, lambda s: output(second, s, "reference")), wanted)
    assert torch.equal(inside(second, lambda s: output(second, s, "tuned")), wanted)
    perturb(second)
    assert torch.equal(inside(second, lambda s: output(second, s, "reference")), wanted)


def test_votes_on_others_count_less():
    votes = vote_set("unet")
    mine, others = "mine", "another"
    votes = dataclasses.replace(
        votes, rows=tuple(dataclasses.replace(r, policy=(mine, others, "")[i % 3]) for i, r in enumerate(votes.rows))
    )
    found = trainer("unet", votes=votes, policy=mine, old_weight=0.25)
    assert list(found.images.weights) == [1.0, 0.25, 1.0] * 2 + [1.0, 0.25]


# It goes on


@pytest.mark.parametrize("objective", ["KTO", "NFT"])
def test_goes_on_to_the_bit(objective, tmp_path, monkeypatch):
    monkeypatch.setattr(state_file, "TRAININGS", folder(tmp_path))
    settings = {"objective": OBJECTIVES[objective], "steps": 6, "votes": vote_set("unet", held_out=4), "look_every": 2}
    whole = trainer("unet", **settings)
    whole.run()
    first = trainer("unet", **{**settings, "steps": 3})
    first.run()
    state_file.save_state("x", first)
    second = trainer("unet", **settings)
    state = state_file.load_state("x", second)
    assert state.step == 3
    second.restore(state)
    second.run()
    assert repr(second.curve[3:]) == repr(whole.curve[3:])
    for mine, theirs in zip(second.adapters.parameters(), whole.adapters.parameters()):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(second.state().moments, whole.state().moments):
        assert mine.keys() == theirs.keys() != set()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize(
    "change", [{"rate": 2e-3}, {"seed": 1}, {"objective": KTO(10.0)}, {"rank": 2}, {"votes": vote_set("unet", 4)}]
)
def test_does_not_go_on_with_another_training(change, tmp_path, monkeypatch):
    monkeypatch.setattr(state_file, "TRAININGS", folder(tmp_path))
    first = trainer("unet", steps=1)
    first.run()
    state_file.save_state("x", first)
    assert state_file.load_state("x", trainer("unet")) is not None
    assert state_file.load_state("x", trainer("unet", **change)) is None
    assert state_file.load_state("y", trainer("unet")) is None


def test_an_interrupted_training_keeps_its_last_whole_step():
    model, whole = tiny.model("unet"), trainer("unet", steps=2)
    whole.run()
    plain = tiny.sample(model, "unet")
    found = trainer("unet", model=model, steps=10)

    def stop(_trainer, _session, point):
        if point.step == 2:
            comfy.model_management.interrupt_current_processing()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        found.run(stop)
    assert found.step == len(found.curve) == 2
    for mine, theirs in zip(found.adapters.parameters(), whole.adapters.parameters()):
        assert torch.equal(mine, theirs)
    assert torch.equal(tiny.sample(model, "unet"), plain)
    assert not comfy.model_management.in_training


def test_a_number_that_is_none_changes_nothing():
    found = trainer("unet", steps=3)
    found.run()
    before = found.adapters.factors()
    found.settings = dataclasses.replace(found.settings, steps=4)
    found.votes.rows[0].latent.mul_(math.nan)
    for row in found.votes.rows[1:]:
        row.latent.mul_(math.nan)
    with pytest.raises(FloatingPointError, match="In step 4 the gradient is nan"):
        found.run()
    assert found.step == 3
    after = found.adapters.factors()
    assert all(torch.equal(a, b) for path in before for a, b in zip(before[path], after[path]))


# The file


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_loader_takes_every_key(family, tmp_path, caplog):
    """Core's and ours, with no key left over; and the model is what was trained."""
    found = trainer(family, layers="all linear" if family == "unet" else "attention")
    perturb(found)
    tensors = tensors_of(found.adapters.factors())
    model = tiny.model(family)
    core, _ = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)
    assert "not loaded" not in caplog.text
    assert len(core.patches) == len(found.adapters.products)
    own = model.clone()
    own.add_patches(patches_of(found.adapters.factors()), 1.0)
    assert policy_digest(own) == policy_digest(core)
    wanted = inside(found, lambda s: output(found, s, "tuned"))
    example = found.votes.rows[0]
    for merged in (core, own):
        result = in_session(
            merged, example.positive, (4, *example.latent.shape[1:]), lambda s: output(found, s, "tuned", None)
        )
        torch.testing.assert_close(result, wanted, rtol=1e-3, atol=1e-3)


def test_a_file_is_read_by_both_loaders_and_begins_another_training(tmp_path, monkeypatch):
    found = trainer("unet")
    perturb(found)
    monkeypatch.setattr(lora_file, "LORAS", folder(tmp_path))
    factors = found.adapters.factors()
    name = Path(save_lora("taste", factors, {"objective": "KTO"}, {"ss_network_dim": "4"})).name
    read = read_tuned(found.model, tmp_path / name, 0)
    assert len(read.patches) == len(factors)
    assert f"{len(factors)} of its {len(factors)} modules are applied" in read.report[0]
    again = read_start(found.model, tmp_path / name)
    assert again.keys() == factors.keys()
    for path, both in factors.items():
        assert all(torch.equal(a, b) for a, b in zip(both, again[path]))


def test_a_start_has_its_share_in_it(tmp_path):
    """alpha of half the rank."""
    from safetensors.torch import save_file

    tensors = tensors_of({"diffusion_model.time_embed.0": (torch.ones(128, 4), torch.ones(4, 32))})
    tensors["diffusion_model.time_embed.0.alpha"] = torch.tensor(2.0)
    save_file(tensors, tmp_path / "x.safetensors")
    up, down = read_start(tiny.model("unet"), tmp_path / "x.safetensors")["diffusion_model.time_embed.0"]
    assert torch.equal(up, torch.full((128, 4), 0.5))
    assert torch.equal(down, torch.ones(4, 32))


# Scores


def test_scores_are_differences_of_errors():
    rows, model = vote_set("unet").rows[:3], tiny.model("unet")
    tuned = adapters.lora(model)
    found = scores(model, tuned, rows, 2, levels=3)

    def errors_of(session):
        total = torch.zeros(3, dtype=torch.float64)
        for level in range(3):
            for i, row in enumerate(rows):
                sigma = torch.tensor([session.sigma((level + 0.5) / 3)])
                x0, noise = session.enter(row.latent), noise_of(7_000_000 + level, (1, 4, 8, 8))
                x = session.sampling.noise_scaling(sigma.reshape(-1, 1, 1, 1), noise, x0)
                out = session.output([session.prompt(row.positive, tuple(row.latent.shape))], x, sigma)
                total[i] += mean_square(out, to_raw(session.sampling, x, x0, sigma)).item() / 3
        return total

    with torch.no_grad():
        before, after = (in_session(m, rows[0].positive, (1, 4, 8, 8), errors_of) for m in (model, tuned))
    torch.testing.assert_close(found, before - after, rtol=1e-4, atol=1e-6)
    assert scores(model, model.clone(), rows, 2, levels=2).abs().max() == 0


def test_accuracy():
    gains, liked = torch.tensor([3.0, 1.0, 2.0, 1.0]), torch.tensor([True, True, False, False])
    assert accuracy(gains, liked) == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert math.isnan(accuracy(gains, torch.ones(4, dtype=torch.bool)))


def test_pairs():
    rows = vote_set("unet").rows
    for better, worse in pairs_of(rows):
        assert rows[better].label > 0 > rows[worse].label
        assert rows[better].prompt == rows[worse].prompt
    assert len(pairs_of(rows)) == 4


def test_any_rank_of_latents_can_be_trained_on():
    """Through the session, by a network of no layers."""
    for rank in (3, 4, 5):
        model, prompt = toy.model(rank), toy.conditioning(1.0)
        shape = (2, *toy.SHAPES[rank])

        def work(session, rank=rank, shape=shape, prompt=prompt):
            x0, sigma = toy.noise(rank, 2), torch.tensor([session.sigma(0.3), session.sigma(0.7)])
            x, target = session.noised(x0, toy.noise(rank, 2), sigma)
            return (
                session.output([session.prompt(prompt, (1, *shape[1:]))] * 2, x, sigma).shape == target.shape == x.shape
            )

        assert in_session(model, prompt, shape, work)
