"""Jobs as tasks of dask.distributed: workers with a ComfyUI of their own, one of which is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import psutil
import pytest

from guidekit.sweep import Sweep, SweepError, cluster
from guidekit.sweep.comfyui import link
from guidekit.tests.sweep.servers import NODES, counted, finished, made, shown, wait_for

COUNT = 60


@pytest.fixture
def arguments(tmp_path):
    """For a ComfyUI with the stand-in nodes."""
    link(tmp_path / "base" / "custom_nodes" / "sweep_nodes", NODES)
    return ["--cpu", "--base-directory", str(tmp_path / "base"), "--disable-api-nodes"]


def workers() -> list[psutil.Process]:
    """Workers of local clusters that this process has started: those whose child is a keeper with its ComfyUI."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if any("keeper.py" in " ".join(child.cmdline()) for child in process.children())
    ]


def test_a_worker_is_killed(arguments, tmp_path):
    out, host = tmp_path / "out", os.environ["GUIDEKIT_COMFYUI"]
    workflow = counted(tmp_path, free=COUNT // 2)
    workflow["3"] = {"class_type": "GuidekitDemoModel", "inputs": {"family": "unet"}}  # this pack is there, too
    settings = {"TestCounted.value": range(1, COUNT + 1)}
    sweep = Sweep(workflow, out, settings, dask="local:3", comfyui=host, arguments=arguments)
    summaries = []
    running = threading.Thread(target=lambda: summaries.append(sweep.run()))
    running.start()
    # Every worker is held up at the gate; a job that is free may lie behind one that is not.
    wait_for(lambda: sum(value > COUNT // 2 for value in set(made(tmp_path))) == 3 and finished(out) > COUNT // 3)
    killed, *others = workers()
    assert len(others) == 2
    safe = set(shown(out).values())
    lost = killed.children(recursive=True)
    killed.send_signal(signal.SIGKILL)
    psutil.wait_procs(lost, timeout=300)
    assert not any(process.is_running() for process in lost)  # its ComfyUI has gone with it
    (tmp_path / "gate").touch()
    running.join(300)
    assert [(s.count, s.done, s.failed) for s in summaries] == [(COUNT, COUNT, 0)]
    rows = list(sweep.rows())
    assert [row.settings["TestCounted.value"] for row in rows] == list(range(1, COUNT + 1))
    assert sorted(shown(out).values()) == list(range(1, COUNT + 1))
    # Made again: at most what the worker had when it died, and had not handed over.
    assert safe
    assert not safe & {value for value, times in Counter(made(tmp_path)).items() if times > 1}
    assert len({row.server for row in rows}) >= 2


def test_a_job_under_which_comfyui_dies_fails_and_the_others_go_on(arguments, tmp_path):
    host = os.environ["GUIDEKIT_COMFYUI"]
    settings = {"TestCounted.value": range(1, 6)}
    sweep = Sweep(
        counted(tmp_path, dies_at=2), tmp_path / "out", settings, dask="local:1", comfyui=host, arguments=arguments
    )
    summary = sweep.run()
    assert (summary.done, summary.failed) == (4, 1)
    [failed] = [row for row in sweep.rows() if row.error]
    assert failed.settings == {"TestCounted.value": 2}
    assert failed.error == "The server died while it ran this job, 3 times."
    assert sorted(shown(tmp_path / "out").values()) == [1, 3, 4, 5]
    assert made(tmp_path).count(2) >= 3


def test_workers_use_servers_and_keep_to_their_models(server, tmp_path):
    """Two workers, two models, jobs that alternate: each worker stays with one."""
    workflow = {
        "1": {"class_type": "GuidekitDemoModel", "inputs": {"family": "unet"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a ring", "clip": ["1", 1]}},
        "3": {"class_type": "TestSays", "inputs": {"text": "x", "filename": ""}},
    }
    settings = {"3.text": [str(i) for i in range(10)], "1.family": ["unet", "dit"]}
    sweep = Sweep(workflow, tmp_path / "out", settings, dask="local:2", servers=[server.url])
    assert sweep.run().done == 20
    by_worker: dict[str, list[str]] = {}
    for row in sweep.rows():
        by_worker.setdefault(row.server, []).append(row.settings["1.family"])
        [(path, _)] = row.files
        assert (tmp_path / "out" / path).read_text() == row.settings["3.text"]
    assert len(by_worker) == 2
    for families in by_worker.values():
        assert max(Counter(families).values()) >= len(families) - 3


def test_what_cannot_be_reached_or_started_gets_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_CONNECTING", 1)
    workflow = counted(tmp_path)
    with pytest.raises(SweepError, match="No scheduler of dask can be reached at 'tcp://127.0.0.1:9'"):
        Sweep(workflow, tmp_path / "out", dask="tcp://127.0.0.1:9").run()
    with pytest.raises(SweepError, match="'local:none' is not local:N"):
        Sweep(workflow, tmp_path / "out", dask="local:none").run()
    with pytest.raises(SweepError, match="is no ComfyUI"):
        Sweep(workflow, tmp_path / "out", dask="local:1", comfyui=tmp_path).run()
    with pytest.raises(SweepError, match="started by workers of dask only"):
        Sweep(workflow, tmp_path / "out", comfyui=tmp_path).run()


def test_without_dask_the_sentence_says_what_to_install(server, tmp_path):
    program = "import sys; sys.modules['distributed'] = None; from guidekit.sweep.command import main; sys.exit(main())"
    path = Path(tmp_path / "workflow.json")
    path.write_text("{}")
    call = [sys.executable, "-c", program, str(path), "--dask", "local:1"]
    ended = subprocess.run(call, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "pip install distributed" in ended.stderr
