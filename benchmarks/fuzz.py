"""Gives arbitrary bytes to the code that reads other people's files, for ten minutes: `python dev.py bench fuzz`.

Needs atheris, which `python dev.py python -m pip install atheris` installs where it is available (Linux, macOS). Prints
how many inputs there were; stops at the first that gives neither a result nor an error with a sentence.
"""

import sys
import tempfile
from pathlib import Path

from ..nodes.host.files import safetensors_header as header
from ..samplers import strict_json
from ..samplers.lora import keys as lora_keys
from ..samplers.lora import layouts, shapes
from ..samplers.lora import peft_config as peft

SECONDS = 600


def names_of(found: header.Header) -> None:
    """Uses a header that could be read."""
    layouts.layout_of(found.tensors)
    names = (lora_keys.split(name) for name in found.tensors)
    renamed = lora_keys.rename(found.tensors, {name.module: name.module for name in names if name is not None})
    for parts in renamed.parts.values():
        shapes.problem({part: found.tensors[name].shape for part, name in parts.items()}, (8, 4), (8,))


class Target:
    """libFuzzer's: reads each input as a file, as a header alone, and as a configuration."""

    def __init__(self, folder: Path):
        self.file = folder / "x.safetensors"
        self.read = 0

    def __call__(self, data: bytes) -> None:
        with_length = len(data).to_bytes(8, "little") + data
        for content in (data, with_length):
            self.file.write_bytes(content)
            try:
                names_of(header.read_header(self.file))
                self.read += 1
            except ValueError as error:
                _check(str(error))
        try:
            peft.read_config(data.decode("utf-8", "replace"))
        except ValueError as error:
            _check(str(error))


def _check(sentence: str) -> None:
    assert 10 < len(sentence) < 2000, sentence


def main() -> None:
    try:
        import atheris
    except ImportError:
        print("Not run: it needs atheris (python dev.py python -m pip install atheris).")
        return
    for module in (header, strict_json, layouts, lora_keys, peft, shapes):
        for name, thing in list(vars(module).items()):
            if callable(thing) and getattr(thing, "__module__", "") == module.__name__ and not isinstance(thing, type):
                setattr(module, name, atheris.instrument_func(thing))
    with tempfile.TemporaryDirectory() as folder:
        seeds = Path(folder) / "seeds"
        seeds.mkdir()
        (seeds / "a").write_bytes(b'{"a.lora_A.weight": {"dtype": "F32", "shape": [0, 4], "data_offsets": [0, 0]}}')
        (seeds / "b").write_bytes(b'{"__metadata__": {"a": "b"}, "c.lokr_w1": {"dtype": "F16", "shape": [0]}}')
        (seeds / "c").write_bytes(b'{"lora_alpha": 4, "alpha_pattern": {"to_q": 2}, "use_rslora": true}')
        atheris.Setup([sys.argv[0], f"-max_total_time={SECONDS}", str(seeds)], Target(Path(folder)))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
