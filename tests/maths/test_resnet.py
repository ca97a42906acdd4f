"""ResNets in torchvision's layout: the same logits as torchvision's own."""

import pytest
import torch
import torchvision

from guidekit.samplers.classifiers.resnet import activation, load_resnet, plan_resnet


def weights(network, seed=0):
    """Random ones, with statistics of norms that are not those of a fresh network."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            random = torch.randn(value.shape, generator=generator)
            value = random.abs() * 0.2 + 0.9 if name.endswith("running_var") else random * 0.05
            if value.ndim == 1 and name.endswith("weight"):
                value = value + 1
        found[name] = value
    return found


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "wide_resnet50_2"])
def test_same_as_torchvision(name):
    theirs = torchvision.models.get_model(name, weights=None, num_classes=7).eval()
    state = weights(theirs)
    theirs.load_state_dict(state)
    ours = load_resnet(state)
    x = torch.randn((2, 3, 64, 48), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = theirs(x)
        assert ours.classes == 7
        assert not ours.training
        assert torch.allclose(ours(x), wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max())


def test_softplus_for_relu():
    """Above ReLU by at most ln 2 / beta, and ReLU in the limit."""
    x = torch.linspace(-4, 4, 1001, dtype=torch.float64)
    for beta in (1.0, 3.0, 50.0):
        above = activation(x, beta) - activation(x, None)
        assert (above >= 0).all()
        assert above.max().item() == pytest.approx(torch.log(torch.tensor(2.0)).item() / beta, rel=1e-3)
    state = weights(torchvision.models.resnet18(num_classes=7))
    network, image = load_resnet(state), torch.randn((1, 3, 64, 64), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        relu = network(image)
        errors = [(network(image, beta) - relu).abs().max().item() for beta in (3.0, 30.0, 3000.0)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-2 * relu.abs().max()


def test_half_precision_files():
    state = weights(torchvision.models.resnet18(num_classes=7))
    found = load_resnet({k: v.half() if v.is_floating_point() else v for k, v in state.items()})
    assert found.fc.weight.dtype == torch.float32


@pytest.mark.parametrize(
    "missing", ["conv1.weight", "fc.bias", "layer2.0.downsample.0.weight", "layer3.1.bn2.running_mean"]
)
def test_what_is_not_whole(missing):
    state = weights(torchvision.models.resnet18(num_classes=7))
    del state[missing]
    with pytest.raises(ValueError, match="not the weights of a ResNet in torchvision's layout"):
        load_resnet(state)


def test_something_else():
    with pytest.raises(ValueError, match="not the weights of a ResNet"):
        load_resnet({"patch_embed.weight": torch.zeros(4, 3, 8, 8)})
    state = weights(torchvision.models.resnet18(num_classes=7))
    with pytest.raises(ValueError, match="not the weights of a ResNet"):
        load_resnet({**state, "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match="not the weights of a ResNet"):
        load_resnet({**state, "conv1.weight": torch.zeros(3)})


def test_a_plan_takes_no_memory_and_is_right_to_the_last_shape():
    state = {
        name: tuple(value.shape) for name, value in torchvision.models.resnet18(num_classes=7).state_dict().items()
    }
    assert all(parameter.is_meta for parameter in plan_resnet(state).parameters())
    assert plan_resnet({name: shape for name, shape in state.items() if "num_batches" not in name}).classes == 7
    with pytest.raises(ValueError, match="it has 1007 blocks, and up to 1000 are read"):
        plan_resnet(state | {f"layer1.{i}.conv1.weight": (64, 64, 3, 3) for i in range(1001)})
    with pytest.raises(ValueError, match="it has 43.* weights, and up to 1073741824 are read"):
        plan_resnet(state | {"fc.weight": (2**23, 512), "fc.bias": (2**23,)})
    with pytest.raises(ValueError, match=r"fc.weight is \(0, 512\)"):
        plan_resnet(state | {"fc.weight": (0, 512), "fc.bias": (0,)})
    # A chain of convolutions that do not fit together.
    with pytest.raises(ValueError, match="not the weights of a ResNet.*channel"):
        plan_resnet(state | {"layer1.0.conv2.weight": (64, 32, 3, 3)})
    for name, shape in state.items():
        wrong = shape[:-1] + (shape[-1] + 1,) if shape else (2,)
        with pytest.raises(ValueError, match="not the weights of a ResNet"):
            plan_resnet(state | {name: wrong})
        if "num_batches" not in name and "conv2" not in name:  # without, a block has one convolution
            with pytest.raises(ValueError, match="not the weights of a ResNet"):
                plan_resnet({key: value for key, value in state.items() if key != name})
