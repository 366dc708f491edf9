"""Synaptic operations that are driven by neurons. Apart from the neurons they are the stock modules, with the same keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .time import present_run

M = TypeVar("M", bound=nn.Module)


class SpikingLinear(nn.Linear):
    """``W m + b`` on the decoded value m of a neuron. Input ``[T * B, ..., in]``, output ``[T * B, ..., out]``."""

    neuron: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Run the neuron, then the linear map."""
        return super().forward(self.neuron(input))


class SpikingConv2d(nn.Conv2d):
    """Convolution of the decoded value of a neuron. Input ``[T * B, in, H, W]``, output ``[T * B, out, H', W']``."""

    neuron: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Run the neuron, then the convolution."""
        return super().forward(self.neuron(input))


def driven(kind: type[M], module: nn.Module, neuron: nn.Module) -> M:
    """``module`` as a ``kind`` (a subclass of its type) with a neuron in front; parameters are shared, not copied."""
    spiking = twin(module, kind)
    spiking.neuron = neuron
    return spiking


def twin(module: nn.Module, kind: type[M]) -> M:
    """Another module, of class ``kind``, with the parameters and children of ``module``."""
    other = kind.__new__(kind)
    other.__dict__.update({k: v.copy() if isinstance(v, dict) else v for k, v in module.__dict__.items()})
    return other


class InTurn(nn.Module):
    """Takes the place of a module that is called several times in one pass: each call has a twin, with neurons of its own.

    Attributes that it does not have are those of the first twin.

    Args:
        turns: the twins, in order of the calls.
    """

    def __init__(self, turns: Sequence[nn.Module]) -> None:
        super().__init__()
        self.turns = nn.ModuleList(turns)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.turns[0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the next twin makes of it; each chunk of a run begins with the first.

        Outside of a run, where neurons have to be analog, all twins are the same.
        """
        run = present_run()
        turn = run.calls[self] if run else 0
        if run:
            run.calls[self] = turn + 1
        return self.turns[turn % len(self.turns)](*args, **kwargs)


class DotProductAttention(nn.Module):
    """softmax(q kᵀ · scale + mask) v, step by step; takes the place, and the arguments, of
    `torch.nn.functional.scaled_dot_product_attention`.

    ``softmax`` may be set to another module over the last axis. Shapes: q ``[T * B, h, N, d]``, k ``[T * B, h, M, d]``,
    v ``[T * B, h, M, e]``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.softmax: nn.Module = nn.Softmax(-1)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Attention of shape ``[T * B, h, N, e]``; dropout is not applied (conversion is for inference).

        With ``enable_gqa`` keys and values have fewer heads, each of which serves several of the query.
        """
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = (operand.repeat_interleave(groups, -3) for operand in (key, value))
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        scores = (self._operand("query", query) @ self._operand("key", key).transpose(-2, -1)).mul_(scale)
        if is_causal:
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(future, float("-inf"))
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, float("-inf"))
        elif attn_mask is not None:
            scores = scores + attn_mask
        attended: Tensor = self._operand("weights", self.softmax(scores)) @ self._operand("value", value)
        return attended

    def _operand(self, name: str, x: Tensor) -> Tensor:
        """An operand of one of the two products: ``query``, ``key``, ``weights`` or ``value``."""
        return x


class SpikingDotProductAttention(DotProductAttention):
    """The same with neurons on q, k, v and the softmax's output.

    Both products are synaptic operations on spikes: S[t] = S[t-1] + Δq k[t-1]ᵀ + q[t] Δkᵀ. The softmax is evaluated on the
    decoded scores and stays analog.
    """

    def __init__(self, query: nn.Module, key: nn.Module, weights: nn.Module, value: nn.Module) -> None:
        super().__init__()
        self.query, self.key, self.weights, self.value = query, key, weights, value

    def _operand(self, name: str, x: Tensor) -> Tensor:
        spikes: Tensor = self.get_submodule(name)(x)
        return spikes
