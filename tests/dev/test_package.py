"""What the registry packs: all that pages and code of the package refer to."""

import ast
import re
from pathlib import Path
from urllib.parse import unquote

import pathspec
import pytest
from PIL import Image

PACK = Path(__file__).parents[2]
FOLDERS = {".git", "__pycache__", ".pytest_cache", ".ruff_cache", "output", "shared"}  # in no commit
LEFT_OUT = pathspec.PathSpec.from_lines("gitignore", (PACK / ".comfyignore").read_text("utf-8").splitlines())
FILES = {
    path.relative_to(PACK).as_posix()
    for path in PACK.rglob("*")
    if path.is_file() and not FOLDERS & set(path.relative_to(PACK).parts)
}
PACKED = {path for path in FILES if not LEFT_OUT.match_file(path)}
HELP = PACK / "js" / "docs"
PAGES = sorted(path for path in PACKED if path.endswith(".md"))


def test_what_is_for_developers_is_left_out():
    for folder in ("tests", "benchmarks", "templates", "docs/benchmarks"):
        assert not [path for path in PACKED if path.startswith(f"{folder}/")]
    assert "nodes/apg.py" in PACKED
    assert "demo/weights/unet.safetensors" in PACKED
    assert "demo/weights/judge.safetensors" not in PACKED
    assert [path for path in PACKED if path.startswith("subgraphs/")]
    assert all(path in PACKED for path in FILES if path.startswith(("workflows/", "js/", "locales/", "subgraphs/")))


@pytest.mark.parametrize("page", PAGES)
def test_pages_refer_to_what_is_packed(page):
    # The frontend looks for what a help page refers to beside those of all nodes.
    folder = HELP if HELP in (PACK / page).parents else (PACK / page).parent
    links = re.findall(r"\]\(([^)#\s]+)", (PACK / page).read_text("utf-8"))
    local = [link for link in links if "://" not in link]
    found = [(folder / unquote(link)).resolve().relative_to(PACK).as_posix() for link in local]
    assert [link for link in found if link not in PACKED] == []


def test_the_registry_has_images_of_its_sizes():
    """An icon of at most 400 x 400, a banner of 21 to 9, at addresses of this repository's files."""
    wanted = dict(re.findall(r'^(Icon|Banner) = "(.*)"$', (PACK / "pyproject.toml").read_text("utf-8"), re.MULTILINE))
    base = "https://raw.githubusercontent.com/guidekit/guidekit/main/"
    sizes = {key: Image.open(PACK / url.removeprefix(base)).size for key, url in wanted.items()}
    assert max(sizes["Icon"]) <= 400
    assert sizes["Banner"][0] * 9 == sizes["Banner"][1] * 21


def test_code_imports_what_is_packed():
    lacking = set()
    for path in PACKED:
        if path.endswith(".py"):
            lacking |= {(path, name) for name in _imports(PACK / path) if not _is_packed(name)}
    assert lacking == set()


def _imports(path: Path):
    """Modules of the pack, as paths without their ending."""
    package = path.relative_to(PACK).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = package[: len(package) - node.level + 1]
            module = (*above, *(node.module.split(".") if node.module else ()))
            yield from ("/".join((*module, alias.name)) for alias in node.names)


def _is_packed(name: str) -> bool:
    """A module or package, or something inside one."""
    inside = name.rpartition("/")[0]
    modules = {f"{name}.py", f"{name}/__init__.py", f"{inside}.py", f"{inside}/__init__.py"}
    found = modules & FILES
    return bool(found) and found <= PACKED
