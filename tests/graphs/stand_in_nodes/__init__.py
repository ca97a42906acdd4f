"""Nodes in the place of loaders, and of nodes that need a model of another kind, for the host's templates.

What they give is the host's own: MODEL, CLIP, VAE, CLIP_VISION and STYLE_MODEL are of its classes, with tiny networks.
"""

import re
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import comfy.controlnet
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models_base
import torch
from comfy.ldm.flux.redux import ReduxImageEncoder
from comfy.ldm.lumina.controlnet import ZImage_Control
from comfy.patcher_extension import WrappersMP
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer
from comfy.taesd.taesd import TAESD
from comfy.weight_adapter import LoRAAdapter
from comfy_api.latest import ComfyExtension, InputImpl, Types, io
from comfy_extras.nodes_model_patch import MultiTalkModelPatch, QwenImageBlockWiseControlNet

from guidekit.tests.graphs.networks import NETWORKS, POOLED, VISION, WIDTH, network
from guidekit.tests.headless import stand_in_nodes as others

SIDE, FRAMES, RATE = 64, 5, 16  # of pictures and videos; RATE: in pictures a second
LAYERS = {"wav2vec2_large": (25, 1024), "wav2vec2-chinese": (13, 768), "whisper": (33, 1280)}  # and their width


def _normal(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class _Model(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        kind = io.Combo.Input("kind", options=[*NETWORKS])
        return io.Schema("TestModel", category="tests", inputs=[kind], outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, kind):
        return io.NodeOutput(network(kind).clone())


class _Tuned(io.ComfyNode):
    """A model with a LoRA, as a loader gives it."""

    @classmethod
    def define_schema(cls):
        return io.Schema("TestTuned", category="tests", inputs=[io.Model.Input("model")], outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model):
        tuned, weights = model.clone(), model.model.diffusion_model.state_dict()
        # Of an attention that reaches the result, which the last block's over the text does not.
        name = next(n for n, w in weights.items() if re.search(r"att(n|ention).*weight", n) and w.ndim == 2)
        shape = weights[name].shape
        products = (0.3 * _normal(shape[0], 2), 0.3 * _normal(2, shape[1], seed=4), 2.0, None, None, None)
        key = f"diffusion_model.{name}"
        tuned.add_patches({key: LoRAAdapter({key}, products)}, 1.0)
        return io.NodeOutput(tuned)


class _AnyLatent(io.ComfyNode):
    """A picture, encoded for a model."""

    @classmethod
    def define_schema(cls):
        return io.Schema("TestLatent", category="tests", inputs=[io.Model.Input("model")], outputs=[io.Latent.Output()])

    @classmethod
    def execute(cls, model):
        kind = model.get_model_object("latent_format")
        side = SIDE // getattr(kind, "spacial_downscale_ratio", 8)
        frames = [1] * (kind.latent_dimensions - 2)
        return io.NodeOutput({"samples": _normal(1, kind.latent_channels, *frames, side, side, seed=15)})


class _Text(SD1ClipModel):
    """With all that the text encoders of the families give beside the text."""

    def __init__(self, device="cpu", dtype=None, model_options={}):  # noqa: B006
        options = {"device": device, "dtype": dtype, "model_options": model_options}
        super().__init__(clip_name="l", clip_model=others.TinyEncoder, **options)

    def encode_token_weights(self, token_weight_pairs):
        text, pooled = super().encode_token_weights(token_weight_pairs)[:2]
        extra = {"conditioning_llama3": torch.stack([text, -text], 1)}
        return text, pooled.repeat(1, -(-POOLED // WIDTH))[:, :POOLED], extra


class _Tokens(SD1Tokenizer):
    """Some nodes give each text encoder a text of its own."""

    def tokenize_with_weights(self, *args, **kwargs):
        found = super().tokenize_with_weights(*args, **kwargs)
        return found | dict.fromkeys(("t5xxl", "g", "llama"), found["l"])


class _Texts(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema("TestTexts", category="tests", inputs=[], outputs=[io.Clip.Output()])

    @classmethod
    def execute(cls):
        target = comfy.supported_models_base.ClipTarget(_Tokens, _Text)
        clip = comfy.sd.CLIP(target, model_options={"dtype": torch.float32})
        others._fill(clip.cond_stage_model, 0.1, 6)
        return io.NodeOutput(clip)


class _Blocks(torch.nn.Module):
    """A linear autoencoder: the mean of each block of pixels, times a fixed matrix."""

    def __init__(self, channels: int, block: int, video: bool, colours: int):
        super().__init__()
        self.block, self.video = block, video
        self.matrix = torch.nn.Parameter(_normal(channels, colours) / colours**0.5, requires_grad=False)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        if self.video:
            x = x[:, :, ::4]
        x = (
            torch.nn.functional.avg_pool3d(x, (1, *[self.block] * 2))
            if self.video
            else torch.nn.functional.avg_pool2d(x, self.block)
        )
        return torch.einsum("kc,bc...->bk...", self.matrix, x)

    def decode(self, z: torch.Tensor, **_) -> torch.Tensor:
        x = (
            torch.einsum("kc,bk...->bc...", self.matrix, z)
            .repeat_interleave(self.block, -1)
            .repeat_interleave(self.block, -2)
        )
        return torch.cat([x[:, :, :1], x[:, :, 1:].repeat_interleave(4, 2)], 2) if self.video else x


class _Autoencoder(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        inputs = [
            io.Int.Input("channels"),
            io.Int.Input("block"),
            io.Boolean.Input("video"),
            io.Int.Input("colours", default=3),
        ]
        return io.Schema("TestVAE", category="tests", inputs=inputs, outputs=[io.Vae.Output()])

    @classmethod
    def execute(cls, channels, block, video, colours=3):
        small = TAESD(latent_channels=4)
        vae = comfy.sd.VAE(sd=small.state_dict())
        vae.first_stage_model = _Blocks(channels, block, video, colours)
        devices = {"load_device": vae.device, "offload_device": vae.patcher.offload_device}
        vae.patcher = comfy.model_patcher.ModelPatcher(vae.first_stage_model, **devices)
        vae.latent_channels, vae.latent_dim, vae.output_channels = channels, 2 + video, colours
        vae.downscale_ratio = vae.upscale_ratio = block
        vae.pad_channel_value = 1.0 if colours == 4 else None
        if video:
            vae.downscale_ratio = (lambda a: max(0, (a + 3) // 4), block, block)
            vae.upscale_ratio = (lambda a: max(0, a * 4 - 3), block, block)
            vae.downscale_index_formula = vae.upscale_index_formula = (4, block, block)
        return io.NodeOutput(vae)


class _Vision(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema("TestVision", category="tests", inputs=[], outputs=[io.ClipVision.Output()])

    @classmethod
    def execute(cls):
        with TemporaryDirectory() as folder:
            return io.NodeOutput(others.vision(Path(folder), width=VISION))


class _Style(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema("TestStyle", category="tests", inputs=[], outputs=[io.StyleModel.Output()])

    @classmethod
    def execute(cls):
        made = ReduxImageEncoder(redux_dim=VISION, txt_in_features=WIDTH, dtype=torch.float32)
        others._fill(made, 0.02, 12)
        return io.NodeOutput(comfy.sd.StyleModel(made))


# Of one layer, for the host divides the 30 of the real network by them.
_Z_IMAGE = {"dim": 256, "n_heads": 4, "n_kv_heads": 4, "n_control_layers": 1}
PATCHES = {
    "Qwen-Image": lambda **rest: QwenImageBlockWiseControlNet(num_layers=2, dim=32, **rest),
    "Z-Image": lambda **rest: ZImage_Control(**_Z_IMAGE, **rest),
    "Z-Image 2.1": lambda **rest: ZImage_Control(**_Z_IMAGE, additional_in_dim=17, refiner_control=True, **rest),
    "InfiniteTalk": lambda **rest: MultiTalkModelPatch(
        context_tokens=4, in_dim=160, intermediate_dim=16, out_dim=768, **rest
    ),
}


class _ModelPatch(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        kind = io.Combo.Input("kind", options=[*PATCHES])
        return io.Schema("TestModelPatch", category="tests", inputs=[kind], outputs=[io.ModelPatch.Output()])

    @classmethod
    def execute(cls, kind):
        made = PATCHES[kind](dtype=torch.float32, device=torch.device("cpu"), operations=comfy.ops.manual_cast)
        others._fill(made, 0.05, 13)
        devices = {"load_device": torch.device("cpu"), "offload_device": torch.device("cpu")}
        return io.NodeOutput(comfy.model_patcher.ModelPatcher(made, **devices))


class _Control(comfy.controlnet.ControlBase):
    """Residuals for every block of a transformer that cuts latents into patches of 2 x 2."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def get_control(self, x_noisy, *args):
        tokens = x_noisy.shape[-1] // 2 * (x_noisy.shape[-2] // 2)
        residual = 0.1 * self.strength * _normal(1, tokens, self.width)
        return {"input": [residual.expand(len(x_noisy), -1, -1).clone() for _ in range(2)], "output": []}

    def copy(self):
        made = _Control(self.width)
        self.copy_to(made)
        return made


class _ControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        inputs = [io.Int.Input("width")]
        return io.Schema("TestControlNet", category="tests", inputs=inputs, outputs=[io.ControlNet.Output()])

    @classmethod
    def execute(cls, width):
        return io.NodeOutput(_Control(width))


class _Audio(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema("TestAudio", category="tests", inputs=[], outputs=[io.Audio.Output()])

    @classmethod
    def execute(cls):
        return io.NodeOutput({"waveform": _normal(1, 2, 22050) * 0.1, "sample_rate": 22050})


class _HeardAudio(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        inputs = [io.Combo.Input("encoder", options=[*LAYERS])]
        return io.Schema("TestHeard", category="tests", inputs=inputs, outputs=[io.AudioEncoderOutput.Output()])

    @classmethod
    def execute(cls, encoder):
        layers, width = LAYERS[encoder]
        heard = [_normal(1, 50, width, seed=layer) for layer in range(layers)]
        return io.NodeOutput({"encoded_audio_all_layers": heard, "audio_samples": 16000})


class _Picture(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        outputs = [io.Image.Output(), io.Mask.Output()]
        return io.Schema("TestPicture", category="tests", inputs=[io.Int.Input("frames")], outputs=outputs)

    @classmethod
    def execute(cls, frames):
        pictures = _normal(frames, SIDE, SIDE, 3).sigmoid()
        mask = torch.zeros(frames, SIDE, SIDE)
        mask[:, : SIDE // 2] = 1
        return io.NodeOutput(pictures, mask)


class _Video(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema("TestVideo", category="tests", inputs=[], outputs=[io.Video.Output()])

    @classmethod
    def execute(cls):
        audio = {"waveform": _normal(1, 2, 22050) * 0.1, "sample_rate": 22050}
        images = _normal(FRAMES, SIDE, SIDE, 3).sigmoid()
        return io.NodeOutput(
            InputImpl.VideoFromComponents(Types.VideoComponents(images=images, audio=audio, frame_rate=Fraction(RATE)))
        )


class _SmallReferences(io.ComfyNode):
    """The corner of reference pictures, which nodes have made as large as real models want them."""

    @classmethod
    def define_schema(cls):
        inputs = [io.Conditioning.Input("conditioning"), io.Int.Input("side")]
        return io.Schema("TestSmall", category="tests", inputs=inputs, outputs=[io.Conditioning.Output()])

    @classmethod
    def execute(cls, conditioning, side):
        small = []
        for text, options in conditioning:
            options = dict(options)
            if "reference_latents" in options:
                options["reference_latents"] = [z[..., :side, :side] for z in options["reference_latents"]]
            small.append([text, options])
        return io.NodeOutput(small)


class _Count:
    """Of one run: network calls, the rows in them, and how often the guider was asked."""

    def __init__(self):
        self.calls = self.rows = self.steps = 0

    def __call__(self, executor, x, *args, **kwargs):
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        return executor(x, *args, **kwargs)

    def begin(self, executor, *args, **kwargs):
        self.calls = self.rows = self.steps = 0
        return executor(*args, **kwargs)

    def step(self, executor, *args, **kwargs):
        self.steps += 1
        return executor(*args, **kwargs)


_CountType = io.Custom("TEST_COUNT")


class _Counted(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        outputs = [io.Model.Output(), _CountType.Output()]
        return io.Schema(
            "TestCounted", category="tests", inputs=[io.Model.Input("model")], outputs=outputs, not_idempotent=True
        )

    @classmethod
    def execute(cls, model):
        model, count = model.clone(), _Count()
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", count)
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "test", count.begin)
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "test", count.step)
        return io.NodeOutput(model, count)


class _Seen(io.ComfyNode):
    """What a run gave: numbers that tell its latent from others, network calls and their rows, and what was said."""

    @classmethod
    def define_schema(cls):
        inputs = [io.Latent.Input("samples"), _CountType.Input("count"), io.String.Input("report", force_input=True)]
        return io.Schema("TestSeen", category="tests", inputs=inputs, outputs=[], is_output_node=True)

    @classmethod
    def execute(cls, samples, count, report):
        latent = samples["samples"]
        streams = [s.double() for s in (latent.unbind() if latent.is_nested else [latent])]
        weighted = [(s * torch.linspace(1, 2, s.numel(), dtype=torch.double).reshape(s.shape)).sum() for s in streams]
        finite = all(bool(s.isfinite().all()) for s in streams)
        seen = {
            "finite": finite,
            "sum": repr([w.item() for w in weighted]),
            "calls": count.calls,
            "rows": count.rows,
            "steps": count.steps,
            "batch": len(streams[0]),
        }
        return io.NodeOutput(ui={"seen": [{**seen, "report": report}]})


class StandIns(ComfyExtension):
    async def get_node_list(self):
        return [
            _Model,
            _Tuned,
            _AnyLatent,
            _Texts,
            _Autoencoder,
            _Vision,
            _Style,
            _ModelPatch,
            _ControlNet,
            _Audio,
            _HeardAudio,
            _Picture,
            _Video,
            _SmallReferences,
            _Counted,
            _Seen,
        ]


async def comfy_entrypoint():
    return StandIns()
