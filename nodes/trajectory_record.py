"""The recording half of Direct Inversion (Ju et al., ICLR 2024, arXiv 2310.01506)."""

from comfy_api.latest import io

from ..samplers.inversion.reversible import check_falling
from .host.inputs import checked, fit_latent
from .host.inversion.sampler import check_unmasked, sample_schedule
from .host.inversion.trajectory import Recorder, Trajectory
from .host.run.fingerprint import describe_model


class TrajectoryRecord(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitTrajectoryRecord",
            display_name="Trajectory Record",
            category="guidekit/inversion",
            description="From an image to noise by DDIM inversion, with every step kept: Trajectory Replay samples "
            "beside the image itself, so that nodes like NegToMe can take from it.",
            search_aliases=[
                "Direct Inversion",
                "PnP Inversion",
                "DDIM inversion",
                "unsampler",
                "invert",
                "feature injection",
                "edit an image",
                "edit photo",
                "unsample",
            ],
            inputs=[
                io.Guider.Input(
                    "guider", tooltip="With the prompt that describes the image. The paper inverts at cfg 1."
                ),
                io.Sigmas.Input(
                    "sigmas",
                    tooltip="The schedule of the later sampling, falling, as from BasicScheduler. Its denoise says how "
                    "deep to go: below 1 keeps more of the image.",
                ),
                io.Latent.Input("latent", tooltip="One image, from VAE Encode."),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="trajectory",
                    tooltip="The noise, with the latents of every step. Connect it directly.",
                )
            ],
        )

    @classmethod
    @checked
    def execute(cls, guider, sigmas, latent) -> io.NodeOutput:
        model, sigmas = guider.model_patcher, sigmas.float().cpu()
        check_unmasked(latent)
        samples = fit_latent(model, latent["samples"], "latent")
        if len(samples) != 1:
            raise ValueError(f"The latent has {len(samples)} images. Give one (Latent From Batch).")
        check_falling(sigmas.tolist())
        raw = model.model.process_latent_in(samples.float())
        latents = sample_schedule(guider, Recorder(raw), sigmas, samples)
        shown = model.model.process_latent_out(latents[0])
        state = Trajectory(sigmas, describe_model(model), samples, shown, latents)
        return io.NodeOutput(state.latent())
