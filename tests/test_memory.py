"""Memory: states that are not kept, and batches that are cut in halves when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from conftest import make_vit
from torch import Tensor, nn

from vit2snn import evaluate
from vit2snn.cli import cli
from vit2snn.commands.memory import check_memory
from vit2snn.convert import Recipe, SpikingModel, to_spiking
from vit2snn.convert.fitting import held_beside
from vit2snn.data import array_source
from vit2snn.errors import OutOfMemoryError
from vit2snn.measure.batches import Parts
from vit2snn.spiking import LIF, eager, present_run, stream
from vit2snn.zoo.demo import demo_images

OUT_OF_MEMORY = "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: tried to allocate 1 bytes."


@pytest.fixture(scope="module")
def demo() -> tuple[SpikingModel, Tensor, Tensor]:
    """The embedded model, converted with a few of its images, and others with labels."""
    from timm.data import resolve_model_data_config

    from vit2snn.convert import load_model
    from vit2snn.data import array_source, prepared

    ann = load_model("demo")
    mode = "L" if resolve_model_data_config(ann)["input_size"][0] == 1 else "RGB"
    samples = list(prepared(ann, array_source(*demo_images("val"), mode), count=40, seed=0))
    images = torch.stack([sample.image for sample in samples])
    labels = torch.tensor([sample.label for sample in samples])
    return to_spiking(ann, Recipe(timesteps=3), images[:16]), images[16:], labels[16:]


def test_fused_and_eager_neurons_give_the_same_logits_on_the_demo(demo: tuple[SpikingModel, Tensor, Tensor]) -> None:
    snn, images, _ = demo
    with torch.inference_mode():
        fused = snn(images, chunk=1)
        with eager():
            assert torch.equal(snn(images, chunk=1), fused)


@pytest.mark.parametrize("chunk", [1, 2, None])
def test_no_state_outlives_the_last_chunk(chunk: int | None) -> None:
    kept: list[int] = []

    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            run = present_run()
            assert run is not None
            kept.append(len(run.states))
            return x

    network = nn.Sequential(LIF(), Looks())
    for _ in stream(network, torch.randn(2, 3), 4, chunk):
        pass
    assert kept == {1: [1, 1, 1, 0], 2: [1, 0], None: [0]}[chunk]


def failing_above(most: int, seen: list[int], message: str = OUT_OF_MEMORY) -> Callable[[Tensor, Tensor], None]:
    def call(images: Tensor, labels: Tensor) -> None:
        count = images.shape[images.ndim - 4]
        assert len(labels) == count
        if count > most:
            raise RuntimeError(message)
        seen.append(count)

    return call


@pytest.mark.parametrize("shape", [(10, 3, 2, 2), (4, 10, 3, 2, 2)])
def test_batches_are_halved_until_they_fit_and_stay_so(shape: tuple[int, ...], caplog: pytest.LogCaptureFixture) -> None:
    parts, seen = Parts(), []
    with caplog.at_level(logging.WARNING, logger="vit2snn"):
        for _ in range(2):
            parts.run(failing_above(3, seen), torch.zeros(shape), torch.zeros(10))
    assert seen == [2, 2, 2, 2, 2] * 2
    assert [record.getMessage() for record in caplog.records] == [
        "memory ran out with 10 images at a time; going on with 5", "memory ran out with 5 images at a time; going on with 2",
    ]  # fmt: skip


def test_one_image_that_does_not_fit_is_told_and_other_errors_pass() -> None:
    with pytest.raises(OutOfMemoryError, match="one image at a time"):
        Parts().run(failing_above(0, []), torch.zeros(3, 1, 2, 2), torch.zeros(3))
    with pytest.raises(RuntimeError, match="shapes"):
        Parts().run(failing_above(0, [], "shapes differ"), torch.zeros(3, 1, 2, 2), torch.zeros(3))


@pytest.mark.slow
def test_an_evaluation_that_ran_out_of_memory_counts_what_one_counts_that_did_not(
    demo: tuple[SpikingModel, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    snn, images, labels = demo
    expected = evaluate(snn, [(images[:6], labels[:6]), (images[6:9], labels[6:9]), (images[9:12], labels[9:12])])
    forward = SpikingModel.forward

    def limited(self: SpikingModel, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        logits = forward(self, x, *args, **kwargs)
        if len(x) > 6:  # after all has been counted
            raise RuntimeError(OUT_OF_MEMORY)
        return logits

    monkeypatch.setattr(SpikingModel, "forward", limited)
    found = evaluate(snn, [(images[:12], labels[:12])])
    assert found.images == expected.images == 12
    assert found.digest == expected.digest
    assert [point.spikes_per_neuron for point in found.points] == pytest.approx(
        [point.spikes_per_neuron for point in expected.points], rel=1e-3
    )
    assert [point.energy for point in found.points] == pytest.approx([point.energy for point in expected.points], rel=1e-3)


def test_a_command_that_runs_out_of_memory_says_what_helps(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError(OUT_OF_MEMORY)

    monkeypatch.setattr("vit2snn.convert.to_spiking", fail)
    result = CliRunner().invoke(cli, ["convert", "demo", "-o", str(tmp_path / "out"), "--samples", "2"])
    assert result.exit_code == 1
    assert "memory ran out" in result.output and "--batch-size" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_precision_leaves_neurons_in_float32_and_costs_little(
    demo: tuple[SpikingModel, Tensor, Tensor], dtype: torch.dtype
) -> None:
    snn, images, labels = demo
    full, reduced = (evaluate(snn, [(images, labels)], amp_dtype=amp) for amp in (None, dtype))
    assert reduced.points[-1].relative_error != full.points[-1].relative_error
    assert reduced.points[-1].relative_error < 0.03
    assert reduced.ann_top1 == full.ann_top1
    seen: set[torch.dtype] = set()
    for neuron in snn.neurons().values():
        neuron.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    with torch.no_grad(), torch.autocast("cpu", dtype):
        snn(images[:2], 1)
    assert seen == {torch.float32}


@pytest.mark.slow
def test_what_a_fit_holds_of_each_image_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    block = 2 * 17 * 32 * 4  # what it reads and gives
    assert held_beside(make_vit(), ["blocks.0", "blocks.1"], (3, 16, 16)) == 2 * block
    source, size = array_source(*demo_images("train"), "L"), (1, 28, 28)
    images = 100 * 2 * 28 * 28 * 4
    monkeypatch.setattr("vit2snn.commands.memory.memory", lambda device=None: images + 60 * block)
    check_memory(source, 100, size, block, most=60)
    with pytest.raises(OutOfMemoryError, match="100 images"):
        check_memory(source, 100, size, block)
    monkeypatch.undo()
    asked: list[Any] = []
    monkeypatch.setattr("vit2snn.commands.conversion.check_memory", lambda *args: asked.append(args[3:]))
    for recipe in ("faithful", "hybrid"):
        given = [
            "--recipe",
            recipe,
            "--samples",
            "16",
            "--timesteps",
            "1",
            *(["--refit", "none"] if recipe == "hybrid" else []),
        ]
        assert CliRunner().invoke(cli, ["convert", "demo", "-o", str(tmp_path / recipe), *given]).exit_code == 0
    assert asked[0][0] == 0 < asked[1][0]
