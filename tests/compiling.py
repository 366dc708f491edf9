"""Compiles the kernels for a GPU that need not be there, in many variants; prints their names and fused multiply-adds."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vit2snn.spiking import (
    IF,
    LIF,
    PLIF,
    Alphabet,
    CodedNeuron,
    Coding,
    IntegerLIF,
    Run,
    Surrogate,
    TernaryLIF,
    coding,
    gpu,
    running,
    unrolled,
)  # fmt: skip
from vit2snn.spiking.surrogate import SHAPES

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32", torch.int64: "*i64"}
HOPPER = GPUTarget("cuda", 90, 32)


def compile_for_gpu(name: str, grid: tuple[int, ...], *arguments: Any) -> None:
    """As a launch does, which knows whether numbers are 1, and whether 16 divides them."""
    from vit2snn.spiking import gpu_kernels

    kernel = getattr(gpu_kernels, name)
    signature, known, divided = {}, {}, {}
    for place, (parameter, value) in enumerate(zip(kernel.params, arguments, strict=True)):
        signature[parameter.name] = kind(value, parameter.is_constexpr)
        if signature[parameter.name] == "constexpr":
            known[(place,)] = value
        elif isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            divided[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=known, attrs=divided)
    compiled = triton.compile(source, target=HOPPER, options={"num_warps": 4, **gpu.OPTIONS})
    print(name, compiled.asm["ptx"].count("fma."))


def kind(value: Any, is_constant: bool) -> str:
    if is_constant or value is None or (type(value) is int and value == 1):
        return "constexpr"
    if isinstance(value, Tensor):
        return TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32" if value < 2**31 else "i64"


@torch.no_grad()
def run_coded(
    alphabet: Alphabet, coding: Coding, image: tuple[int, ...], levels: tuple[int, ...], timesteps: int = 4, images: int = 2,
    burst: int = 1, dtype: torch.dtype = torch.float32, last: bool = True,
) -> None:  # fmt: skip
    neuron = CodedNeuron(alphabet, coding, spikes_per_step=burst)
    neuron.threshold, neuron.prior = 1 + torch.rand(timesteps, *levels), torch.rand(image)
    neuron.bias = torch.rand(timesteps, image[-1])
    with running(Run(timesteps=timesteps, batch=images, last=last)):
        neuron(torch.rand(timesteps * images, *image).to(dtype))


def main() -> None:
    gpu._launch = compile_for_gpu
    gpu.can_compute = lambda x: x.dtype in gpu.READ and gpu.is_called(x)
    coding.kernels = unrolled.kernels = lambda x: None
    for dtype in TYPES:
        if dtype.is_floating_point:
            run_coded(Alphabet(16), Coding.DIFFERENTIAL, (197, 192), (1, 1), dtype=dtype)
            run_coded(Alphabet(16, 2**0.25), Coding.RATE, (3, 197, 197), (1, 1, 1), dtype=dtype, last=False)
    run_coded(Alphabet(1, signed=False), Coding.DECAYING, (197, 64), (1, 64), burst=3, timesteps=1, images=1)
    with torch.no_grad():
        for neuron in (IF(v_reset=None), LIF(), PLIF(), TernaryLIF(), IntegerLIF()):
            for timesteps in (1, 4):
                unrolled.unrolled(torch.rand(timesteps, 2, 1024), None, neuron.dynamics())
    for shape in SHAPES:
        x = torch.rand(4, 2, 1000, requires_grad=True)
        unrolled.unrolled(x, None, LIF(surrogate=Surrogate(shape, 2.0)).dynamics())[0].sum().backward()
    gpu.innovations(torch.rand(2, 197, 192), None, torch.zeros(()), (1.0, 1.0), True, 800, 321)
    gpu.innovations(torch.rand(1, 197, 197), torch.rand(1, 197, 197), torch.zeros(197, 197), (0.5, 0.5), False, 800, 321)


if __name__ == "__main__":
    main()
