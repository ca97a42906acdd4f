"""The client of the API in docs/sweep.md: saves images, or says which node has failed."""

import json
import re
import subprocess
import sys

import pytest

from guidekit.demo.server import PACK, Server

PAGE = (PACK / "docs" / "sweep.md").read_text("utf-8")
ADDRESS, WORKFLOW = "http://127.0.0.1:8188", "workflows/api/apg.json"


@pytest.fixture(scope="module")
def server():
    with Server() as running:
        yield running


@pytest.fixture
def client(server, tmp_path):
    """Runs it on a workflow with changed inputs, by node class: (what it has exited with, names of what it saved)."""
    [code] = [code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if ADDRESS in code]

    def run(added: dict | None = None, **changes) -> tuple[subprocess.CompletedProcess, list[str]]:
        prompt = json.loads((PACK / WORKFLOW).read_text("utf-8")) | (added or {})
        for node in prompt.values():
            node["inputs"].update(changes.get(node["class_type"], {}))
            node["inputs"] |= {"steps": 2} if node["class_type"] == "KSampler" else {}
        path = tmp_path / WORKFLOW
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(prompt), "utf-8")
        call = [sys.executable, "-c", code.replace(ADDRESS, server.url)]
        done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        return done, sorted(saved.name for saved in tmp_path.glob("*.png"))

    return run


def test_saves_images(client):
    done, saved = client()
    assert done.returncode == 0, done.stderr
    assert len(saved) == 8


def test_names_the_node_that_fails(client):
    """While another branch of the workflow is done."""
    broken = {"class_type": "GuidekitAutoguidance", "inputs": {"model": ["1", 0], "weakness": "second model"}}
    broken["inputs"] |= {"scale": 1.0, "amount": 0.1, "blocks": "", "random_seed": 0, "rescale": "off"}
    broken["inputs"] |= {"start_percent": 0.0, "end_percent": 1.0}
    done, saved = client({"broken": broken}, GuidekitAPG={"model": ["broken", 0]})
    assert done.returncode != 0
    assert "GuidekitAutoguidance (node broken)" in done.stderr
    assert "nothing is connected to weak_model" in done.stderr
    assert saved == []


@pytest.mark.parametrize("changes", [{"GuidekitAPG": {"eta": 7.0}}, {"GuidekitDemoModel": {"family": "none"}}])
def test_names_the_node_that_is_refused(changes, client):
    """Of a part of the workflow, whose other part the server would run, or of all of it."""
    done, saved = client(**changes)
    assert done.returncode != 0
    assert [*changes][0] in done.stderr
    assert saved == []
