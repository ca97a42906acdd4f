"""A second text in networks that refine and pad their text before the first block (Lumina2, Z-Image): in the attention
of each layer, the network's own layer is called a second time with the second text alone. Its attention also gets the
keys and values of the image, so that the text passes through the layers as if it were the row's own.

Relies on: NextDiT's `embed_cap`, `context_refiner` and `layers` (comfy/ldm/lumina/model.py);
`patches["noise_refiner"]`, called before the first layer with the modulation and the text (model.py:793); positions
along the first axis, of which only differences matter: the text, then the image directly after it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...models.row_lora import only_chunks
from ...network.blocks import skipping_chunks
from ...network.forward import current_forward
from ..calls import with_apart
from .context import SecondText, TextAttention

_STATE = "guidekit_text_layers"


@dataclass(eq=False)
class LayeredTexts:
    """The state of the second texts in one network call."""

    modulation: Tensor = field(init=False)  # [rows, channels], known before the first layer
    before_image: int = 0  # tokens of the rows' own text
    streams: dict = field(default_factory=dict)  # by (text, chunk): {layer: its input}
    places: dict = field(default_factory=dict)  # by text: its rotary factors


@dataclass(eq=False)
class _Alone:
    """The attention of a layer that is called with a second text alone."""

    k: Tensor  # keys and values of the tokens after the text
    v: Tensor
    own: tuple[Tensor, Tensor] = field(init=False)  # keys and values of text and image, set by `attend`

    def attend(self, host: Callable, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = torch.cat([k, self.k], 2), torch.cat([v, self.v], 2)
        self.own = k, v
        return host(q, k, v, None)


def with_layers(transformer_options: dict) -> dict:
    """The options of a network call whose second texts pass through the network's layers."""
    return {**transformer_options, _STATE: LayeredTexts()}


@torch.compiler.disable
def see_refiner(args: dict) -> dict:
    """A `noise_refiner` patch: notes the modulation and the length of the text that the layers will get."""
    state = args["transformer_options"].get(_STATE)
    if state is not None:
        state.modulation, state.before_image = args["vec"], args["txt"].shape[1]
    return {}


def steer_layer(call: TextAttention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The output [rows, heads, tokens, dim] of the whole sequence."""
    out = call.attend(q, k, v, mask)
    network, state, rows = current_forward(call.options).network, call.options[_STATE], len(q) // len(call.chunks)
    passing = skipping_chunks(call.run, call.block, call.options)
    rest = slice(state.before_image, None)
    for i, chunk in ((i, chunk) for i, chunk in enumerate(call.chunks) if call.steered[i]):
        part, of_all = slice(i * rows, (i + 1) * rows), slice(chunk * rows, (chunk + 1) * rows)
        modulation = state.modulation[of_all]
        for text in call.texts:
            stream = state.streams.get((text, chunk))
            alone = _Alone(k[part, :, rest], v[part, :, rest])
            options = with_apart(call.options, alone)
            with only_chunks(options, (chunk,)):
                if stream is None:
                    stream = state.streams[text, chunk] = {0: _refined(network, text, of_all, state, call.options)}
                came = stream[max(layer for layer in stream if layer <= call.block.number)]
                goes = network.layers[call.block.number](
                    came, None, state.places[text], modulation, transformer_options=options
                )
            if chunk not in passing:
                stream[call.block.number + 1] = goes
            if call.block in text.steering.blocks:
                keys, values = alone.own
                out[part, :, call.image] = call.steer(
                    text,
                    out[part, :, call.image],
                    q=q[part, :, call.image],
                    k=keys,
                    v=values,
                    count=came.shape[1],
                    mask=None,
                )
    return out


def _refined(network: Any, text: SecondText, rows: slice, state: LayeredTexts, options: dict) -> Tensor:
    """The text before the first layer, [rows, N, C], made as the network makes the row's own."""
    tokens = text.by_row(state.modulation, options)[rows]
    count = tokens.shape[1] + (-tokens.shape[1] % (network.pad_tokens_multiple or 1))
    (stream,), (places,), _ = network.embed_cap(
        tokens, offset=state.before_image - count, device=tokens.device, dtype=tokens.dtype
    )
    for layer in network.context_refiner:
        stream = layer(stream, None, places, transformer_options=options)
    state.places[text] = places
    return stream
