"""`bench device` on a CPU, and its handling of results; the rest needs a GPU."""

import json

import pytest
import torch

from guidekit.benchmarks import _results, device
from guidekit.benchmarks._networks import FULL, SMALL, build, with_blocks, with_lora

CPU = torch.device("cpu")


@pytest.fixture
def flux():
    return device.Bench(SMALL["flux"], build(SMALL["flux"], CPU, torch.float32), 0.0)


@pytest.mark.parametrize("node", ["NAG", "PAG", "NegToMe"])
def test_a_row(flux, node):
    wanted = next(row for row in device.rows("flux") if row.node == node)
    row = flux.measure(wanted)
    assert len(row["ratios"]) == 2
    assert row["ratio"] > 0
    assert row["with_node"]["predictions"] - row["plain"]["predictions"] == (node == "PAG")
    assert row["with_node"]["launches"] is None
    assert ("of_run" in row) == (node == "NegToMe")
    assert _results.node_row(row).count(" | ") == _results.ROW_HEADER.count(" | ")


def test_every_row_can_be_made():
    for key, network in SMALL.items():
        model = build(network, CPU, torch.float32)
        for row in device.rows(key):
            assert row.make(network, model) is not model, (key, row.node)


def test_the_share_of_a_run_that_negtome_acts_in(flux):
    """sigma >= 0.9 of exp(1.15) / (exp(1.15) + 1 / t - 1) for t = 1, 0.95, ...: down to 0.75."""
    assert device.acting_share(flux.model) == pytest.approx(6 / 20)


def test_a_lora_is_on_all_linear_layers_of_the_blocks(flux):
    changed = with_lora(flux.model).patches
    assert {key.split(".")[1] for key in changed} == {"double_blocks", "single_blocks"}
    assert len(changed) == 2 * 10 + 2 * 3


def test_networks_can_be_shortened():
    short = with_blocks(FULL["wan"], 3)
    assert short.settings["num_layers"] == 3
    assert short.name == "Wan 2.1 14B, 3 of 40 blocks"
    assert with_blocks(FULL["wan"], 40) is FULL["wan"]


def row(**changes) -> dict:
    profiles = {
        name: {"predictions": 2, "peak": peak, "launches": 10, "stalls": 0}
        for name, peak in (("plain", 100 << 20), ("with_node", 105 << 20))
    }
    found = {"network": "n", "latent": "8 x 8", "node": "APG", "cfg": 4.0, "batch": 1, "plain_seconds": 0.1}
    return found | profiles | {"seconds": 0.1, "ratio": 1.004, "ratios": [1.003, 1.005], "limit": 1.005} | changes


def test_targets_are_judged():
    heavy = row()["with_node"] | {"peak": 111 << 20}
    assert _results.row_targets(row()) == ["<= 1.005: met"]
    assert _results.row_targets(row(ratio=1.006)) == ["<= 1.005: MISSED"]
    assert _results.row_targets(row(limit=None)) == []
    assert _results.row_targets(row(limit=1.01, ratio=1.05, of_run=1.0099, share=0.2)) == ["run <= 1.01: met"]
    assert _results.row_targets(row(with_node=heavy)) == ["<= 1.005: met", "memory <= 1.1: MISSED"]
    kernel = {"faster_than_dense": 3.0, "share_of_product": 0.59, "limits": {"faster_than_dense": 3.0}}
    assert _results.kernel_targets(kernel) == [">= 3 x dense: met"]
    kernel["limits"] = {"share_of_product": 0.6}
    assert _results.kernel_targets(kernel) == [">= 60% of the product rate: MISSED"]


def test_results_are_kept_when_they_come(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OUT", str(tmp_path))
    with _results.Results({"device": "a card", "date": "2026-01-02", "command": "this"}, 100.0) as results:
        results.add_row(row(ratio=1.006))
        assert json.loads((tmp_path / "device.json").read_text())["rows"][0]["node"] == "APG"
        results.failed("n, PAG", ValueError("no\nway"))
        results.left_out("n: SEG")
    printed = capsys.readouterr().out
    assert "n, PAG failed: ValueError: no\n" in printed
    assert "Targets: 0 met, 1 missed.\n- n cfg 4 batch 1 APG <= 1.005: MISSED (1.0060)" in printed

    monkeypatch.setattr(_results, "DOCS", tmp_path / "docs" / "device.md")
    _results.write_docs([tmp_path / "device.json"])
    page = (tmp_path / "docs" / "device.md").read_text()
    assert "## a card, 2026-01-02" in page
    assert "| n | 8 x 8 | APG |" in page
    assert "Left out, as the time was used up: n: SEG." in page


def test_nothing_is_begun_when_the_time_is_used_up():
    assert _results.Results({}, -1.0).spent()
    assert not _results.Results({}, 100.0).spent()


def test_rows_with_a_target_come_first():
    for key in SMALL:
        assert all((row.rank == 0) == (row.limit is not None) for row in device.rows(key))
