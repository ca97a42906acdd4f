"""What the hooks of a run cost in Python: calls of functions of ours, counted, in each step."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.pag import PAG
from guidekit.tests.host import tiny

PACK = Path(__file__).resolve().parents[2]
OURS = tuple(str(PACK / folder) for folder in ("nodes", "samplers"))
# A UNet of 18 layers and 12 attentions, twice in a step: with cond, and from the perturbed block on.
MOST = 560


@contextmanager
def counted() -> Iterator[Counter]:
    """Calls of functions of ours inside the block, by file and name. Comprehensions are calls in some versions of
    Python and not in others, and are left out."""
    paths: dict[str, bool] = {}  # by the name of a file, whether it is one of ours
    calls: Counter = Counter()

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and not code.co_name.startswith("<"):
            if code.co_filename not in paths:
                paths[code.co_filename] = str(Path(code.co_filename).resolve()).startswith(OURS)
            if paths[code.co_filename]:
                calls[Path(code.co_filename).name, code.co_name] += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(before)


def test_plain_pag_calls_few_functions_in_a_step():
    model = run_node(PAG, model=tiny.model("unet"))
    tiny.sample(model, "unet", steps=2, cfg=1.0)
    with counted() as of_four:
        tiny.sample(model, "unet", steps=4, cfg=1.0)
    with counted() as of_eight:
        tiny.sample(model, "unet", steps=8, cfg=1.0)
    in_four_steps = of_eight.total() - of_four.total()
    most = [(count, *name) for name, count in (of_eight - of_four).most_common(10)]
    assert 0 < in_four_steps / 4 <= MOST, most
