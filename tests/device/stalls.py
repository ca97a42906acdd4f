"""Finds where the CPU waits for the device: as reported by CUDA or, without a GPU, where such a wait would happen.

A wait ends the CPU's head start over the device, and with it the overlap of the two.
"""

import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from guidekit.tests.device.machine import GPU

_PACK = Path(__file__).resolve().parents[2]
_OF_NUMBERS = ("item", "tolist", "__float__", "__int__", "__bool__", "__index__", "cpu", "numpy")
_OF_ANY_SIZE = ("nonzero", "masked_select", "unique", "argwhere", "equal", "allclose")
_READS = {f"Tensor.{name}" for name in (*_OF_NUMBERS, *_OF_ANY_SIZE)} | {f"torch.{name}" for name in _OF_ANY_SIZE}
_MAKES = {"torch.tensor", "torch.as_tensor", "Tensor.new_tensor"}


class Waits:
    """`places`: of each wait so far, as file:line of the pack, or "host"."""

    def __init__(self):
        self.places: list[str] = []
        self.at_step: list[int] = []  # how many there were when the step was called back

    def note(self) -> None:
        self.places.append(_place())

    def after_step(self, step: int, *_: Any) -> None:
        self.at_step.append(len(self.places))

    def of_step(self, step: int) -> list[str]:
        """The waits between the previous callback and that of `step`."""
        return self.places[self.at_step[step - 1] if step else 0 : self.at_step[step]]


@contextmanager
def counted() -> Iterator[Waits]:
    waits = Waits()
    with _said_by_cuda(waits) if GPU else _Simulated(waits):
        yield waits


@contextmanager
def _said_by_cuda(waits: Waits) -> Iterator[None]:
    def show(message, *_: Any, **__: Any) -> None:
        if "synchronizing CUDA operation" in str(message):
            waits.note()

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


class _Simulated(TorchFunctionMode):
    """As if all tensors were on a device, but for those that were made of numbers or drawn for the processor, and what
    is computed of these alone: reading the first, and bringing the second over there, would wait."""

    def __init__(self, waits: Waits):
        super().__init__()
        self._waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = (resolve_name(func) or "").removeprefix("torch.").removeprefix("_C.")
        name = name.replace("TensorBase", "Tensor") if "Tensor" in name else f"torch.{name}"
        given = [each for each in _flat((args, kwargs)) if isinstance(each, Tensor)]
        here = bool(given) and all(getattr(each, "_of_processor", False) for each in given)
        out = func(*args, **kwargs)
        if name in _READS and not here:
            self._waits.note()
        if name == "Tensor.__getitem__" and any(isinstance(each, list) for each in _whole(args[1])):
            self._waits.note()  # places in a list are sent first
        if name == "Tensor.to" and getattr(args[0], "_of_processor", False) and _is_moved(args[1:], kwargs):
            here = False
            if not _called_from("sending.py"):
                self._waits.note()
        if name in _MAKES and not given and (name == "Tensor.new_tensor" or kwargs.get("device") is not None):
            self._waits.note()
        elif name in _MAKES and not given or kwargs.get("generator") is not None and not given or name == "Tensor.cpu":
            here = True
        if here:
            for each in _flat(out):
                if isinstance(each, Tensor):
                    each._of_processor = True
        return out


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _flat(each)
    elif isinstance(value, dict):
        yield from _flat(tuple(value.values()))
    else:
        yield value


def _whole(index: Any) -> tuple:
    return index if isinstance(index, tuple) else (index,)


def _is_moved(args: tuple, kwargs: dict) -> bool:
    """Whether a call of `to` names a device, or a tensor to be like."""
    return kwargs.get("device") is not None or any(isinstance(a, (torch.device, str, Tensor)) for a in args)


def _called_from(name: str) -> bool:
    frame = sys._getframe(2)
    return frame is not None and Path(frame.f_code.co_filename).name == name


def _place() -> str:
    """The innermost line of the pack that is no test."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename).resolve()
        if _PACK in path.parents and "tests" not in path.parts and "benchmarks" not in path.parts:
            return f"{path.relative_to(_PACK)}:{frame.lineno}"
    return "host"
