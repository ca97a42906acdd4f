"""A second text in the cross-attention of transformer blocks (Wan): its tokens go in front of the prompt's, so that the
blocks' own projections make keys and values of them, and the attention is split behind these.

Relies on: a text whose tokens are embedded one by one (comfy/ldm/wan/model.py:557), and the order of a block's
attentions, which families.py knows. What stands beside the text, such as the tokens of an image, has an attention of
its own.
"""

from dataclasses import dataclass

from torch import Tensor

from ...network.forward import Forward
from ..calls import Call
from .context import SecondText, TextAttention


@dataclass(frozen=True)
class InCrossAttention:
    """`own`: the tokens of the rows' own text; `image`: whether the prompts have image tokens as well."""

    texts: tuple[SecondText, ...]
    own: int
    image: bool

    @property
    def label(self) -> str:
        return self.texts[0].technique.label

    def looks(self, forward: Forward, call: int) -> bool:
        return forward.family.looks_at_text(forward.network, call, self.image)

    def attend(self, call: Call, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[rows, heads, tokens, dim]; only the image tokens look at the second texts."""
        ahead = sum(text.count for text in self.texts)
        if k.shape[2] != ahead + self.own:
            raise ValueError(
                f"{self.label} finds {k.shape[2]} text tokens in a block of {type(call.forward.network).__name__}, "
                f"where it has given it {ahead + self.own}: another node changes them. Take one of them off the model."
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
