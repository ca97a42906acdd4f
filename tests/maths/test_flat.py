"""All weights in one buffer: the same steps as Muon and AdamW, the same averages; trainings that follow a clock."""

import pytest
import torch
from torch import nn

from guidekit.demo.training.flat import Flat, orthogonal
from guidekit.demo.training.optimizer import Optimizer
from guidekit.demo.training.state import Average
from guidekit.demo.training.timed import FALL, WARM_UP, Step, rate_at, train

ENDS = ("0.weight", "4.weight")
RATES = (0.1, 0.5, 1.0, 1.0, 0.4)


def network(dtype=torch.float32) -> nn.Module:
    torch.manual_seed(3)
    layers = [nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 2)]
    return nn.Sequential(*layers, nn.Unflatten(1, (2, 1, 1)), nn.Conv2d(2, 8, 3, padding=1), nn.Flatten()).to(dtype)


def loss_of(model: nn.Module, scale: float = 30.0) -> torch.Tensor:
    x = torch.linspace(-1, 1, 24, dtype=next(model.parameters()).dtype).view(4, 6)
    return scale * (model(x).float() - x[:, :1].float()).square().mean()


def test_orthogonal_matrices():
    matrices = torch.randn((3, 12, 5), generator=torch.Generator().manual_seed(1))
    for batch in (matrices, matrices.mT):
        values = torch.linalg.svdvals(orthogonal(batch).float())
        assert (values > 0.6).all()
        assert (values < 1.3).all()
        u, _, v = torch.linalg.svd(batch, full_matrices=False)
        closest = u @ v
        assert (
            (orthogonal(batch).float() * closest).sum((1, 2))
            > 0.95 * 5**0.5 * orthogonal(batch).float().norm(dim=(1, 2))
        ).all()


def test_steps_are_those_of_muon_and_adamw():
    model, other = network(), network()
    flat, optimizer = Flat(model, ENDS), Optimizer(other, ENDS)
    average = Average(other, 0.999)
    for step, rate in enumerate(RATES):
        scale = (30.0, 0.01)[step % 2]  # gradients that are clipped, and some that are not
        flat.rate.fill_(rate)
        loss_of(model, scale).backward()
        flat.step()
        other.zero_grad()
        loss_of(other, scale).backward()
        assert (nn.utils.clip_grad_norm_(other.parameters(), 1.0) > 1) == (step % 2 == 0)
        optimizer.step(rate)
        average.update(other, step + 1)
    averaged = flat.averaged()
    for name, value in other.state_dict().items():
        moved = (value - network().state_dict()[name]).abs().max()
        assert (model.state_dict()[name] - value).abs().max() < 0.02 * moved, name  # Muon computes in bfloat16
        assert (averaged[name] - average.weights[name]).abs().max() < 0.02 * moved, name


def test_coarse_weights_follow_fine_ones():
    fine, coarse = network(), network(torch.bfloat16)
    start = {name: p.detach().clone() + 1e-4 for name, p in fine.named_parameters()}
    flat = Flat(coarse, ENDS, start=start)
    for name, value in start.items():
        assert torch.equal(flat.view(flat.master, name), value)
        assert torch.equal(coarse.state_dict()[name], value.bfloat16())
    pointers = [p.data_ptr() for p in coarse.parameters()]
    flat.rate.fill_(1e-3)  # less than bfloat16 resolves
    loss_of(coarse).backward()
    flat.step()
    assert [p.data_ptr() for p in coarse.parameters()] == pointers
    assert all(not p.grad.any() for p in coarse.parameters())
    for name in start:
        assert not torch.equal(flat.view(flat.master, name), start[name])
        assert torch.equal(coarse.state_dict()[name], flat.view(flat.master, name).bfloat16())


def test_statistics_of_norms_are_averaged():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    flat = Flat(model, None)
    model(torch.randn((8, 3, 6, 6), generator=torch.Generator().manual_seed(2))).square().mean().backward()
    before = torch.zeros(4)
    flat.step()
    after, weight = model[1].running_mean, 1 - 2 / 11
    assert torch.allclose(flat.averaged()["1.running_mean"], before + weight * (after - before))


def test_the_rate_follows_the_clock():
    assert rate_at(0, 0.0) == 1 / WARM_UP
    assert rate_at(WARM_UP, 0.5) == 1.0
    assert rate_at(WARM_UP, 1 - FALL / 2) == pytest.approx(0.5)
    assert rate_at(10**6, 1.5) == 0.0


def test_a_training_keeps_what_is_asked_for():
    model, kept, lines = network(), [], []
    step = Step(lambda: loss_of(model), Flat(model, ENDS))
    keep = {0.5: lambda done: kept.append((0.5, done)), 0.25: lambda done: kept.append((0.25, done))}
    first = loss_of(model).item()
    assert train(step, 1e6, lines.append, keep, steps=40) == 40
    assert kept == [(0.25, 10), (0.5, 20)]
    assert "step     40" in lines[-1]
    assert loss_of(model) < first


def test_a_training_ends_when_its_time_is_over():
    model = network()
    step = Step(lambda: loss_of(model), Flat(model, ENDS))
    assert train(step, 1e-9, [].append, {}) == 1


def test_a_training_stops_at_nan():
    model = network()
    step = Step(lambda: loss_of(model) * torch.nan, Flat(model, ENDS))
    with pytest.raises(FloatingPointError, match="nan after 20 steps"):
        train(step, 1e6, [].append, {}, steps=40)
