"""Which outer step of a run an evaluation belongs to.

The sigma that the network is given lies on the device, and reading it waits for all work queued there. So it is read
only where the schedule does not give it: in samplers that choose their own levels, are unknown, or add noise before a
step; in the others once, because their first level may differ slightly from the schedule's.

Relies on: the order of evaluations and callbacks in the host's samplers (comfy/k_diffusion/sampling.py, comfy/
extra_samplers/uni_pc.py): the callback of a step comes after its first evaluation; in dpm_adaptive after its last.
Steps of the known samplers begin at the levels of the schedule, except with `s_churn` and at the first level of a flow,
which some of them lower by at most 1e-3 (`offset_first_sigma_for_snr`).
"""

import math
from collections.abc import Callable

from torch import Tensor

TOLERANCE = 1e-4  # relative; schedules pass through float32
_FIRST = 1e-3  # relative; how far the first level may be from the schedule's

# Parts of the names of samplers whose second evaluation of a step is at the next sigma: Heun's corrector, and the
# midpoint of ancestral steps, which for eta = 1 is that sigma.
_SECOND_AT_NEXT_SIGMA = ("heun", "dpm_2_ancestral", "2s_ancestral")

Stages = Callable[[int, list[float]], int]  # (step, sigmas) -> evaluations in that step


class Clock:
    """Counts the outer steps of a sampler whose number of evaluations per step is known: `stages(step, sigmas)`.

    `step`: the current outer step; `step_sigma`: the sigma at which it began. Both are the same for every evaluation of
    a step. `steps`: how many there will be, None if the sampler decides while sampling. `callback_is_last`: the
    callback ends a step. `on_schedule`: every step begins at the schedule's level.
    """

    def __init__(
        self, sigmas: list[float], stages: Stages, *, callback_is_last: bool = False, on_schedule: bool = False
    ):
        self.sigmas, self._stages, self._callback_is_last = sigmas, stages, callback_is_last
        self._on_schedule = on_schedule
        self.steps: int | None = len(sigmas) - 1
        self.step, self.step_sigma = 0, sigmas[0]
        self._made = 0  # evaluations of the current step so far
        self._over = False  # the callback has ended the current step

    def evaluation(self, sigma: Tensor) -> None:
        """An evaluation at `sigma`, [B], begins."""
        if self._made and (self._over or self._made >= self._stages(self.step, self.sigmas)):
            self.step, self._made = self.step + 1, 0
        if self._made == 0:
            self.step_sigma = self._level(sigma)
        self._made += 1
        self._over = False

    def _level(self, sigma: Tensor) -> float:
        """The noise level at which the current step begins."""
        if self._on_schedule and 0 < self.step < len(self.sigmas):
            return self.sigmas[self.step]
        found = read(sigma)
        self._on_schedule = self._on_schedule and math.isclose(found, self.sigmas[0], rel_tol=_FIRST)
        return found

    @property
    def next_sigma(self) -> float:
        """The sigma at which the current step ends; 0 after the last one. In samplers that choose their own levels,
        the next lower one of the schedule."""
        if self.steps == len(self.sigmas) - 1:
            return self.sigmas[self.step + 1] if self.step < self.steps else 0.0
        return max((s for s in self.sigmas if s < self.step_sigma * (1 - TOLERANCE)), default=0.0)

    @property
    def place(self) -> int:
        """The position of the current step in the schedule, from 0."""
        if self.steps == len(self.sigmas) - 1:
            return self.step
        return sum(s > self.step_sigma * (1 + TOLERANCE) for s in self.sigmas)

    def callback(self, step: int) -> None:
        """The sampler's callback for outer step `step`, which corrects the count if an evaluation was missed."""
        self.step, self._over = step, self._callback_is_last
        if not self._callback_is_last:
            self._made = 1


