"""Inversions as files."""

from comfy_api.latest import io

from .host.files import folders as files
from .host.inputs import checked
from .host.inversion.latent_state import InversionState, carried


class SaveInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitSaveInversion",
            display_name="Save Inversion",
            category="guidekit/inversion",
            description="Saves what Exact Inversion or Trajectory Record has made, all of it and without rounding, in "
            "output/guidekit. Core's Save Latent would keep only what can be seen.",
            search_aliases=["save latent", "save inversion", "save noise", "safetensors"],
            inputs=[
                io.Latent.Input("inverted", tooltip="From Exact Inversion or Trajectory Record."),
                io.String.Input(
                    "name",
                    default="inversion",
                    tooltip="Name of the file in output/guidekit; an old one is replaced.",
                ),
            ],
            outputs=[io.Combo.Output(display_name="file", tooltip="For Load Inversion's input of that name.")],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(cls, inverted, name) -> io.NodeOutput:
        return io.NodeOutput(files.INVERSIONS.save(name, *carried(inverted, InversionState).to_file()))
