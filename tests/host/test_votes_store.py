"""Votes are kept: whoever else votes, whatever ends the voting, wherever there is no room. Nothing is lost, nothing is
there twice."""

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from guidekit.nodes.host.votes import opened
from guidekit.nodes.host.votes import store as module
from guidekit.nodes.host.votes.errors import StoreError, UnknownIdError
from guidekit.nodes.host.votes.export import export
from guidekit.nodes.host.votes.filters import Filter, filter_of
from guidekit.nodes.host.votes.store import Store
from guidekit.nodes.host.votes.tables import STEPS, Database
from guidekit.nodes.host.votes.vote import Lora, Noise, Offer, Recipe

RECIPE = Recipe(
    text="a ball",
    negative_text="",
    seed=2**64 - 1,
    noise=Noise(2**64 - 1, (4, 3, 8, 8), 2),
    sampler="euler",
    scheduler="normal",
    steps=20,
    cfg=3.5,
    model_name="One/Model.safetensors",
    model="m",
    policy="p",
    loras=(Lora("Nice.safetensors", 0.5, "d"),),
)
OPTIONS = {"area": (8, 8, 0, 0), "guidance": 3.5, "end": None}
PROMPT = [[torch.randn(1, 7, 8), {"pooled_output": torch.randn(1, 8), **OPTIONS}]]


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "votes")
    yield store
    store.close()


def offer(number, **changes):
    pixels = np.random.default_rng(number).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    return replace(Offer(pixels, RECIPE, torch.full((1, 3, 8, 8), float(number)), PROMPT, PROMPT), **changes)


def offered(store, numbers, **changes):
    return [vote.id for vote in store.offer([offer(number, **changes) for number in numbers])]


def files(store):
    return {path for path in store._folder.rglob("*.*") if path.is_file() and path.parent != store._folder}


# What is kept


def test_all_of_an_image_comes_back(store):
    graph = '{"prompt": {"1": {}}}'
    [vote] = store.offer([offer(1, workflow=graph, workflow_id="w", node="7", tag="t")])
    [again] = store.get([vote.id])
    assert again == vote
    assert again.recipe == RECIPE
    assert (again.width, again.height, again.label, again.tag, again.voted) == (24, 16, 0, "t", None)
    assert torch.equal(store.latent(again), torch.full((1, 3, 8, 8), 1.0))
    [[tokens, options]] = store.conditioning(again.positive)
    assert torch.equal(tokens, PROMPT[0][0])
    assert torch.equal(options.pop("pooled_output"), PROMPT[0][1]["pooled_output"])
    assert options == OPTIONS
    assert store.workflow(again) == {"prompt": {"1": {}}}
    assert np.array_equal(np.asarray(Image.open(store.image_path(vote.id))), offer(1).pixels)


def test_noise_is_the_hosts():
    wanted = torch.randn((4, 3, 8, 8), generator=torch.manual_seed(5))
    assert torch.equal(Noise(5, (4, 3, 8, 8), 2).tensor(), wanted[2:3])
    drawn = [torch.randn((1, 3, 8, 8), generator=generator) for generator in [torch.manual_seed(5)] for _ in range(3)]
    assert torch.equal(Noise(5, (1, 3, 8, 8), 0, skipped=2).tensor(), drawn[2])


def test_what_no_file_can_hold_is_left_out(store):
    prompt = [[torch.ones(1, 2, 3), {"control": object(), "hooks": [object()], "strength": 1.0, "odd": float("nan")}]]
    [vote] = store.offer([offer(1, positive=prompt)])
    [[_, options]] = store.conditioning(vote.positive)
    assert options == {"strength": 1.0}


def test_the_same_image_is_kept_once(store):
    """With its vote, and with what is known of it from either time."""
    [first] = offered(store, [1], latent=None, recipe=Recipe(), tag="t")
    store.vote([first], 1)
    [again] = store.offer([offer(1)])
    assert (again.id, again.label, again.tag) == (first, 1, "t")
    assert again.latent is not None
    assert again.recipe == RECIPE
    [bare] = store.offer([offer(1, latent=None, recipe=Recipe(), positive=None)])
    assert bare.latent == again.latent
    assert bare.recipe == RECIPE
    [changed] = store.offer([offer(1, label=-1)])
    assert changed.label == -1
    assert store.counts(Filter()) == {"liked": 0, "disliked": 1, "undecided": 0}


