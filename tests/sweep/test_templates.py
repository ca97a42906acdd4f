"""Workflows as the editor saves them and as the API takes them; every template on the demo models."""

from __future__ import annotations

import builtins
import json

import pytest

from guidekit.demo.server import PACK
from guidekit.sweep import Sweep, SweepError
from guidekit.sweep.plan import Plan
from guidekit.templates import demo

TEMPLATES = {made.name: PACK / "workflows" / f"{made.title}.json" for made in demo.TEMPLATES}
every_template = pytest.mark.parametrize("name", TEMPLATES)

FEW = {"steps": 2, "trajectories": 4}


def settings(name: str) -> dict[str, list]:
    """Two seeds, and as little work as there can be."""
    found: dict[str, list] = {}
    for node in json.loads((PACK / "workflows" / "api" / f"{name}.json").read_text("utf-8")).values():
        for key, value in node["inputs"].items():
            if key in ("seed", "noise_seed") and "seed" not in str(found):
                found[f"{node['class_type']}.{key}"] = [1, 2]
            elif key in FEW and isinstance(value, int):
                found[f"{node['class_type']}.{key}"] = [FEW[key]]
    return found


def plan(sweep: Sweep, server) -> Plan:
    return sweep._plan(json.loads(sweep._workflow.read_text("utf-8")), {server.url: server.get("/object_info")})


@every_template
def test_a_file_of_the_editor_gives_the_same_jobs_as_its_twin(name, server, tmp_path):
    twins = []
    for path in (TEMPLATES[name], PACK / "workflows" / "api" / f"{name}.json"):
        made = plan(Sweep(path, tmp_path, settings(name), servers=[server.url]), server)
        twins.append((made.digest, [(job.settings, job.digest, job.model) for job in made.jobs()]))
    assert twins[0] == twins[1]
    assert len(twins[0][1]) == 2
    assert len({digest for _, digest, _ in twins[0][1]}) == 2


@every_template
def test_runs_with_two_seeds(name, server, tmp_path):
    sweep = Sweep(TEMPLATES[name], tmp_path, settings(name), servers=[server.url])
    assert sweep.run().done == 2, [row.error for row in sweep.rows()]
    first, second = sweep.rows()
    assert len(first.files) == len(second.files) > 0
    images = [path for row in (first, second) for path, _ in row.files if path.endswith(".png")]
    assert len(images) >= 2
    assert all((tmp_path / path).read_bytes()[:4] == b"\x89PNG" for path in images)


def test_what_nodes_report_is_a_column(server, tmp_path):
    asked = {**settings("linear_ag"), "KSampler.steps": [12], "BasicScheduler.steps": [12]}
    sweep = Sweep(TEMPLATES["linear_ag"], tmp_path, asked, servers=[server.url])
    sweep.run()
    assert all(any("estimated negative" in text for _, text in row.told) for row in sweep.rows())
    assert "steps with an estimated negative" in (tmp_path / "results.csv").read_text("utf-8-sig")


def test_the_converter_is_missing(server, tmp_path, monkeypatch):
    there = builtins.__import__

    def without(name, *arguments, **more):
        if name.startswith("comfy_cli"):
            raise ImportError(name)
        return there(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        SweepError, match=r"converter is missing: pip install comfy-cli .* or save the workflow with Export"
    ):
        Sweep(TEMPLATES["apg"], tmp_path, servers=[server.url]).run()


def test_dynamic_prompts_are_drawn_once(server, tmp_path):
    workflow = json.loads(TEMPLATES["apg"].read_text("utf-8"))
    for node in workflow["nodes"]:
        if node["type"] == "CLIPTextEncode":
            node["widgets_values"] = ["a {red|blue|green|yellow|white|purple} {ball|cube|ring}"]
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(workflow))
    digests = {plan(Sweep(path, tmp_path, servers=[server.url]), server).digest for _ in range(5)}
    assert len(digests) == 1
