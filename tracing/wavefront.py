"""Networks whose neurons begin one after another, as a wave passes through the layers.

In a stepwise network all neurons fire in every timestep, and what a late one sends in the first timesteps answers values that
have moved by the next. In a layer-synchronous one each waits until those before it have sent all their spikes: of T timesteps,
a network of D neurons in a row needs T D. A wavefront is between them: a neuron begins one timestep after those before it, so
that a network needs T + D - 1, and what a neuron sees has nearly settled when it begins. After its T timesteps it is silent. In
runs of more than 8 timesteps a neuron begins two after those before it, or more: spikes are smaller there, and settle later.

A run of T timesteps is computed at once, on ``[T * B, ...]``: the timesteps of each signal are counted from when the neuron
that sends it begins. A neuron that lags by one sees at its timestep t what its input has at t + 1. Where two signals meet that
begin at different times, the earlier one is seen that much later too: a shortcut has settled when the branch beside it arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function
from torch.utils._pytree import tree_map

from ..errors import ModelError
from ..spiking.time import Run, ahead, running
from .calls import changes_first, function_name, tensors_in


def waves(network: Callable[[Tensor], Tensor], x: Tensor, timesteps: int) -> Iterator[Tensor]:
    """What a network has in the end of runs of 1, 2, ... ``timesteps`` timesteps, ``[1, B, ...]`` each.

    Args:
        network: any map of ``[B, ...]`` to ``[B, ...]`` image by image.
        x: static input ``[B, C, H, W]``, shown at every timestep, or one input for each timestep ``[T, B, C, H, W]``.
        timesteps: T, at least 1.

    Raises:
        ValueError: a number is below 1, or an input with a time axis has other than T timesteps.
    """
    if timesteps < 1:
        raise ValueError(f"timesteps must be at least 1, got {timesteps}")
    if x.ndim == 5 and len(x) != timesteps:
        raise ValueError(f"an input of {len(x)} timesteps was given to a run of {timesteps} timesteps")
    for count in range(1, timesteps + 1):
        yield wave(network, x[:count] if x.ndim == 5 else x.expand(count, *x.shape))[-1:]


def wave(network: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
    """One run: ``[T, B, C, H, W]`` to what the network puts out in the last neuron's timesteps, ``[T, B, ...]``."""
    timesteps, batch = frames.shape[:2]
    with running(Run(timesteps, batch=batch, whole=True)), Alignment(timesteps):
        images = frames.flatten(0, 1)
        images.start = 0  # type: ignore[attr-defined]
        output: Tensor = network(images).unflatten(0, (timesteps, -1))
        return output


def seen_ahead(x: Tensor, steps: int, timesteps: int) -> Tensor:
    """``[T * B, ...]`` seen so many timesteps later (see `vit2snn.spiking.time.ahead`); other function modes see the call."""
    if has_torch_function((x,)):
        seen: Tensor = handle_torch_function(seen_ahead, (x,), x, steps, timesteps)
        return seen
    if x.shape[0] % timesteps:
        raise ModelError(
            f"a signal of shape {tuple(x.shape)} meets one that begins later, and its first axis is not that of images",
            "choose spikes.schedule 'stepwise' or 'layer-synchronous' for this model",
        )
    return ahead(x.unflatten(0, (timesteps, -1)), steps).flatten(0, 1)


def start_as(output: Tensor, inputs: Any) -> None:
    """Note when the output of a module begins that `Alignment` does not look into, unless it says so itself."""
    starts = [tensor.start for tensor in tensors_in([inputs]) if hasattr(tensor, "start")]
    if starts and not hasattr(output, "start"):
        output.start = max(starts)  # type: ignore[attr-defined]


class Alignment(TorchFunctionMode):
    """Within its context, signals that meet are aligned in time.

    When a signal begins is noted by the neuron that sends it, in an attribute that goes on to all that is made of it. What has
    none, such as weights, is constant in time.
    """

    def __init__(self, timesteps: int) -> None:
        super().__init__()
        self.timesteps = timesteps

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        operands = tensors_in([args, kwargs])
        starts = {operand.start for operand in operands if hasattr(operand, "start")}
        if not starts:
            return func(*args, **kwargs)
        start, name = max(starts), function_name(func)
        changed = operands[0] if changes_first(name) else None
        if len(starts) > 1:
            args, kwargs = self._aligned(start, changed, args, kwargs)
        made = func(*args, **kwargs)
        for tensor in tensors_in([made] if changed is None else [made, changed]):
            tensor.start = start  # type: ignore[attr-defined]
        return made

    def _aligned(self, start: int, changed: Tensor | None, args: Any, kwargs: Any) -> Any:
        """The arguments as they are when the latest begins; what is changed in place stays the same tensor."""

        def align(value: Any) -> Any:
            late = start - getattr(value, "start", start) if isinstance(value, Tensor) else 0
            if not late:
                return value
            seen = seen_ahead(value, late, self.timesteps)
            return changed.copy_(seen) if changed is not None and value is changed else seen

        return tree_map(align, (args, kwargs))
