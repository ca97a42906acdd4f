"""Where each model family keeps its self-attention blocks, and which of its tokens are image tokens.

Relies on: `transformer_options["block"]` in UNets (comfy/ldm/modules/diffusionmodules/openaimodel.py:879-906);
`block_type` and `block_index` in Flux, Chroma, HunyuanVideo, Wan, Qwen-Image and Lumina2 (e.g.
comfy/ldm/flux/model.py:224); SD3 sets neither, so blocks.py does. All joint-attention families put the text before the
image.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from comfy.ldm.chroma.model import Chroma
from comfy.ldm.flux.model import Flux
from comfy.ldm.hunyuan_video.model import HunyuanVideo
from comfy.ldm.lumina.model import NextDiT
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
from comfy.ldm.wan.model import WanI2VCrossAttention, WanModel
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher

from ..run import Run

# Keys in the options: of the Counts, and of the shapes of references, by the name of the network's argument.
SEQUENCE, REFERENCES = "guidekit_sequence", "guidekit_references"


class Block(NamedTuple):
    """A transformer block: ("input" | "middle" | "output", number) in a UNet, else ("double" | "single", number)."""

    kind: str
    number: int


class Layout(NamedTuple):
    """The image tokens of a sequence and their grid, (h, w) or (t, h, w), row-major."""

    image: slice
    grid: tuple[int, ...]

    @property
    def whole(self) -> bool:
        """Whether there is one token for each place in the grid. In UNets another node may have merged the tokens, or
        cut them into tiles."""
        return self.image.stop - self.image.start == math.prod(self.grid)


class Counts(NamedTuple):
    """The numbers of tokens of the text and of all images in joint attention."""

    text: int
    images: int


@dataclass(frozen=True)
class Family:
    """A family of networks.

    `blocks(network)`: all self-attention blocks in order. `layout(network, latent shape, tokens, options)`: where the
    image tokens are in a sequence of `tokens`, from how the family builds it; `options` hold the `Counts` as SEQUENCE
    where the network gives them, and the shapes of its references as REFERENCES. `self_attentions`: which of a block's
    attention calls are self-attention, from 0. `replaceable`: whether the host lets a block be replaced. `second_text`:
    how a second text can be added: "cross", the cross-attention of a UNet; "blocks", that of transformer blocks;
    "joint", as more tokens of joint attention; "refined", the same after the network's text refiner; "layers", through
    the network's own layers; None, not at all. `looks_at_text(network, call, image)`: whether the call-th attention of
    a block attends to the text alone; `image`: whether the prompts have image tokens too.
    """

    name: str
    blocks: Callable[[torch.nn.Module], list[Block]]
    layout: Callable[[torch.nn.Module, tuple[int, ...], int, dict], Layout]
    self_attentions: tuple[int, ...] = (0,)
    replaceable: bool = True
    second_text: str | None = None
    looks_at_text: Callable[[torch.nn.Module, int, bool], bool] = lambda network, call, image: False

    def current_block(self, options: dict) -> tuple[Block, int] | None:
        """The block being computed and the number of its transformer layer; None outside the main blocks."""
        if self.name == "UNet":
            return Block(*options["block"]), options["block_index"]
        if "block_type" not in options or "block_index" not in options:
            return None  # a text or noise refiner before the main blocks
        return Block(options["block_type"], options["block_index"]), 0


def unet_parts(network: UNetModel) -> dict[str, Sequence[torch.nn.Sequential]]:
    """The blocks of a UNet by kind, in the order in which they run."""
    return {"input": network.input_blocks, "middle": [network.middle_block], "output": network.output_blocks}


def _unet_blocks(network: UNetModel) -> dict[Block, torch.nn.Sequential]:
    return {Block(kind, i): block for kind, blocks in unet_parts(network).items() for i, block in enumerate(blocks)}


def transformer_layers(network: UNetModel) -> dict[Block, int]:
    """The number of transformer layers in each block of a UNet; blocks without any are left out."""
    found = {
        block: sum(len(layer.transformer_blocks) for layer in layers if isinstance(layer, SpatialTransformer))
        for block, layers in _unet_blocks(network).items()
    }
    return {block: count for block, count in found.items() if count}


def _unet_attention(network: UNetModel) -> list[Block]:
    return list(transformer_layers(network))


def _unet_layout(network, latent_shape, tokens, options) -> Layout:
    return Layout(slice(0, tokens), tuple(options["activations_shape"][-2:]))


def _double_single_blocks(network) -> list[Block]:
    double = [Block("double", i) for i in range(len(network.double_blocks))]
    return double + [Block("single", i) for i in range(len(network.single_blocks))]


def _patches(latent_shape: tuple[int, ...], patch: int | tuple[int, ...] | list[int]) -> tuple[int, ...]:
    """The token grid of a latent whose last dimensions are cut into patches, with padding."""
    patch = (patch, patch) if isinstance(patch, int) else tuple(patch)
    return tuple(math.ceil(n / p) for n, p in zip(latent_shape[-len(patch) :], patch))


def _references(name: str, patch: int | tuple[int, ...], options: dict) -> int:
    """The number of tokens of the references of that name, each of its own size and number of frames."""
    shapes = options.get(REFERENCES, {}).get(name, ())
    return sum(math.prod(shape[2:-2]) * math.prod(_patches(shape, patch)) for shape in shapes)


def _last(tokens: int, grid: tuple[int, ...], behind: int = 0) -> Layout:
    """Image tokens at the end of the sequence, followed by `behind` others."""
    count = math.prod(grid)
    return Layout(slice(tokens - behind - count, tokens - behind), grid)


def _behind(grid: tuple[int, ...], options: dict) -> int:
    """How many tokens of reference images follow the image tokens: those that the network has counted, or 0 if another
    node (a cache of their keys and values) has removed them from the sequence."""
    sequence, references = options.get(SEQUENCE), sum(options.get("reference_image_num_tokens", ()))
    return 0 if sequence is not None and sequence.images == math.prod(grid) else references


def _flux_layout(network, latent_shape, tokens, options) -> Layout:
    grid = _patches(latent_shape, network.patch_size)
    return _last(tokens, grid, _behind(grid, options))


def _sd3_layout(network, latent_shape, tokens, options) -> Layout:
    return _last(tokens, _patches(latent_shape, tuple(network.x_embedder.patch_size)))


def _hunyuan_layout(network, latent_shape, tokens, options) -> Layout:
    return _last(tokens, _patches(latent_shape, network.patch_size))


def _wan_layout(network, latent_shape, tokens, options) -> Layout:
    grid = _patches(latent_shape, network.patch_size)
    # A reference image (ref_conv) and SCAIL's reference frames come before the image tokens; in-context references,
    # poses and extra frames after them.
    before = network.ref_conv is not None or hasattr(network, "patch_embedding_pose")
    start = _references("reference_latent", network.patch_size[-2:], options) if before else 0
    return Layout(slice(start, start + math.prod(grid)), grid)


def _wan_looks_at_text(network, call, image) -> bool:
    """Attention to the text is the call after self-attention. In I2V models that call attends to the image tokens of
    the prompt, if there are any, and the next one to the text. In VACE the calls of the control video's blocks are
    counted together with those of the video's."""
    if isinstance(network.blocks[0].cross_attn, WanI2VCrossAttention):
        return call == 2 or call == 1 and not image
    return call % 2 == 1 if hasattr(network, "vace_blocks") else call == 1


