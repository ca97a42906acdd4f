"""Quality and cost tables. Each module prints the table that the help pages and the README quote."""

import sys

if "folder_paths" not in sys.modules:  # else who imports a part of a benchmark has the host with folders already
    from ..demo import own_folders  # noqa: F401  before anything else of the host's is imported

KNOWN_FAMILIES = ["unet", "dit"]
# python dev.py python -m guidekit.benchmarks.NAME unet "rows whose names have this in them"
FAMILIES = [given for given in sys.argv[1:] if given in KNOWN_FAMILIES] or KNOWN_FAMILIES
ROWS = [given for given in sys.argv[1:] if given not in KNOWN_FAMILIES]
