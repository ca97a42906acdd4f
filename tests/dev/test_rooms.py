"""The rooms of nodes/host, and which of them may import from which: no circle, nothing from above."""

import ast
from pathlib import Path

PACK = Path(__file__).parents[2]
HOST = PACK / "nodes" / "host"

BELOW = {
    "files": set(),
    "run": set(),
    "network": {"run"},
    "predictions": {"network", "run"},
    "models": {"predictions", "run"},
    "attention": {"models", "network", "run"},
    "attention/second_prompt": {"attention", "models", "network", "run"},
    "classifiers": {"files", "run"},
    "inversion": {"run"},
    "weights": {"files"},
    "votes": {"files", "run", "weights"},
    "training": {"files", "models", "network", "predictions", "run", "votes", "weights"},
    "concepts": {"network", "run", "weights"},
    "inputs": {"classifiers", "network", "run", "votes"},
}


def room_of(parts: tuple[str, ...]) -> str:
    """The room of a path below nodes/host."""
    return "/".join(parts[:2]) if parts[:2] == ("attention", "second_prompt") else parts[0]


def imports(path: Path) -> list[tuple[str, ...]]:
    """The modules of the pack that a file imports, as paths from the top."""
    package, found = path.relative_to(PACK).parts[:-1], []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = package[: len(package) - node.level + 1]
            found.append((*above, *(node.module.split(".") if node.module else ())))
    return found


def test_rooms_import_from_the_rooms_below_them():
    found = {}
    for path in HOST.rglob("*.py"):
        here = path.relative_to(HOST).parts
        if len(here) == 1:
            continue
        for target in imports(path):
            if target[:2] == ("nodes", "host"):
                found.setdefault(room_of(here), set()).add(room_of(target[2:]))
    assert {room: others - {room} for room, others in found.items()} | {"files": set()} == BELOW


def test_rooms_stand_on_each_other_without_a_circle():
    left = dict(BELOW)
    while left:
        floor = [room for room, others in left.items() if not others & left.keys()]
        assert floor, f"a circle among {sorted(left)}"
        for room in floor:
            del left[room]


def test_nothing_in_host_knows_a_node_and_the_mathematics_knows_nothing_of_comfy():
    for path in HOST.rglob("*.py"):
        assert [t for t in imports(path) if t[0] == "nodes" and t[1:2] != ("host",)] == [], path
    for path in (PACK / "samplers").rglob("*.py"):
        text = path.read_text()
        assert not {"import comfy", "from comfy"} & {line[:12].rstrip() for line in text.splitlines()}, path
        assert [t for t in imports(path) if t[0] != "samplers"] == [], path


def test_every_room_says_what_lives_there():
    for room in BELOW:
        text = ast.get_docstring(ast.parse((HOST / room / "__init__.py").read_text()))
        assert len((text or "").splitlines()) >= 3, room
