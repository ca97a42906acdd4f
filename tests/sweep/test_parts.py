"""Parts of the sweep without a server: the journal's choices, names of files, values, progress."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guidekit.sweep import Sweep, SweepError, names, progress, table
from guidekit.sweep.journal import MOST_DEATHS, Journal
from guidekit.sweep.link import public, valid_url
from guidekit.sweep.outcome import outcome
from guidekit.sweep.plan import make_plan
from guidekit.sweep.schema import Spec
from guidekit.sweep.values import parse

INFO = {
    "Load": {"input": {"required": {"file": [["a", "b"], {}]}}, "output": ["MODEL"], "output_node": False},
    "Save": {
        "input": {"required": {"model": ["MODEL"], "seed": ["INT", {"min": 0}]}, "optional": {"mode": ["COMFY_X"]}},
        "output": [],
        "output_node": True,
    },
    "Chooses": {
        "input": {
            "required": {
                "kind": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {
                        "options": [
                            {"key": "one", "inputs": {"required": {"size": ["FLOAT", {"max": 2.0}]}}},
                            {"key": "two", "inputs": {}},
                        ]
                    },
                ]
            }
        },
        "output": [],
        "output_node": True,
    },
}
PROMPT = {
    "1": {"class_type": "Load", "inputs": {"file": "a"}},
    "2": {"class_type": "Save", "inputs": {"model": ["1", 0], "seed": 0}},
}


def plan(*given: str, prompt=PROMPT):
    return make_plan(prompt, INFO, given, [], [], 1000)


@pytest.fixture
def journal(tmp_path):
    with Journal(tmp_path) as opened:
        yield opened


def test_a_server_keeps_to_its_models_and_leaves_others_theirs(journal):
    journal.enter(plan("Load.file=a,b", "Save.seed=1..3"), retry=False)  # a, a, a, b, b, b
    taken = [journal.take("x", None)]
    x = taken[0].model
    taken.append(journal.take("y", None, [x]))
    y = taken[1].model
    assert x != y
    taken += [journal.take("x", x, [y]) for _ in range(3)]
    assert [task.number for task in taken] == [1, 4, 2, 3, 5]  # the last one has no choice left
    assert journal.take("y", y, [x]).number == 6
    assert journal.take("y", y, [x]) is None


def test_a_job_under_which_servers_die_fails_in_the_end(journal):
    journal.enter(plan("Save.seed=1,2"), retry=False)
    for death in range(1, MOST_DEATHS + 1):
        task = journal.take("x", None)
        assert task.number == 1
        journal.give_back(task)  # it only waited there
        journal.give_back(task := journal.take("x", None), died=True)
        assert journal.counts["failed"] == (death == MOST_DEATHS)
    assert journal.take("x", None).number == 2
    journal.enter(plan("Save.seed=1,2"), retry=True)
    assert journal.counts == {"queued": 1, "running": 1, "done": 0, "failed": 0}


def test_a_call_wants_its_own_jobs_only(journal):
    journal.enter(plan("Save.seed=1,2"), retry=False)
    journal.done(journal.take("x", None), 1.0, [("files/a.png", "a")], [], [])
    journal.take("x", None)
    assert journal.enter(plan("2.seed=1,5"), retry=False) == 2
    assert journal.counts == {"queued": 1, "running": 0, "done": 1, "failed": 0}
    assert [task.number for task in journal.unwanted()] == [2]
    assert journal.take("x", None).settings == {"2.seed": 5}
    assert [row.settings for row in journal.rows()] == [{"2.seed": 1}, {"Save.seed": 2}, {"2.seed": 5}]
    assert journal.names() == ["2.seed", "Save.seed"]


def test_jobs_are_told_apart_by_what_they_do():
    titled = {**PROMPT, "2": {**PROMPT["2"], "_meta": {"title": "Another title"}}}
    as_float = {**PROMPT, "2": {**PROMPT["2"], "inputs": {**PROMPT["2"]["inputs"], "seed": 0.0}}}
    assert plan().digest == plan(prompt=titled).digest == plan(prompt=as_float).digest
    digests = {job.digest for job in plan("Save.seed=0..2", "Load.file=*").jobs()}
    assert len(digests) == 6
    assert plan().digest in digests


def test_inputs_that_a_choice_brings():
    prompt = {"1": {"class_type": "Chooses", "inputs": {"kind": "one", "kind.size": 1.0}}}
    assert [job.settings["1.kind.size"] for job in plan("1.kind.size=0.5,2", prompt=prompt).jobs()] == [0.5, 2]
    with pytest.raises(SweepError, match="is at most 2.0, not 3.0"):
        plan("Chooses.kind.size=3", prompt=prompt)
    with pytest.raises(SweepError, match="no input 'kind.depth'; similar ones are 'kind.size'"):
        plan("Chooses.kind.depth=3", prompt=prompt)
    with pytest.raises(SweepError, match="'mode' of 'Save' takes a link, not a value"):
        plan("Save.mode=1")


def test_an_id_comes_before_a_title_and_a_title_before_a_class():
    prompt = {
        "1": {"class_type": "Load", "inputs": {"file": "a"}, "_meta": {"title": "Save"}},
        "2": {"class_type": "Save", "inputs": {"model": ["1", 0], "seed": 0}, "_meta": {"title": "1"}},
        "3": {"class_type": "Save", "inputs": {"model": ["1", 0], "seed": 0}, "_meta": {"title": "1"}},
    }
    assert plan("1.file=b", prompt=prompt).axes[0].target.node_ids == ("1",)
    assert plan("Save.file=b", prompt=prompt).axes[0].target.node_ids == ("1",)
    prompt["1"]["_meta"]["title"] = "Loads"
    assert plan("Save.seed=1", prompt=prompt).axes[0].target.node_ids == ("2", "3")


def test_every_server_must_have_the_nodes(tmp_path):
    sweep = Sweep(PROMPT, tmp_path, ["Load.file=b"])
    without = {name: entry for name, entry in INFO.items() if name != "Load"}
    with pytest.raises(SweepError, match="^second has no node of class 'Load': custom nodes"):
        sweep._plan(PROMPT, {"first": INFO, "second": without})
    fewer = {**INFO, "Load": {**INFO["Load"], "input": {"required": {"file": [["a"], {}]}}}}
    with pytest.raises(SweepError, match="^On second: 'Load.file' has no choice 'b'; there are 'a'"):
        sweep._plan(PROMPT, {"first": INFO, "second": fewer})


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1..4", [1, 2, 3, 4]),
        ("1..10..4, 20", [1, 5, 9, 20]),
        ("-2..2..2", [-2, 0, 2]),
        ("18446744073709551615", [2**64 - 1]),
        ("18446744073709551613..18446744073709551615", [2**64 - 3, 2**64 - 2, 2**64 - 1]),
    ],
)
def test_whole_numbers(text, values):
    assert parse(text, Spec("INT"), "x", 100) == values


def test_steps_are_decimal():
    assert parse("0..1..0.1", Spec("FLOAT"), "x", 100) == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a cat, sitting", ["a cat, sitting"]),
        ('"a cat, sitting","two ""dogs"""', ["a cat, sitting", 'two "dogs"']),
        ("", [""]),
        ("1..4", ["1..4"]),
        ('"@home"', ["@home"]),
    ],
)
def test_texts(text, values):
    assert parse(text, Spec("STRING"), "x", 100) == values


