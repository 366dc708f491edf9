"""Two processes against one with the doubled batch. Run as a script, this file is one of the processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from test_zoo import SMALL
from torch import Tensor

from vit2snn.data import TrainingLoader
from vit2snn.errors import DataError
from vit2snn.finetune import Objective, Settings, Step, classification, train

COUNT = 48


def item(index: int) -> tuple[Tensor, int]:
    """A noisy image of horizontal or vertical stripes; the noise is the augmentation."""
    image = torch.rand(3, 16, 16)
    image[:, slice(None, None, 4) if index % 2 else slice(None), slice(None) if index % 2 else slice(None, None, 4)] += 1
    return image, index % 2


def middle(model: Any, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """An objective that does not reach the head."""
    features = model.forward_features(x).mean((0, 3, 4))
    return {"near": (features[:, 0] - labels).square().mean()}


def training(batch_size: int, accumulate: int, objective: Objective = classification) -> dict[str, Any]:
    """The losses of the updates, and the weights after the last one."""
    torch.manual_seed(0)
    model: Any = timm.create_model("spikformer_4_384_cifar10", **{**SMALL["spikformer_4_384_cifar10"], "num_classes": 2})
    steps: list[Step] = []
    # Biases in front of a normalisation have gradients of rounding errors, which Adam would bring to full size.
    settings = Settings(max_steps=5, lr=0.05, opt="sgd", accumulate=accumulate, warmup_epochs=0)
    batches = TrainingLoader(item, COUNT, batch_size)
    summary = train(model, batches, settings, objective=objective, report=steps.append)
    assert all(type(module).__module__ != "vit2snn.finetune.distributed" for module in model.modules())
    return {"losses": [step.loss for step in steps], "weights": model.state_dict(), "updates": summary.updates}


def main(out: Path) -> None:
    found = [training(4, 1), training(2, 2), training(4, 1, middle), training(2, 2, middle)]
    if os.environ["RANK"] == "0":
        torch.save(found, out)
    else:
        assert found[0]["losses"] == []  # only the main process reports
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_compute_what_one_computes_with_the_doubled_batch(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path / "found")],
            env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    cases = [(8, 1, classification), (4, 2, classification), (8, 1, middle), (4, 2, middle)]
    for found, case in zip(torch.load(tmp_path / "found"), cases, strict=True):
        wanted = training(*case)
        assert len(found["losses"]) == 5
        assert found["losses"] == pytest.approx(wanted["losses"], abs=1e-5)
        assert wanted["losses"][-1] != pytest.approx(wanted["losses"][0], abs=1e-2)
        for name, value in wanted["weights"].items():
            torch.testing.assert_close(found["weights"][name], value, atol=1e-5, rtol=1e-4, msg=name)


def places(loader: TrainingLoader) -> list[list[int]]:
    return [[index for _, index in batch] for batch in loader.places]


def test_processes_share_each_batch_and_see_the_same_items() -> None:
    whole, parts = TrainingLoader(item, 50, 8, seed=3), [TrainingLoader(item, 50, 4, seed=3) for _ in range(2)]
    for process, part in enumerate(parts):
        part.share(process, 2)
        part.set_epoch(1)
    whole.set_epoch(1)
    assert len(whole) == len(parts[0]) == 6
    assert places(whole) == [a + b for a, b in zip(*map(places, parts), strict=True)]
    x, labels = next(iter(whole))
    shared = [next(iter(part)) for part in parts]
    assert torch.equal(x, torch.cat([x for x, _ in shared])) and torch.equal(labels, torch.cat([y for _, y in shared]))
    few = TrainingLoader(item, 3, 8)
    few.share(1, 2)
    assert [len(batch) for batch in places(few)] == [1]
    with pytest.raises(DataError, match="3 images cannot be shared by 4 processes"):
        few.share(0, 4)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
