"""Every help page has the same parts in the same order, and its values agree with nodes, templates and benchmarks."""

import re
from urllib.parse import quote

import pytest

from guidekit import templates
from guidekit.benchmarks._table import unbroken
from guidekit.nodes import NODES
from guidekit.nodes.host.inputs import CHECKS
from guidekit.templates import demo
from guidekit.templates.files import WORKFLOWS
from guidekit.templates.pages import PAGES, copies
from guidekit.tests.schema.catalogue import IN_NO_TEMPLATE, inputs, object_info, published, read
from guidekit.tests.schema.pages import ADDRESS, PACK, Page, Table, in_repository, longest_word, plain, tables

INFO = object_info()
BY_ID = {node.GET_SCHEMA().node_id: node for node in NODES}
ORDER = ("", "Use it when", "Settings", "Inputs", "Outputs", "Cost", "Combines with", "Template", "Measured", "Paper")
ALWAYS = {"", "Use it when", "Inputs", "Cost", "Combines with", "Template"}
# Nodes that guide nothing by themselves and so have no settings by family.
HELPERS = {
    "GuidekitCandidate",
    "GuidekitCandidates",
    "GuidekitCLIPClassifier",
    "GuidekitDemoModel",
    "GuidekitExportVotes",
    "GuidekitImageClassifier",
    "GuidekitImportVotes",
    "GuidekitLoadInversion",
    "GuidekitReport",
    "GuidekitSaveInversion",
    "GuidekitVote",
    "GuidekitVoteByRule",
    "GuidekitVotes",
}
OUR_TEMPLATE, OURS, PAPER = "our template", "ours", "the paper"
# Inputs of core's nodes that a settings table may name beside the node's own inputs.
AROUND = {"cfg": (0, 100), "steps": (1, 1000), "denoise": (0, 1)}
OF_NEGTOME = "GuidekitTrajectoryReplay"  # is nothing without a NegToMe before it
BENCHMARKS = sorted((PACK / "docs" / "benchmarks").glob("*.md"))
WIDEST = {2: 31, 3: 32, 4: 28}  # characters that cannot be broken, over so many columns: about 280 pixels

every_node = pytest.mark.parametrize("node_id", INFO)


def page_of(node_id: str) -> Page:
    path = PAGES / f"{node_id}.md"
    assert path.is_file(), f"{path.relative_to(PACK)} is missing"
    return Page(path.read_text("utf-8"))


@every_node
def test_headings(node_id):
    found = [*page_of(node_id).parts]
    assert found == [heading for heading in ORDER if heading in found]
    wanted = ALWAYS if node_id in HELPERS else ALWAYS | {"Settings", "Paper"}
    assert wanted <= set(found)


@every_node
def test_begins_with_what_it_does_and_one_image(node_id):
    title, what, shown, *caption = page_of(node_id).parts[""].split("\n\n")
    assert title == f"# {INFO[node_id]['display_name']}"
    assert len(what) < 300
    if shown.startswith("!["):
        assert re.fullmatch(r"!\[[^\]]{10,}\]\(\w+\.jpg\)", shown)
        assert len(caption) == 1
        assert re.fullmatch(r"\*[^*]{20,}\.\*", caption[0])
    else:
        assert re.fullmatch(r"\*No image: [^*]+\.\*", shown)
        assert not caption
    assert page_of(node_id).text.count("![") == shown.count("![")


@every_node
def test_says_when_to_use_it(node_id):
    assert all(line.startswith(("- ", "  ")) for line in page_of(node_id).parts["Use it when"].splitlines())


@every_node
def test_every_input_is_explained(node_id):
    """In a row, alone or with others; no other names."""
    table = tables(page_of(node_id).parts["Inputs"])[0]
    assert table.head == ("input", "meaning")
    assert all(table.column(1))
    named = [word for cell in table.column() for word in re.findall(r"\w+", cell)]
    assert sorted(named) == sorted(inputs(INFO[node_id]))


