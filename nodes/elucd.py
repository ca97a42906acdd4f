"""EluCD (Ma et al., ICLR 2024, arXiv 2310.11311): classifier guidance by gradient, calibrated by design."""

from dataclasses import dataclass

from comfy_api.latest import io
from torch import Tensor

from ..samplers.guidance.elucd import guidance_update, objective, strength
from .host.classifiers.decode import Decoder, vae_input
from .host.classifiers.gradient import ImageGradient
from .host.classifiers.image import ImageClassifier
from .host.classifiers.labels import ClassifierType, load_beside
from .host.inputs import checked
from .host.inputs.shared import RangedNode, range_inputs
from .host.predictions.corrections import add_correction
from .host.run import Run
from .host.run.noise_levels import progress_at
from .host.run.ranges import Range

LABEL = "EluCD Classifier Guidance"


@dataclass(frozen=True, eq=False)
class _EluCD:
    classifier: ImageClassifier
    target: int
    decoder: Decoder
    scale: float
    tau_1: float
    tau_2: float
    beta: float | None
    range: Range

    label = LABEL
    idle_reason = "the sampler never asked for a guided prediction."

    def begin(self, run: Run, guider) -> None:
        self.decoder.check(run, LABEL)
        shape = run.latent_shapes[0]
        if len(shape) == 5 and shape[2] > 1:
            raise ValueError(f"{LABEL} changes single images, and this latent (shape {tuple(shape)}) is a video.")
        for sigma in run.sigmas:  # loads now what every step needs on the device
            progress_at(sigma, run.sigma_at)

    def __call__(self, run: Run, args: dict) -> Tensor | None:
        if not self.range.active(run):
            return None
        if self not in run.notes:
            run.notes[self] = ImageGradient(run, self.decoder, self.classifier)
        cond = args["cond_denoised"]
        gradient = run.notes[self](cond, self.beta, self._objective)
        return guidance_update(cond, gradient, strength(self.scale, progress_at(run.step_sigma, run.sigma_at)))

    def _objective(self, logits: Tensor) -> Tensor:
        return objective(logits, self.target, self.tau_1, self.tau_2)


class EluCD(RangedNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitEluCD",
            display_name=LABEL,
            category="guidekit/guidance",
            description="Moves every step's image in the direction in which a classifier is surer of a class: "
            "classifier guidance by gradient, without a gradient through the model.",
            search_aliases=["EluCD", "classifier guidance", "gradient", "ResNet", "class"],
            inputs=[
                io.Model.Input("model", tooltip="Any model that makes images."),
                ClassifierType.Input("classifier", tooltip="From Image Classifier; CLIP Classifier has no gradient."),
                io.String.Input("target", default="", tooltip="The class that the image shall be of."),
                io.Float.Input(
                    "scale",
                    default=0.05,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    round=0.0001,
                    tooltip="How far to go, beside the size of the image's latent. 0 is off and costs nothing.",
                ),
                io.Float.Input(
                    "tau_1",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Weight of the target's logit.",
                    advanced=True,
                ),
                io.Float.Input(
                    "tau_2",
                    default=0.5,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Weight of all logits in what is taken away. As tau_1: the probability; 0: the logit.",
                    advanced=True,
                ),
                io.Float.Input(
                    "softplus",
                    default=3.0,
                    min=0.0,
                    max=100.0,
                    step=0.5,
                    round=0.01,
                    tooltip="Sharpness of the Softplus in place of the classifier's ReLU. 0: ReLU.",
                    advanced=True,
                ),
                *range_inputs(),
                vae_input(),
            ],
            outputs=[io.Model.Output(tooltip="The model with EluCD.")],
            not_idempotent=True,
        )

    @classmethod
    @checked
    def execute(
        cls, model, classifier, target, scale, tau_1, tau_2, softplus, start_percent, end_percent, vae=None
    ) -> io.NodeOutput:
        if not isinstance(classifier, ImageClassifier):
            raise ValueError("EluCD needs the gradient of a classifier: connect Image Classifier.")
        if tau_2 > tau_1:
            raise ValueError(
                f"tau_2 is {tau_2:g} and tau_1 {tau_1:g}. The method needs tau_2 at most as large as tau_1."
            )
        index = classifier.index(target.strip())
        model = model.clone()
        if scale == 0 or tau_1 == 0:
            return io.NodeOutput(model)
        load_beside(model, classifier, vae)
        correction = _EluCD(
            classifier=classifier,
            target=index,
            decoder=Decoder(vae),
            scale=scale,
            tau_1=tau_1,
            tau_2=tau_2,
            beta=softplus or None,
            range=Range(start_percent, end_percent),
        )
        add_correction(model, correction)
        return io.NodeOutput(model)