def _qwen_layout(network, latent_shape, tokens, options) -> Layout:
    grid = _patches(latent_shape, (1, network.patch_size, network.patch_size))
    return _last(tokens, grid, _behind(grid, options))


def _lumina_layout(network, latent_shape, tokens, options) -> Layout:
    """Latents may have frames (Ming-Image, from host 0.38 on); then reference frames, each of its own size, and the
    padding of all of them."""
    grid = (*latent_shape[2:-2], *_patches(latent_shape, network.patch_size))
    frames = _references("ref_frames", network.patch_size, options)
    padding = -(math.prod(grid) + frames) % (network.pad_tokens_multiple or 1)
    return _last(tokens, grid, frames + padding)


def fits(layout: Layout, tokens: int, options: dict) -> bool:
    """Whether a layout agrees with what else is known of a sequence of `tokens`: its length, where the host's blocks
    locate the images, and how many tokens the network has passed to the blocks."""
    image, sequence = layout.image, options.get(SEQUENCE)
    text, total = options.get("img_slice", (0, tokens))
    grid = tuple(options.get("grid_sizes", layout.grid))  # Wan's own grid, which may have extra frames
    given = sequence is None or (image.start, tokens) == (sequence.text, sum(sequence))
    return given and text <= image.start and image.stop <= tokens == total and grid[-2:] == layout.grid[-2:]


