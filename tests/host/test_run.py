"""The clock and the memory of a run, over the host's own samplers."""

import contextlib
from dataclasses import dataclass, field

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP

from guidekit.nodes.host.ranges import Range
from guidekit.nodes.host.run import Run, StepMemory, limit_scale
from guidekit.tests.host import tiny

STEPS = 5
# Evaluations in each outer step of the host's samplers, for STEPS steps down to zero.
ONE = [1] * STEPS
TWO = [2] * (STEPS - 1) + [1]
EVALUATIONS = {
    "euler": ONE,
    "euler_ancestral": ONE,
    "dpmpp_2m": ONE,
    "dpmpp_2m_sde": ONE,
    "lcm": ONE,
    "lms": ONE,
    "ipndm": ONE,
    "res_multistep": ONE,
    "gradient_estimation": ONE,
    "er_sde": ONE,
    "heun": TWO,
    "dpm_2": TWO,
    "dpm_2_ancestral": TWO,
    "dpmpp_2s_ancestral": TWO,
    "dpmpp_sde": TWO,
    "seeds_2": TWO,
    "exp_heun_2_x0": TWO,
}


@dataclass(eq=False)
class Spy:
    """A scale changer that changes nothing and writes down where it is."""

    seen: list[tuple[int, float, float]] = field(default_factory=list)
    label, idle_reason = "spy", "never"

    def __call__(self, run: Run, scale: float) -> float:
        run.acted.add(self)
        self.run = run
        self.seen.append((run.step, run.step_sigma, run.memory(self).read() or 0))
        run.memory(self).write((run.memory(self).read() or 0) + 1)
        return scale


def spied(sampler: str, family: str = "flux", **options) -> Spy:
    model, spy = tiny.model(family), Spy()
    limit_scale(model, spy)
    tiny.sample(model, family, sampler=sampler, steps=STEPS, **options)
    return spy


@pytest.mark.parametrize("family", ["unet", "flux"])
@pytest.mark.parametrize("sampler", EVALUATIONS)
def test_every_evaluation_belongs_to_the_step_it_serves(sampler, family):
    spy = spied(sampler, family)
    expected = [step for step, n in enumerate(EVALUATIONS[sampler]) for _ in range(n)]
    assert [step for step, _, _ in spy.seen] == expected
    # All evaluations of a step name the sigma at which it began.
    for step, sigma, _ in spy.seen:
        assert sigma == pytest.approx(spy.run.sigmas[step], rel=1e-4)


@pytest.mark.parametrize("sampler", EVALUATIONS)
def test_memory_moves_once_per_step(sampler):
    """Each evaluation of step i reads what step i - 1 left: the count of finished steps."""
    spy = spied(sampler)
    assert [remembered for _, _, remembered in spy.seen] == [step for step, _, _ in spy.seen]


@pytest.mark.parametrize("sampler", ["uni_pc", "uni_pc_bh2", "dpm_fast", "dpm_adaptive", "heunpp2", "sa_solver_pece"])
def test_irregular_samplers_never_go_back(sampler):
    spy = spied(sampler)
    steps = [step for step, _, _ in spy.seen]
    assert steps == sorted(steps)
    assert len(set(steps)) >= (2 if sampler == "dpm_fast" else STEPS - 1)  # dpm_fast: 5 evaluations in 2 steps


def test_heun_decides_by_the_start_of_the_step():
    """The corrector's evaluation at the next sigma must not see the next step's range."""
    spy = spied("heun")
    boundary = Range(0.0, 0.5)
    run, flags = spy.run, {}
    for step, sigma, _ in spy.seen:
        run.step, run.step_sigma = step, sigma
        flags.setdefault(step, set()).add(boundary.active(run))
    assert all(len(values) == 1 for values in flags.values())
    assert {True} in flags.values()
    assert {False} in flags.values()


def test_a_sampler_without_callbacks_still_advances():
    class Silent(comfy.samplers.Sampler):
        def sample(self, model, sigmas, extra_args, callback, noise, *args):
            x = noise
            for sigma in sigmas[:-1]:
                x = model(x, sigma.expand(len(x)), **extra_args)
            return x

    model, spy = tiny.model("flux"), Spy()
    limit_scale(model, spy)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(tiny.conditioning("flux", 1), tiny.conditioning("flux", 2))
    guider.set_cfg(3.0)
    x = tiny.noise("flux")
    guider.sample(x, torch.zeros_like(x), Silent(), torch.tensor([1.0, 0.7, 0.4, 0.0]), disable_pbar=True)
    assert [step for step, _, _ in spy.seen] == [0, 1, 2]


