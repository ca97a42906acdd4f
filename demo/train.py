"""Trains a demo model, the judge or the classifier: `python dev.py python -m guidekit.demo.train NAME [--steps N]`.

Fixed seed, CPU or GPU, resumes from the last saved state after an interruption. Writes `<name>.safetensors` (fp16)
and `<name>.log` beside this file. The state for resuming lies in the user's temporary folder.
"""

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..samplers.classifiers.resnet import ResNet
from . import pictures
from .classifier import CLASSES, METADATA, SIZE, shapes
from .judge import Judge
from .vocabulary import VOCABULARY

HERE = Path(__file__).parent
SEED = 20
BATCH = 32
EMA = 0.999
ENDS = ("embedding.weight", "img_in.weight", "input_blocks.0.0.weight", "final_layer.linear.weight", "out.2.weight")


def learning_rate(step: int, steps: int) -> float:
    """As a share of the peak: short warm-up, constant, linear to zero over the last 30 %."""
    return min(1.0, (step + 1) / 200, (steps - step) / (0.3 * steps))


def reset_parameters(module: nn.Module) -> None:
    """Ordinary initialisation: the host's layers leave their weights as found in memory."""
    for child in module.modules():
        for base in type(child).__mro__:
            if base in (nn.Linear, nn.Conv2d, nn.Embedding, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm):
                base.reset_parameters(child)
                break


def zero_outputs(family: str, network: nn.Module) -> None:
    """Residual branches and the output start at zero, as their papers have it."""
    ends = {
        "unet": ("out_layers.3", "proj_out", "out.2"),
        "dit": ("modulation.lin", "img_mod.lin", "txt_mod.lin", "adaLN_modulation.1", "final_layer.linear"),
    }[family]
    for name, child in network.named_modules():
        if name.endswith(ends):
            nn.init.zeros_(child.weight)
            nn.init.zeros_(child.bias)


class Optimizer:
    """Muon (Jordan et al. 2024) for hidden matrices, AdamW for embeddings, first and last layers, gains and biases.

    A convolution is the matrix [out, in * height * width]. On the transformer Muon's loss after 400 steps was below
    AdamW's after 500.
    """

    def __init__(self, module: nn.Module, muon: bool):
        named = dict(module.named_parameters())
        hidden = [k for k, p in named.items() if muon and p.ndim > 1 and not k.endswith(ENDS)]
        self.hidden = [named[k] for k in hidden]
        self.matrices = [nn.Parameter(p.detach().flatten(1)) for p in self.hidden]  # views: updates reach the module
        rest = [p for k, p in named.items() if k not in hidden]
        self.parts = [torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)]
        if self.matrices:
            settings = {"lr": 2e-3, "weight_decay": 0.01, "adjust_lr_fn": "match_rms_adamw"}
            self.parts.append(torch.optim.Muon(self.matrices, **settings))
        self.peaks = [part.param_groups[0]["lr"] for part in self.parts]

    def step(self, rate: float) -> None:
        """One step at `rate` times the peak learning rates."""
        for matrix, parameter in zip(self.matrices, self.hidden):
            matrix.grad = parameter.grad.flatten(1)
        for part, peak in zip(self.parts, self.peaks):
            part.param_groups[0]["lr"] = peak * rate
            part.step()

    def state(self) -> list[dict]:
        return [part.state_dict() for part in self.parts]

    def load(self, state: list[dict]) -> None:
        for part, saved in zip(self.parts, state):
            part.load_state_dict(saved)


