"""Extra predictions in the same network call."""

from dataclasses import dataclass

import comfy.samplers
import pytest
import torch

from guidekit.nodes.host.predictions.branches import Branch, add_branch, prediction
from guidekit.nodes.host.predictions.corrections import add_correction
from guidekit.tests.host import probes, tiny

FAMILIES = ["unet", "sd3", "flux", "wan"]


@dataclass(frozen=True, eq=False)
class Again(Branch):
    """A branch that evaluates cond a second time, or another prompt if given one; every `every`-th step."""

    every: int = 1
    label, idle_reason = "again", "never"

    def conds(self, run, conds):
        return conds[0] if run.step % self.every == 0 else None


@dataclass(frozen=True, eq=False)
class Uncond(Again):
    """A branch that evaluates the negative prompt."""

    def conds(self, run, conds):
        return conds[1] if run.step % self.every == 0 else None


@dataclass(frozen=True, eq=False)
class Subtract:
    """Adds scale * (cond - branch): nothing, if the branch is cond."""

    branch: Again
    scale: float = 10.0
    label, idle_reason = "subtract", "never"

    def __call__(self, run, args):
        found = prediction(run, args, self.branch)
        return None if found is None else self.scale * (args["cond_denoised"] - found)


def with_branches(family, count=1, every=1):
    model = tiny.model(family)
    for _ in range(count):
        branch = Again(every)
        add_branch(model, branch)
        add_correction(model, Subtract(branch))
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [1, 2])
def test_a_branch_is_one_row_of_the_same_call(family, count):
    model = with_branches(family, count)
    seen = probes.count_evaluations(model)
    tiny.sample(model, family, steps=3)
    assert seen.chunks == [2 + count] * 3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_branch_of_the_same_cond_predicts_the_same(family, batch):
    plain = tiny.sample(tiny.model(family), family, batch=batch)
    branched = tiny.sample(with_branches(family, 2), family, batch=batch)
    assert probes.distance(branched, plain) < 1e-4


def test_a_branch_can_rest():
    """While it rests there is no prediction of it, not even the last one."""
    model, branch = tiny.model("flux"), Uncond(every=2)
    add_branch(model, branch)
    add_correction(model, Subtract(branch))
    seen, predictions = probes.count_evaluations(model), probes.record_predictions(model)
    tiny.sample(model, "flux", steps=4)
    assert seen.chunks == [3, 2, 3, 2]
    changed = []
    for step in predictions.steps:
        cond, uncond = step["cond_denoised"], step["uncond_denoised"]
        changed.append(not torch.equal(step["denoised"], uncond + (cond - uncond) * step["cond_scale"]))
    assert changed == [True, False, True, False]


def test_a_branch_works_without_uncond():
    model = with_branches("flux")
    seen = probes.count_evaluations(model)
    out = tiny.sample(model, "flux", cfg=1.0, steps=3)
    assert seen.chunks == [2] * 3
    assert probes.distance(out, tiny.sample(tiny.model("flux"), "flux", cfg=1.0, steps=3)) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_split_batch_gives_the_same(family, monkeypatch):
    """With no free memory the host evaluates the chunks one by one."""
    model = with_branches(family)
    together = tiny.sample(model, family)
    monkeypatch.setattr(type(model), "get_free_memory", lambda self, device: 0)
    seen = probes.count_evaluations(model)
    split = tiny.sample(model, family)
    assert set(seen.chunks) == {1}
    assert probes.distance(split, together) < 1e-4


def test_areas_and_several_entries_are_kept():
    """Conditioning Combine and areas: several entries per cond, each on its own part of the image."""
    left = [[tiny.conditioning("flux", 1)[0][0], {**tiny.conditioning("flux", 1)[0][1], "area": (8, 4, 0, 0)}]]
    positive = left + tiny.conditioning("flux", 2)
    plain = tiny.sample(tiny.model("flux"), "flux", positive=positive)
    branched = tiny.sample(with_branches("flux"), "flux", positive=positive)
    assert probes.distance(branched, plain) < 1e-4