def _numbered(attribute: str) -> Callable[[torch.nn.Module], list[Block]]:
    return lambda network: [Block("double", i) for i in range(len(getattr(network, attribute)))]


_FAMILIES = {
    UNetModel: Family("UNet", _unet_attention, _unet_layout, second_text="cross"),
    MMDiT: Family("SD3", _numbered("joint_blocks"), _sd3_layout, self_attentions=(0, 1), second_text="joint"),
    Chroma: Family("Chroma", _double_single_blocks, _flux_layout, second_text="joint"),
    Flux: Family("Flux", _double_single_blocks, _flux_layout, second_text="joint"),
    HunyuanVideo: Family("HunyuanVideo", _double_single_blocks, _hunyuan_layout, second_text="refined"),
    WanModel: Family("Wan", _numbered("blocks"), _wan_layout, second_text="blocks", looks_at_text=_wan_looks_at_text),
    QwenImageTransformer2DModel: Family(
        "Qwen-Image", _numbered("transformer_blocks"), _qwen_layout, second_text="joint"
    ),
    NextDiT: Family("Lumina2", _numbered("layers"), _lumina_layout, replaceable=False, second_text="layers"),
}


def network_of(model: ModelPatcher | BaseModel) -> torch.nn.Module:
    """The diffusion network of a MODEL, without the wrapper of torch.compile."""
    network = model.get_model_object("diffusion_model") if isinstance(model, ModelPatcher) else model.diffusion_model
    return getattr(network, "_orig_mod", network)


def family_of(model: ModelPatcher | BaseModel) -> Family:
    """The family of a MODEL.

    Raises:
        ValueError: the network is of no known family.
    """
    return _family_of_network(network_of(model))


def _family_of_network(network: torch.nn.Module) -> Family:
    for network_class, family in _FAMILIES.items():
        if isinstance(network, network_class):
            return family
    known = ", ".join(family.name for family in _FAMILIES.values())
    raise ValueError(
        f"This node changes self-attention, and the model's network {type(network).__name__} is not one it can reach. "
        f"Families that work: {known}."
    )


def families_with_second_text() -> list[str]:
    """The names of the families whose attention can be given a second text."""
    return [family.name for family in _FAMILIES.values() if family.second_text]


def self_attention_blocks(model: ModelPatcher) -> list[Block]:
    """All blocks of a MODEL that have self-attention over image tokens, in the order in which they run."""
    return family_of(model).blocks(network_of(model))


def order_of_blocks(network: torch.nn.Module) -> dict[Block, int]:
    """The position of every block in the order in which they run; in a UNet, blocks without attention included."""
    family = _family_of_network(network)
    blocks = _unet_blocks(network) if family.name == "UNet" else family.blocks(network)
    return {block: i for i, block in enumerate(blocks)}


class _Order(dict):
    """State of one run: `order_of_blocks` of its network."""

    def __init__(self, run: Run):
        super().__init__(order_of_blocks(network_of(run.model)))


def order_of(run: Run) -> dict[Block, int]:
    """`order_of_blocks` of the network of a run."""
    return run.of(_Order)
