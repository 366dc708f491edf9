"""A second device in make-believe: what it would refuse, and what its host would have to wait for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

READS = {
    Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__,
    Tensor.__contains__, Tensor.__repr__, Tensor.__format__, Tensor.nonzero, Tensor.unique, Tensor.equal, Tensor.allclose,
    Tensor.bincount, Tensor.masked_select, Tensor.is_nonzero, torch.nonzero, torch.unique, torch.equal, torch.allclose,
    torch.bincount, torch.masked_select, torch.is_nonzero,
}  # fmt: skip
"""Functions whose result, or its shape, is told by values."""


class Accelerator(TorchFunctionMode):
    """Refuses what a second device would refuse: operands that lie on both. Counts what its host would wait for.

    What is made without a device lies on the CPU, and what is computed from it; all else on the device. Scalars and indices may
    come from the CPU. Coded neurons compute out of its sight, unless it is entered by `seeing_all`.

    Attributes:
        waits: how often the host had to read what is on the device, or to copy something there, by the name of the function.
    """

    def __init__(self) -> None:
        super().__init__()
        self.on_cpu = WeakTensorKeyDictionary()  # to whether it is data that was given, which has to be copied in any case
        self.waits: Counter[str] = Counter()
        self.counting = True

    def given(self, *tensors: Tensor) -> None:
        """Note data that lie on the CPU: to copy them to the device is nothing that could be spared."""
        for tensor in tensors:
            self.on_cpu[tensor] = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        here = [x for x in inputs if x in self.on_cpu]
        crosses = func in (Tensor.copy_, Tensor.__getitem__, Tensor.__setitem__)
        moves = func is Tensor.to and any(isinstance(x, (torch.device, Tensor)) for x in (*args[1:], *kwargs.values()))
        if not (crosses or moves) and any(x.ndim for x in here) and len(here) < len(inputs):
            raise RuntimeError(f"{getattr(func, '__name__', func)}: operands on the CPU and on the device")
        copies = func is torch.tensor and kwargs.get("device") is not None
        if self.counting and (copies or self._waits(func, args, here, inputs, moves)):
            self.waits[func.__name__] += 1
        output = func(*args, **kwargs)
        if func is Tensor.__iter__:
            output = list(output)
        if moves or func is Tensor.cpu:  # in truth it is on the CPU already, and the same tensor
            output = output.view_as(output)
        made = func in _device_constructors() and kwargs.get("device") is None and not inputs
        kept = bool(here) and len(here) == len(inputs) and not moves and kwargs.get("device") is None
        for x in tree_leaves(output):
            if isinstance(x, Tensor) and (made or kept or func is Tensor.cpu):
                self.on_cpu[x] = kept and all(self.on_cpu[x] for x in here)
        return iter(output) if func is Tensor.__iter__ else output

    def _waits(self, func: Any, args: Any, here: list[Tensor], inputs: list[Tensor], moves: bool) -> bool:
        """Whether the host has to wait for the device before it goes on."""
        if moves:
            return args[0] in self.on_cpu and not self.on_cpu[args[0]] and args[0].numel() > 0
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            index = [x for x in tree_leaves(args[1]) if isinstance(x, Tensor)]
            return args[0] not in self.on_cpu and any(x in self.on_cpu or x.dtype == torch.bool or not x.ndim for x in index)
        is_read = func in READS or (func in (torch.where, Tensor.where) and len(args) == 1)
        return is_read and len(here) < len(inputs)

    @contextmanager
    def seeing_all(self) -> Iterator[None]:
        """Within this context nothing is hidden from it."""
        with patch("torch._C.DisableTorchFunction", nullcontext), self:
            yield
