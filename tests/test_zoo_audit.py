"""Leaks between the images of a batch, and ``vit2snn zoo audit``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from test_cli import fails, run
from torch import Tensor, nn

from vit2snn.errors import DataError, ModelError
from vit2snn.measure import Meter
from vit2snn.measure.leaks import Leak, leak
from vit2snn.storage import save_model
from vit2snn.zoo.enlivening import enliven

SMALL: dict[str, Any] = {"dims": (8, 16, 32), "depths": (1, 1, 1), "num_heads": 4, "num_classes": 5}


def small(**arguments: Any) -> Any:
    """A QKFormer in which neurons fire."""
    torch.manual_seed(0)
    model = timm.create_model("qkformer_10_384", **SMALL | arguments)
    enliven(model, torch.randn(3, 3, 64, 64))
    return model


class Readout(nn.Module):
    """A network whose logits are a function of the images ``[B, C]`` at each of two timesteps."""

    reference = None

    def __init__(self, respond: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = respond

    @property
    def network(self) -> nn.Module:
        return self

    def readout(self, x: Tensor, timesteps: int | None = None) -> Tensor:
        maps = x if x.ndim == 5 else x.expand(timesteps or 2, *x.shape)
        return torch.stack([self.answer(each.mean((2, 3))) * t for t, each in enumerate(maps)])


def leak_of(respond: Callable[[Tensor], Tensor], images: Tensor | None = None) -> Leak:
    network: Any = Readout(respond)
    return leak(network, torch.randn(3, 4, 2, 2) if images is None else images)


def test_a_leak_is_found_wherever_it_comes_from_and_however_small() -> None:
    backwards = leak_of(lambda x: x + 1e-6 * torch.cat([x[1:], torch.zeros_like(x[:1])]))
    forwards = leak_of(lambda x: x + 1e-6 * torch.cat([torch.zeros_like(x[:1]), x[:-1]]))
    assert backwards.verdict == forwards.verdict == "found"
    assert backwards.ahead[0] == 0 and 1e-7 < backwards.ahead[1] < 1e-5 and max(backwards.behind) == 0
    assert forwards.behind[1] > 1e-7 and max(forwards.ahead) == 0
    assert forwards.largest == forwards.behind[1]


def test_no_leak_is_said_only_of_images_that_differ() -> None:
    apart = leak_of(lambda x: x.relu())
    assert apart.verdict == "none" and apart.largest == 0 and apart.images[0] == 0 < apart.images[1]
    silent = leak_of(torch.zeros_like)
    assert silent.verdict == "untold" and silent.to_json() == {
        "ahead": (0.0, 0.0), "behind": (0.0, 0.0), "images": (0.0, 0.0), "verdict": "untold"
    }  # fmt: skip


def test_frames_have_their_images_behind_the_timesteps() -> None:
    frames = torch.randn(5, 3, 4, 2, 2)
    assert len(leak_of(lambda x: x, frames).images) == 5
    assert leak_of(lambda x: x - x.mean(0), frames).verdict == "found"


def test_what_cannot_be_looked_at_is_refused() -> None:
    with pytest.raises(DataError, match="three images, got 2"):
        leak_of(lambda x: x, torch.randn(5, 2, 4, 2, 2))
    with pytest.raises(ModelError, match="not finite"):
        leak_of(lambda x: x / 0)


def test_a_module_that_leaks_is_found_in_a_model_of_the_zoo() -> None:
    model, images = small(), torch.randn(3, 3, 64, 64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert leak(model, images).verdict == "none"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.stages[1].blocks.append(nn.BatchNorm2d(16, affine=False, track_running_stats=False))  # the batch's own, always
    assert leak(model, images).verdict == "found"


def test_enlivened_neurons_all_fire_and_other_weights_stay() -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model("tim_2_256_cifar10dvs", timesteps=4)
    frames = torch.poisson(torch.ones(4, 3, 2, 64, 64))
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    enliven(model, frames)
    for name, parameter in model.named_parameters():
        assert name.rpartition(".")[0] in norms or torch.equal(parameter, before[name])
    assert not any(module.training for module in model.modules())
    with torch.no_grad(), Meter(model) as meter:
        model.readout(meter.show(frames))
    assert meter.streams and all(stream.spikes.any() for stream in meter.streams.values())


@pytest.mark.parametrize("leaks", [True, False])
def test_a_folder_is_audited_with_its_own_weights(leaks: bool, tmp_path: Path) -> None:
    """The published code of QKFormer leaks, and so does a model that replays it."""
    model = small(batch_leak=leaks)
    save_model(model, tmp_path / "qk")
    text = run("zoo", "audit", tmp_path / "qk").stdout
    assert text.splitlines()[0].endswith("its own weights, three random images")
    assert ("LEAK: the readout of an image depends on its batch mates" in text) == leaks
    assert ("No leak" in text) != leaks


def test_spikes_that_are_not_binary_are_named(tmp_path: Path) -> None:
    save_model(small(neuron="ternary"), tmp_path / "ternary")
    text = run("zoo", "audit", tmp_path / "ternary").stdout
    assert "  ternary: stages.2.blocks.0." in text and " ternary" in text.split("neurons send: ")[1].splitlines()[0]


def test_multiplications_behind_the_first_layer_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    model.stages[1].blocks.append(nn.Softmax(1))
    monkeypatch.setattr("vit2snn.commands.zoo_models._opened", lambda name: (model, None))
    text = run("zoo", "audit", "qk").stdout.split("multiplications behind the first layer:\n")[1]
    assert text.split()[0] == "module" and "softmax" in text and "analog" in text
    assert model.first_conv not in text


def test_the_document_says_it_all() -> None:
    document = json.loads(run("zoo", "audit", "sdt_2_512_cifar10", "--json").stdout)
    assert document["name"] == "sdt_2_512_cifar10" and document["weights"] == "random"
    assert document["leak"]["verdict"] == "none" and len(document["leak"]["ahead"]) == 4
    assert set(document["neurons"].values()) == {"binary"} and len(document["neurons"]) == 19
    # Three convolutions of the stem, one of positions and the head; six layers and two products of two in each block.
    assert document["read"] == {"binary": 5 + 2 * (6 + 2 * 2)} and document["multiplying"] == []
    (first,) = [row for row in document["audit"]["operations"] if row["multiplies"]]
    assert first["module"] == "stages.0.embed.layers.0.project.conv"
    assert 0.5 < document["energy_mj"]["counted"] / document["energy_mj"]["convention"] < 2


def test_an_unknown_name_is_told_the_nearest() -> None:
    fails(1, "did you mean sdt_8_384", "zoo", "audit", "sdt_8_38")
