"""The sampling half of Direct Inversion (see trajectory_record.py)."""

from comfy_api.latest import io

from .host.inputs import check_prompt_for, checked
from .host.inversion.rows import with_first_prompt
from .host.inversion.sampler import sample_schedule
from .host.inversion.trajectory import Replayer, Trajectory


class TrajectoryReplay(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitTrajectoryReplay",
            display_name="Trajectory Replay",
            category="guidekit/inversion",
            description="Samples from the noise of Trajectory Record, in a batch whose first image is the recorded "
            "one at every step. Nodes that let the images of a batch see each other make the result keep what they "
            "take from it; without one this is plain DDIM editing.",
            search_aliases=["Direct Inversion", "PnP Inversion", "DDIM", "feature injection", "edit an image"],
            inputs=[
                io.Guider.Input(
                    "guider",
                    tooltip="With the prompt of the edited image, and a node that takes from the batch's first "
                    "image, such as NegToMe with a negative alpha.",
                ),
                io.Latent.Input("trajectory", tooltip="From Trajectory Record."),
                io.Conditioning.Input(
                    "source_prompt",
                    optional=True,
                    tooltip="The prompt of the recording, for the recorded image; without it the guider's prompt is "
                    "for both.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="edited", tooltip="The image, for VAE Decode."),
                io.Latent.Output(display_name="source", tooltip="The batch's first image: the recorded one."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, guider, trajectory, source_prompt=None) -> io.NodeOutput:
        model = guider.model_patcher
        state = Trajectory.of(trajectory, model)
        if source_prompt is not None:
            check_prompt_for(model, source_prompt, "source_prompt")
            guider = with_first_prompt(guider, source_prompt)
        image = state.image.repeat(2, *[1] * (state.image.dim() - 1))
        batch = sample_schedule(guider, Replayer(state.latents), state.sigmas, image)
        batch = model.model.process_latent_out(batch)
        return io.NodeOutput({"samples": batch[1:]}, {"samples": batch[:1]})
