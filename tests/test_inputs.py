"""What a conversion is given, and that it is a function of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import brief, make_vit
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from vit2snn import to_spiking
from vit2snn.convert import RECIPES, Recipe
from vit2snn.errors import DataError, ModelError


@pytest.mark.parametrize("recipe", ["faithful", "experts-membrane"])
def test_the_same_arguments_give_the_same_network(recipe: str, vit: nn.Module, images: Tensor) -> None:
    before = torch.get_rng_state()
    first = to_spiking(vit, brief(recipe), images)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    second, other = to_spiking(vit, brief(recipe), images), to_spiking(vit, brief(recipe), images, seed=1)
    with torch.no_grad():
        assert torch.equal(first(images), second(images))
        assert torch.equal(first(images), other(images)) == (recipe == "faithful")


@pytest.mark.parametrize("recipe", ["faithful", "qkformer-membrane", "shift"])
def test_the_model_keeps_its_mode_and_its_hooks(recipe: str, images: Tensor) -> None:
    model = make_vit().train()
    model.blocks[0].eval()  # type: ignore[index, union-attr]
    modes = [module.training for module in model.modules()]
    to_spiking(model, brief(recipe), images)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_teacher_is_no_part_of_the_student(images: Tensor) -> None:
    model = make_vit(proj_drop_rate=0.5)
    snn = to_spiking(model, brief("qkformer-membrane"), images)
    assert snn.teacher is not None
    assert {name.partition(".")[0] for name, _ in snn.named_parameters()} == {"network"}
    own = {id(tensor) for tensor in (*snn.parameters(), *snn.buffers())}
    assert own.isdisjoint(id(tensor) for tensor in snn.teacher.ann.state_dict(keep_vars=True).values())
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(snn.train().ann(images), expected)
        assert not any(module.training for module in snn.teacher.ann.modules())
        one, two = snn.original(), snn.original()
        one.head.weight.zero_()  # type: ignore[operator, union-attr]
        assert torch.equal(two(images), expected)
        assert torch.equal(snn.ann(images), expected)
        assert torch.equal(snn.double().ann(images.double()).float(), expected)


@pytest.mark.parametrize("recipe", ["faithful", "experts-membrane"])
def test_conversion_within_inference_mode(recipe: str, vit: nn.Module, images: Tensor) -> None:
    expected = to_spiking(vit, brief(recipe), images)
    with torch.inference_mode():
        snn = to_spiking(vit, brief(recipe), images.clone())
        assert torch.equal(snn(images), expected(images))
    assert all(p.requires_grad and not p.is_inference() for p in snn.parameters())


def test_an_array_is_what_a_tensor_is(vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, Recipe(timesteps=2), images.numpy())
    assert snn.calibrated_on == to_spiking(vit, Recipe(timesteps=2), images).calibrated_on


def batches(images: Tensor) -> dict[str, Any]:
    labels, parts = torch.zeros(len(images)), list(images.split(5))
    return {
        "tensors": parts,
        "with labels": [(part, torch.zeros(len(part))) for part in parts],
        "lists": [[part, torch.zeros(len(part))] for part in parts],
        "dictionaries": [{"pixel_values": part, "labels": torch.zeros(len(part))} for part in parts],
        "an empty one": [parts[0], images[:0], *parts[1:]],
        "float64": [part.double() for part in parts],
        "with gradient": [part.clone().requires_grad_() for part in parts],
        "arrays": [(part.numpy(), None) for part in parts],
        "a loader": DataLoader(TensorDataset(images, labels), batch_size=5),
    }


@pytest.mark.slow
@pytest.mark.parametrize("form", batches(torch.zeros(5, 1)))
def test_forms_of_calibration_images(form: str, vit: nn.Module, images: Tensor) -> None:
    expected = to_spiking(vit, Recipe(timesteps=2), list(images.split(5)))
    snn = to_spiking(vit, Recipe(timesteps=2), batches(images)[form])
    assert snn.calibrated_on == expected.calibrated_on
    with torch.no_grad():
        assert torch.equal(snn(images), expected(images))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: [[x.tolist()]], "images are tensors or arrays, got list"),
        (lambda x: (x * 255).to(torch.uint8).numpy(), "preprocessed, that is floating-point numbers"),
        (lambda x: [{"foo": x}], "a batch has the keys 'foo'"),
        (lambda x: (x * 255).to(torch.uint8), "preprocessed, that is floating-point numbers"),
        (lambda x: {"image": x}, "iterated over several times, got dict"),
        (lambda x: iter([x]), "iterated over several times"),
        (lambda x: None, "iterated over several times, got NoneType"),
        (lambda x: [x[:0]], "there are no calibration images"),
        (lambda x: "images", "iterated over several times, got str"),
    ],
)
def test_what_are_no_calibration_images_is_told(wrong: Any, message: str, vit: nn.Module, images: Tensor) -> None:
    with pytest.raises(DataError, match=message):
        to_spiking(vit, "faithful", wrong(images))


@pytest.mark.slow
def test_images_that_say_too_little_are_refused(vit: nn.Module, images: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    """From them a network would learn to give the same answer to all images, without error on these."""
    same = images[:1].expand(16, -1, -1, -1)
    for given, message in ((images[:1], "there is 1 calibration"), (same, "the 16 calibration images are the same")):
        for form in (given, DataLoader(TensorDataset(given), 5), torch.zeros_like(given)):
            with pytest.raises(DataError, match=r"calibration image"):
                to_spiking(vit, "faithful", form)
        with pytest.raises(DataError, match=message):
            to_spiking(vit, brief("qkformer"), given)
    for given, words in ((images[:4], ["4 calibration images are few"]), (same + 0.01 * torch.randn_like(same), ["few"])):
        caplog.clear()
        to_spiking(vit, "faithful", given)
        assert len(caplog.messages) == 1 and all(word in caplog.messages[0] for word in words)
    caplog.clear()
    many = torch.randn(32, 3, 16, 16)
    to_spiking(vit, "faithful", many.split(7))
    assert not caplog.messages
    to_spiking(vit, "faithful", 3 + 0.01 * many)
    to_spiking(vit, "faithful", many[:1] + 0.01 * many)
    assert ["hardly differ" in message for message in caplog.messages] == [True]


def test_a_loader_may_shuffle_and_must_not_augment(vit: nn.Module, images: Tensor) -> None:
    shuffled = DataLoader(TensorDataset(images), batch_size=4, shuffle=True)
    assert len(set(to_spiking(vit, Recipe(timesteps=2), shuffled).calibrated_on)) == len(images)

    class Augmented:
        def __iter__(self) -> Iterator[Tensor]:
            return iter([images + 0.01 * torch.randn(len(images), 1, 1, 1)])

    with pytest.raises(DataError, match="are others in every pass"):
        to_spiking(vit, "faithful", Augmented())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["faithful", "ternary", "shift"])
@torch.no_grad()
def test_models_of_other_precisions(name: str, dtype: torch.dtype, vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit.to(dtype), RECIPES[name], images)
    assert {parameter.dtype for parameter in snn.parameters()} == {dtype}
    state = torch.float64 if dtype == torch.float64 else torch.float32
    assert {buffer.dtype for neuron in snn.neurons().values() for buffer in neuron.buffers()} == {state}
    logits = snn(images.to(dtype))
    assert logits.dtype == dtype
    ann, reference = vit.float()(images), to_spiking(vit, RECIPES[name], images)(images)[-1]
    assert (logits[-1].float() - ann).norm() < 1.5 * (reference - ann).norm() + 0.05 * ann.norm()


@torch.no_grad()
def test_a_network_is_halved_and_its_neurons_are_not(vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, "faithful", images)
    full = snn(images)[-1]
    halved = snn.bfloat16()(images.bfloat16())[-1]
    assert {buffer.dtype for neuron in snn.neurons().values() for buffer in neuron.buffers()} == {torch.float32}
    assert halved.dtype == torch.bfloat16
    assert (halved.float() - full).norm() < 0.05 * full.norm()


def test_models_that_cannot_be_converted_are_told(vit: nn.Module, images: Tensor) -> None:
    with pytest.raises(ModelError, match="on the meta device, which has no values"):
        to_spiking(make_vit().to("meta"), "faithful", images)
    with pytest.raises(ModelError, match="has no parameters"):
        to_spiking(nn.Flatten(), "faithful", images)
    with pytest.raises(ModelError, match=r"torch\.nn\.Module, got str"):
        to_spiking("vit_tiny_patch16_224", "faithful", images)  # type: ignore[arg-type]
    compiled: Any = torch.compile(vit, backend="eager")
    with torch.no_grad():
        snn, plain = to_spiking(compiled, "faithful", images), to_spiking(vit, "faithful", images)
        assert torch.equal(snn(images), plain(images))


class Mixing(nn.Module):
    """Attention whose heads lie outside of the images, as in ``torch.nn.MultiheadAttention`` of old."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)  # [B, N, 8]
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.kind == "heads outside":
            q, k, v = (torch.cat(part.chunk(2, -1), 0) for part in (q, k, v))  # [2 B, N, 4]
            y = torch.cat(((q @ k.transpose(1, 2)).softmax(-1) @ v).chunk(2, 0), -1)
        elif self.kind == "other images":
            y = (q @ k.roll(1, 0).transpose(1, 2)).softmax(-1) @ v
        else:
            y = (q @ k.transpose(1, 2)).softmax(-1) @ v
        if self.kind == "rounding":  # which differs with the batch, and which the sine magnifies
            y = torch.sin(y * (1 + len(y) * torch.finfo(y.dtype).eps) * 1e8)
        return self.head(y.mean(1))  # type: ignore[no-any-return]


def test_magnified_rounding_is_not_taken_for_mixed_images() -> None:
    model, images = Mixing("rounding").eval(), torch.randn(16, 8, 3, 3)
    with torch.no_grad():
        assert not torch.allclose(model(images[:2])[:1], model(images[:1]), atol=1e-2)
    to_spiking(model, "faithful", images)


@pytest.mark.parametrize("kind", ["heads outside", "other images", "right"])
def test_signals_that_mix_the_images_are_refused_by_name(kind: str) -> None:
    model, images = Mixing(kind).eval(), torch.randn(16, 8, 3, 3)
    if kind == "right":
        snn = to_spiking(model, "faithful", images)
        with torch.no_grad():
            assert torch.allclose(snn(images[:2])[:, :1], snn(images[:1]), atol=1e-5)
        return
    with pytest.raises(ModelError, match="computes of two images together is not what it computes of each"):
        to_spiking(model, "faithful", images)
