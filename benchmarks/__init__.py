"""Quality and cost tables. Each module prints the table that the help pages and the README quote."""

import sys

if "folder_paths" not in sys.modules:  # else who imports a part of a benchmark has the host with folders already
    from ..demo import own_folders  # noqa: F401  before anything else of the host's is imported

KNOWN_FAMILIES = ["unet", "dit"]
FAMILIES = sys.argv[1:] or KNOWN_FAMILIES  # python dev.py python -m guidekit.benchmarks.NAME unet
