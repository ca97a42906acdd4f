"""Input as no node wants it, made from the schema: for every input of every node what must be refused, and what may be
taken or refused but must not hurt."""

import math
from typing import Any

import numpy as np
import torch
from comfy.nested_tensor import NestedTensor
from comfy_api.latest import io

DIGITS = "9" * 5000
CONTROLS = "a\0b\x1b[31mc\r\nd\u202ee\u2028f"
MARKUP = "<img src=x onerror=alert(1)> [[safe|https://example.org]] __LNK0__"
HALF = "\ud83d"  # of an emoji, as JSON can spell it
TENSOR = torch.ones(2, 2)
NOT_FINITE = {"NaN": math.nan, "inf": math.inf, "-inf": -math.inf}
NOT_TEXT = {"null": None, "number": 3, "list": [], "dict": {}, "tensor": TENSOR}
NOT_AN_OBJECT = {"null": None, "number": 3, "text": "x", "list": [], "dict": {}, "tensor": TENSOR}


def wrong(wanted: io.Input) -> dict[str, Any]:
    """What must be refused, by a name; null is not, where a socket may stay open."""
    kind = wanted.get_io_type()
    found = {**_WRONG[kind](wanted)} if kind in _WRONG else {**NOT_AN_OBJECT, "object": object()}
    if wanted.optional:
        found.pop("null", None)
    return found


def odd(wanted: io.Input) -> dict[str, Any]:
    """What a node may take or refuse, quickly and in little memory."""
    return _ODD.get(wanted.get_io_type(), {})


def _number(wanted) -> dict[str, Any]:
    huge = {"above": wanted.max + 1, "below": wanted.min - 1, "huge": 10**400, "-huge": -(10**400), "digits": 10**5000}
    floats = {f"numpy's {name}": np.float32(value) for name, value in NOT_FINITE.items()}
    parts = {"a part": 1.5} if wanted.get_io_type() == io.Int.io_type else {}
    return NOT_FINITE | NOT_AN_OBJECT | huge | floats | parts | {"number": "3", "text": DIGITS, "switch": True}


def _text(wanted) -> dict[str, Any]:
    return NOT_TEXT | {"huge": "a" * 1_000_001, "half a character": HALF}


def _option(wanted) -> dict[str, Any]:
    return NOT_TEXT | {"unknown": "furlongs", "empty": "", "digits": DIGITS, "markup": MARKUP, "controls": CONTROLS}


def _latent(wanted) -> dict[str, Any]:
    """For a model whose latents have 8 channels and two dimensions."""
    good = torch.ones(1, 8, 8, 8)
    samples = {name: good * value for name, value in NOT_FINITE.items()}
    samples |= {
        "null samples": None,
        "text": "x",
        "other channels": torch.ones(1, 7, 8, 8),
        "batch 0": good[:0],
        "side 0": good[..., :0],
        "0-D": torch.tensor(0.0),
        "2-D": torch.ones(8, 8),
        "3-D": good[0],
        "5-D": good[:, :, None],
        "integers": good.long(),
        "nested": NestedTensor([good, torch.ones(1, 8, 6)]),
        "nested NaN": NestedTensor([good, torch.ones(1, 8, 6) * math.nan]),
        "nested lists": NestedTensor([[1.0]]),
    }
    return NOT_AN_OBJECT | {name: {"samples": value} for name, value in samples.items()}


def _sigmas(wanted) -> dict[str, Any]:
    levels = [14.0, 3.0, 1.0, 0.0]
    broken = {name: torch.tensor([14.0, value, 0.0]) for name, value in NOT_FINITE.items()}
    shapes = {"empty": torch.tensor([]), "one": torch.tensor([1.0]), "2-D": torch.tensor([levels]), "a list": levels}
    kinds = {"complex": torch.tensor(levels) + 0j, "bool": torch.tensor([True, False])}
    return NOT_AN_OBJECT | broken | shapes | kinds | {"below 0": torch.tensor([1.0, -1.0]), "0-D": torch.tensor(3.0)}


def _mask(wanted) -> dict[str, Any]:
    good = torch.ones(1, 8, 8)
    broken = {name: good * value for name, value in NOT_FINITE.items()} | {"complex": good * 1j}
    shapes = {"empty": good[:0], "side 0": good[..., :0], "tensor": good[0, 0], "5-D": good[None, None]}
    return NOT_AN_OBJECT | broken | shapes


