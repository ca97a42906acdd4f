"""Prompts that are told apart by image: which of them fit into one."""

from types import SimpleNamespace

import comfy.conds
import pytest
import torch

from guidekit.nodes.host.predictions.per_sample_prompts import References


def prepared(value: float, **conds) -> dict:
    """An entry as the host prepares it for a run."""
    own = {"c_crossattn": comfy.conds.CONDCrossAttn(torch.full((1, 3, 2), value))}
    return {"uuid": value, "model_conds": {**own, **conds}}


def rate(value) -> comfy.conds.CONDConstant:
    return comfy.conds.CONDConstant(value)


def row(*values: float, kind=comfy.conds.CONDRegular):
    return kind(torch.tensor([values]))


def together(first: dict, second: dict) -> list[dict] | None:
    """A prompt for two images, the first of which has the second one of two prompts."""
    references = References(([], []))
    names = [references._name(i) for i in (1, 2)]
    parts = {}
    run = SimpleNamespace(of=lambda kind: parts.setdefault(kind, kind(None)))
    return references.together(run, dict(zip(names, ([first], [second]))), [2, 1])


@pytest.mark.parametrize("shared", [{}, {"rate": 24}, {"rate": "slow"}, {"rate": (1, 2)}, {"rate": None}], ids=str)
def test_every_image_has_its_own(shared):
    """What is the same for both is left as it is."""
    first, second = (prepared(v, **{name: rate(value) for name, value in shared.items()}) for v in (1.0, 2.0))
    [joined] = together(first, second)
    assert joined["model_conds"]["c_crossattn"].cond[:, 0, 0].tolist() == [2.0, 1.0]
    assert {name: joined["model_conds"][name].cond for name in shared} == shared


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"rate": rate(24)}, {"rate": rate(25)}),
        ({"rate": rate(24)}, {"rate": rate("24")}),
        ({"rate": rate([24])}, {"rate": rate([24])}),  # lists may hold what cannot be compared
        ({"rate": rate(24)}, {}),
        ({}, {"rate": rate(24)}),
        ({"rate": rate(24)}, {"other": rate(24)}),
        ({"rate": rate(24)}, {"rate": row(1.0)}),
        ({"rate": row(1.0)}, {"rate": rate(24)}),
        ({"rate": row(1.0)}, {"rate": row(1.0, 1.0)}),
        ({"rate": row(1.0, kind=comfy.conds.CONDNoiseShape)}, {"rate": row(0.0, kind=comfy.conds.CONDNoiseShape)}),
    ],
)
def test_prompts_that_are_not_alike_in_the_rest_stay_apart(first, second):
    assert together(prepared(1.0, **first), prepared(2.0, **second)) is None


def test_one_prompt_for_all_is_that_prompt():
    first = prepared(1.0)
    references = References(([], []))
    assert references.together(None, {references._name(1): [first]}, [1, 1]) == [first]
