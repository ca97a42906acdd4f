"""The most informative tests come first. float32 is computed as float32, without TF32."""

import os
import signal
import time
from pathlib import Path

if "GUIDEKIT_DYNAMIC_VRAM" in os.environ:  # before the host: its modules bind the library when they are imported
    import comfy_aimdo.control

    comfy_aimdo.control.init()

import comfy.model_management
import pytest
import torch

from guidekit.tests.device.machine import GPU, MEASURED
from guidekit.tests.host import tiny

ORDER = ("stalls", "precision", "weights", "attention_backends", "memory", "training", "devices", "dynamic", "compiled")
_STARTED = time.monotonic()
_ON_A_LENT_MACHINE = 140  # seconds within which a test has to begin, where there are not many of them
_SLOW = ("test_compiled", "test_dynamic")
_BEFORE_SLOW = 110


def pytest_collection_modifyitems(items):
    here = [i for i, item in enumerate(items) if Path(__file__).parent in item.path.parents]
    ordered = sorted((items[i] for i in here), key=lambda item: ORDER.index(item.path.stem.removeprefix("test_")))
    for i, item in zip(here, ordered):
        items[i] = item


def pytest_configure():
    if GPU:  # a time limit of the caller's ends the tests, and not the report
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter):
    for line in MEASURED:
        terminalreporter.write_line(line)


@pytest.fixture(autouse=True, scope="module")
def _models_are_put_away():
    yield
    comfy.model_management.unload_all_models()
    tiny.HANDED_OUT.clear()


@pytest.fixture(autouse=True, scope="session")
def _float32_is_float32():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(autouse=True)
def _in_time(request):
    limit = _BEFORE_SLOW if request.path.stem in _SLOW else _ON_A_LENT_MACHINE
    if GPU and time.monotonic() - _STARTED > limit:
        pytest.skip(f"{limit} s are over")