class Earlier:
    """Another pack's function in the slot; `knows` is how many conds it looks at."""

    def __init__(self, knows):
        self.knows, self.calls = knows, 0

    def __call__(self, args):
        self.calls += 1
        conds = args["conds"][: self.knows]
        return comfy.samplers.calc_cond_batch(args["model"], conds, args["input"], args["sigma"], args["model_options"])


@pytest.mark.parametrize("knows", [2, 9])
def test_the_slot_is_shared(knows):
    earlier = Earlier(knows)
    model = tiny.model("flux")
    model.set_model_sampler_calc_cond_batch_function(earlier)
    branch = Again()
    add_branch(model, branch)
    add_correction(model, Subtract(branch))
    out = tiny.sample(model, "flux", steps=3)
    assert earlier.calls == 3
    assert probes.distance(out, tiny.sample(tiny.model("flux"), "flux", steps=3)) < 1e-4


def test_uuids_are_new_and_last_for_the_run():
    model = with_branches("flux", 2)
    seen = []

    def wrapper(executor, *args, **kwargs):
        seen.append(tuple((kwargs or args[-1])["uuids"] if "uuids" in (kwargs or {}) else args[5]["uuids"]))
        return executor(*args, **kwargs)

    model.add_wrapper_with_key("apply_model", "see", wrapper)
    tiny.sample(model, "flux", steps=3)
    assert len(set(seen)) == 1
    assert len(set(seen[0])) == 4
    first = set(seen[0])
    seen.clear()
    tiny.sample(model, "flux", steps=1)
    assert not first & set(seen[0])


def test_the_batch_has_no_part_in_it():
    """f(cat(a, b)) == cat(f(a), f(b))."""
    model = with_branches("flux")
    both = tiny.sample(model, "flux", batch=2)
    one = tiny.sample(model, "flux", batch=1)
    assert probes.distance(both[:1], one) < 1e-4


def test_dual_cfg_guider_keeps_its_own_third_cond():
    """Index 2 is the positive there: chunks must be known by uuid."""
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    def run(model):
        guider = Guider_DualCFG(model)
        prompts = [tiny.conditioning("flux", i) for i in (1, 2, 3)]
        guider.set_conds(*prompts)
        guider.set_cfg(3.0, 2.0)
        x = tiny.noise("flux")
        euler = comfy.samplers.sampler_object("euler")
        return guider.sample(x, torch.zeros_like(x), euler, torch.tensor([1.0, 0.5, 0.0]), disable_pbar=True)

    assert probes.distance(run(with_branches("flux")), run(tiny.model("flux"))) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_branch_has_its_own_prompt(family):
    """cond + 2 (cond - branch of the negative) on top of CFG 3 is CFG 5."""
    model, branch = tiny.model(family), Uncond()
    add_branch(model, branch)
    add_correction(model, Subtract(branch, 2.0))
    assert probes.distance(tiny.sample(model, family, cfg=3.0), tiny.sample(tiny.model(family), family, cfg=5.0)) < 1e-4


def test_each_branch_gets_its_own_prediction():
    """7 (cond - cond) and 2 (cond - uncond) are CFG two higher, in whichever order the branches ride."""
    for kinds in ((Again, Uncond), (Uncond, Again)):
        model = tiny.model("flux")
        for kind in kinds:
            branch = kind()
            add_branch(model, branch)
            add_correction(model, Subtract(branch, 2.0 if kind is Uncond else 7.0))
        expected = tiny.sample(tiny.model("flux"), "flux", cfg=5.0)
        assert probes.distance(tiny.sample(model, "flux", cfg=3.0), expected) < 1e-4


def test_other_nodes_see_two_predictions():
    model, lengths = with_branches("flux", 2), []

    def pre_cfg(args):
        lengths.append(len(args["conds_out"]))
        return args["conds_out"]

    model.set_model_sampler_pre_cfg_function(pre_cfg)
    tiny.sample(model, "flux", steps=2)
    assert lengths == [2, 2]