def _image(wanted) -> dict[str, Any]:
    good = torch.ones(1, 8, 8, 3)
    broken = {name: good * value for name, value in NOT_FINITE.items()} | {"complex": good * 1j}
    shapes = {"batch 0": good[:0], "side 0": good[:, :0], "3-D": good[0], "5-D": good[None], "channels first": good.mT}
    kinds = {"integers": good.long(), "bool": good.bool(), "nested": NestedTensor([good, good]), "a list": [good]}
    return NOT_AN_OBJECT | broken | shapes | kinds


def _conditioning(wanted) -> dict[str, Any]:
    """For a network that takes a pooled output."""
    tokens, pooled = torch.ones(1, 4, 64), torch.ones(1, 64)
    broken = {name: [[tokens * value, {"pooled_output": pooled}]] for name, value in NOT_FINITE.items()}
    broken |= {f"pooled {name}": [[tokens, {"pooled_output": pooled * value}]] for name, value in NOT_FINITE.items()}
    return (
        NOT_AN_OBJECT
        | broken
        | {
            "no pooled output": [[tokens, {}]],
            "null for a pooled output": [[tokens, {"pooled_output": None}]],
            "batch 0": [[tokens[:0], {"pooled_output": pooled}]],
            "no tokens": [[tokens[:, :0], {"pooled_output": pooled}]],
            "pooled batch 0": [[tokens, {"pooled_output": pooled[:0]}]],
            "rank 2": [[tokens[0], {"pooled_output": pooled}]],
            "pooled rank 1": [[tokens, {"pooled_output": pooled[0]}]],
            "pooled text": [[tokens, {"pooled_output": "x"}]],
            "no options": [[tokens]],
            "null for options": [[tokens, None]],
            "lists": [[[1.0], {"pooled_output": pooled}]],
            "integers": [[tokens.long(), {"pooled_output": pooled}]],
        }
    )


def _curve(wanted) -> dict[str, Any]:
    points = {name: [[0, 0], [0.5, value], [1, 1]] for name, value in NOT_FINITE.items()}
    points["a narrow NaN"] = [[0, 1], [0.51, 1], [0.511, math.nan], [0.512, 1], [1, 1]]
    shapes = {"tensor": TENSOR[0], "numbers": [1, 2], "triples": [[0, 0, 0]], "huge": [[0, 10**400]]}
    return NOT_AN_OBJECT | points | shapes


_WRONG = {
    io.Int.io_type: _number,
    io.Float.io_type: _number,
    io.Boolean.io_type: lambda wanted: NOT_FINITE | NOT_AN_OBJECT | {"huge": 10**400},
    io.String.io_type: _text,
    io.Combo.io_type: _option,
    io.Latent.io_type: _latent,
    io.Sigmas.io_type: _sigmas,
    io.Mask.io_type: _mask,
    io.Image.io_type: _image,
    io.Conditioning.io_type: _conditioning,
    io.Curve.io_type: _curve,
    io.MatchType.io_type: lambda wanted: {},  # passed on, whatever it is
    io.AnyType.io_type: lambda wanted: {},
}
_RANGES = {"long range": "0-99999999999", "long list": "all," * 2000, "digits to digits": f"{DIGITS}-{DIGITS}"}
_ODD = {
    io.String.io_type: {"empty": "", "digits": DIGITS, "controls": CONTROLS, "markup": MARKUP, **_RANGES},
    io.Sigmas.io_type: {"integers": torch.tensor([14, 3, 1, 0]), "rising": torch.tensor([0.0, 1.0, 3.0])},
    io.Mask.io_type: {"bool": torch.ones(1, 8, 8).bool(), "2-D": torch.ones(8, 8), "4-D": torch.ones(1, 1, 8, 8)},
    io.Float.io_type: {"a whole number": 1, "numpy's": np.float64(0.5)},
    io.Int.io_type: {"a float": 1.0, "numpy's": np.int64(1)},
    io.Boolean.io_type: {"numpy's": np.bool_(True)},
    io.Image.io_type: {
        "several": torch.ones(2, 8, 8, 3),
        "alpha": torch.ones(1, 8, 8, 4),
        "half": torch.ones(1, 8, 8, 3).half(),
    },
    io.MatchType.io_type: NOT_AN_OBJECT,
    io.AnyType.io_type: NOT_AN_OBJECT,
}
