"""The clock and the memory of a run, over the host's own samplers."""

import contextlib
from dataclasses import dataclass, field

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.model_base import ModelType
from comfy.patcher_extension import WrapperExecutor, WrappersMP

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.autoguidance import Autoguidance
from guidekit.nodes.host.predictions.corrections import add_correction
from guidekit.nodes.host.predictions.scales import limit_scale
from guidekit.nodes.host.run import Run
from guidekit.nodes.host.run.clock import clock_of
from guidekit.nodes.host.run.memory import StepMemory
from guidekit.nodes.host.run.ranges import Range
from guidekit.tests.host import tiny

STEPS = 5
SAMPLERS = comfy.samplers.SAMPLER_NAMES
KINDS = {"eps": ("unet", None), "v": ("unet", ModelType.V_PREDICTION), "flow": ("flux", None)}


@dataclass(eq=False)
class Spy:
    """A correction that corrects nothing and writes down where it is."""

    seen: list[tuple[int, float, float]] = field(default_factory=list)
    log: list = field(default_factory=list)  # "evaluation", and outer steps as the sampler calls back
    label, idle_reason = "spy", "never"

    def __call__(self, run: Run, args: dict) -> None:
        run.acted.add(self)
        self.run = run
        self.seen.append((run.step, run.step_sigma, run.memory(self).read() or 0))
        self.log.append(float(args["sigma"][0]))
        run.memory(self).write((run.memory(self).read() or 0) + 1)

    def callback(self, step, *_) -> None:
        self.log.append(("callback", step))

    def owners(self) -> list[int]:
        """The step of each evaluation, from the log: the last evaluation before a callback is the first of its step; a
        sampler whose first callback comes late calls back when a step is over."""
        calls = [i for i, entry in enumerate(self.log) if isinstance(entry, tuple)]
        if not calls:  # DPM-adaptive between two equal levels
            return []
        at_the_end, found = calls[0] > 1, []
        for before, call in zip([-1, *calls], calls):
            step, evaluations = self.log[call][1], call - before - 1
            found += [step] * evaluations if at_the_end else [step - 1] * (evaluations - 1) + [step]
        return found + [self.log[calls[-1]][1]] * (len(self.log) - 1 - calls[-1])


def spied(sampler: str, family: str = "flux", model_type=None, **options) -> Spy:
    model, spy = tiny.model(family, model_type), Spy()
    add_correction(model, spy)
    options = {"steps": STEPS, **options}
    tiny.sample(model, family, sampler=sampler, callback=spy.callback, **options)
    return spy


