"""The gradient of a window in parts is that of the window at once; windows of a training are what they should be."""

import itertools
import threading
from collections import Counter
from functools import partial

import pytest
import torch
from torch import nn

from guidekit.samplers.preference import kto
from guidekit.samplers.preference.errors import mean_square
from guidekit.samplers.preference.objectives import DPO, KTO, NFT, SFT
from guidekit.samplers.preference.replay import Part, accumulate
from guidekit.samplers.preference.window import Plan, warm_up

N = 8
LIKED = torch.tensor([True, False] * 4)
WEIGHT = torch.tensor([1.0, 0.5, 1.0, 1.0, 0.25, 1.0, 1.0, 1.0])
OBJECTIVES = [KTO(20.0), KTO(20.0, "mean of classes"), DPO(20.0), NFT(0.3), SFT()]
ids = [f"{type(o).__name__}-{getattr(o, 'point', '')}" for o in OBJECTIVES]


class Toy(nn.Module):
    """A network with a product beside its weights, as a LoRA is; counts what it is asked."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.weight = torch.randn(12, 12, generator=g) / 4
        self.down = nn.Parameter(torch.randn(2, 12, generator=g) / 4)
        self.up = nn.Parameter(torch.randn(12, 2, generator=g) / 4)
        self.asked = Counter()

    def tuned(self, part):
        self.asked["with gradient" if torch.is_grad_enabled() else "tuned"] += len(part.target)
        return torch.tanh(part.given @ (self.weight + self.up @ self.down).T)

    def reference(self, part):
        assert not torch.is_grad_enabled()
        self.asked["reference"] += len(part.target)
        return torch.tanh(part.given @ self.weight.T)


def parts(size):
    g = torch.Generator().manual_seed(2)
    x, target = torch.randn(N, 12, generator=g), torch.randn(N, 12, generator=g)
    places = torch.arange(N).split(size)
    return [Part(target[p], LIKED[p], WEIGHT[p], p, x[p]) for p in places]


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def at_once(objective):
    """By automatic differentiation of the whole formula."""
    model, (part,) = Toy(), parts(N)
    with torch.no_grad():
        old = model.reference(part)
    v = model.tuned(part)
    if isinstance(objective, KTO):
        gain = mean_square(old, part.target) - mean_square(v, part.target)
        losses = kto.loss(gain, LIKED, objective.beta, kto.reference_point(gain, LIKED, objective.point))
    elif isinstance(objective, DPO):
        gain = mean_square(old, part.target) - mean_square(v, part.target)
        losses = objective.losses(gain, LIKED)
    else:
        losses = objective.losses(v, old, part.target, LIKED)
    if not isinstance(objective, DPO):  # whose pairs have one weight
        losses = losses * WEIGHT
    losses.mean().backward()
    return gradient(model)


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=ids)
def test_parts_give_the_gradient_of_the_whole(objective, size):
    model, each = Toy(), parts(size)
    if isinstance(objective, DPO):
        each = [Part(p.target, p.liked, torch.ones(len(p.places)), p.places, p.given) for p in each]
    accumulate(objective, model, each, N)
    wanted = at_once(objective)
    assert (gradient(model) - wanted).norm() <= 1e-6 * wanted.norm()


@pytest.mark.parametrize(
    ("objective", "size", "asked"),
    [
        (KTO(20.0), 2, {"reference": N, "tuned": N, "with gradient": N}),
        (KTO(20.0), 8, {"reference": N, "with gradient": N}),
        (NFT(0.3), 2, {"reference": N, "with gradient": N}),
        (SFT(), 2, {"with gradient": N}),
    ],
)
def test_nothing_is_evaluated_twice_without_need(objective, size, asked):
    model = Toy()
    accumulate(objective, model, parts(size), N)
    assert model.asked == asked


@pytest.mark.parametrize("objective", OBJECTIVES, ids=ids)
def test_only_one_part_is_kept_for_its_gradient(objective):
    """However large the window is: what autograd keeps is that of a part, and is gone before the next one's."""
    kept, most = Counter(), []

    def pack(tensor):
        kept["bytes"] += tensor.nbytes
        return tensor

    def collect():
        most.append(kept.pop("bytes"))

    each = [Part(p.target, p.liked, torch.ones(len(p.places)), p.places, p.given) for p in parts(2)]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        accumulate(objective, Toy(), each, N, collect=collect)
    assert len(most) == N // 2
    assert len(set(most)) == 1
    assert not kept


