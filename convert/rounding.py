"""Weights of integers: a network's weights are rounded such that it computes what it computed before, as nearly as it can.

Weights are rounded layer by layer in order of execution, on what a layer gets from those before it, which are rounded already.
Within a layer it is done input by input, and the weights that are still to be rounded make up for the error of those that are
(Frantar et al., "GPTQ", ICLR 2023; Hassibi and Stork, NeurIPS 1992): what is reduced is ‖(W - Q) x‖² over the images, and not
‖W - Q‖². The mean of what is left goes into the layer's bias.

Integers are symmetric, with a scale for each output channel (see `vit2snn.calibration.scales`). Biases stay in float, as what
accumulates on chips has more bits; so do positions, and constants that fold into thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..calibration.scales import best_scale
from ..spiking import analog, shards, simulate
from ..spiking.integers import Weight, integer_weights, make_integer
from ..tracing import Operation
from ..tracing.calls import function_name
from .planning import Plan
from .recipe import Recipe

IMAGES = 64
"""From which inputs of layers are taken: each has some hundred tokens, of which it is about correlations alone."""
DAMPING = 0.01
"""Of the mean square of an input, added to all: what the images do not show is not relied on."""
PART = 8  # images (or timesteps of them) whose inputs are looked at together


def integer_calls(planned: Plan, recipe: Recipe) -> Iterator[Operation]:
    """The operations whose weights a recipe rounds: all that multiply signals with a parameter, but in what it ignores."""
    for module in planned.modules:
        if recipe.weight_bits and not recipe.ignores(module.name):
            yield from (call for call in module.calls if call.weight)


def mark_weights(network: nn.Module, planned: Plan, recipe: Recipe) -> None:
    """Say of weights that they are made of integers, in place, which `round_weights` makes true."""
    axes: dict[str, tuple[int, ...]] = {}
    for call in integer_calls(planned, recipe):
        axes[call.weight] = axes.get(call.weight) or call.weight_axes
    for name, of_outputs in axes.items():
        assert recipe.weight_bits is not None
        make_integer(network, name, recipe.weight_bits, of_outputs)


@torch.no_grad()
def round_weights(network: nn.Module, images: Iterable[Tensor], timesteps: int) -> None:
    """Round the weights that `mark_weights` has marked, in place.

    Args:
        network: in evaluation mode. Coded neurons pass their inputs on, others spike.
        images: batches ``[B, C, H, W]``; the first `IMAGES` images, over all processes, are computed at once.
        timesteps: for which neurons spike.
    """
    weights = integer_weights(network).values()
    if not weights:
        return
    taken, share = list[Tensor](), -(-IMAGES // shards.processes())
    for batch in images:
        taken.append(batch)
        if sum(map(len, taken)) >= share:
            break
    with analog(), _Rounding(network, weights):
        simulate(network, torch.cat(taken)[:share], timesteps)


class _Rounding(TorchFunctionMode):
    """Within its context, a weight is rounded when it is first used; at the end, those that were not are, by themselves."""

    def __init__(self, network: nn.Module, weights: Iterable[Weight]) -> None:
        super().__init__()
        self.parameters = {id(parameter) for parameter in network.parameters()}
        self.pending: dict[int, list[Weight]] = {}
        for weight in weights:
            self.pending.setdefault(id(weight.parameter), []).append(weight)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given, columns = kwargs or {}, COLUMNS.get(function_name(func))
        if columns:
            call = dict(zip(ARGUMENTS, args, strict=False)) | given
            bias = call.pop("bias", None)
            found = self.pending.pop(id(call["weight"]), None)
            if found:
                _round(found, bias if id(bias) in self.parameters else None, columns(call.pop("input"), **call))
        return func(*args, **given)

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        for found in self.pending.values():
            _settle(found, found[0].parameter, _scale(found[0]))


def _scale(weight: Weight) -> Tensor:
    integers = weight.integers
    axes = tuple(axis for axis, size in enumerate(integers.scale.shape) if size == 1)
    return best_scale(weight.parameter.to(integers.scale), -integers.most, integers.most, axes)


def _settle(found: Iterable[Weight], values: Tensor, scale: Tensor) -> None:
    """Make a weight, at all its places, of the integers nearest to some values."""
    for weight in found:
        weight.integers.scale.copy_(scale)
        weight.parameter.copy_(weight.integers.weight(weight.integers.integers(values), weight.parameter.dtype))


def _columns_of_linear(x: Tensor, weight: Tensor) -> Iterator[Tensor]:
    """What the rows of a weight meet, part by part: ``[1, samples, in]``."""
    for part in x.split(PART):
        yield part.reshape(1, -1, x.shape[-1])


def _columns_of_convolution(
    x: Tensor, weight: Tensor, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Iterator[Tensor]:
    """The same of a convolution of maps: ``[groups, samples, in / groups * kernel]``."""
    kernel = weight.shape[2:]
    if padding == "same":
        spans = [d * (k - 1) for k, d in zip(kernel, nn.modules.utils._pair(dilation), strict=True)]
        x = F.pad(x, [side for span in reversed(spans) for side in (span // 2, span - span // 2)])
    for part in x.split(PART):
        columns = F.unfold(part, kernel, dilation, 0 if isinstance(padding, str) else padding, stride)
        yield columns.unflatten(1, (groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)


ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
"""Of the functions in `COLUMNS`, in order."""
COLUMNS: dict[str, Callable[..., Iterator[Tensor]]] = {"linear": _columns_of_linear, "conv2d": _columns_of_convolution}


def _round(found: Iterable[Weight], bias: Tensor | None, inputs: Iterable[Tensor]) -> None:
    """Round a weight, at all its places, on the inputs of its layer ``[groups, samples, in]``, and correct the bias."""
    first, *_ = found
    weight, scale = first.parameter, _scale(first)
    mean, squares = _moments(inputs)
    if bias is not None:
        squares = squares - mean[:, :, None] * mean[:, None, :]
    groups = len(mean)
    rows, steps = weight.double().view(groups, -1, mean.shape[1]), scale.double().view(groups, -1, 1)
    rounded = second_order(rows, steps.expand(len(rows), rows.shape[1], 1), squares, first.integers.most)
    if bias is not None:
        bias.add_(((rows - rounded) @ mean[:, :, None]).view_as(bias).to(bias.dtype))
    _settle(found, rounded.view_as(weight), scale)


def _moments(inputs: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """The mean of the samples ``[groups, in]``, and the mean of their products ``[groups, in, in]``, in float64."""
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for columns in inputs:
        x = columns.float()  # within a part, where a product in float64 would cost ten times as much
        count, total = count + x.shape[1], total + x.double().sum(1)
        products = products + (x.mT @ x).double()
    every = shards.total(torch.tensor(count))
    return shards.total(total) / every, shards.total(products) / every


def second_order(weight: Tensor, scale: Tensor, squares: Tensor, most: int) -> Tensor:
    """Round input by input, in order of falling mean square, and let the weights that are left make up for it.

    Args:
        weight: ``[groups, out, in]``, float64.
        scale: ``[groups, out, 1]``.
        squares: mean products of the inputs, ``[groups, in, in]``.
        most: the largest integer.

    Returns:
        Integers times the scale, ``[groups, out, in]``.
    """
    power = squares.diagonal(dim1=1, dim2=2)
    order = power.argsort(1, descending=True)
    size = squares.shape[1]
    eye = torch.eye(size, dtype=squares.dtype, device=squares.device)
    damped = squares + eye * (DAMPING * power.mean(1) + torch.finfo(torch.float32).tiny)[:, None, None]
    damped = damped.gather(1, order[:, :, None].expand_as(damped)).gather(2, order[:, None, :].expand_as(damped))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    spread = torch.linalg.cholesky(inverse).mT  # row i: what the error of input i asks of the later ones
    columns = order[:, None, :].expand_as(weight)
    left, rounded = weight.gather(2, columns), torch.empty_like(weight)
    for i in range(size):
        value = left[:, :, i : i + 1]
        chosen = (value / scale).round().clamp(-most, most) * scale
        error = (value - chosen) / spread[:, i : i + 1, i : i + 1]
        left[:, :, i:] -= error * spread[:, i : i + 1, i:]
        rounded[:, :, i] = chosen[:, :, 0]
    return torch.empty_like(weight).scatter_(2, columns, rounded)
