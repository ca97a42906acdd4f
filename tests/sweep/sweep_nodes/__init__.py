"""Stand-ins of a millisecond, for the tests of the sweep only."""

import os
import time
from pathlib import Path

import torch
from comfy_api.latest import ComfyExtension, io


class Counted(io.ComfyNode):
    """An image that shows a number. Each time one is made, the number is written to a file; those above `free` wait
    until the file `gate` is there."""

    @classmethod
    def define_schema(cls):
        inputs = [
            io.Int.Input("value", default=0, min=0, max=100_000),
            io.Int.Input("free", default=100_000),
            io.Int.Input("fails_at", default=-1),
            io.Int.Input("dies_at", default=-1),
            io.Float.Input("strength", default=1.0, min=0.0, max=2.0),
            io.Combo.Input("kind", options=["plain", "fancy, really", "3"]),
            io.Boolean.Input("loud", default=False),
            io.String.Input("log", default=""),
            io.String.Input("gate", default=""),
            io.String.Input("note", default="", multiline=True),
        ]
        return io.Schema("TestCounted", category="tests", inputs=inputs, outputs=[io.Image.Output()])

    @classmethod
    def execute(cls, value, free, fails_at, dies_at, strength, kind, loud, log, gate, note):
        if log:
            with open(log, "a") as file:
                file.write(f"{value}\n")
        while value > free and not Path(gate).exists():
            time.sleep(0.02)
        if value == dies_at:
            time.sleep(2)  # like a network that takes all memory; by then the client knows which prompt runs
            os._exit(1)
        if value == fails_at:
            raise ValueError(f"{value} is not\nto be had <b>")
        return io.NodeOutput(torch.full((1, 8, 8, 3), (value % 256) / 255))


class Says(io.ComfyNode):
    """Shows a text and names a file as it is told to."""

    @classmethod
    def define_schema(cls):
        inputs = [
            io.String.Input("text"),
            io.String.Input("filename", default=""),
            io.Image.Input("image", optional=True),
        ]
        return io.Schema("TestSays", category="tests", inputs=inputs, outputs=[], is_output_node=True)

    @classmethod
    def execute(cls, text, filename, image=None):
        images = [{"filename": filename, "subfolder": "..", "type": "output"}] if filename else []
        return io.NodeOutput(ui={"text": [text], "images": images})


class SweepExtension(ComfyExtension):
    async def get_node_list(self):
        return [Counted, Says]


async def comfy_entrypoint():
    return SweepExtension()