@every_node
def test_is_for_people_who_have_only_the_pack(node_id):
    page = page_of(node_id)
    assert "dev.py" not in page.text
    assert not re.search(r"\bpictures?\b", page.text, re.IGNORECASE)
    assert max(len(line) for line in page.text.splitlines() if not line.startswith("|") and "](" not in line) <= 125


# Tables


@every_node
def test_tables_fit_into_the_panel(node_id):
    for table in page_of(node_id).tables:
        assert len(table.head) in WIDEST, table.head
        assert all(len(row) == len(table.head) for row in table.rows), table.head
        words = [max(longest_word(row[i]) for row in (table.head, *table.rows)) for i in range(len(table.head))]
        assert sum(words) <= WIDEST[len(words)], (table.head, words)


def settings_of(node_id: str) -> tuple[list[str], list[tuple[str, str, str]]]:
    """The rows that are in the table of presets, and the others."""
    table = tables(page_of(node_id).parts["Settings"])[0]
    assert table.head == ("family", "settings", "where from")
    assert 1 <= len(table.rows) <= 8
    rows = [f"| {' | '.join(row)} |" for row in table.rows]
    known = published(node_id)
    return rows[: len(known)], [*table.rows[len(known) :]]


@pytest.mark.parametrize("node_id", sorted(set(INFO) - HELPERS))
def test_settings_are_those_that_the_node_takes(node_id):
    found, others = settings_of(node_id)
    assert found == published(node_id), "\n".join(published(node_id))
    for family, settings, source in others:
        values = parsed(node_id, settings)
        assert values, settings
        if source == OUR_TEMPLATE:
            assert any(holds(name, node_id, values) for name in real_ones(family)), (family, settings)
        else:
            assert source == OURS or source.startswith(PAPER), source
            assert not published(node_id), "what is published has a row in nodes/presets.py"


def parsed(node_id: str, settings: str) -> dict[str, object]:
    """Values by input, in the types of the node or of those around it."""
    known = inputs(INFO[node_id]) | (inputs(INFO["GuidekitNegToMe"]) if node_id == OF_NEGTOME else {})
    schema = {i.id: i for name in (node_id, "GuidekitNegToMe") for i in BY_ID[name].define_schema().inputs}
    schema |= {i.id: i for i in BY_ID[node_id].define_schema().inputs}
    values: dict[str, object] = {}
    for part in re.split("[,;] ", settings):
        name, _, text = part.partition(" ")
        if name in AROUND and name not in inputs(INFO[node_id]) and not (node_id == OF_NEGTOME and name == "steps"):
            low, high = AROUND[name]
            values[name] = float(text)
            assert low <= values[name] <= high, part
        else:
            assert name in known, part
            kind = schema[name].get_io_type()
            value = float(text) if kind == "FLOAT" else int(text) if kind == "INT" else text
            values[name] = CHECKS[kind](name, value, schema[name]) if kind in CHECKS else value
    return values


def real_ones(family: str) -> list[str]:
    """Templates for a real model, by its name at the end of their titles."""
    title = re.compile(rf".* - {re.escape(family)}")
    return [made.name for made in templates.TEMPLATES if title.fullmatch(made.title)]


def holds(name: str, node_id: str, values: dict[str, object]) -> bool:
    """Whether the template has the node, and each of the values in it or in a node around it."""
    nodes = [(node["class_type"], node["inputs"]) for node in read(WORKFLOWS / "api" / f"{name}.json").values()]
    if node_id not in [kind for kind, _ in nodes]:
        return False
    ours = {node_id, "GuidekitNegToMe"} if node_id == OF_NEGTOME else {node_id}
    own = {name for kind in ours for name in inputs(INFO[kind])}
    return all(
        any(given.get(name) == value for kind, given in nodes if (kind in ours) == (name in own))
        for name, value in values.items()
    )


def numbers(row: tuple[str, ...]) -> list[str]:
    return [plain(cell) for cell in row if re.match(r"[-+]?\d", plain(cell))]


