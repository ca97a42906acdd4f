"""The kernels are compiled for devices that this machine does not have, which Triton can do.

The interpreter, in which the other tests run them on a processor, knows no types, no shared memory and no instructions.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

# Shared memory of a program, in bytes, by the makers' documents, and the matrix instruction that 16 bits must come to.
DEVICES = {
    "80": (166912, "mma.sync"),  # A100
    "86": (101376, "mma.sync"),  # RTX 30 and 40
    "90": (232448, "wgmma.mma"),  # H100
    "120": (101376, "mma.sync"),  # RTX 50
    "gfx942": (65536, "mfma"),  # MI300
    "gfx1100": (65536, "wmma"),  # RX 7900
}
COMPILE = Path(__file__).with_name("compile_matching.py")


@pytest.mark.parametrize("device", DEVICES)
def test_the_kernels_compile(device, tmp_path):
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    shared_limit, instruction = DEVICES[device]
    command = [sys.executable, COMPILE, device, str(shared_limit)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    compiled = json.loads(done.stdout)
    assert len(compiled) == (12 if device in ("90", "120") else 10)
    for each in compiled:
        assert each["shared"] <= shared_limit, each
        assert not each["spilled"], each
        assert each["copies_tiles"] == each["descriptors"], each
        if each["kernel"] == "match":
            assert (instruction in each["instructions"]) == (each["bits"] == 16 or device == "gfx942"), each
