"""What the benchmarks share: the machine that they ran on, time and peak memory of calls, and files of results."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from vit2snn.spiking import prepare_process

RESULTS = Path(__file__).parent / "results"
R = TypeVar("R")


def describe() -> dict[str, Any]:
    """The machine, and what computes on it in this process."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    found = {
        "processor": (names or [platform.machine()])[0], "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "system": platform.system(), "torch": torch.__version__,
    }  # fmt: skip
    if torch.cuda.is_available():
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        found |= {name: version(name) for name in ("triton", "spikingjelly") if find_spec(name)}
    return found


def alone(call: Callable[..., R], *arguments: Any, threads: int | None = None) -> R:
    """What a function of a module returns in a new process of its own, with so many threads; None leaves them as they are.

    Raises:
        BrokenProcessPool: the process was killed, most likely for its memory.
    """
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # reaches every copy of OpenMP, torch.set_num_threads only torch's own
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_started, call, arguments).result()


def _started(call: Callable[..., R], arguments: tuple[Any, ...]) -> R:
    prepare_process()
    torch.manual_seed(0)
    return call(*arguments)


def seconds(call: Callable[[], Any]) -> float:
    """Of one call; where there is a GPU, by its clock, from when it has nothing to do until it has done the call's work."""
    if not torch.cuda.is_available():
        before = time.perf_counter()
        call()
        return time.perf_counter() - before
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def medians(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each call, taken in turns, so that all meet the machine in the same state. The first turn warms up."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(1 + repeats):
        for name, call in calls.items():
            taken[name].append(seconds(call))
    return {name: statistics.median(found[1:]) for name, found in taken.items()}


class Memory(NamedTuple):
    """Peak memory of a call in megabytes (2^20 bytes).

    Attributes:
        added: what it came to have beyond what was there before: weights, input, code.
        peak: all that the process had resident, interpreter and libraries too; on a GPU all tensors.
    """

    added: float
    peak: float


def memory(call: Callable[[], Any], device: str = "cpu") -> Memory:
    """Of one call; in a process of its own, and not its first such call, or what stays in memory for good counts as its own."""
    if device != "cpu":
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        peak, unit = torch.cuda.max_memory_allocated(), 2**20
    else:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = _status("VmRSS")
        call()
        peak, unit = _status("VmHWM"), 2**10
    return Memory((peak - before) / unit, peak / unit)


def _status(entry: str) -> int:
    """An entry of Linux's account of this process, in kB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(entry))
    return int(line.split()[1])


def rounded(value: Any) -> Any:
    """To four digits, in nested dictionaries and lists too."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def save(path: Path, machine: dict[str, Any], rows: list[dict[str, Any]], keys: tuple[str, ...]) -> None:
    """Put rows in the place of older ones of the same machine with the same values of ``keys``."""
    runs = json.loads(path.read_text()) if path.exists() else []
    run = next((run for run in runs if run["machine"] == machine), None)
    if run is None:
        run = {"machine": machine, "rows": []}
        runs.append(run)
    new = [[row[key] for key in keys] for row in rows]
    run["rows"] = [old for old in run["rows"] if [old[key] for key in keys] not in new] + [rounded(row) for row in rows]
    path.write_text(json.dumps(runs, indent=1) + "\n")
