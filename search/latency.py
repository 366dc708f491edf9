"""The latency of an architecture, measured."""

from __future__ import annotations

import statistics
import time

import torch

from .create import create
from .space import Architecture, Space, Task, arguments

REPEATS = 3


def latency(architecture: Architecture, space: Space, task: Task) -> float:
    """Median seconds for one image in all timesteps, on this machine's CPU, with random weights.

    Every measurement is another one: a search with a window on it is not the same each time.
    """
    model = create(arguments(architecture, space, task), task).eval()
    steps = (architecture.timesteps,) if task.stem == "dvs" else ()
    image = torch.rand(*steps, 1, task.in_chans, task.size, task.size)
    taken = []
    with torch.inference_mode():
        model(image)
        for _ in range(REPEATS):
            started = time.perf_counter()
            model(image)
            taken.append(time.perf_counter() - started)
    return statistics.median(taken)