def test_an_image_twice_in_a_batch(store):
    first, second, third = store.offer([offer(1), offer(2), offer(1)])
    assert first == third
    assert store.counts(Filter())["undecided"] == 2


def test_what_a_node_showed_last(store):
    offered(store, [1, 2, 3], workflow_id="w", node="7")
    later = offered(store, [5, 4], workflow_id="w", node="7")
    offered(store, [6], workflow_id="w", node="8")
    assert [vote.id for vote in store.shown_at("w", "7")] == later
    assert store.shown_at("v", "7") == []


# Votes


def test_votes_tags_and_deletion(store):
    ids = offered(store, range(4))
    assert [vote.label for vote in store.vote(ids[:2], 1)] == [1, 1]
    store.vote(ids[2:3], -1)
    assert store.counts(Filter()) == {"liked": 2, "disliked": 1, "undecided": 1}
    [undone] = store.vote(ids[:1], 0)
    assert (undone.label, undone.voted) == (0, None)
    assert [vote.tag for vote in store.tag(ids[:2], "mine")] == ["mine", "mine"]
    before = files(store)
    store.delete(ids[1:3])
    assert store.counts(Filter()) == {"liked": 0, "disliked": 0, "undecided": 2}
    gone = before - files(store)
    assert {path.parent.name for path in gone} == {"images", "latents"}  # the prompts are those of the others
    assert len(gone) == 4
    store.delete([ids[0], ids[3]])
    assert files(store) == set()


def test_tags_are_kept_without_the_spaces_around_them(store):
    """Filters look for the whole tag, and have none around theirs."""
    [one, other] = [*offered(store, [0], tag=" by hand "), *offered(store, [1])]
    assert [vote.tag for vote in store.tag([other], "mine ")] == ["mine"]
    assert {vote.id: vote.tag for vote in store.find(Filter())} == {one: "by hand", other: "mine"}


@pytest.mark.parametrize("change", [lambda s, ids: s.vote(ids, 1), lambda s, ids: s.tag(ids, "x"), Store.delete])
def test_one_unknown_id_changes_nothing(store, change):
    ids = offered(store, range(3))
    before = store.get(ids)
    with pytest.raises(UnknownIdError, match="1 of 3 ids are of no image that was shown here"):
        change(store, [ids[0], "0" * 64, ids[1]])
    assert store.get(ids) == before


def test_filters_pages_and_names(store):
    other = replace(RECIPE, model_name="two.ckpt", loras=())
    ids = [*offered(store, range(5)), *offered(store, range(5, 8), recipe=other, tag="mine")]
    store.vote(ids[:3], 1)
    store.vote(ids[5:6], -1)

    def found(**wanted):
        return {vote.id for vote in store.find(Filter(**wanted))}

    assert found() == set(ids)
    assert found(votes="liked") == set(ids[:3])
    assert found(votes="decided") == {*ids[:3], ids[5]}
    assert found(votes="undecided", model="one/") == set(ids[3:5])
    assert found(lora="nice") == set(ids[:5])
    assert found(lora="%") == set()
    assert found(tag="mine") == set(ids[5:])
    voted = store.get(ids[5:6])[0].voted
    assert found(since=voted) == {ids[5]}
    assert ids[5] not in found(until=voted)
    assert ids[5] in found(until=voted + 1e-3)
    assert store.counts(Filter(votes="liked", tag="mine")) == {"liked": 0, "disliked": 1, "undecided": 2}
    assert store.names() == {
        "model": ["One/Model.safetensors", "two.ckpt"],
        "lora": ["Nice.safetensors"],
        "tag": ["mine"],
    }
    pages, after = [], None
    while page := store.find(Filter(), 3, after):
        pages += [vote.id for vote in page]
        after = page[-1].shown, page[-1].id
    assert sorted(pages) == sorted(ids)
    with pytest.raises(ValueError, match="votes is 'best'. It is one of liked,"):
        filter_of({"votes": "best"})
    for wrong in ("yesterday", "nan", "2026-02-30", "2026-3", "12026-03-01", "0"):
        for name in ("from_date", "to_date"):
            with pytest.raises(ValueError, match=f"{name} is '{wrong}'. It is a date such as"):
                filter_of({name: wrong})