class Diffusion(nn.Module):
    """A demo model with its text encoder; called with pictures and captions it gives the loss."""

    def __init__(self, name: str):
        super().__init__()
        from . import models

        family = models.family_of(name)

        self.family, self.pack = family, models.PACK
        self.base = models.diffusion_model(family)
        self.text = models.DemoTextEncoder(dtype=torch.float32)
        self.tokenizer = models.DemoTokenizer()
        for part in (self.base.diffusion_model, self.text):
            reset_parameters(part)
            part.requires_grad_(True)
        nn.init.normal_(self.text.clip_demo.transformer.token_embedding.weight, std=0.3)
        nn.init.normal_(self.text.clip_demo.transformer.position_embedding.weight, std=0.1)
        zero_outputs(family, self.base.diffusion_model)

    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        batches = [self.tokenizer.tokenize_with_weights(c)["demo"][0] for c in captions]
        return self.text.clip_demo.encode([[token for token, _ in row] for row in batches])

    def forward(self, images: Tensor, captions: list[str]) -> Tensor:
        sampling, network = self.base.model_sampling, self.base.diffusion_model
        packed = nn.functional.pixel_unshuffle(images * 2 - 1, self.pack)
        x0 = self.base.latent_format.process_in(packed)
        noise = torch.randn_like(x0)
        context, pooled = self.encode(captions)
        if self.family == "unet":
            sigma = sampling.sigmas[torch.randint(len(sampling.sigmas), (len(x0),))].to(x0.device)
        else:
            sigma = torch.randn(len(x0), device=x0.device).sigmoid()  # logit-normal (Esser et al. 2024)
        s = sigma[:, None, None, None]
        if self.family == "unet":
            x, target = x0 + s * noise, (noise - s * x0) / (1 + s**2).sqrt()
        else:
            x, target = (1 - s) * x0 + s * noise, noise - x0
        output = network(
            sampling.calculate_input(sigma, x), sampling.timestep(sigma).float(), context=context, y=pooled
        )
        return nn.functional.mse_loss(output, target)

    def checkpoint(self) -> dict[str, Tensor]:
        parts = {"model.diffusion_model.": self.base.diffusion_model, "cond_stage_model.": self.text}
        return {prefix + k: v for prefix, part in parts.items() for k, v in part.state_dict().items()}


def diffusion_loss(model: Diffusion, generator: torch.Generator) -> Tensor:
    scenes = pictures.random_scenes(BATCH, generator)
    captions = pictures.random_captions(scenes, generator, dropout=0.12)
    return model(pictures.draw(scenes).to(next(model.parameters()).device), captions)