def make_run(sigmas) -> Run:
    class Guider:
        model_patcher = tiny.model("flux")
        model_options = {"guidekit": {}}

    return Run(Guider, None, torch.tensor(sigmas), [(1, 16, 8, 8)])


@pytest.mark.parametrize(
    ("sigmas", "path", "kept"),
    [
        ([1.0, 0.6, 0.3, 0.0], [1.0, 0.6, 0.3], [None, 0, 1]),
        ([1.0, 0.6, 0.3, 0.0], [1.0, 0.3, 0.6], [None, 0, None]),  # a restart: noise was added
        ([0.1, 0.3, 0.6, 1.0], [0.1, 0.3, 0.6], [None, 0, 1]),  # an inversion
        ([0.1, 0.3, 0.6, 1.0], [0.3, 0.6, 0.1], [None, 0, None]),
    ],
)
def test_memory_forgets_when_sigma_turns(sigmas, path, kept):
    run = make_run(sigmas)
    memory = StepMemory(run)
    read = []
    for i, sigma in enumerate(path):
        run.step, run.step_sigma = i, sigma
        read.append(memory.read())
        memory.write(i)
        memory.write("ignored: the first write of a step counts")
    assert read == kept


def test_techniques_do_not_share_a_memory():
    run = make_run([1.0, 0.5, 0.0])
    for owner in ("one", "other"):
        assert run.memory(owner).read() is None
        run.memory(owner).write(owner)
    run.step, run.step_sigma = 1, 0.5
    assert [run.memory(owner).read() for owner in ("one", "other")] == ["one", "other"]


@pytest.mark.parametrize("fails", [False, True])
def test_the_run_is_dropped_even_if_the_guider_keeps_its_options(fails):
    """The host's guiders clone their options for each run; one of another pack might not."""
    model = tiny.model("flux")
    limit_scale(model, Spy())
    guider = comfy.samplers.CFGGuider(model)
    during = []

    def sample(noise, *args, **kwargs):
        during.append("guidekit_run" in guider.model_options["transformer_options"])
        if fails:
            raise KeyboardInterrupt
        return noise

    wrappers = model.get_wrappers(WrappersMP.OUTER_SAMPLE, "guidekit")
    executor = WrapperExecutor.new_class_executor(sample, guider, wrappers)
    x = tiny.noise("flux")
    with pytest.raises(KeyboardInterrupt) if fails else contextlib.nullcontext():
        executor.execute(x, x, None, torch.tensor([1.0, 0.0]), None, None, True, 0)
    assert during == [True]
    assert "guidekit_run" not in guider.model_options["transformer_options"]


def test_state_goes_with_the_run():
    model, spy = tiny.model("flux"), Spy()
    limit_scale(model, spy)
    tiny.sample(model, "flux")
    first = spy.run
    tiny.sample(model, "flux")
    assert spy.run is not first
    assert "guidekit_run" not in model.model_options["transformer_options"]


def test_an_interrupt_leaves_nothing_behind():
    model, spy = tiny.model("flux"), Spy()
    limit_scale(model, spy)

    def stop(step, *_):
        if step == 1:
            raise comfy.model_management.InterruptProcessingException()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tiny.sample(model, "flux", callback=stop)
    assert "guidekit_run" not in model.model_options["transformer_options"]
    count = len(spy.seen)
    tiny.sample(model, "flux")
    assert spy.seen[count][2] == 0


def test_clones_do_not_share_techniques():
    model = tiny.model("flux")
    other = model.clone()
    limit_scale(other, Spy())
    assert "guidekit" not in model.model_options
    third = other.clone()
    limit_scale(third, Spy())
    assert len(other.model_options["guidekit"]["limit scale"]) == 1


def test_scale_is_restored_after_each_evaluation():
    model = tiny.model("flux")

    class Off:
        label, idle_reason = "off", "never"

        def __call__(self, run, scale):
            run.acted.add(self)
            return 1.0

    limit_scale(model, Off())
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(tiny.conditioning("flux", 1), tiny.conditioning("flux", 2))
    guider.set_cfg(3.0)
    x = tiny.noise("flux")
    sigmas = torch.tensor([1.0, 0.5, 0.0])
    guided = guider.sample(x, torch.zeros_like(x), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True)
    assert guider.cfg == 3.0
    guider.model_patcher = tiny.model("flux")
    guider.model_options = guider.model_patcher.model_options
    guider.set_cfg(1.0)
    plain = guider.sample(x, torch.zeros_like(x), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True)
    assert torch.equal(guided, plain)
