"""Block-wise reconstruction by gradient descent, as in BRECQ (Li et al., ICLR 2021), with surrogate gradients for spikes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..spiking import over_time
from ..spiking.shards import processes, total

STEPS = 200
IMAGES = 32  # a step, of all processes
LR = 1e-3


def reconstruct(block: nn.Module, streams: list[Tensor], targets: list[Tensor], seed: int = 0) -> None:
    """Train a block in place so that its output is the ANN's, in the mean over time, on the stream that reaches it.

    The loss is the mean squared error relative to the variance of the targets. Batch normalisations take the statistics of each
    step, as in training: with frozen ones a small common change of weights shifts whole layers by several thresholds.

    The processes of a group descend the mean of their gradients; batch normalisations take the statistics of each process's
    part of a step, and end with the mean of the processes' running ones.

    Args:
        block: in evaluation mode.
        streams: what reaches it, ``[T, B, N, C]`` each.
        targets: what the ANN has behind it, ``[B, N, C]`` each.
        seed: of the order of images.
    """
    generator = torch.Generator().manual_seed(seed)
    stream, target = torch.cat(streams, 1), torch.cat(targets)
    scale = total(target.var()) / processes()
    images = min(max(IMAGES // processes(), 1), len(target))
    parameters = [parameter for parameter in block.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    block.train()
    for _ in range(STEPS):
        chosen = torch.randint(0, len(target), (images,), generator=generator).to(target.device)
        output = over_time(block, stream[:, chosen]).mean(0)
        loss = (output - target[chosen]).square().mean() / scale
        optimizer.zero_grad()
        loss.backward()
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = total(parameter.grad) / processes()
        optimizer.step()
        schedule.step()
    for buffer in block.buffers():
        if buffer.is_floating_point():
            buffer.copy_(total(buffer) / processes())
    block.eval()