def cells(row: tuple[str, ...]) -> set[str]:
    """With and without their intervals, for which there is no room on a help page."""
    return {part for cell in map(plain, row) for part in (cell, cell.partition(" (")[0])}


@every_node
def test_numbers_are_those_of_the_benchmarks(node_id):
    """Every row with numbers in it is a part of a row of a page that is linked beside it."""
    for heading in ("Cost", "Measured"):
        part = page_of(node_id).parts.get(heading, "")
        leads_to = [in_repository(address) for _, address in Page(part).links]
        measured = [row for path in leads_to if path for table in tables(path.read_text("utf-8")) for row in table.rows]
        for table in tables(part):
            assert len(table.rows) <= 6
            for row in table.rows:
                assert numbers(row), row
                assert any(set(numbers(row)) <= cells(theirs) for theirs in measured), row
                assert f"| {' | '.join(row)} |" == unbroken(f"| {' | '.join(row)} |")


@every_node
def test_measurements_are_told_from_claims(node_id):
    measured = page_of(node_id).parts.get("Measured")
    if measured and not measured.startswith("See "):
        assert re.search(r"claim|[Tt]he paper measured", measured)
        assert [path for _, address in Page(measured).links if (path := in_repository(address)) in BENCHMARKS]


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_measured_rows_are_as_the_benchmarks_print_them(path):
    """Numbers together with their units."""
    rows = [line for line in path.read_text("utf-8").splitlines() if line.startswith("|") and "---" not in line]
    assert rows == [unbroken(row) for row in rows]
    assert "dev.py" in path.read_text("utf-8"), "the command that prints them"


# Links


@every_node
def test_names_one_template_and_links_it(node_id):
    """One for a real model, if there is any."""
    links = Page(page_of(node_id).parts["Template"]).links
    title, address = links[0]
    assert address == f"{ADDRESS}workflows/{quote(title)}.json"
    assert (WORKFLOWS / f"{title}.json").is_file()
    used = {made.title for made in templates.TEMPLATES if holds(made.name, node_id, {})}
    real = used - {made.title for made in demo.TEMPLATES}
    if node_id not in IN_NO_TEMPLATE:
        assert title in (real or used)


@every_node
def test_links_lead_somewhere(node_id):
    """The frontend resolves relative ones in several ways, by its version: there are none."""
    for text, address in page_of(node_id).links:
        assert re.fullmatch(r"https://[\w./%#-]+", address), address
        assert (path := in_repository(address)) is None or path.is_file(), address
        if text.startswith("arXiv "):
            assert address == f"https://arxiv.org/abs/{text.removeprefix('arXiv ')}"


@pytest.mark.parametrize("node_id", sorted(set(INFO) - HELPERS))
def test_the_paper_has_an_address(node_id):
    assert Page(page_of(node_id).parts["Paper"]).links


# Copies


def test_copies_are_up_to_date():
    """The page under the name that the frontend asks for first, and the images of templates."""
    made = copies()
    again = "python dev.py python -m guidekit.templates writes them"
    found = {path for path in PAGES.rglob("*") if path.is_file()} - {PAGES / f"{node_id}.md" for node_id in INFO}
    assert found == set(made), again
    assert not [path for path, original in made.items() if path.read_bytes() != original.read_bytes()], again
    assert {PAGES / node_id / "en.md" for node_id in INFO} <= found


# The tests' own parts


def test_parts_and_tables():
    cost = "|a|b|\n|--|:--|\n| `x` | 1\xa0% |\n\n[p](https://x.y) ![i](z.jpg)"
    page = Page(f"# T\n\nwhat\n\n## Cost\n\n{cost}\n")
    assert page.parts == {"": "# T\n\nwhat", "Cost": cost}
    assert page.tables == [Table(("a", "b"), (("`x`", "1\xa0%"),))]
    assert plain(page.tables[0].rows[0][1]) == "1 %"
    assert page.links == [("p", "https://x.y")]
    assert longest_word("a `start_percent`, self-attention 1\xa0%") == len("start_percent,")
    assert longest_word("1\xa0to\xa02 a") == 6
