"""Normalisations go into weights, and ReLUs into neurons."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import timm.layers as tl
import torch
from conftest import make_recipe
from torch import Tensor, nn

from vit2snn.convert import Recipe, SpikingModel, to_spiking
from vit2snn.measure import dispatched, evaluate
from vit2snn.storage import load

RECTIFYING = make_recipe(timesteps=16, coding="rate", levels=1, signed=False, prior="none", bias=False, thresholds="static")


class Net(nn.Module):
    """Layers with and without a neighbour that absorbs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, groups=2), tl.BatchNormAct2d(8)
        self.conv3, self.bn3, self.relu3 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.norm, self.head, self.last = nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.out = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        y = self.conv3(x)
        x = self.relu3(self.bn3(y) + x) + y  # neither the normalisation nor the ReLU stands alone between two layers
        return self.out(self.last(self.head(self.norm(x.mean((2, 3))))))


@pytest.fixture
def net(images: Tensor) -> nn.Module:
    net = Net()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    for _ in range(20):
        net.train()(images * 2 + 1)
    return net.eval()


def test_normalisations_behind_a_layer_go_into_its_weights(net: nn.Module, images: Tensor) -> None:
    snn = to_spiking(net, "exact", images)
    assert snn.plan.absorbed == {"bn1": "conv1", "bn2": "conv2", "last": "head"}
    kinds = {name: type(snn.network.get_submodule(name)) for name in ("bn1", "bn2", "bn3", "norm", "last")}
    assert list(kinds.values()) == [nn.Identity, nn.Sequential, nn.BatchNorm2d, nn.BatchNorm1d, nn.Identity]
    with torch.no_grad():
        torch.testing.assert_close(snn(images, 2), net(images).expand(2, -1, -1), rtol=1e-5, atol=1e-5)
    assert all(operation.driven for operation in dispatched(snn, images[0]))


def test_what_the_recipe_ignores_absorbs_nothing(net: nn.Module, images: Tensor) -> None:
    snn = to_spiking(net, make_recipe(levels=0, ignore=("conv1", "bn2")), images)
    assert snn.plan.absorbed == {"last": "head"}


@pytest.mark.slow
def test_an_unsigned_neuron_absorbs_the_relu_before_it(net: nn.Module, images: Tensor) -> None:
    snn, signed = (to_spiking(net, recipe, images) for recipe in (RECTIFYING, make_recipe(timesteps=1, input_spikes=1)))
    assert snn.plan.absorbed == {"bn1": "conv1", "bn2": "conv2", "last": "head", "relu1": "conv2"}  # bn2.act has two readers
    assert isinstance(snn.network.relu1, nn.Identity) and isinstance(snn.network.relu3, nn.ReLU)
    assert snn.network.conv2.neuron.rectified and not snn.network.head.neuron.rectified
    with torch.no_grad():
        torch.testing.assert_close(snn.ann(images), net(images), rtol=1e-5, atol=1e-5)
    free = 8 * 16 * 16  # relu1: one function less for each of its values
    labels = torch.zeros(len(images), dtype=torch.int64)
    operations = [evaluate(model, [(images, labels)], 1).costs.operations for model in (signed, snn)]
    before, after = (sum(o.accumulates[0] for o in found if o.kind == "comparison") for found in operations)
    assert before - after == free


def test_the_spikes_are_those_of_a_network_with_relus(net: nn.Module, images: Tensor) -> None:
    absorbed = to_spiking(net, RECTIFYING, images)
    kept = to_spiking(net, RECTIFYING, images)
    kept.network.conv2.neuron.rectified = False
    kept.network.relu1 = nn.ReLU()
    with torch.no_grad():
        assert torch.equal(kept(images), absorbed(images))


def test_an_artifact_of_a_network_with_normalisations_loads(tmp_path: Path) -> None:
    model, x = timm.create_model("resnet10t", num_classes=5).eval(), torch.randn(4, 3, 32, 32)
    snn: SpikingModel = to_spiking(model, Recipe(timesteps=2), x)
    assert "bn1" in snn.plan.absorbed
    snn.save(tmp_path / "out")
    assert torch.equal(load(tmp_path / "out")(x), snn(x))
