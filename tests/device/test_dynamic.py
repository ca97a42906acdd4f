"""Dynamic VRAM (comfy-aimdo): weights are moved to the card when a layer needs them. It is turned on for a whole
process, so this test starts one, which runs other tests of this folder."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from guidekit.tests.device.machine import DYNAMIC, GPU, MEASURED

HERE = Path(__file__).parent
LONGEST = 100  # seconds


@pytest.mark.skipif(not GPU or DYNAMIC, reason="comfy-aimdo wants a card")
def test_weights_that_come_when_they_are_wanted():
    pytest.importorskip("comfy_aimdo")
    options = ["-q", "-p", "no:cacheprovider", "--tb=line", "-rN"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        *options,
        *(str(HERE / name) for name in ("test_weights.py", "test_training.py")),
    ]
    environment = {**os.environ, "GUIDEKIT_DYNAMIC_VRAM": "1"}
    try:
        ended = subprocess.run(
            command, env=environment, cwd=HERE.parents[1], timeout=LONGEST, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired as over:
        pytest.fail(f"no end after {LONGEST} s: {(over.stdout or b'')[-500:]!r}")
    lines = (ended.stdout + ended.stderr).strip().splitlines()
    said = [line for line in lines if not line.startswith("aimdo:")]  # which logs each allocation
    MEASURED.append(f"dynamic VRAM: {said[-1] if said else ended.returncode}")
    errors = Counter(line[4:] for line in said if line.startswith("E   "))
    why = "; ".join(f"{count} times {error}" for error, count in errors.most_common(8)) or " | ".join(said[-12:])
    assert ended.returncode == 0, f"exit {ended.returncode}, {said[-1]}: {why}"