def test_days_are_whole_and_local():
    """A day of a request lasts from midnight to midnight of the server's clock; years that no vote is of are taken."""
    one = filter_of({"from_date": "2026-03-01", "to_date": "2026-03-01"})
    assert datetime.fromtimestamp(one.since) == datetime(2026, 3, 1)
    assert datetime.fromtimestamp(one.until) == datetime(2026, 3, 2)
    assert filter_of({"from_date": "", "to_date": " "}) == Filter()
    assert 0 < filter_of({"to_date": "0002-01-01"}).until < 2**26
    assert filter_of({"from_date": "9999-12-31"}).since > 2**34


def test_the_fingerprint_is_of_what_is_chosen(store):
    ids = offered(store, range(3))
    store.vote(ids[:1], 1)
    decided, tagged = Filter("decided"), Filter("decided", tag="x")
    first, other = store.fingerprint(decided), store.fingerprint(tagged)
    offered(store, [0, 7])
    assert store.fingerprint(decided) == first
    store.vote(ids[1:2], -1)
    assert store.fingerprint(decided) != first
    assert store.fingerprint(tagged) == other


# Room


def test_only_the_oldest_without_a_vote_are_forgotten(store, monkeypatch):
    monkeypatch.setattr(module, "_MOST_UNDECIDED", 4)
    monkeypatch.setattr(module, "_SLACK", 1)
    first = offered(store, [0, 1])
    store.vote(first[:1], -1)
    later = [offered(store, [number])[0] for number in range(2, 7)]
    assert {vote.id for vote in store.find(Filter())} == {first[0], *later[-4:]}
    assert {path.stem for path in files(store) if path.suffix == ".png"} == {first[0], *later[-4:]}
    store.vote(later[-1:], 1)
    [newest] = offered(store, [7])
    assert {vote.id for vote in store.find(Filter())} == {first[0], *later[-4:], newest}
    assert all(store.latent(vote) is not None and store.conditioning(vote.positive) for vote in store.find(Filter()))


def test_forgotten_by_their_size_too(store, monkeypatch):
    [first] = offered(store, [0])
    size = sum(path.stat().st_size for path in files(store) if path.parent.name != "prompts")
    monkeypatch.setattr(module, "_MOST_BYTES", 2.5 * size)
    monkeypatch.setattr(module, "_SLACK", 1)
    later = [offered(store, [number])[0] for number in (1, 2)]
    assert {vote.id for vote in store.find(Filter())} == set(later)


def test_a_file_that_another_process_has_cleared_away(store, monkeypatch):
    """Between its writing and the row's."""
    other = Store(store._folder)
    write = store._database.write
    monkeypatch.setattr(store._database, "write", lambda: other._tidy(always=True) or write())
    [vote] = store.offer([offer(1)])
    assert store.latent(vote) is not None
    assert store.image_path(vote.id).is_file()
    other.close()


def test_a_vote_that_comes_while_the_oldest_are_looked_for(store, monkeypatch):
    monkeypatch.setattr(module, "_MOST_UNDECIDED", 1)
    ids = offered(store, [0]) + offered(store, [1])
    monkeypatch.setattr(module, "_SLACK", 1)
    other = Store(store._folder)
    write = store._database.write
    monkeypatch.setattr(store._database, "write", lambda: other.vote(ids[:1], 1) and write())
    store._tidy()
    assert {vote.id: vote.label for vote in store.find(Filter())} == {ids[0]: 1, ids[1]: 0}
    other.close()


