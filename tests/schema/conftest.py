"""The host with all its own nodes and this pack, loaded as it loads them when it starts."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from guidekit.demo import own_folders
from guidekit.templates import TEMPLATES
from guidekit.templates import host as loading
from guidekit.templates.graph import Info


@pytest.fixture(scope="session")
def host() -> ModuleType:
    """The host's module `nodes`."""
    return loading.load_host()


@pytest.fixture(scope="session")
def host_info(host) -> Info:
    """/object_info of every node, as far as a converter of workflows needs it."""
    return loading.object_info(host)


@pytest.fixture(scope="module")
def named_files(host_info) -> Iterator[None]:
    """Empty files under the names that the templates have: a prompt is valid if they are there, whatever is in them."""
    base = Path(own_folders.BASE.name)
    files = [f for made in TEMPLATES for node in made.graph(host_info).nodes for f in node.files]
    paths = {base / "input" / "example.png", *(base / "models" / f.directory / f.name for f in files)}
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    yield
    for path in paths:
        path.unlink()
