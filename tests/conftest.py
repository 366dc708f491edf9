from __future__ import annotations

import dataclasses
import os

if "PYTEST_XDIST_WORKER" in os.environ:  # one process for each core; before torch starts its threads
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before timm imports Triton: kernels for GPUs are run line by line on the CPU

import pytest
import timm
from torch import Tensor, nn

from vit2snn.convert import RECIPES, Coded, Membrane, Recipe, Structure
from vit2snn.data import array_source, prepared
from vit2snn.spiking import prepare_process
from vit2snn.spiking.process import flush_denormals
from vit2snn.zoo.demo import demo_images

pytest_plugins = ["skips"]


@pytest.fixture(autouse=True)
def reproducible() -> None:
    torch.manual_seed(0)
    prepare_process()  # which so has nothing left to do within a test
    flush_denormals(False)  # hypothesis refuses to work otherwise


@pytest.fixture(autouse=True)
def no_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that the commands know nothing of fails the test, and does not become "a fault of vit2snn"."""

    def unknown(error: BaseException) -> None:
        raise error

    monkeypatch.setattr("vit2snn.commands.failures.fault", unknown)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-examples", type=int, metavar="N", help="Examples of each test in tests/fuzz, instead of a few.")


def make_vit(name: str = "vit_tiny_patch16_224", **arguments: object) -> nn.Module:
    """A small ViT with weights of a size that lets all parts matter."""
    defaults: dict[str, object] = dict(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=7)
    model: nn.Module = timm.create_model(name, **(defaults | arguments)).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * (2 / parameter[0].numel()) ** 0.5
    return model


def make_recipe(**fields: object) -> Recipe:
    """A recipe of fields of any part; its spikes are of membrane neurons where branches are new."""
    names = {field.name for field in dataclasses.fields(Structure)}
    structure = Structure(**{name: fields.pop(name) for name in names & set(fields)})  # type: ignore[arg-type]
    return Recipe(structure=structure, spikes=Membrane() if structure.replaces else Coded()).changed(**fields)


def brief(recipe: Recipe | str) -> Recipe:
    """A recipe that takes a moment on a few images: substitutes are regressed, and not trained."""
    recipe = RECIPES[recipe] if isinstance(recipe, str) else recipe
    return recipe.changed(refit="ridge") if recipe.structure.replaces else recipe


@pytest.fixture
def vit() -> nn.Module:
    return make_vit()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(12, 3, 16, 16)


@pytest.fixture(scope="session")
def demo_sample() -> tuple[Tensor, Tensor, Tensor]:
    """Calibration images, scored images and their labels, of the embedded demo."""
    from vit2snn.convert import load_model

    model = load_model("demo")
    calibration = torch.stack([s.image for s in prepared(model, array_source(*demo_images("train")), count=64)])
    scored = list(prepared(model, array_source(*demo_images("val")), count=200))
    return calibration, torch.stack([s.image for s in scored]), torch.tensor([s.label for s in scored])


def enliven(network: nn.Module, x: Tensor) -> nn.Module:
    """Give a spiking network normalisations with which all its neurons fire on inputs like ``x``; in evaluation mode."""
    generator = torch.Generator().manual_seed(2)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = torch.rand(module.weight.shape, generator=generator) + 2
            module.bias.data = torch.rand(module.bias.shape, generator=generator) * 2
            module.momentum = None  # the mean over all batches
    with torch.no_grad():
        network.train()(x)
    return network.eval()
