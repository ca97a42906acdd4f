"""The README: its problems lead to nodes and templates, its numbers to benchmarks, its code runs as it stands."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from guidekit.tests.schema.catalogue import object_info
from guidekit.tests.schema.pages import Page, plain, tables

PACK = Path(__file__).parents[2]
README = Page((PACK / "README.md").read_text("utf-8"))
PROBLEMS, TECHNIQUES = (tables(README.parts[heading])[0] for heading in ("What is the problem?", "All techniques"))
SNIPPETS = re.findall(r"```python\n(.*?)```", README.text, re.DOTALL)
INFO = object_info()


def test_the_problem_comes_first():
    assert [*README.parts][1:5] == ["What is the problem?", "Install", "Try it without a checkpoint", "All techniques"]
    assert PROBLEMS.head == ("problem", "node", "template")


@pytest.mark.parametrize("problem", PROBLEMS.column())
def test_a_problem_has_a_node_and_a_template(problem):
    _, nodes, shown = next(row for row in PROBLEMS.rows if row[0] == problem)
    for name, address in Page(nodes).links:
        node_id = Path(address).stem
        assert (PACK / address).parent == PACK / "js" / "docs"
        assert re.search(rf"(^|\W){re.escape(name.split(' (')[0])}($|\W)", INFO[node_id]["display_name"]), name
    assert Page(nodes).links
    named = [unquote(address) for _, address in Page(shown).links]
    assert named
    assert all((PACK / path).is_file() and path.startswith("workflows/") for path in named)


def test_every_template_solves_a_problem():
    """But the demo models' twins of those that are for real models."""
    named = {Path(unquote(address)).stem for row in PROBLEMS.rows for _, address in Page(row[2]).links}
    titles = {path.stem for path in (PACK / "workflows").glob("*.json")}
    assert {title for title in titles - named if not title.endswith("demo model")} == set()
    assert named <= titles


def test_every_node_is_in_the_list_of_techniques():
    named = " ".join(plain(cell) for row in TECHNIQUES.rows for cell in row)
    words = {info["display_name"]: info["display_name"].split(" (")[0] for info in INFO.values()}
    assert [
        name for name, short in words.items() if plain(short.removesuffix(" Classifier Guidance")) not in named
    ] == []


def test_numbers_are_those_of_the_benchmarks():
    """Costs with a decimal point, as they are there or rounded."""
    known = {
        f"{float(number):.{digits}f}"
        for path in (PACK / "docs" / "benchmarks").glob("*.md")
        for number in re.findall(r"(?<![\d.])\d+\.\d+(?![\d.])", path.read_text("utf-8"))
        for digits in (1, 2, 3)
    }
    cells = [re.sub(r"SD\d\.\d|\[[^\]]*\]\([^)]*\)", "", cell) for row in TECHNIQUES.rows for cell in row]
    found = [number for cell in cells for number in re.findall(r"\d+\.\d+", cell)]
    assert found
    assert [number for number in found if number not in known] == []


def test_tools_that_are_not_packed_are_said_to_need_a_clone():
    """`.comfyignore` leaves dev.py out of the registry's package."""
    before = README.text.partition("python dev.py")[0]
    assert "git clone" in before.rpartition("## ")[2]
    assert "dev.py" not in README.parts["Install"]


def test_python_is_python():
    assert SNIPPETS
    assert all(ast.parse(code) for code in SNIPPETS)


def test_the_mathematics_runs_without_the_host():
    [code] = [code for code in SNIPPETS if "samplers." in code]
    code += "import sys\nassert denoised.shape == cond.shape\nassert 'comfy' not in sys.modules\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACK, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
