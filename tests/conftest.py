"""Shared by all tests. `python dev.py test` puts the host and the package `guidekit` on the path."""

import os
import sys

import torch

# Arguments of pytest, which the benchmarks that tests use would take for their own.
sys.argv = sys.argv[:1]

# Read when a kernel is defined.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The networks of the tests are so small that a second thread only costs time; beside other tests, also in servers that
# they start, threads that wait for each other cost a hundred times as much.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

if "GUIDEKIT_COMFYUI" in os.environ:
    from guidekit.demo import own_folders


def pytest_unconfigure():
    if "GUIDEKIT_COMFYUI" in os.environ:
        own_folders.BASE.cleanup()  # workers of pytest-xdist end without the usual cleaning up
