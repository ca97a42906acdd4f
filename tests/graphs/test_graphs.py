"""Graphs that nobody here wrote: the host's own templates, with each of our nodes before each sampler."""

import pytest

from guidekit.tests.graphs import table
from guidekit.tests.graphs.crossing import cases_of, crossed, host_fails_too
from guidekit.tests.graphs.networks import NETWORKS
from guidekit.tests.graphs.patches import PATCHES, WITH_FILES, patch_nodes

FAMILIES = [
    "SD1.5",
    "SDXL",
    "SD3.5",
    "Flux",
    "Flux.2",
    "Chroma",
    "Qwen-Image",
    "Wan",
    "HunyuanVideo",
    "Z-Image",
    "Lumina",
    "HiDream",
]


def test_every_patch_node_is_here():
    assert patch_nodes() == {patch.node_id for patch in PATCHES} | WITH_FILES


def test_every_template_is_of_a_known_kind(templates):
    """Or is left out by a rule: a new one of the host's shows up here."""
    assert not templates.files_that_no_rule_names()
    assert {case.kind for case in templates.cases()} == set(NETWORKS)
    assert len({case.template for case in templates.cases()}) > 100
    assert all(any(kind.startswith(family) for kind in NETWORKS) for family in FAMILIES)


@pytest.mark.parametrize("kind", NETWORKS)
def test_acts_or_says_why_not(templates, executor, kind):
    """At the cost that it states; idle, it changes nothing; and docs/compatibility.md says so."""
    problems, listed = [], table.read(table.PAGE.read_text("utf-8"))[kind]
    for cross in crossed(templates, executor, kind):
        problem = cross.problem()
        fails = bool(problem and cross.result.error and host_fails_too(templates, executor, cross))
        if problem and not fails:
            problems.append(f"{cross.case}, {cross.patch.name}: {problem}")
        elif (does := table.status(cross, fails)) not in listed[cross.patch.name]:
            problems.append(f"{cross.case}, {cross.patch.name}: {table.PAGE.name} does not say: {does}")
    assert cases_of(templates, kind)
    assert not problems, "\n".join(problems)
