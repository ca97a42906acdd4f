"""Every node of ours before every sampler of the host's templates: what it does there, and whether that is right."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from guidekit.nodes.host.run.told import form, lineage

from .patches import PATCHES, Patch
from .selection import Case, Graphs
from .smaller import small
from .variants import PATCH, Executor, Result, with_node

ACTS = "acts"
_IDLE = "had no effect in this run: "
_TOLD = re.compile(r"(\d+) (?:more )?evaluations")


@dataclass(frozen=True)
class Cross:
    """`patch` before the sampler of `case`, and the same without it."""

    case: Case
    patch: Patch
    result: Result
    base: Result

    @property
    def does(self) -> str:
        """ACTS, or what the node says of why it does not."""
        if self.result.error:
            return self.result.error[2]
        return self._idle or (ACTS if self.result.total != self.base.total else "")

    @property
    def lines(self) -> list[str]:
        """What our node said, without its name."""
        return [line.partition("): ")[2] for line in self.result.said if f"(node {PATCH}" in line]

    @property
    def _idle(self) -> str:
        return next((line.partition(_IDLE)[2] for line in self.lines if _IDLE in line), "")

    def problem(self) -> str | None:
        """What is not in order."""
        result, base = self.result, self.base
        if result.error:
            node_id, kind, text = result.error
            sentence = kind == "ValueError" and text.endswith(".") and "\n" not in text
            return None if sentence else f"{kind} at {node_id}: {text}"
        if not result.finite:
            return "the latent is not finite"
        if not self.does:
            return "no effect, and no word of it"
        if self._idle:
            same = (result.total, result.evaluations) == (base.total, base.evaluations)
            return None if same else f"says '{self._idle}', and has changed something"
        more, told = result.evaluations - base.evaluations, [int(n) for line in self.lines for n in _TOLD.findall(line)]
        wanted = self._wanted(more, told)
        return (
            None
            if more in wanted
            else f"{more} more than {base.evaluations} evaluations in {base.steps}, said: {self.lines}"
        )

    def _wanted(self, more: int, told: list[int]) -> set[int]:
        """How many further evaluations are right."""
        name, base = self.patch.name, self.base
        if name in ("PAG", "SEG", "SLG", "Autoguidance"):
            return {base.steps}  # of the positive, in another network
        if name in ("Guidance Interval", "Adaptive Guidance", "CFG-Cache", "CFG-Zero*"):
            return {-sum(told)}
        if name in ("GFCG", "CFG++"):
            return {sum(told)}
        if name.endswith("reference latent"):
            return set(range(1, base.evaluations + 1))  # beside each, in its steps
        return {0}


def cases_of(graphs: Graphs, kind: str) -> list[Case]:
    return [case for case in graphs.cases() if case.kind == kind]


def crossed(graphs: Graphs, executor: Executor, kind: str) -> Iterator[Cross]:
    """All of one kind of model. Of templates that come to the same graph, the first."""
    known = []
    for case in cases_of(graphs, kind):
        prompt, sampler = small(case, graphs)
        if (same := form(lineage(prompt, sampler))) in known:
            continue
        known.append(same)
        base = executor.run(with_node(prompt, case, sampler, None, {}))
        if base.error:
            raise RuntimeError(f"{case} does not run without a node of ours: {base.error}")
        for patch in PATCHES:
            node, beside = patch.with_defaults(graphs.info, prompt[case.node]["inputs"]["model"])
            yield Cross(case, patch, executor.run(with_node(prompt, case, sampler, node, beside)), base)


def host_fails_too(graphs: Graphs, executor: Executor, cross: Cross) -> bool:
    """Whether the graph itself, with a scale that has the negative evaluated, ends as it does with our node."""
    prompt, sampler = small(cross.case, graphs)
    if "cfg" not in prompt[cross.case.node]["inputs"]:
        return False
    prompt[cross.case.node]["inputs"]["cfg"] = 4.0
    error = executor.run(with_node(prompt, cross.case, sampler, None, {})).error
    return error is not None and error[1] == cross.result.error[1]
