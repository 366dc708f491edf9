"""Block-wise reconstruction by gradient descent, as in BRECQ (Li et al., ICLR 2021), with surrogate gradients for spikes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..spiking import Clock, over_time

STEPS = 200
IMAGES = 32  # a step
LR = 1e-3


def reconstruct(block: nn.Module, clock: Clock, streams: list[Tensor], targets: list[Tensor], seed: int = 0) -> None:
    """Train a block in place so that its output is the ANN's, in the mean over time, on the stream that reaches it.

    The loss is the mean squared error relative to the variance of the targets. Batch normalisations take the statistics of each
    step, as in training: with frozen ones a small common change of weights shifts whole layers by several thresholds.

    Args:
        block: in evaluation mode.
        clock: of its neurons.
        streams: what reaches it, ``[T, B, N, C]`` each.
        targets: what the ANN has behind it, ``[B, N, C]`` each.
        seed: of the order of images.
    """
    generator = torch.Generator().manual_seed(seed)
    stream, target = torch.cat(streams, 1), torch.cat(targets)
    scale = target.var()
    parameters = [parameter for parameter in block.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    block.train()
    for _ in range(STEPS):
        chosen = torch.randint(0, len(target), (min(IMAGES, len(target)),), generator=generator)
        output = over_time(block, clock, stream[:, chosen]).mean(0)
        loss = (output - target[chosen]).square().mean() / scale
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    block.eval()