def spoil(images: Tensor, generator: torch.Generator) -> Tensor:
    """What guidance does to pictures: more or less saturation and contrast, blur, noise."""

    def pick(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand((len(images), 1, 1, 1), generator=generator)

    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * pick(0.6, 2.0)
    images = 0.5 + (images - 0.5) * pick(0.7, 1.8)
    blurred = nn.functional.avg_pool2d(nn.functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = torch.lerp(images, blurred, pick(0, 0.7))
    return (images + torch.randn(images.shape, generator=generator) * pick(0, 0.06)).clamp(0, 1)


def judge_loss(judge: Judge, generator: torch.Generator) -> Tensor:
    scenes = pictures.random_scenes(2 * BATCH, generator)
    out = judge(spoil(pictures.draw(scenes), generator))
    classes = {"shape": scenes.shape, "colour": scenes.colour, "background": scenes.background}
    return sum(nn.functional.cross_entropy(out[k], v) for k, v in classes.items())


class Classifier(ResNet):
    """The small network that guides, as it is trained."""

    def __init__(self):
        super().__init__(shapes())
        reset_parameters(self)


def half_done(images: Tensor, generator: torch.Generator) -> Tensor:
    """What denoised estimates of early steps look like: coarse, and grey where nothing is decided."""
    coarse = images
    for scale in (2, 4):
        small = nn.functional.avg_pool2d(images, scale)
        small = nn.functional.interpolate(small, images.shape[-1], mode="bilinear")
        chosen = torch.rand((len(images), 1, 1, 1), generator=generator) < 0.3
        coarse = torch.where(chosen, small, coarse)
    mean = images.mean((2, 3), keepdim=True)
    share = 0.5 * torch.rand((len(images), 1, 1, 1), generator=generator)
    return torch.lerp(coarse, mean, share)


def classifier_loss(classifier: Classifier, generator: torch.Generator) -> Tensor:
    scenes = pictures.random_scenes(2 * BATCH, generator)
    images = spoil(half_done(pictures.draw(scenes), generator), generator)
    out = classifier(nn.functional.interpolate(images * 2 - 1, SIZE, mode="bilinear"))
    classes = (scenes.shape, scenes.colour, scenes.background)
    return sum(nn.functional.cross_entropy(o, c) for o, c in zip(out.split(list(map(len, CLASSES)), 1), classes))


def save_weights(weights: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    halves = {k: (v.half() if v.is_floating_point() else v).contiguous().cpu() for k, v in weights.items()}
    save_file(halves, path, metadata=metadata)


_VOCABULARY = {"vocabulary": " ".join(VOCABULARY)}
# Networks that are trained on drawn pictures with labels: what makes one, its loss, what its file says.
LABELLED = {
    "judge": (Judge, judge_loss, _VOCABULARY),
    "classifier": (Classifier, classifier_loss, METADATA),
}


def train(name: str, steps: int, state_file: Path, device: str) -> None:
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    make, loss_of, metadata = LABELLED.get(name) or (partial(Diffusion, name), diffusion_loss, _VOCABULARY)
    model = make().to(device)
    ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
    optimizer = Optimizer(model, muon=name not in LABELLED)
    first, running, seconds = 0, 0.0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load(state["optimizer"])
        ema, first, running, seconds = state["ema"], state["step"], state["running"], state["seconds"]
        generator.set_state(state["data"])
        torch.set_rng_state(state["noise"])
    parameters = sum(p.numel() for p in model.parameters())
    with open(HERE / f"{name}.log", "a" if first else "w") as log:

        def say(line: str) -> None:
            log.write(line + "\n")
            log.flush()
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

        begun = (
            f"resumed at step {first}" if first else f"{parameters} parameters, seed {SEED}, torch {torch.__version__}"
        )
        say(f"{name}: {steps} steps of {BATCH}, {begun}")
        for step in range(first, steps):
            start = time.perf_counter()
            model.zero_grad(set_to_none=True)
            # The host's blocks add in place; autograd then needs copies of what it saved.
            with torch.autograd.graph.allow_mutation_on_saved_tensors():
                loss = loss_of(model, generator)
                loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step(learning_rate(step, steps))
            decay = min(EMA, (1 + step) / (10 + step))
            with torch.no_grad():
                for k, v in model.state_dict().items():
                    ema[k].lerp_(v, 1 - decay) if v.is_floating_point() else ema[k].copy_(v)
            running = torch.lerp(torch.tensor(running or loss.item()), loss.detach().cpu(), 0.01).item()
            seconds += time.perf_counter() - start
            if (step + 1) % 250 == 0 or step + 1 == steps:
                say(f"step {step + 1:6d}  loss {running:.4f}  {seconds:7.0f} s")
                save_state = {"model": model.state_dict(), "optimizer": optimizer.state(), "ema": ema}
                save_state |= {"step": step + 1, "running": running, "seconds": seconds}
                save_state |= {"data": generator.get_state(), "noise": torch.get_rng_state()}
                torch.save(save_state, state_file.with_suffix(".part"))
                state_file.with_suffix(".part").replace(state_file)
                model_now = {k: v.clone() for k, v in model.state_dict().items()}
                model.load_state_dict(ema)
                weights = model.state_dict() if name in LABELLED else model.checkpoint()
                save_weights(weights, HERE / f"{name}.safetensors", metadata)
                model.load_state_dict(model_now)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=("unet", "unet_early", "dit", *LABELLED))
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--threads", type=int, help="processor threads to use")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() and options.name not in LABELLED else "cpu"
    if options.name not in LABELLED:
        import comfy.cli_args

        comfy.cli_args.args.cpu = device == "cpu"
        comfy.cli_args.args.use_pytorch_cross_attention = True
        import comfy.model_management

        comfy.model_management.in_training = True  # the host's fused kernels have no gradient
    state_file = Path(tempfile.gettempdir()) / f"guidekit-train-{options.name}.pt"
    train(options.name, options.steps, state_file, device)
    state_file.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
