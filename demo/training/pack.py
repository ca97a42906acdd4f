"""Fills a folder with the files that everything.py starts from: `python dev.py python -m guidekit.demo.training.pack
FROM TO`.

FROM holds the checkpoints of the trainings of the autoencoder and, perhaps, of a judge (autoencoder.pt, judge.pt); TO
gets their moving averages, 4 MB.
"""

import argparse
from pathlib import Path

from safetensors.torch import save_file

from .everything import FALLBACK
from .files import load, save


def pack(source: Path, target: Path) -> None:
    save({"average": load(source / "autoencoder.pt")["average"]}, target / "autoencoder.pt")
    if (judge := source / "judge.pt").exists():
        save_file(load(judge)["average"], target / FALLBACK)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, metavar="FROM")
    parser.add_argument("target", type=Path, metavar="TO")
    options = parser.parse_args()
    pack(options.source, options.target)


if __name__ == "__main__":
    main()