class Meeting:
    """Adds up what two threads bring."""

    def __init__(self):
        self.barrier, self.brought = threading.Barrier(2, timeout=60), {}

    def exchange(self, who, value):
        self.brought[who] = value
        self.barrier.wait()
        total = self.brought[0] + self.brought[1]
        self.barrier.wait()
        return total


@pytest.mark.parametrize("objective", OBJECTIVES, ids=ids)
def test_two_processes_add_up_to_one(objective):
    """Each has every second part of the window."""
    one, each, meeting, halves = Toy(), parts(2), Meeting(), {}
    whole = accumulate(objective, one, each, N)

    def work(who):
        model = Toy()
        seen = accumulate(objective, model, each[who::2], N, partial(meeting.exchange, who))
        halves[who] = gradient(model), seen

    threads = [threading.Thread(target=work, args=(who,)) for who in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (halves[0][0] + halves[1][0] - gradient(one)).norm() <= 1e-6 * gradient(one).norm()
    for _, seen in halves.values():
        for name in ("loss", "gain", "liked"):
            torch.testing.assert_close(getattr(seen, name), getattr(whole, name), equal_nan=True)


def test_gains_are_nan_where_nobody_asked():
    assert accumulate(SFT(), Toy(), parts(4), N).gain.isnan().all()
    assert not accumulate(NFT(1.0), Toy(), parts(4), N).gain.isnan().any()


# Windows


def plan(**settings):
    return Plan(**{"seed": 5, "size": 8, "likes": range(6), "dislikes": range(10, 30), **settings})


@pytest.mark.parametrize("share", [0.25, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_likes_have_their_share_and_come_in_turn(size, share):
    drawn = [draw.row for step in range(40) for draw in plan(size=size, share=share).window(step)]
    assert len(drawn) == 40 * size
    liked = [row for row in drawn if row < 10]
    assert abs(len(liked) - share * len(drawn)) <= 1
    for kind in (liked, [row for row in drawn if row >= 10]):
        number = 6 if kind is liked else 20
        turns = [kind[i : i + number] for i in range(0, len(kind) - number + 1, number)]
        assert all(len(set(turn)) == number for turn in turns)
    if len(liked) >= 18:
        assert liked[:6] != liked[6:12] or liked[6:12] != liked[12:18]


def test_a_window_depends_on_seed_and_step_alone():
    assert plan().window(7) == plan().window(7)
    assert {d.noise for d in plan().window(7)}.isdisjoint({d.noise for d in plan(seed=6).window(7)})
    windows = [tuple(plan(seed=seed).window(step)) for seed, step in itertools.product(range(3), range(5))]
    assert len(set(windows)) == len(windows)
    seeds = [draw.noise for step in range(50) for draw in plan().window(step)]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("levels", ["uniform", "middle"])
def test_levels(levels):
    drawn = [draw.level for step in range(200) for draw in plan(levels=levels).window(step)]
    found = torch.tensor(drawn, dtype=torch.float64)
    assert 0 < found.min() < found.max() < 1
    assert found.mean() == pytest.approx(0.5, abs=0.01)
    # Uniform: 1/12. The logit of a normal: by numerical integration 0.0433.
    assert found.var() == pytest.approx({"uniform": 1 / 12, "middle": 0.0433}[levels], rel=0.05)
    limited = [d.level for s in range(50) for d in plan(levels=levels, first_level=0.5, last_level=0.75).window(s)]
    assert 0.5 <= min(limited) < max(limited) <= 0.75


def test_a_window_has_levels_from_everywhere():
    for step in range(20):
        places = sorted(draw.level for draw in plan().window(step))
        assert [int(8 * place) for place in places] == list(range(8))


def test_prompts_are_dropped_at_their_rate():
    drawn = [draw.empty for step in range(200) for draw in plan(dropout=0.2).window(step)]
    assert sum(drawn) / len(drawn) == pytest.approx(0.2, abs=0.03)
    assert not any(draw.empty for step in range(20) for draw in plan(dropout=0.0).window(step))


def test_a_pair_has_one_noise():
    pairs = [(1, 11), (2, 12), (3, 13)]
    drawn = plan(pairs=pairs).window(3)
    assert len(drawn) == 8
    for better, worse in zip(drawn[::2], drawn[1::2]):
        assert (better.row, worse.row) in pairs
        assert (better.level, better.noise, better.empty) == (worse.level, worse.noise, worse.empty)
    assert len({draw.noise for draw in drawn}) == 4


def test_one_kind_alone_is_drawn_alone():
    assert {draw.row < 10 for draw in plan(dislikes=()).window(0)} == {True}
    assert {draw.row < 10 for draw in plan(likes=()).window(0)} == {False}


def test_warm_up():
    assert [warm_up(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warm_up(0, 0) == 1
