"""Custom nodes that give other nodes bad input, for the headless tests only."""

import math

import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import ComfyExtension, io


class NaNModel(io.ComfyNode):
    """A model that predicts NaN."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            "TestNaNModel", category="tests", inputs=[io.Model.Input("model")], outputs=[io.Model.Output()]
        )

    @classmethod
    def execute(cls, model):
        model = model.clone()
        model.add_wrapper(
            WrappersMP.APPLY_MODEL, lambda executor, *args, **kwargs: executor(*args, **kwargs) * torch.nan
        )
        return io.NodeOutput(model)


class Latent(io.ComfyNode):
    """A latent that is not empty, of any batch and channels."""

    @classmethod
    def define_schema(cls):
        sizes = [io.Int.Input(name, default=1, min=0) for name in ("batch", "channels")]
        return io.Schema("TestLatent", category="tests", inputs=sizes, outputs=[io.Latent.Output()])

    @classmethod
    def execute(cls, batch, channels):
        return io.NodeOutput({"samples": torch.ones(batch, channels, 16, 16)})


ANYTHING = {"NaN": math.nan, "null": None, "dict": {}, "digits": "9" * 5000, "tensor": torch.full((3,), torch.nan)}


class Anything(io.ComfyNode):
    """Outputs of any type, as some packs have them."""

    @classmethod
    def define_schema(cls):
        inputs = [io.Combo.Input("what", options=list(ANYTHING))]
        return io.Schema("TestAnything", category="tests", inputs=inputs, outputs=[io.AnyType.Output()])

    @classmethod
    def execute(cls, what):
        return io.NodeOutput(ANYTHING[what])


class BreakingExtension(ComfyExtension):
    async def get_node_list(self):
        return [NaNModel, Latent, Anything]


async def comfy_entrypoint():
    return BreakingExtension()