@given(st.text(), st.text(), st.text(max_size=20))
@settings(max_examples=300, deadline=None)
def test_file_names_cannot_leave_the_folder(name, value, filename):
    found = names.file_name(7, {name: value, "b.c": 1}, names.stem(filename), 2, names.extension(filename))
    assert found.startswith("00007_")
    assert not set(found) & set('/\\:*?"<>|\0\n\r\t')
    assert found.isprintable()
    assert ".." not in found
    assert len(found.encode()) < 220
    assert not found.endswith((".html", ".svg", ".js", "."))


def test_what_a_workflow_calls_a_file():
    assert names.stem("cfg_00012_.png") == "cfg"
    assert names.stem("sub\\a b_00001.latent") == "a_b"
    assert names.safe("a...b__c/..") == "a_b_c"
    assert names.extension("page.HTML") == "html.txt"
    assert names.extension("none") == "bin"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-x", "@x", "\tx"])
def test_no_cell_is_a_formula(text):
    assert table.cell(text) == f"'{text}"
    assert table.cell(-1.5) == "-1.5"


def test_urls():
    assert valid_url("gpu2:8188/") == "http://gpu2:8188"
    assert public("https://me:secret@host:1/comfy/") == "https://host:1/comfy"
    for wrong in ("", "ftp://x", "http://", "http://x:0", "http://x:y"):
        with pytest.raises(SweepError, match="not the URL of a server"):
            valid_url(wrong)


def test_the_end_of_a_prompt():
    timed = [["execution_start", {"timestamp": 1000}], ["execution_success", {"timestamp": 3500}]]
    image = {"filename": "a.png", "subfolder": "s", "type": "temp"}
    outputs = {"9": {"images": [image, image, {**image, "type": "input"}], "text": "hello"}, "8": {"text": ["a", 5]}}
    found = outcome({"status": {"status_str": "success", "messages": timed}, "outputs": outputs})
    assert (found.error, found.seconds, found.texts) == (None, 2.5, [("9", "hello"), ("8", "a")])
    assert [(file.node_id, file.filename, file.subfolder, file.type) for file in found.files] == [
        ("9", "a.png", "s", "temp")
    ]
    stopped = [["execution_interrupted", {"node_id": "5", "node_type": "KSampler"}]]
    found = outcome({"status": {"status_str": "error", "messages": stopped}})
    assert (found.error, found.node_id) == ("interrupted", "5")


def test_rate_and_time_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace = progress.Pace()
    counts = {"queued": 100, "running": 0, "done": 0, "failed": 0}
    assert pace.progress(counts, {}).left is None
    for second in range(1, 121):  # one a second for a minute, then one every two
        now[0] = second
        counts["done"] = min(second, 60) + max(second - 60, 0) // 2
        counts["queued"] = 100 - counts["done"]
        shown = pace.progress(counts, {"http://a": "KSampler 3/20", "http://b": ""})
    assert shown.rate == pytest.approx(0.5, rel=0.05)
    assert shown.left == pytest.approx(20, rel=0.1)
    assert str(shown) == "90/100 done, 2.0 s each, 0:20 left [http://a: KSampler 3/20]"
    assert progress.duration(7384) == "2:03:04"
