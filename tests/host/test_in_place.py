"""Graphs of code that changes in place what a gradient needs (nodes/host/training/in_place.py)."""

import gc
import weakref

import pytest
import torch

from guidekit.nodes.host.training.in_place import InPlace


class Block:
    """As a block of the host's: a norm keeps what it is given, and what comes of it is added to that in place."""

    def __init__(self, in_place: bool = True):
        self.in_place, self.calls = in_place, 0
        self.weight = torch.linspace(-1, 1, 6).requires_grad_()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        x = 1.0 * x
        for _ in range(2):
            more = torch.nn.functional.layer_norm(x, (6,), self.weight).exp()
            if self.in_place:
                x += more
            else:
                x = x + more
        return x


def gradients(block, x, make=lambda function: function()):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(make(lambda: block(x)).square().sum(), (x, block.weight))


X = torch.randn((3, 6), generator=torch.Generator().manual_seed(0))


def test_autograd_alone_refuses():
    with pytest.raises(RuntimeError, match="inplace operation"):
        gradients(Block(), X)


def test_gradients_are_those_of_code_that_copies():
    block, make = Block(), InPlace()
    wanted = gradients(Block(in_place=False), X)
    for found in (gradients(block, X, make), gradients(block, X, make)):
        for one, other in zip(found, wanted):
            assert torch.equal(one, other)


def test_a_graph_is_made_twice_only_once():
    block, make = Block(), InPlace()
    gradients(block, X, make)
    assert block.calls == 2
    gradients(block, X, make)
    assert block.calls == 3


def test_code_that_copies_is_called_once():
    block, make = Block(in_place=False), InPlace()
    gradients(block, X, make)
    assert block.calls == 1
    assert not make.copied


def test_what_changes_later_is_found():
    """A network that does something else with other prompts."""
    block, make = Block(in_place=False), InPlace()
    gradients(block, X, make)
    block.in_place = True
    found, wanted = gradients(block, X, make), gradients(Block(in_place=False), X)
    assert all(map(torch.equal, found, wanted))


def test_what_one_call_has_taught_the_next_one_knows():
    """Two kinds of prompts, of which each changes something else."""
    x, calls, make = X.clone().requires_grad_(), 0, InPlace()

    def output(which: int) -> torch.Tensor:
        nonlocal calls
        calls += 1
        parts = [1.0 * x, 2.0 * x]
        results = [part.exp() for part in parts]  # each gradient needs its result
        results[which].add_(1)
        return results[0] + results[1]

    for which in (0, 1, 0, 1, 0):
        [found] = torch.autograd.grad(make(lambda which=which: output(which)).sum(), x)
        torch.testing.assert_close(found, X.exp() + 2 * (2 * X).exp())
    assert calls == 7


def test_a_change_after_the_graph_is_an_error():
    x = X.clone().requires_grad_()
    output = InPlace()(lambda: (2 * x).exp())  # whose gradient needs the output
    output.detach().add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        output.sum().backward()


def test_a_graph_does_not_hold_itself():
    x = X.clone().requires_grad_()
    output = InPlace()(lambda: (2 * x).exp())
    held = weakref.ref(output)
    del output
    gc.disable()
    try:
        assert held() is None
    finally:
        gc.enable()
