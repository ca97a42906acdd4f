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
    picture is the positive's, and so is what stands behind it everywhere. `text_share`: of the negative's, what comes
    from the text. `image` tokens, with `padding` behind them; `refines`: whether there is attention outside the blocks.
    `cross(queries, keys)`: in networks of blocks with cross-attention, whether an attention is to the text, by its
    tokens, of which `ahead` stand in front of the picture's. For runs at cfg 1."""

    def __init__(
        self,
        negative,
        combine,
        where=lambda block: True,
        text_share=False,
        image=16,
        padding=0,
        refines=False,
        cross=None,
        ahead=0,
    ):
        self.negative, self.combine, self.where, self.text_share = negative, combine, where, text_share
        self.image, self.padding, self.refines, self.cross, self.ahead = image, padding, refines, cross, ahead
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
        mine = {k: v for k, v in kwargs.items() if k not in ("attention_mask", "num_tokens")}
        mine |= {k: conds[k] for k in ("attention_mask", "num_tokens") if k in conds}

        def call(side, text, rest):
            with torch.inference_mode():
                return executor(x.clone(), t, c_concat, text, control, {**options, _SIDE: side}, **rest)

        with ThreadPoolExecutor(2) as pool:
            calls = [pool.submit(call, 0, c_crossattn, kwargs), pool.submit(call, 1, conds["c_crossattn"], mine)]
            out, other = (each.result() for each in calls)
        assert torch.allclose(out, other, atol=1e-5)  # one picture
        return out

    def _attention(self, backend, q, k, v, heads, mask=None, **kwargs):
        out = backend(q, k, v, heads, mask=mask, **kwargs)
        options = kwargs["transformer_options"]
        image = self._image(options, q, k, kwargs)
        if image is None:
            return out
        shared = 0 if self.cross else image.start  # from there on all that is not text
        self.found[options[_SIDE]] = out[:, shared:]
        if options[_SIDE] and self.text_share and "block" not in options and self.cross is None:
            v = v.clone()
            v[(slice(None),) * (2 if kwargs.get("skip_reshape") else 1) + (slice(image.start, None),)] = 0
            self.found[1] = backend(q, k, v, heads, mask=mask, **kwargs)[:, image.start :]
        self.barrier.wait()
        positive, negative = self.found[0], self.found[1]
        self.barrier.wait()
        out = out.clone()
        out[:, shared:] = positive
        if self.where(tuple(options.get("block") or (options.get("block_type"), options.get("block_index")))):
            own = slice(image.start - shared, image.stop and image.stop - shared)
            out[:, image] = self.combine(positive[:, own], negative[:, own])
        return out

    def _image(self, options, q, k, kwargs):
        """The image tokens of a sequence [text, image, padding]; None where no text takes part."""
        tokens = q.shape[2 if kwargs.get("skip_reshape") else 1]
        if "block" in options:  # UNets
            return slice(0, None) if k.shape[1] != tokens else None
        if self.cross is not None:
            return slice(self.ahead, None) if self.cross(tokens, k.shape[1]) else None
        if self.refines and "block_index" not in options or tokens == self.image:
            return None
        return slice(tokens - self.padding - self.image, tokens - self.padding)