def test_a_limit_on_the_size_of_files(store):
    """A full disk: what does not fit is refused with a sentence, whatever was there is whole, and goes on."""
    resource = pytest.importorskip("resource")
    ids = offered(store, range(3))
    store.vote(ids, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = torch.randn(1, 3, 400, 400)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**17, before[1]))
        with pytest.raises(StoreError, match=r"cannot be saved in .*: .*too large.*as it was"):
            store.offer([offer(9, latent=large)])
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**10, before[1]))
        with pytest.raises(StoreError, match="Make room on the disk. What was there is as it was"):
            store.vote(ids, -1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [vote.label for vote in store.get(ids)] == [1, 1, 1]
    assert [vote.label for vote in store.vote(ids, -1)] == [-1, -1, -1]
    [vote] = store.offer([offer(9, latent=large)])
    assert torch.equal(store.latent(vote), large)


def test_damage_is_said(store, tmp_path):
    [vote] = store.offer([offer(1)])
    path = store._folder / "latents" / f"{vote.latent}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: it is not what it was saved as"):
        store.latent(vote)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "votes.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreError, match="is damaged .* Move it away"):
        Store(tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be saved"):
        Store(tmp_path / "file" / "votes")


def test_a_folder_that_nobody_may_write_to(tmp_path):
    """Where there are votes, and where there are none."""
    if not hasattr(os, "geteuid"):
        pytest.skip("there are no permissions of this kind")
    store = Store(tmp_path)
    ids = offered(store, range(2))
    store.vote(ids, 1)
    store.close()
    before = {path.name for path in tmp_path.iterdir()}
    tmp_path.chmod(0o555)
    root = os.geteuid() == 0  # who may write anywhere
    try:
        if root:
            os.seteuid(65534)
        for folder in (tmp_path, tmp_path / "none"):
            with pytest.raises(StoreError, match=r"The votes cannot be saved in .*What was there is as it was"):
                Store(folder).vote(ids, -1)
    finally:
        if root:
            os.seteuid(0)
        tmp_path.chmod(0o755)
    assert before <= {path.name for path in tmp_path.iterdir()}
    store = Store(tmp_path)
    assert [vote.label for vote in store.get(ids)] == [1, 1]
    store.close()


@pytest.mark.skipif(os.name == "nt", reason="a file that is open cannot be moved away")
def test_a_database_that_is_moved_away_while_it_is_open(monkeypatch, tmp_path):
    """A new one begins; nothing goes on in a file that nobody finds."""
    monkeypatch.setattr("folder_paths.get_user_directory", lambda: str(tmp_path))
    first = opened.store()
    ids = offered(first, range(2))
    assert opened.store() is first
    first._folder.rename(tmp_path / "away")
    again = opened.store()
    assert again is not first
    assert again.find(Filter()) == []
    again.close()
    first.close()
    old = Store(tmp_path / "away")
    assert {vote.id for vote in old.find(Filter())} == {*ids}
    old.close()


# Versions


def test_an_older_database_is_brought_up_to_date(tmp_path):
    store = Store(tmp_path)
    ids = offered(store, range(2))
    store.vote(ids, 1)
    store.close()
    newer = (*STEPS, ("ALTER TABLE images ADD COLUMN colour TEXT NOT NULL DEFAULT ''",))
    path = tmp_path / "votes.sqlite"
    Database(path, newer).close()
    Database(path, newer).close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(newer),)
        assert sorted(connection.execute("SELECT id, label, colour FROM images")) == sorted((i, 1, "") for i in ids)
    connection.close()
    with pytest.raises(StoreError, match="written by a newer Guidekit .* Update the pack; the votes are as they were"):
        Store(tmp_path)


def test_a_step_that_fails_is_not_taken(tmp_path):
    Store(tmp_path).close()
    path = tmp_path / "votes.sqlite"
    with pytest.raises(StoreError):
        Database(path, (*STEPS, ("ALTER TABLE images ADD COLUMN colour TEXT", "no statement")))
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(STEPS),)
        assert "colour" not in [row[1] for row in connection.execute("PRAGMA table_info(images)")]
    connection.close()
    Store(tmp_path).close()


# Others at work

# Offers images that are its own and votes on each of them, and on one that is everybody's; says what is done.
VOTER = """
import sys
from pathlib import Path
import guidekit.demo.own_folders
from guidekit.tests.host.test_votes_store import Store, offer, offered

store = Store(Path(sys.argv[1]))
[shared] = offered(store, [0])
first, count, label = map(int, sys.argv[2:])
print("ready", flush=True)
sys.stdin.readline()
for number in range(first, first + count):
    [own] = offered(store, [number])
    store.vote([own], label)
    store.vote([shared], label)
    print(own, flush=True)
"""


