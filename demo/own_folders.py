"""The host in this process, with folders of its own: for the tests and the benchmarks.

Nothing in the checkout's folders is seen (models, custom nodes, inputs), and nothing is written into them. Import this
before anything else of the host: it reads its settings, and looks for a GPU, when that happens.

Relies on: `args.base_directory`, under which folder_paths.py puts every folder that it knows.
"""

import sys
import tempfile

import comfy.cli_args
import torch

# Removed when the process ends.
BASE = tempfile.TemporaryDirectory(prefix="guidekit-", ignore_cleanup_errors=True)

if "folder_paths" in sys.modules:
    raise ImportError("ComfyUI has its folders already. Import guidekit.demo.own_folders before anything that uses it.")
comfy.cli_args.args.base_directory = BASE.name
comfy.cli_args.args.cpu = not torch.cuda.is_available()

# As main.py does: older hosts' nodes.py puts a folder with a utils.py of its own in front.
import utils.extra_config  # noqa: E402, F401
