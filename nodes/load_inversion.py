"""Inversions from files."""

from reprlib import repr as shown

from comfy_api.latest import io

from .host.files import folders as files
from .host.inputs import checked
from .host.inversion.exact_state import Inverted
from .host.inversion.latent_state import InversionState
from .host.inversion.trajectory import Trajectory

_KINDS: tuple[type[InversionState], ...] = (Inverted, Trajectory)
_REQUIRED = InversionState.tensors
_OTHERS = tuple(name for kind in _KINDS for name in (*kind.tensors, *kind.optional) if name not in _REQUIRED)


class LoadInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitLoadInversion",
            display_name="Load Inversion",
            category="guidekit/inversion",
            description="Loads a file of Save Inversion: the latent is what the inverting node gave.",
            search_aliases=["load latent", "load inversion", "load noise", "safetensors"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=files.INVERSIONS.names(),
                    tooltip="A file in output/guidekit or input/guidekit, made by Save Inversion.",
                )
            ],
            outputs=[
                io.Latent.Output(
                    display_name="inverted",
                    tooltip="For Exact Inversion Sampling or Trajectory Replay, with the model it was made with.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file=None, **_) -> float | None:
        """Changes when the file is saved again."""
        return files.INVERSIONS.fingerprint(file)

    @classmethod
    @checked
    def execute(cls, file) -> io.NodeOutput:
        tensors, description = files.INVERSIONS.load(file, _REQUIRED, _OTHERS)
        maker = description.get("made by")
        kind = next((kind for kind in _KINDS if kind.maker == maker), None)
        try:
            if kind is None:
                raise ValueError(f"it was made by {shown(maker)}")
            if missing := set(kind.tensors) - set(tensors):
                raise ValueError(f"it has no {' and '.join(sorted(missing))}")
            state = kind.from_file(tensors, description)
        except ValueError as error:
            raise ValueError(f"{file} is not a file of Save Inversion: {error}. Save it again.") from error
        return io.NodeOutput(state.latent())
