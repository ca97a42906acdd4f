"""A real headless ComfyUI with this pack in it, for the demo, the benchmarks and the tests.

    with Server() as server:
        outputs = server.run(prompt)                      # a workflow in API format
        image = server.view(outputs["9"]["images"][0])  # the bytes of a PNG

The checkout to run is named by the environment variable GUIDEKIT_COMFYUI, which dev.py sets.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..sweep.client import Client
from ..sweep.comfyui import ComfyUI, link
from ..sweep.errors import ServerError

PACK = Path(__file__).resolve().parent.parent


class Server(Client):
    """ComfyUI in a child process that lives exactly as long as the `with` block, and its client.

    It has a base directory of its own, removed at the end: only this pack and the folders in `extra_nodes` are custom
    nodes, there are no models, and what it saves is fetched with `view`. `start_limit` is in seconds; `port` is a free
    one, if none is given; `options`: more of ComfyUI's own.
    """

    def __init__(
        self,
        extra_nodes: Sequence[Path] = (),
        start_limit: float = 180,
        port: int | None = None,
        options: Sequence[str] = (),
    ) -> None:
        if "GUIDEKIT_COMFYUI" not in os.environ:
            raise ServerError("GUIDEKIT_COMFYUI is not set; run this through `python dev.py python`, which sets it")
        self._nodes = {"guidekit": PACK, **{folder.name: folder for folder in extra_nodes}}
        self._start_limit, self._port, self._options = start_limit, port, options

    def __enter__(self) -> Server:
        self._temporary = tempfile.TemporaryDirectory(prefix="guidekit-", ignore_cleanup_errors=True)
        self._base = Path(self._temporary.name).resolve()
        arguments = ["--disable-api-nodes", *self._options]
        # An extra_model_paths.yaml in the checkout may name folders of further ones.
        arguments += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", *self._nodes]
        if not _has_gpu():
            arguments.append("--cpu")
        host = Path(os.environ["GUIDEKIT_COMFYUI"])
        self.process = ComfyUI(host, arguments, self._base, self._start_limit, self._port)
        try:
            for name, folder in self._nodes.items():
                link(self._base / "custom_nodes" / name, folder.resolve())
            self.process.__enter__()
        except BaseException:
            self._temporary.cleanup()
            raise
        super().__init__(self.process.url)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop()
        self._temporary.cleanup()

    @property
    def models(self) -> Path:
        """Where the server looks for models; there are none but those that are put there."""
        return self._base / "models"

    @property
    def log(self) -> str:
        """What ComfyUI has logged so far, without colours."""
        return self.process.log


def _has_gpu() -> bool:
    import torch  # takes seconds; users of the client alone need not wait

    return torch.cuda.is_available()