@pytest.mark.parametrize(("kind", "steps"), [("eps", 5), ("v", 4), *(("flow", n) for n in (1, 2, 3, 9))])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_evaluation_belongs_to_the_step_it_serves(sampler, kind, steps):
    try:
        plain = tiny.sample(tiny.model(*KINDS[kind]), KINDS[kind][0], sampler=sampler, steps=steps)
    except (AssertionError, IndexError, RuntimeError, TypeError) as error:
        pytest.skip(f"the host cannot: {error}")
    assert torch.isfinite(plain).all()
    spy = spied(sampler, *KINDS[kind], steps=steps)
    assert [step for step, _, _ in spy.seen] == spy.owners()
    # All evaluations of a step name the noise level of its first one.
    sigmas = [entry for entry in spy.log if not isinstance(entry, tuple)]
    first = {}
    for (step, sigma, _), at in zip(spy.seen, sigmas):
        assert sigma == pytest.approx(first.setdefault(step, at), rel=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_memory_moves_once_per_step(sampler):
    """Each evaluation of step i reads what step i - 1 left: the count of finished steps."""
    spy = spied(sampler)
    seen = [step for step, _, _ in spy.seen]
    assert [remembered for _, _, remembered in spy.seen] == [sorted(set(seen)).index(step) for step in seen]


@pytest.mark.parametrize("sampler", ["heun", "heunpp2", "seeds_3", "dpmpp_2s_ancestral", "sa_solver_pece", "dpm_2"])
def test_a_part_of_a_schedule(sampler):
    """Such as the first half of a run: the last step does not go to zero."""
    spy = spied(sampler, steps=8, last_step=5)
    assert [step for step, _, _ in spy.seen] == spy.owners()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_next_noise_level_is_lower(sampler):
    levels = []

    class Look(Spy):
        def __call__(self, run, args):
            super().__call__(run, args)
            levels.append((run.step_sigma, run.next_sigma))

    model = tiny.model("unet")
    add_correction(model, Look())
    tiny.sample(model, "unet", sampler=sampler, steps=STEPS)
    assert all(after < before for before, after in levels)


class Levels(torch.Tensor):
    """Noise levels that count how often they are read."""

    read = 0

    def item(self):
        Levels.read += 1
        return super().item()


@pytest.mark.parametrize(
    ("sampler", "options", "reads"),
    [("euler", {}, 1), ("heun", {}, 1), ("dpm_2", {}, 1), ("heun", {"s_churn": 2.0}, 3), ("of_another_pack", {}, 5)],
)
def test_levels_that_the_schedule_says_are_not_read(sampler, options, reads):
    """Who reads one waits for the device."""
    Levels.read = 0
    sigmas, two = [3.0, 2.0, 1.0, 0.0], sampler != "euler"
    clock = clock_of(f"sample_{sampler}", options, sigmas)
    for step, sigma in enumerate(sigmas[:-1]):
        for stage in range(1 + (two and step < 2)):
            clock.evaluation(torch.full((2,), sigma - 0.1 * stage).as_subclass(Levels))
            if stage == 0:
                clock.callback(step)
        assert (clock.step, clock.step_sigma) == (step, sigma)
    assert Levels.read == reads


def test_a_sampler_off_its_schedule_is_followed():
    """One whose first level is not the schedule's is not known, whatever it is called."""
    clock = clock_of("sample_euler", {}, [3.0, 2.0, 1.0, 0.0])
    for sigma in (2.5, 1.5, 0.5):
        clock.evaluation(torch.tensor([sigma]))
        assert clock.step_sigma == sigma


def with_noise_before_steps(model, look) -> None:
    """Samples with Heun's method, and churn but in the first step."""
    add_correction(model, look)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(tiny.conditioning("flux", 1), tiny.conditioning("flux", 2))
    guider.set_cfg(3.0)
    sampler = comfy.samplers.ksampler("heun", {"s_churn": 2.0, "s_tmax": 0.7})
    x = tiny.noise("flux")
    guider.sample(x, torch.zeros_like(x), sampler, torch.tensor([0.9, 0.6, 0.3, 0.0]), disable_pbar=True)


@pytest.mark.parametrize("of_second_model", [False, True])
def test_noise_before_a_step(of_second_model):
    """A step begins where its first evaluation is, also for a model that is a guest in the run."""
    model, spy = tiny.model("flux"), Spy()
    if of_second_model:
        other = tiny.worse(model)
        add_correction(other, spy)
        model = run_node(Autoguidance, model=model, weakness="second model", weak_model=other)
        with_noise_before_steps(model, Spy())
    else:
        with_noise_before_steps(model, spy)
    at = [entry for entry in spy.log if not isinstance(entry, tuple)]
    assert [step for step, _, _ in spy.seen] == [0, 0, 1, 1, 2]
    assert [sigma for _, sigma, _ in spy.seen] == [at[0], at[0], at[2], at[2], at[4]]
    assert at[2] > 0.61


@pytest.mark.parametrize("second_at_next", [False, True])
def test_an_unknown_sampler_is_learned_from_its_first_step(second_at_next):
    """A two-stage sampler of another pack, its second stage between two levels, or at the next one and so named."""

    def sample_others_heun(model, x, sigmas, extra_args, callback, disable):
        for i in range(len(sigmas) - 1):
            denoised = model(x, sigmas[i].expand(len(x)), **extra_args)
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
            if sigmas[i + 1] > 0:
                second = sigmas[i + 1] if second_at_next else (sigmas[i] + sigmas[i + 1]) / 2
                denoised = model(x, second.expand(len(x)), **extra_args)
            x = denoised + sigmas[i + 1] / sigmas[i] * (x - denoised)
        return x

    def sample_others(*args, **kwargs):
        return sample_others_heun(*args, **kwargs)

    model, spy = tiny.model("flux"), Spy()
    add_correction(model, spy)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(tiny.conditioning("flux", 1), tiny.conditioning("flux", 2))
    guider.set_cfg(3.0)
    sampler = comfy.samplers.KSAMPLER(sample_others_heun if second_at_next else sample_others)
    x, sigmas = tiny.noise("flux"), torch.tensor([1.0, 0.7, 0.4, 0.2, 0.0])
    guider.sample(x, torch.zeros_like(x), sampler, sigmas, callback=spy.callback, disable_pbar=True)
    assert [step for step, _, _ in spy.seen] == spy.owners() == [0, 0, 1, 1, 2, 2, 3]


def test_heun_decides_by_the_start_of_the_step():
    """The corrector's evaluation at the next sigma must not see the next step's range."""
    spy = spied("heun")
    boundary = Range(0.0, 0.5)
    run, flags = spy.run, {}
    for step, sigma, _ in spy.seen:
        run.clock.step, run.clock.step_sigma = step, sigma
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
    add_correction(model, spy)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(tiny.conditioning("flux", 1), tiny.conditioning("flux", 2))
    guider.set_cfg(3.0)
    x = tiny.noise("flux")
    guider.sample(x, torch.zeros_like(x), Silent(), torch.tensor([1.0, 0.7, 0.4, 0.0]), disable_pbar=True)
    assert [step for step, _, _ in spy.seen] == [0, 1, 2]


def make_run(sigmas) -> Run:
    class Guider:
        model_patcher = tiny.model("flux")
        model_options = {}

    return Run(Guider, None, torch.tensor(sigmas), [(1, 16, 8, 8)], {}, {})


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
        run.clock.step, run.clock.step_sigma = i, sigma
        read.append(memory.read())
        memory.write(i)
        memory.write("ignored: the first write of a step counts")
    assert read == kept


def test_techniques_do_not_share_a_memory():
    run = make_run([1.0, 0.5, 0.0])
    for owner in ("one", "other"):
        assert run.memory(owner).read() is None
        run.memory(owner).write(owner)
    run.clock.step, run.clock.step_sigma = 1, 0.5
    assert [run.memory(owner).read() for owner in ("one", "other")] == ["one", "other"]


@pytest.mark.parametrize("fails", [False, True])
def test_the_run_is_dropped_even_if_the_guider_keeps_its_options(fails):
    """The host's guiders clone their options for each run; one of another pack might not."""
    model = tiny.model("flux")
    add_correction(model, Spy())
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
    add_correction(model, spy)
    tiny.sample(model, "flux")
    first = spy.run
    tiny.sample(model, "flux")
    assert spy.run is not first
    assert "guidekit_run" not in model.model_options["transformer_options"]


def test_an_interrupt_leaves_nothing_behind():
    model, spy = tiny.model("flux"), Spy()
    add_correction(model, spy)

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
    add_correction(other, Spy())
    assert "guidekit" not in model.model_options
    third = other.clone()
    add_correction(third, Spy())
    assert len(other.model_options["guidekit"]["corrections"]) == 1


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
