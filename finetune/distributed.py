"""Several processes: the accelerator, states of sharded models, and batch normalisation over the images of all processes.

`torch.nn.SyncBatchNorm` does the last on GPUs only, and has another class on disk; the one here runs wherever the process group
does, and leaves no trace.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, patch_environment
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict, set_state_dict
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from ..errors import ModelError
from ..spiking import shards
from .settings import Precision

ALONE = {"LOCAL_RANK": -1, "WORLD_SIZE": 1, "ACCELERATE_USE_FSDP": "false"}
"""Of the environment that a launcher makes, what tells accelerate of other processes, for a process without any."""


def make_accelerator(device: torch.device, precision: Precision) -> Accelerator:
    """accelerate's view of this process: alone, or one of those that a launcher has started, unless within `shards.alone`.

    Args:
        device: CPU or CUDA; a launcher tells each process the number of its GPU.
        precision: of the forward pass.

    Raises:
        ModelError: the device does not have that precision, or accelerate is told to shard by FSDP 1.
    """
    if precision == "fp16" and device.type != "cuda":
        raise ModelError(f"the precision 'fp16' needs a GPU, and the model is on {device}", "choose --precision bf16 or no")
    # accelerate keeps the first precision and device of a process for good, and a process may train twice.
    AcceleratorState._reset_state(reset_partial_state=True)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Which parameters the losses reach depends on the objective. (A static graph would not go with accumulated gradients.)
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True)
    in_group = dist.is_available() and dist.is_initialized()
    alone = in_group and shards.processes() < dist.get_world_size()
    with patch_environment(**ALONE) if alone else nullcontext():
        accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision, kwargs_handlers=[ddp])
    if is_sharded(accelerator):
        if not accelerator.is_fsdp2:
            raise ModelError(
                "FSDP 1 joins parameters into one, and some have learning rates of their own",
                "set FSDP_VERSION=2 at the launch",
            )
        # It would round all parameters, also those of neurons; autocast leaves neurons in float32.
        accelerator.state.fsdp_plugin.mixed_precision_policy = None
    return accelerator


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether FSDP spreads the parameters over the processes."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def shardable(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose parameters without an axis, which FSDP refuses, have one of length 1."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.ndim:
                setattr(module, name, nn.Parameter(parameter.detach().reshape(1), parameter.requires_grad))
    return model


def whole_weights(task: nn.Module) -> dict[str, Any]:
    """The whole state of a sharded model, in each process, where its parameters are; all processes call it."""
    return dict(get_model_state_dict(task, options=StateDictOptions(full_state_dict=True)))


def gather(task: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Whole states of a sharded model and its optimizer, on the CPU of the first process, and empty ones in the others.

    All processes call it.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, moments = get_state_dict(task, optimizer, options=options)
    return dict(weights), dict(moments)


def scatter(task: nn.Module, optimizer: Optimizer, weights: dict[str, Any], moments: Any) -> None:
    """Give a sharded model and its optimizer whole states, which all processes have."""
    options = StateDictOptions(full_state_dict=True)
    set_state_dict(task, optimizer, model_state_dict=weights, optim_state_dict=moments, options=options)


class _Sum(torch.autograd.Function):
    """The sum over all processes; each one's loss depends on all terms, so gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        dist.all_reduce(total)
        return total


def _sum(x: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(x)
    return total


class _Synchronised(_BatchNorm):
    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        # Variances of sparse spikes are small differences in half precision.
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        sums = _sum(torch.cat([x.sum(axes), x.new_tensor([x.numel() / x.shape[1]])]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean.reshape(shape)
        var = _sum(centred.square().sum(axes)) / count
        self._remember(mean.detach(), var.detach() * count / (count - 1))
        y = centred * (var + self.eps).rsqrt().reshape(shape)
        if self.weight is not None:
            y = y * self.weight.reshape(shape) + self.bias.reshape(shape)
        return y.to(input.dtype)

    def _remember(self, mean: Tensor, var: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(var, share)


@contextmanager
def synchronised(model: nn.Module) -> Iterator[None]:
    """Within this context the batch normalisations of ``model`` take their statistics, while it trains, over all processes.

    With equal batches, the mean of the processes' gradients is the gradient of one process with all their images.
    Normalisations with a forward of their own (timm's ``BatchNormAct2d``) stay as they are. Nothing happens without a
    process group.
    """
    found = []
    if shards.processes() > 1:
        found = [m for m in model.modules() if isinstance(m, _BatchNorm) and type(m).forward is _BatchNorm.forward]
    classes = [type(module) for module in found]
    try:
        for module, kind in zip(found, classes, strict=True):
            module.__class__ = type(f"Synchronised{kind.__name__}", (_Synchronised, kind), {})
        yield
    finally:
        for module, kind in zip(found, classes, strict=True):
            module.__class__ = kind
