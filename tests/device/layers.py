"""Networks whose layers store their weights in another form than the one they compute with."""

import json
import math
from collections.abc import Callable
from functools import cache, partial

import comfy.ops
import torch
from torch import Tensor, nn

from guidekit.tests.device.machine import DEVICE, half, patcher
from guidekit.tests.host import tiny

Weight = Callable[[str, torch.Size], Tensor]
_FP8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(_FP8).max
BF16 = torch.bfloat16


class Bytes(comfy.ops.manual_cast):
    """Linear layers that keep a byte for each weight, and a scale, as loaders of quantised files have them: operations
    of their own, made whole in every call."""

    class Linear(comfy.ops.manual_cast.Linear):
        step = 1.0

        def keep(self, weight: Tensor) -> None:
            self.step = weight.abs().max().item() / 31  # LoRAs may make them four times as large
            self.weight = nn.Parameter(self._in_steps(weight), requires_grad=False)

        def _in_steps(self, weight: Tensor) -> Tensor:
            return (weight / self.step).round().clamp(-127, 127).to(torch.int8)

        def convert_weight(self, weight: Tensor, inplace: bool = False, **_) -> Tensor:
            return weight * self.step

        def set_weight(self, weight: Tensor, inplace_update=False, seed=None, return_weight=False, **_):
            if return_weight:
                return self._in_steps(weight)
            self.weight = nn.Parameter(self._in_steps(weight), requires_grad=False)
            return None

        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight.to(x.device).to(x.dtype) * self.step
            for change in self.weight_function:
                weight = change(weight)
            bias = None if self.bias is None else self.bias.to(x.device, x.dtype, copy=True)
            for change in self.bias_function if bias is not None else ():
                bias = change(bias)
            return nn.functional.linear(x, weight, bias)


def _bytes(config) -> None:
    config.custom_operations = Bytes


def _keep_bytes(network: nn.Module, weight: Weight) -> None:
    modules = dict(network.named_modules())
    for name, parameter in list(network.named_parameters()):
        path, _, part = name.rpartition(".")
        value = weight(name, parameter.shape)
        if part == "weight" and isinstance(modules[path], Bytes.Linear):
            modules[path].keep(value)
        else:
            parameter.data = value.to(parameter.dtype)


def _mixed(config) -> None:
    config.quant_config = {"mixed_ops": True}


def _load_scaled(network: nn.Module, weight: Weight) -> None:
    """A state dict as of a file of scaled fp8 weights."""
    about = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    state, here = {}, {name: value for name, value in network.state_dict().items() if value is not None}
    linear = {name for name, module in network.named_modules() if hasattr(module, "in_features")}
    for path, module in network.named_modules():
        for part in ("weight", "bias"):
            name = f"{path}.{part}"
            if path in linear and part == "weight":
                value = weight(name, torch.Size((module.out_features, module.in_features)))
                scale = value.abs().max() / _LARGEST
                state |= {name: (value / scale).to(_FP8), f"{path}.weight_scale": scale, f"{path}.comfy_quant": about}
            elif name in here and getattr(module, part, None) is not None:
                state[name] = weight(name, here[name].shape).to(here[name].dtype)
    for name, parameter in network.named_parameters():
        if name not in state:  # of no layer: embeddings, tokens
            state[name] = weight(name, parameter.shape).to(parameter.dtype)
    network.load_state_dict(state, strict=False)
    network.requires_grad_(False)


_ON_DEVICE = {"device": DEVICE, "patcher": patcher()}
WEIGHTS = {
    "bf16": half(BF16),
    "fp8": tiny.Kind(_FP8, BF16, **_ON_DEVICE),
    "scaled fp8": tiny.Kind(BF16, BF16, prepare=_mixed, fill=_load_scaled, **_ON_DEVICE),
    "bytes": tiny.Kind(BF16, BF16, prepare=_bytes, fill=_keep_bytes, **_ON_DEVICE),
}

_LARGE = 20_000  # float16 ends at 65504
_VALUES = ("to_v", "add_v_proj", "self_attn.v")


@cache
def large(dtype: torch.dtype) -> Callable[[nn.Module, Weight], None]:
    """A `fill` of networks whose values in attention go to ten thousand; weights rounded to `dtype`."""
    return partial(_fill_large, dtype)


def _fill_large(dtype: torch.dtype, network: nn.Module, weight: Weight) -> None:
    for name, parameter in network.named_parameters():
        value = weight(name, parameter.shape).to(dtype).float()
        if value.ndim == 2 and (rows := _rows_of_values(network, name, value)) is not None:
            usual = 4 * 0.05 * value.shape[1] ** 0.5  # four standard deviations
            value[rows] *= 2.0 ** round(math.log2(_LARGE / usual))
        elif name.endswith("to_out.0.weight"):
            value *= 2.0**-6  # UNets do not normalise their sum of blocks, which is to stay within float16
        parameter.data = value.to(dtype).to(parameter.dtype)


def _rows_of_values(network: nn.Module, name: str, weight: Tensor) -> slice | None:
    path, rows = name.rpartition(".")[0], len(weight)
    if path.endswith(_VALUES):
        return slice(None)
    if path.endswith("attention.qkv"):  # Lumina2 has half as many heads for keys and values
        return slice(rows * 3 // 4, None)
    if path.endswith("qkv"):
        return slice(rows * 2 // 3, None)
    if path.endswith("linear1"):  # queries, keys, values and the MLP
        return slice(2 * network.hidden_size, 3 * network.hidden_size)
    return None
