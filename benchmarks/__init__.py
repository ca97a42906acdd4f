"""Quality and cost tables. Each module prints the table that the help pages and the README quote."""

import sys

import comfy.cli_args
import torch

FAMILIES = sys.argv[1:] or ["unet", "dit"]  # python dev.py python -m guidekit.benchmarks.NAME unet

# Before anything else of the host is imported: it reads the command line, and looks for a GPU, when that happens.
sys.argv = sys.argv[:1]
comfy.cli_args.args.cpu = not torch.cuda.is_available()
