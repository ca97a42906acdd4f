"""Shared by all tests. `python dev.py test` puts the host and the package `guidekit` on the path."""

import os
import sys

import torch

# The host reads the command line when it is imported.
sys.argv = sys.argv[:1]

# Read when a kernel is defined.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The networks of the tests are so small that a second thread only costs.
torch.set_num_threads(1)

if "GUIDEKIT_COMFYUI" in os.environ:
    # As main.py does: older hosts' nodes.py puts a folder with a utils.py of its own in front.
    import utils.extra_config  # noqa: F401  isort: skip
    import comfy.cli_args

    if not torch.cuda.is_available():
        comfy.cli_args.args.cpu = True
