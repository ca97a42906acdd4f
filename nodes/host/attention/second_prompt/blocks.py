"""A second text in the cross-attention of transformer blocks (Wan): its tokens are put before the prompt's, so that the
blocks' own projections make their keys and values, and the attention is split after the projections.

Relies on: text tokens that are embedded independently (comfy/ldm/wan/model.py:557), and the order of the attentions in
a block (families.py). Tokens of an image in the prompt have their own attention.
"""

from dataclasses import dataclass

from torch import Tensor

from ...network.forward import Forward
from ..calls import Call
from .context import SecondText, TextAttention


@dataclass(frozen=True)
class InCrossAttention:
    """The cross-attention of blocks in a call with second texts. `own`: the number of tokens of the rows' own text;
    `image`: whether the prompts have image tokens too."""

    texts: tuple[SecondText, ...]
    own: int
    image: bool

    @property
    def label(self) -> str:
        return self.texts[0].technique.label

    def looks(self, forward: Forward, call: int) -> bool:
        return forward.family.looks_at_text(forward.network, call, self.image)

    def attend(self, call: Call, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The output [rows, heads, tokens, dim]; only the image tokens attend to the second texts.

        Raises:
            ValueError: another node has changed the number of text tokens.
        """
        ahead = sum(text.count for text in self.texts)
        if k.shape[2] != ahead + self.own:
            raise ValueError(
                f"{self.label} finds {k.shape[2]} text tokens in a block of {type(call.forward.network).__name__}, "
                f"instead of {ahead + self.own}: another node changes them. Take one of the two off the model."
            )
        out = call.host(q, k[:, :, ahead:], v[:, :, ahead:], call.mask)
        chunks, image = list(range(len(call.chunks))), call.layout.image
        steered = [not chunk.negative for chunk in call.chunks]
        about = TextAttention(self.texts, call.block, image, call.run, call.options, chunks, steered, call.host)
        rows = len(q) // len(chunks)
        for part in (slice(i * rows, (i + 1) * rows) for i, wanted in enumerate(steered) if wanted):
            begin = 0
            for text in self.texts:
                place = slice(begin, begin + text.count)
                begin = place.stop
                if call.block in text.steering.blocks:
                    out[part, :, image] = about.steer(
                        text,
                        out[part, :, image],
                        q=q[part, :, image],
                        k=k[part, :, place],
                        v=v[part, :, place],
                        count=text.count,
                        mask=None,
                    )
        return out
