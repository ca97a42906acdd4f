"""Nothing is lost and nothing is done twice: servers that are killed, drivers that are killed, Ctrl-C."""

from __future__ import annotations

import csv
import json
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import psutil
import pytest

from guidekit.sweep import Sweep
from guidekit.tests.sweep.servers import counted, finished, made, new_server, shown, wait_for

COUNT = 200
VALUES = range(1, COUNT + 1)


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path):
    """The server is shared: what a test that fails has left there must not hold up the next one."""
    yield
    for child in psutil.Process().children():
        if "guidekit.sweep" in child.cmdline():
            child.kill()
    (tmp_path / "gate").touch()


@pytest.fixture
def sweep(tmp_path):
    """A sweep of COUNT jobs; the second half waits until the file `gate` exists."""

    def make(*servers, out="out", **settings) -> Sweep:
        workflow = counted(tmp_path, free=COUNT // 2)
        return Sweep(
            workflow, tmp_path / out, {"TestCounted.value": VALUES}, servers=[s.url for s in servers], **settings
        )

    return make


def check(out: Path) -> None:
    """Each job has one image, its own; journal, table and folder agree."""
    rows = list(Sweep({}, out).rows())
    assert [row.settings["TestCounted.value"] for row in rows] == list(VALUES)
    assert {row.state for row in rows} == {"done"}
    images = {
        name: value
        for row in rows
        for (path, _) in row.files
        for name in [path.removeprefix("files/")]
        for value in [row.settings["TestCounted.value"]]
    }
    assert shown(out) == images
    assert len(images) == COUNT
    with (out / "results.csv").open(encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(int(line["TestCounted.value"]), line["state"]) for line in table] == [(value, "done") for value in VALUES]
    assert [line["files"] for line in table] == [path for row in rows for path, _ in row.files]
    assert sorted(path.name for path in (out / "files").iterdir()) == sorted(images)


def test_a_server_is_killed_and_started_again(server, sweep, tmp_path):
    out, gate = tmp_path / "out", tmp_path / "gate"
    with new_server() as killed:
        running = threading.Thread(target=sweep(server, killed).run)
        running.start()
        # Both are held up at the gate by now, each with more in its queue.
        wait_for(lambda: len(set(made(tmp_path)) - set(range(COUNT // 2 + 1))) == 2)
        wait_for(lambda: finished(out) == COUNT // 2)
        port = int(killed.url.rpartition(":")[2])
        killed.process.process.kill()
        killed.__exit__()
        with new_server(port) as again:
            wait_for(lambda: again.get("/queue")["queue_running"])
            gate.touch()
            running.join(300)
            assert not running.is_alive()
            again_did = len(again.get("/history"))
    check(out)
    assert 0 < again_did < COUNT
    with sqlite3.connect(out / "journal.sqlite") as journal:
        deaths = journal.execute("select settings, deaths from jobs where deaths > 0").fetchall()
    assert len(deaths) == 1  # only the job that ran then may be the reason
    assert deaths[0][1] == 1
    twice = [value for value, times in Counter(made(tmp_path)).items() if times > 1]
    assert len(twice) <= 1  # the one that ran when its server died
    assert set(made(tmp_path)) == set(VALUES)


def command(tmp_path: Path, server, *more: str) -> list[str]:
    """The same as a command, in its own process."""
    workflow = tmp_path / "workflow.json"
    workflow.write_text(json.dumps(counted(tmp_path, free=COUNT // 2)))
    call = [sys.executable, "-m", "guidekit.sweep", str(workflow), "--set", f"TestCounted.value=1..{COUNT}"]
    return [*call, "--servers", server.url, "-o", str(tmp_path / "out"), *more]


def test_the_driver_is_killed_and_called_again(server, sweep, tmp_path):
    out = tmp_path / "out"
    first = subprocess.Popen(command(tmp_path, server))
    wait_for(lambda: len(made(tmp_path)) > COUNT // 2 and finished(out) == COUNT // 2)
    first.kill()
    first.wait()
    (tmp_path / "gate").touch()  # what is queued is made without anybody to take it
    summary = sweep(server).run()
    assert (summary.count, summary.done, summary.failed) == (COUNT, COUNT, 0)
    check(out)
    assert sorted(made(tmp_path)) == list(VALUES)  # none twice
    sweep(server, out="reference").run()
    assert shown(tmp_path / "reference") == shown(out)


def test_ctrl_c_takes_back_what_is_ours(server, sweep, tmp_path):
    other, folder = counted(tmp_path, value=COUNT + 1, free=0), tmp_path / "out"
    first = subprocess.Popen(command(tmp_path, server), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(made(tmp_path)) > COUNT // 2 and finished(folder) == COUNT // 2)
    foreign = threading.Thread(target=server.run, args=(other,))
    foreign.start()
    wait_for(lambda: any(item[2] == other for item in server.get("/queue")["queue_pending"]))
    first.send_signal(signal.SIGINT)
    said = first.communicate(timeout=300)[1]
    assert first.returncode == 130
    assert "goes on from here" in said
    assert "Traceback" not in said
    # The running one ends at the next step of its node; the other one is somebody else's.
    (tmp_path / "gate").touch()
    foreign.join(300)
    queue = server.get("/queue")
    assert queue == {"queue_running": [], "queue_pending": []}
    assert made(tmp_path).count(COUNT + 1) == 1
    assert max(set(made(tmp_path)) - {COUNT + 1}) == COUNT // 2 + 1  # what else was queued was not made
    sweep(server).run()
    check(folder)


def test_ctrl_c_leaves_alone_what_runs_for_others(server, tmp_path):
    outputs = []
    other = counted(tmp_path, value=COUNT + 1, free=0)
    foreign = threading.Thread(target=lambda: outputs.append(server.run(other)))
    foreign.start()
    wait_for(lambda: made(tmp_path) == [COUNT + 1])
    first = subprocess.Popen(command(tmp_path, server), stderr=subprocess.DEVNULL)
    wait_for(lambda: len(server.get("/queue")["queue_pending"]) == 2)
    first.send_signal(signal.SIGINT)
    assert first.wait(300) == 130
    assert server.get("/queue")["queue_pending"] == []
    (tmp_path / "gate").touch()
    foreign.join(300)
    assert len(outputs[0]["2"]["images"]) == 1
    assert made(tmp_path) == [COUNT + 1]


def test_only_one_at_a_time_in_a_folder(server, sweep, tmp_path):
    first = subprocess.Popen(command(tmp_path, server))
    wait_for(lambda: finished(tmp_path / "out") > 0)
    second = subprocess.run(command(tmp_path, server), capture_output=True, text=True)
    (tmp_path / "gate").touch()
    assert second.returncode == 2
    assert "Another sweep is at work" in second.stderr
    assert first.wait(300) == 0
    check(tmp_path / "out")
