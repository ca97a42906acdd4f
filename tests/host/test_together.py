"""Several processes under torch.distributed train the same LoRA as one."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from guidekit.samplers.preference.objectives import DPO, KTO, NFT
from guidekit.tests.host.votes import trainer, vote_set

OBJECTIVES = {"KTO": KTO(100.0), "DPO": DPO(100.0), "NFT": NFT(0.1)}
PROCESSES = 2


def learned(objective: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    settings = {"steps": 4, "window": 6, "batch": 2, "rate": 1e-2}
    found = trainer("unet", votes=vote_set("unet", 8), objective=OBJECTIVES[objective], **settings)
    found.run()
    return found.adapters.factors() | {"curve": [point.loss for point in found.curve]}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_processes_learn_what_one_does(objective, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    module = [sys.executable, "-m", "guidekit.tests.host.train_together"]
    files = [tmp_path / f"{rank}.pt" for rank in range(PROCESSES)]
    running = [
        subprocess.Popen([*module, str(rank), str(PROCESSES), str(file), objective], env=environ)
        for rank, file in enumerate(files)
    ]
    wanted = learned(objective)
    assert [process.wait() for process in running] == [0] * PROCESSES
    for file in files:
        found = torch.load(file)
        assert found.pop("curve") == pytest.approx(wanted["curve"], rel=1e-5)
        for path, both in found.items():
            for mine, theirs in zip(both, wanted[path]):
                assert (mine - theirs).norm() <= 1e-6 * theirs.norm() + 1e-9
        assert any(up.abs().max() > 1e-3 for up, _ in found.values())
