"""Packs that evaluate the predictions of a network call one after another, to save memory or on several GPUs: if they
say which part they evaluate, the result is as without them; if not, it is an error."""

import pytest
import torch
from comfy.patcher_extension import WrappersMP

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.apg import APG
from guidekit.tests.host import probes, tiny
from guidekit.tests.host.products import PRODUCTS

EVERY = [pytest.param(p, f, id=f"{p.name}-{f}") for p in PRODUCTS for f in p.families if f in ("unet", "flux")]
READS_ROWS = {"pag", "seg", "slg", "autoguidance", "negtome", "nasa", "nag", "preference_cfg", "preference_mixture"}
BELOW = [case for case in EVERY if case.values[0].name in READS_ROWS]


def rows_of(value, rows: slice, count: int):
    return value[rows] if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == count else value


def one_by_one(model, told: bool):
    """A model function wrapper; `told`: the place of the part in `cond_or_uncond`, with the uuids of the whole."""

    def wrapper(apply, args):
        x, c, places = args["input"], args["c"], args["cond_or_uncond"]
        each, out = len(x) // len(places), []
        for i, place in enumerate(places):
            rows = slice(i * each, (i + 1) * each)
            part = {name: rows_of(value, rows, len(x)) for name, value in c.items()}
            if told:
                part["transformer_options"] = {**c["transformer_options"], "cond_or_uncond": [place]}
            out.append(apply(x[rows], rows_of(args["timestep"], rows, len(x)), **part))
        return torch.cat(out)

    model = model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    return model


def below(model):
    """In halves around the network, below everything that says which rows there are."""

    def wrapper(executor, x, *args, **kwargs):
        half = len(x) // 2
        if not half:
            return executor(x, *args, **kwargs)
        out = []
        for rows in (slice(0, half), slice(half, None)):
            named = {name: rows_of(value, rows, len(x)) for name, value in kwargs.items()}
            out.append(executor(x[rows], *(rows_of(value, rows, len(x)) for value in args), **named))
        return torch.cat(out)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "halves", wrapper)
    return model


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("product", "family"), EVERY)
def test_packs_that_name_the_part(product, family, batch):
    model = product.apply(tiny.model(family))
    wanted = tiny.sample(model, family, batch=batch, steps=2)
    found = tiny.sample(one_by_one(model, told=True), family, batch=batch, steps=2)
    assert probes.distance(found, wanted) < 1e-3


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("family", ["unet", "flux"])
def test_a_node_that_needs_no_rows_works(family, told):
    model = run_node(APG, model=tiny.model(family))
    wanted = tiny.sample(model, family, steps=2)
    assert probes.distance(tiny.sample(one_by_one(model, told), family, steps=2), wanted) < 1e-3


@pytest.mark.parametrize(("product", "family"), BELOW)
def test_packs_that_do_not_name_the_part(product, family):
    model = product.apply(tiny.model(family))
    with pytest.raises(ValueError, match="without saying which they are, and a Guidekit node .* has to know"):
        tiny.sample(one_by_one(model, told=False), family, steps=1)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("product", "family"), BELOW)
def test_parts_below_the_options(product, family, batch):
    model = product.apply(tiny.model(family))
    try:
        found = tiny.sample(below(model), family, steps=1, batch=batch)
    except ValueError as error:
        assert "another node splits the batch" in str(error)  # noqa: PT017
    else:  # hooks that are above the split do not mind
        assert probes.distance(found, tiny.sample(model, family, steps=1, batch=batch)) < 1e-3


def test_combined_prompts_whose_parts_cannot_be_told_apart():
    """Two entries of the positive, both at place 0: which of them a part is, nobody says."""
    [product] = [p for p in PRODUCTS if p.name == "pag"]
    model = product.apply(tiny.model("unet"))
    both = tiny.conditioning("unet", 1) + tiny.conditioning("unet", 2)
    with pytest.raises(ValueError, match="without saying which they are"):
        tiny.sample(one_by_one(model, told=True), "unet", steps=1, positive=both)
