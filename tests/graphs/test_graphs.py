"""Graphs that nobody here wrote: the host's own templates, with each of our nodes before each sampler."""

import pytest

from guidekit.tests.graphs import table
from guidekit.tests.graphs.crossing import ACTS, Cross, cases_of, crossed, host_fails_too
from guidekit.tests.graphs.networks import NETWORKS
from guidekit.tests.graphs.patches import LEFT_OUT, PATCHES, patch_nodes
from guidekit.tests.graphs.selection import Case
from guidekit.tests.graphs.variants import PATCH, Result

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
    assert patch_nodes() == {patch.node_id for patch in PATCHES} | LEFT_OUT


def test_every_template_is_of_a_known_kind(templates):
    """Or is left out by a rule: a new one of the host's shows up here."""
    assert not templates.files_that_no_rule_names()
    assert {case.kind for case in templates.cases()} == set(NETWORKS)
    assert len({case.template for case in templates.cases()}) > 100
    assert all(any(kind.startswith(family) for kind in NETWORKS) for family in FAMILIES)


def cross(name: str, **result) -> Cross:
    """Of a run of 4 steps with CFG, beside one in which the latent came to 1."""
    base = Result("1", True, 4, 8, 4)
    patch = next(patch for patch in PATCHES if patch.name == name)
    return Cross(Case("any", "3", "SDXL"), patch, Result(**{**vars(base), "total": "2", **result}), base)


def said(text: str) -> tuple[str]:
    return (f"Name (node {PATCH}, sampler node taker): {text}",)


@pytest.mark.parametrize(
    ("name", "result", "right"),
    [
        ("APG", {}, True),
        ("APG", {"total": "1"}, False),  # silent
        (
            "APG",
            {"total": "1", "said": ("Other (node 5, sampler node taker): had no effect in this run: why.",)},
            False,
        ),
        ("APG", {"total": "1", "said": said("had no effect in this run: cfg is 1.")}, True),
        ("APG", {"said": said("had no effect in this run: cfg is 1.")}, False),  # it had
        ("APG", {"total": "1", "evaluations": 9, "said": said("had no effect in this run: cfg is 1.")}, False),
        ("APG", {"finite": False}, False),
        ("APG", {"evaluations": 9}, False),
        ("PAG", {"evaluations": 12}, True),
        ("PAG", {"evaluations": 11}, False),
        ("Adaptive Guidance", {"evaluations": 6, "said": said("2 evaluations saved.")}, True),
        ("Adaptive Guidance", {"evaluations": 6, "said": said("3 evaluations saved.")}, False),
        ("APG", {"error": (PATCH, "ValueError", "Connect a model.")}, True),
        ("APG", {"error": (PATCH, "ValueError", "no sentence")}, False),
        ("APG", {"error": ("taker", "RuntimeError", "Shapes differ.")}, False),
    ],
)
def test_problems_are_found(name, result, right):
    assert (cross(name, **result).problem() is None) == right


def test_the_table_can_be_read_again():
    page = {kind: {p.name: [ACTS] if p.name == "APG" else ["One.", f"Of {kind}."] for p in PATCHES} for kind in "AB"}
    assert table.read(table.written(page, 2, 3)) == page


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