class GuessingClock(Clock):
    """For unknown samplers: the first step shows how many evaluations a step has. In that step, an evaluation between
    schedule points belongs to the current step, and one at the next point begins the next step."""

    def __init__(self, sigmas: list[float], *, second_at_next_sigma: bool = False):
        super().__init__(sigmas, lambda step, sigmas: 1)
        self._second_at_next_sigma = second_at_next_sigma  # as in Heun's method
        self._called_back: int | None = None  # the step of the last callback
        self._per_step: int | None = None  # evaluations between two callbacks, once seen

    def evaluation(self, sigma: Tensor) -> None:
        self._made += 1
        level = read(sigma)
        step = self._step_of(level)
        if step != self.step or self._called_back is None and self._made == 1:
            self.step, self.step_sigma = step, level

    def callback(self, step: int) -> None:
        if self._called_back is not None and self._made > 0:
            self._per_step = self._made
        self._called_back, self._made = step, 0

    def _step_of(self, sigma: float) -> int:
        on_schedule = next((i for i, s in enumerate(self.sigmas) if math.isclose(sigma, s, rel_tol=TOLERANCE)), None)
        if self._called_back is None:
            # Before the first callback, or in a sampler without callbacks: a lower schedule point is a new step.
            return self.step if self._made == 1 or on_schedule is None else max(self.step, on_schedule)
        if self._per_step is not None:
            finished = self._made >= self._per_step
        else:
            finished = on_schedule is not None and not (self._second_at_next_sigma and self._made == 1)
        return self._called_back + finished


def read(sigma: Tensor) -> float:
    """The noise level of an evaluation, from `sigma` [B], the same in all rows; waits for the device."""
    return sigma.flatten()[0].item()


def clock_of(sampler_name: str, options: dict, sigmas: list[float]) -> Clock:
    """The clock for a sampler. `sampler_name`: the name of its function; `options`: its settings."""
    name = sampler_name.removeprefix("sample_").removesuffix("_gpu").removesuffix("_cfg_pp")
    if name == "dpm_adaptive_function":
        order = options.get("order", 3)
        clock = Clock(sigmas, lambda step, sigmas: order, callback_is_last=True)
        clock.steps = None
        return clock
    if name == "dpm_fast_function":
        orders = _dpm_fast_orders(len(sigmas) - 1)
        clock = Clock(sigmas, lambda step, sigmas: orders[min(step, len(orders) - 1)])
        clock.steps = len(orders)
        return clock
    if name in _STAGES:
        return Clock(sigmas, _STAGES[name], on_schedule=not options.get("s_churn"))
    return GuessingClock(sigmas, second_at_next_sigma=any(part in name for part in _SECOND_AT_NEXT_SIGMA))


def _one(step: int, sigmas: list[float]) -> int:
    return 1


def _two(step: int, sigmas: list[float]) -> int:
    return 1 if _goes_to_zero(step, sigmas) else 2


def _three(step: int, sigmas: list[float]) -> int:
    return 1 if _goes_to_zero(step, sigmas) else 3


def _heunpp2(step: int, sigmas: list[float]) -> int:
    return min(3, len(sigmas) - 1 - step)


def _predict_correct(step: int, sigmas: list[float]) -> int:
    return 1 if step == 0 else 2  # the first step has nothing to correct with


def _dpm_fast_orders(evaluations: int) -> list[int]:
    """The evaluations in each step of DPM-Solver-fast (arXiv 2206.00927, section 3.4)."""
    thirds, rest = divmod(evaluations, 3)
    return [3] * (thirds - 1) + [2, 1] if rest == 0 else [3] * thirds + [rest]


def _goes_to_zero(step: int, sigmas: list[float]) -> bool:
    return step + 1 >= len(sigmas) or sigmas[step + 1] == 0


_STAGES: dict[str, Stages] = {
    "heunpp2": _heunpp2,
    "sa_solver_pece": _predict_correct,
    "seeds_3": _three,
    **dict.fromkeys(
        (
            "heun",
            "dpm_2",
            "dpm_2_ancestral",
            "dpmpp_2s_ancestral",
            "dpmpp_sde",
            "exp_heun_2_x0",
            "exp_heun_2_x0_sde",
            "seeds_2",
            "cfgpp_dpmpp_2s_ancestral",  # ours
        ),
        _two,
    ),
    **dict.fromkeys(
        (
            "euler",
            "euler_ancestral",
            "lms",
            "dpmpp_2m",
            "dpmpp_2m_sde",
            "dpmpp_2m_sde_heun",
            "dpmpp_3m_sde",
            "ddpm",
            "lcm",
            "ipndm",
            "ipndm_v",
            "deis",
            "res_multistep",
            "res_multistep_ancestral",
            "gradient_estimation",
            "er_sde",
            "sa_solver",
            "unipc",
            "unipc_bh2",
            "cfgpp_euler",  # ours
            "cfgpp_dpmpp_2m",
            "cfgpp_inversion",
        ),
        _one,
    ),
}
