"""What a process needs to be fast is set whenever it is asked for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from vit2snn.spiking import native, prepare_process, process

LATE = """
import threading
import torch
from vit2snn.spiking import prepare_process

def flushed():
    x = torch.full((1024, 1024), 1e-22)
    return not (x @ x).view(torch.int32).any()

def other():
    started.set()
    ready.wait()
    prepare_process()
    print(flushed())

started, ready = threading.Event(), threading.Event()
thread = threading.Thread(target=other)
thread.start()
started.wait()
print(flushed())
prepare_process()
print(flushed())
ready.set()
thread.join()
"""


@pytest.mark.skipif(native.library() is None, reason="no C compiler")
def test_threads_that_have_been_started_flush_denormals_too() -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", LATE], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True"]


def test_what_is_set_afterwards_stays() -> None:
    prepare_process()
    torch.set_flush_denormal(False)
    prepare_process()
    assert (torch.full((2**20,), 1e-40) * 1).all()


@pytest.mark.skipif(process._kept() is None, reason="no glibc that tells how much of its heap is free")
def test_freed_memory_goes_back_where_there_is_much_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def resident() -> int:
        return int(process.RESIDENT.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    process.release_surplus()
    tensors = [torch.ones(2**18) for _ in range(128)]
    kept = tensors[::2]
    before = resident()
    del tensors  # which leaves holes of a megabyte
    process.release_surplus()
    assert resident() > before - 2**25  # 64 MB are not much
    monkeypatch.setattr(process, "SURPLUS", 2**25)
    process.release_surplus()
    assert resident() < before - 2**25
    assert all(bool((tensor == 1).all()) for tensor in kept)
