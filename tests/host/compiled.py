"""Networks under core's TorchCompileModel, and what is compiled when."""

from dataclasses import dataclass, field

import torch
import torch._dynamo
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_torch_compile import TorchCompileModel

from guidekit.tests.host import tiny


def compiled(model, backend="eager"):
    return TorchCompileModel.execute(model, backend)[0]


@dataclass
class Graphs:
    """For each network call of a MODEL its rows and how many graphs were compiled in it; `first`: the calls of the
    first step; `breaks`: between graphs."""

    calls: list[tuple[int, int]] = field(default_factory=list)
    first: int = 0
    breaks: int = 0

    def __call__(self, executor, x, *args, **kwargs):
        before, breaks = self._compiled(), self._breaks()
        out = executor(x, *args, **kwargs)
        self.calls.append((len(x), self._compiled() - before))
        self.breaks += self._breaks() - breaks
        return out

    def _compiled(self) -> int:
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    def _breaks(self) -> int:
        return sum(torch._dynamo.utils.counters["graph_break"].values())

    @property
    def again(self) -> list[tuple[int, int]]:
        """The calls after the first step in which something was compiled though there had been one with as many
        rows."""
        new = [(i, rows) for i, (rows, count) in enumerate(self.calls) if i >= self.first and count]
        return [(i, rows) for i, rows in new if rows in [before for before, _ in self.calls[:i]]]

    def after_step(self, step: int, *_) -> None:
        if step == 0:
            self.first = len(self.calls)


def sample(model, family, **options):
    graphs = Graphs()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "graphs", graphs)
    return tiny.sample(model, family, callback=graphs.after_step, **{"steps": 3, **options}), graphs
