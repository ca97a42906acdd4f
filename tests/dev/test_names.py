"""Every technique is found under its name, in the places that CONTRIBUTING.md lists."""

import ast
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from guidekit.tests.schema.catalogue import IN_NO_TEMPLATE

PACK = Path(__file__).parents[2]
NODES = sorted(path.stem for path in (PACK / "nodes").glob("*.py") if "node_id=" in path.read_text("utf-8"))


class Places(NamedTuple):
    """The names under which the files of a node are found; None where there are none.

    `samplers`: the file, or the folder, with its formula, and `maths`: that of its tests, tests/maths/test_NAME*.py;
    `host`: tests/host/test_NAME*.py; `numbers`: benchmarks/NAME.py.
    """

    samplers: str | None
    maths: str | None
    host: str
    numbers: str | None


# Nodes that are part of something with another name. All others are found under that of their own file.
_WEAK = {"host": "weak_branch", "numbers": "weak_branch"}
_SAVED = {"numbers": "adaptive"}  # evaluations, in one table
_CFGPP = dict.fromkeys(Places._fields, "cfgpp")
_LINEAR_AG = {"samplers": "linear_ag", "maths": "linear_ag", "host": "linear_ag", **_SAVED}
_EXACT = {"samplers": "inversion", "maths": "inversion", "host": "exact", "numbers": "inversion"}
_TRAJECTORY = {"samplers": "direct_inversion", "maths": "trajectory", "host": "trajectory", "numbers": "inversion"}
_FRECAS = dict.fromkeys(Places._fields, "frecas")
_NO_FORMULA = {"samplers": None, "maths": None}
_FILES = {**_NO_FORMULA, "host": "inversion_files", "numbers": None}
_VOTES = {**_NO_FORMULA, "host": "votes", "numbers": None}
_CLASSIFIERS = {**_NO_FORMULA, "host": "classifiers", "numbers": "gfcg"}
ELSEWHERE: dict[str, dict[str, str | None]] = {
    "adaptive_guidance": _SAVED,
    "autoguidance": {"numbers": "weak_branch"},
    "candidate": {**_CLASSIFIERS, "numbers": None},
    "candidates": _CLASSIFIERS,
    "cfg_cache": {"numbers": "cache"},
    "cfgpp": {"numbers": "device"},  # what it costs; the tables are of the samplers
    "cfgpp_inversion": _CFGPP,
    "clip_classifier": {**_CLASSIFIERS, "numbers": None},  # there is no CLIP model without a download
    "demo_model": {**_NO_FORMULA, "numbers": None},
    "elucd": {"numbers": "gfcg"},
    "exact_invert": _EXACT,
    "exact_sample": _EXACT,
    "export_votes": _VOTES,
    "frecas_plan": _FRECAS,
    "frecas_up": _FRECAS,
    "guidance_interval": {**_NO_FORMULA, **_SAVED},
    "image_classifier": {**_CLASSIFIERS, "samplers": "resnet", "maths": "resnet"},
    "import_votes": _VOTES,
    "linear_ag": _LINEAR_AG,
    "linear_ag_fit": _LINEAR_AG,
    "load_inversion": _FILES,
    "pag": _WEAK,
    "preference_cfg": {**_NO_FORMULA, "numbers": "preference"},
    "preference_score": {**_NO_FORMULA, "numbers": "taste"},
    "train_preference": {"samplers": "preference", "maths": "preference", "numbers": "taste"},
    "preference_lora_loader": {"samplers": "lora", "maths": "lora", "host": "preference_lora", "numbers": "preference"},
    "report": {**_NO_FORMULA, "host": "told", "numbers": None},
    "sampler_cfgpp": _CFGPP,
    "save_inversion": _FILES,
    "seg": _WEAK,
    "slg": {"samplers": "weak_branch", "maths": "weak_branch", **_WEAK},
    "trajectory_record": _TRAJECTORY,
    "trajectory_replay": _TRAJECTORY,
    "vote": {**_NO_FORMULA, "numbers": None},
    "vote_by_rule": _VOTES,
    "votes": {**_NO_FORMULA, "numbers": None},
}

PLACES = {
    "samplers": ("samplers/**/{}.py", "samplers/**/{}/__init__.py"),
    "maths": ("tests/maths/test_{}*.py",),
    "host": ("tests/host/test_{}*.py",),
    "numbers": ("benchmarks/{}.py",),
}
NAMES_THE_NODE = ("host", "numbers")


@cache
def node_of(name: str) -> tuple[str, str]:
    """(class, id) of the node in a file."""
    [node] = [
        each
        for each in ast.parse((PACK / "nodes" / f"{name}.py").read_text("utf-8")).body
        if isinstance(each, ast.ClassDef) and any(getattr(part, "name", "") == "define_schema" for part in each.body)
    ]
    [found] = [
        each.value.value
        for each in ast.walk(node)
        if isinstance(each, ast.keyword) and each.arg == "node_id" and isinstance(each.value, ast.Constant)
    ]
    return node.name, found


def files(place: str, name: str) -> list[Path]:
    return [path for pattern in PLACES[place] for path in PACK.glob(pattern.format(name))]


def mentions(path: Path, name: str) -> bool:
    return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(ast.parse(path.read_text("utf-8"))))


@pytest.mark.parametrize("name", NODES)
def test_a_node_is_found_by_its_name(name):
    kind, node_id = node_of(name)
    assert node_id == f"Guidekit{kind}"
    assert kind.lower() == name.replace("_", "")
    assert (PACK / "js" / "docs" / f"{node_id}.md").is_file()
    templates = [path for path in (PACK / "workflows" / "api").glob("*.json") if f'"{node_id}"' in path.read_text()]
    assert bool(templates) == (node_id not in IN_NO_TEMPLATE)
    for place, called in {**dict.fromkeys(PLACES, name), **ELSEWHERE.get(name, {})}.items():
        if called is not None:
            found = files(place, called)
            assert found, f"{place}: {' or '.join(PLACES[place]).format(called)}"
            if place in NAMES_THE_NODE:
                assert any(mentions(path, kind) for path in found), f"{found} has nothing of {kind}"


def test_no_exception_is_listed_for_a_node_found_under_its_own_name():
    assert ELSEWHERE.keys() <= set(NODES)
    for name, places in ELSEWHERE.items():
        kind, _ = node_of(name)
        for place, called in places.items():
            own = [path for path in files(place, name) if place not in NAMES_THE_NODE or mentions(path, kind)]
            assert called == name or own == [], (name, place)


def test_every_formula_belongs_to_a_node_and_has_its_tests():
    led_to = set()
    for name in NODES:
        called = {"samplers": name, **ELSEWHERE.get(name, {})}["samplers"]
        for path in files("samplers", called) if called is not None else ():
            led_to |= set(path.parent.rglob("*.py")) if path.name == "__init__.py" else {path}
    for folder in ("attention", "guidance"):
        for path in (PACK / "samplers" / folder).glob("*.py"):
            assert path in led_to or path.stem in ("__init__", "cfg", "pyramid", "weak_branch"), path
            assert path.stem == "__init__" or files("maths", path.stem), path
