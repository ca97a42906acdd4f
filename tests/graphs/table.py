"""docs/compatibility.md: what our nodes do in the graphs of the host's own templates.

python dev.py python -m guidekit.tests.graphs.table
"""

import asyncio
import re
from pathlib import Path

from guidekit.templates import host as loading

from .crossing import ACTS, Cross, cases_of, crossed, host_fails_too
from .networks import NETWORKS
from .patches import PATCHES
from .selection import Graphs, graphs
from .variants import Executor

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
HOST_FAILS = (
    "the graph evaluates one prediction at a time: ComfyUI stops there at any cfg but 1, without this node too."
)
# Reasons that another machine's rounding may decide.
_BY_PREDICTIONS = ("the classifier was never in doubt", "the predictions agreed too late", "estimates missed more")
_HEAD = """# Which node works where

Every node that takes a MODEL and gives one, at its defaults, before every sampler of ComfyUI's own templates for these
kinds of models: {templates} templates, {samplers} samplers, on tiny networks with random weights, in 4 steps. **acts**:
the result changes; of Adaptive Guidance, CFG-Cache and GFCG, which go by the predictions, it may. A number: it says at
the node why not, below. Several entries: it differs between templates, mostly by cfg.

Made by the repository's tests (tests/graphs), which hold it.
"""

Statuses = dict[str, dict[str, list[str]]]  # by kind of model and name of node


def status(cross: Cross, fails: bool = False) -> str:
    """What `cross` does, without what depends on the numbers of the single run."""
    if cross.does.startswith(_BY_PREDICTIONS):
        return ACTS
    return HOST_FAILS if fails else re.sub(r" \(shape \([^)]*\)\)", "", cross.does)


def statuses(all_graphs: Graphs, executor: Executor, kind: str) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {patch.name: set() for patch in PATCHES}
    for cross in crossed(all_graphs, executor, kind):
        fails = cross.problem() is not None and cross.result.error and host_fails_too(all_graphs, executor, cross)
        found[cross.patch.name].add(status(cross, bool(fails)))
    return {name: sorted(each, key=lambda s: (s != ACTS, s)) for name, each in found.items()}


def written(all_statuses: Statuses, templates: int, samplers: int) -> str:
    sentences = sorted({s for row in all_statuses.values() for each in row.values() for s in each} - {ACTS})

    def cell(each: list[str]) -> str:
        return ", ".join(s if s == ACTS else str(sentences.index(s) + 1) for s in each)

    head = "| model | " + " | ".join(patch.name for patch in PATCHES) + " |"
    rows = [
        f"| {kind} | " + " | ".join(cell(row[p.name]) for p in PATCHES) + " |" for kind, row in all_statuses.items()
    ]
    notes = [f"{i}. {sentence}" for i, sentence in enumerate(sentences, 1)]
    table = [head, "|---" * (len(PATCHES) + 1) + "|", *rows]
    return "\n".join([_HEAD.format(templates=templates, samplers=samplers), *table, "", *notes]) + "\n"


def read(text: str) -> Statuses:
    """What `written` has written."""
    notes = dict(re.findall(r"^(\d+)\. (.*)$", text, re.M))
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    names = rows[0][1:]
    return {
        kind: {name: [notes.get(s, s) for s in cell.split(", ")] for name, cell in zip(names, cells)}
        for kind, *cells in rows[1:]
    }


def main() -> None:
    host = loading.load_host()
    assert asyncio.run(host.load_custom_node(str(Path(__file__).with_name("stand_in_nodes"))))
    import execution

    found, executor = graphs(loading.object_info(host)), Executor(execution)
    all_statuses = {kind: statuses(found, executor, kind) for kind in NETWORKS if cases_of(found, kind)}
    cases = found.cases()
    PAGE.write_text(written(all_statuses, len({case.template for case in cases}), len(cases)), "utf-8")


if __name__ == "__main__":
    main()
