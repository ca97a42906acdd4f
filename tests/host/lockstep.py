"""A second text in attention, made without a line of the pack: two network calls side by side, one for each text, that
wait for each other in every attention and go on with what is made of the two outputs.

Both calls are the host's own, of prompts of any length, so that embedding, padding, refining and placing of the texts
are what they are without any second text.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

_SIDE = "lockstep_side"


class Lockstep:
    """`combine(positive, negative)`: of [rows, tokens, channels]. `where(block)`: in which blocks; in the others the
    image is the positive's, and so is everywhere what is neither image nor text. `text_share`: of the negative's, what
    comes from the text.

    A sequence of joint attention is `front`, the text, `between`, `image` and `padding` tokens; `refines`: whether
    there is attention outside the blocks. `cross(queries, keys)`: in networks of blocks with cross-attention, whether
    an attention is to the text, by its tokens; the image's queries have `front` ones before them. For runs at cfg 1."""

    def __init__(
        self,
        negative,
        combine,
        where=lambda block: True,
        text_share=False,
        front=0,
        between=0,
        image=16,
        padding=0,
        refines=False,
        cross=None,
    ):
        self.negative, self.combine, self.where, self.text_share = negative, combine, where, text_share
        self.front, self.between, self.image, self.padding = front, between, image, padding
        self.refines, self.cross = refines, cross
        self.barrier = threading.Barrier(2, timeout=60)
        self.found = {}

    def on(self, model):
        model = model.clone()
        model.add_wrapper(WrappersMP.APPLY_MODEL, self._apply_model)
        model.model_options["transformer_options"]["optimized_attention_override"] = self._attention
        return model

    def _apply_model(self, executor, x, t, c_concat, c_crossattn, control, options, **kwargs):
        base = executor.class_obj
        entries = comfy.sampler_helpers.convert_cond(self.negative)
        entries = comfy.samplers.encode_model_conds(base.extra_conds, entries, x, x.device, "negative", latent_image=x)
        conds = {k: c.process_cond(batch_size=len(x), area=None).cond for k, c in entries[0]["model_conds"].items()}
        # What is not text is the positive's.
        mine = {k: v for k, v in kwargs.items() if k not in ("attention_mask", "num_tokens", "txt_byt5")}
        mine |= {k: conds[k] for k in ("attention_mask", "num_tokens") if k in conds}

        def call(side, text, rest):
            with torch.inference_mode():
                return executor(x.clone(), t, c_concat, text, control, {**options, _SIDE: side}, **rest)

        with ThreadPoolExecutor(2) as pool:
            calls = [pool.submit(call, 0, c_crossattn, kwargs), pool.submit(call, 1, conds["c_crossattn"], mine)]
            out, other = (each.result() for each in calls)
        assert torch.allclose(out, other, atol=1e-5)  # one image
        return out

    def _attention(self, backend, q, k, v, heads, mask=None, **kwargs):
        out = backend(q, k, v, heads, mask=mask, **kwargs)
        options, dim = kwargs["transformer_options"], 2 if kwargs.get("skip_reshape") else 1
        found = self._places(options, q.shape[dim], k.shape[dim])
        if found is None:
            return out
        text, image = found
        others = [i for i in range(out.shape[1]) if i not in text]
        self.found[options[_SIDE]] = out[:, others]
        if options[_SIDE] and self.text_share and text:
            v = v.clone()
            v[(slice(None),) * dim + (others,)] = 0
            self.found[1] = backend(q, k, v, heads, mask=mask, **kwargs)[:, others]
        self.barrier.wait()
        positive, negative = self.found[0], self.found[1]
        self.barrier.wait()
        out = out.clone()
        out[:, others] = positive
        if self.where(tuple(options.get("block") or (options.get("block_type"), options.get("block_index")))):
            of_image = [i for i, token in enumerate(others) if token in image]
            out[:, list(image)] = self.combine(positive[:, of_image], negative[:, of_image])
        return out

    def _places(self, options, queries, keys):
        """The tokens of the text and of the image among the queries; None where no text takes part."""
        if "block" in options:  # UNets
            return (range(0), range(queries)) if keys != queries else None
        if self.cross is not None:
            return (range(0), range(self.front, queries)) if self.cross(queries, keys) else None
        if self.refines and "block_index" not in options or queries == self.image:
            return None
        image = range(queries - self.padding - self.image, queries - self.padding)
        return range(self.front, image.start - self.between), image