def voter(folder, first, count, label):
    command = [sys.executable, "-c", VOTER, folder, str(first), str(count), str(label)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def begin(process):
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("\n")
    process.stdin.flush()


def test_processes_that_vote_at_once(tmp_path):
    """Also the first time, when each finds no database."""
    processes = [voter(tmp_path, 100 * number, 20, label) for number, label in ((1, 1), (2, -1), (3, 1))]
    for process in processes:
        begin(process)
    done = [process.communicate(timeout=300)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    store = Store(tmp_path)
    labels = {vote.id: vote.label for vote in store.find(Filter())}
    shared = offer(0).id
    assert labels.pop(shared) in (1, -1)
    assert labels == {image_id: label for ids, label in zip(done, (1, -1, 1)) for image_id in ids}
    assert len(labels) == 60
    store.close()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9")
def test_a_killed_voter_leaves_what_it_had_said(tmp_path):
    """At several moments of its work; whatever was answered is there, and every row is whole."""
    done = []
    for number in range(4):
        process = voter(tmp_path, 1000 * (number + 1), 900, 1)
        begin(process)
        for _ in range(3 + number):
            done.append(process.stdout.readline().strip())
        process.kill()
        process.wait()
        process.stdout.close()
        process.stdin.close()
        assert process.returncode == -signal.SIGKILL
    store = Store(tmp_path)
    with store._database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"
    votes = {vote.id: vote for vote in store.find(Filter())}
    assert [votes[image_id].label for image_id in done] == [1] * len(done)
    for vote in votes.values():
        assert store.latent(vote) is not None
        assert store.conditioning(vote.positive)
        assert hashlib.sha256(store.image_path(vote.id).read_bytes())
    [image_id] = offered(store, [7])
    assert store.vote([image_id], -1)
    store.close()


EXPORTER = """
import sys
from pathlib import Path
import guidekit.demo.own_folders
import folder_paths
from guidekit.tests.host.test_votes_store import Filter, Store, offered
from guidekit.nodes.host.votes.export import export

folder = Path(sys.argv[1])
folder_paths.set_output_directory(str(folder))
store = Store(folder / "votes")
store.vote(offered(store, range(100)), 1)
print("ready", flush=True)
for _ in range(100):
    export(store, Filter(), "mine")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9")
def test_a_killed_export_leaves_whole_folders_and_the_next_clears_the_rest(monkeypatch, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", EXPORTER, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    place = tmp_path / "guidekit"
    while not any(place.glob(".*/liked/*.png")):
        assert process.poll() is None
        process.send_signal(signal.SIGCONT)
        time.sleep(0.001)
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
    [part] = place.glob(".*")
    others = [place / f".guidekit.elsewhere.1.{'0' * 16}.part", place / ".mine.part", place / "a folder.part"]
    for other in others:
        other.mkdir()
    monkeypatch.setattr("folder_paths.get_output_directory", lambda: str(tmp_path))
    store = Store(tmp_path / "votes")
    export(store, Filter(), "while it is at work")
    assert any(part.iterdir())
    process.kill()
    process.wait()
    process.stdout.close()
    whole = [path for path in place.glob("[!.]*") if path not in others]
    for folder in whole:
        assert len(list(folder.glob("liked/*.png"))) == 100
        assert (folder / "pairs.csv").read_text().startswith("prompt,chosen,rejected")
    export(store, Filter(), "next")
    assert {*place.iterdir()} == {*whole, *others, place / "next"}
    assert store.counts(Filter())["liked"] == 100
    store.close()


def test_threads_that_vote_at_once(store):
    """Eight on one image, and each on all of 100: the last vote of each holds, and none is refused."""
    ids, failed = offered(store, range(100)), []

    def work(label):
        try:
            for image_id in ids:
                store.vote([image_id], label)
                store.vote([ids[0]], label)
        except ValueError as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(label,)) for label in (1, -1) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    counts = store.counts(Filter())
    assert counts["undecided"] == 0
    assert counts["liked"] + counts["disliked"] == 100
    assert os.listdir(store._folder)
    assert Path(store._folder, "votes.sqlite").is_file()
