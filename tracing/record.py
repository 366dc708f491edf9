"""Which module does what to the signal: one run of the model, recorded call by call, without weights or data."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..spiking import Balanced, Neuron
from .calls import SYNAPTIC, tensors_in
from .signals import VIEWS, Call, Kind, Signals, on_meta

BATCH = 2
SUMS = {"sum", "mean"}
"""Functions that make counts of the spikes of one neuron."""


@dataclass(frozen=True)
class Operation:
    """What a module's own ``forward`` did to the signal in one call.

    Attributes:
        module: its name.
        kind: ``weighted`` (a signal meets a matrix of parameters), ``product`` (two signals meet), ``analog`` (a nonlinear
            function), ``scale`` (a signal is multiplied element by element with constants, which fold into the layer before or
            behind) or ``opaque`` (a function that hides a product).
        function: its name.
        macs: multiply-accumulates of the first two kinds, for one image.
        use: number of the call of this module, which the network may call several times.
        call: number among the synaptic calls of this ``forward``.
        operands: positions, among the tensors of the call, of those that depend on the image.
        shapes: of all tensors of the call.
        spikes: positions of those operands that are spikes of membrane neurons, or sums and products of such.
        behind: the module whose own ``forward`` made the first of these operands, if nothing else reads it.
        weight: the parameter, by name, that a weighted operation multiplies with, or with a view of it; empty where it is none.
        weight_axes: of the parameter, those of output channels; none where it is a view that is multiplied with.
    """

    module: str
    kind: Kind
    function: str
    macs: int
    use: int = 0
    call: int = 0
    operands: tuple[int, ...] = ()
    shapes: tuple[torch.Size, ...] = ()
    spikes: tuple[int, ...] = ()
    behind: str = ""
    weight: str = ""
    weight_axes: tuple[int, ...] = ()

    @property
    def driven(self) -> tuple[int, ...]:
        """Positions of the operands that need neurons, if it is synaptic."""
        return tuple(position for position in self.operands if position not in self.spikes) if self.macs else ()


def record(model: nn.Module, input_size: tuple[int, ...]) -> list[Operation]:
    """Every synaptic and nonlinear operation of one forward pass, in order of execution.

    The model is run as a copy on torch's ``meta`` device, which computes shapes only: weights are neither copied nor read.

    Args:
        model: any model of one image tensor.
        input_size: of one image, ``(C, H, W)``.

    Raises:
        ModelError: the model cannot be run on one tensor of that size, or does not keep the images along the first axis of what
            a synaptic operation reads.
    """
    shadow = untied(on_meta(model))
    one, several = (_recorded(shadow, input_size, batch) for batch in (1, BATCH))
    if len(one) != len(several):
        raise ModelError(f"{type(model).__name__} makes other calls for {BATCH} images than for one", "convert a part of it")
    for operation, again in zip(one, several, strict=True):
        for position in operation.operands:
            small, large = operation.shapes[position], again.shapes[position]
            if operation.macs and large != (BATCH * small[0], *small[1:]):
                raise ModelError(
                    f"what {operation.function} in module {operation.module!r} reads has shape {tuple(small)} for one image "
                    f"and {tuple(large)} for {BATCH}: neurons need the images along the first axis",
                    f"write a handler for it, or leave it analog: recipe field ignore = {[operation.module]!r}",
                )
    return one


def _recorded(shadow: nn.Module, input_size: tuple[int, ...], batch: int) -> list[Operation]:
    recorder = _Recorder(shadow)
    dtype = next((p.dtype for p in shadow.parameters()), torch.float32)
    images = torch.empty(batch, *input_size, dtype=dtype, device="meta")
    recorder.mark(images)
    try:
        with recorder, torch.no_grad():
            output = shadow(images)
    except Exception as error:
        raise _not_recorded(shadow, input_size, recorder, error) from error
    if not isinstance(output, Tensor):
        raise ModelError(
            f"{type(shadow).__name__} gives a {type(output).__name__}, and one tensor was expected",
            "convert a model with one output, such as a classifier without features_only",
        )
    return recorder.finished()


def _not_recorded(shadow: nn.Module, input_size: tuple[int, ...], recorder: Signals, error: Exception) -> ModelError:
    """What to say of a model that failed: its input is wrong, or some module looks at values."""
    failed = recorder.stack[-1] if recorder.stack else shadow
    what = f"{type(shadow).__name__} cannot be run on an image of size {tuple(input_size)}: {error}"
    if "meta" in str(error):
        kind = type(failed).__name__
        return ModelError(
            f"{what} (in module {recorder.owner()!r}, {kind})",
            "what it computes depends on values, and conversion knows only shapes: rewrite that part of its forward",
        )
    return ModelError(what, "check the input size; models with several inputs are not supported")


def untied(network: nn.Module) -> nn.Module:
    """Give each place a module of its own where several have the same one, in place; parameters stay shared.

    So two places of one weight have two neurons.
    """
    seen: set[int] = set()
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if id(module) in seen:
            memo: dict[int, Any] = {id(p): p for p in module.parameters()} | {id(b): b for b in module.buffers()}
            network.set_submodule(name, copy.deepcopy(module, memo))
        seen.add(id(module))
    return network


class _Recorder(Signals):
    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.operations: list[Operation] = []
        self.uses: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.makers: dict[int, str] = {}  # of tensors
        self.readers: Counter[int] = Counter()  # of tensors
        self.first: list[int] = []  # of each operation, the first tensor that it reads
        self.held: list[Tensor] = []  # so that no id is used twice
        self.spiking: set[int] = set()  # tensors that are spikes, or sums and products of such
        self.parameters: dict[int, list[str]] = {}
        for name, parameter in network.named_parameters(remove_duplicate=False):
            self.parameters.setdefault(id(parameter), []).append(name)

    def finished(self) -> list[Operation]:
        """The operations, each knowing what it is behind."""
        return [
            operation if self.readers[tensor] == 1 else dataclasses.replace(operation, behind="")
            for operation, tensor in zip(self.operations, self.first, strict=True)
        ]

    def unseen(self, module: nn.Module) -> None:
        if not any(isinstance(running, Neuron) for running in (*self.stack, module)):
            self._note(Operation(self.names[id(module)], "opaque", "a function that torch does not show", 0), None)

    def _note(self, operation: Operation, first: Tensor | None) -> None:
        self.operations.append(operation)
        self.first.append(id(first))

    def enter(self, module: nn.Module, inputs: Any) -> None:
        super().enter(module, inputs)
        self.uses[self.owner()] += 1
        self.calls[self.owner()] = 0

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        super().leave(module, inputs, output)
        if isinstance(module, Balanced):
            self.spiking |= {id(tensor) for tensor in tensors_in([output])}

    def see(self, call: Call, signals: tuple[int, ...]) -> None:
        number = self.calls[self.owner()]
        self.calls[self.owner()] += call.name in SYNAPTIC
        kind = call.kind(len(signals))
        if kind:
            macs = call.macs if kind in ("weighted", "product") else 0
            shapes = tuple(operand.shape for operand in call.operands)
            first = call.operands[signals[0]]
            behind = self.makers.get(id(first), "")
            use = self.uses[self.owner()] - 1
            spikes = tuple(index for index in signals if id(call.operands[index]) in self.spiking)
            weight = self._weight(call, signals) if kind == "weighted" else ("", ())
            self._note(
                Operation(self.owner(), kind, call.name, macs, use, number, signals, shapes, spikes, behind, *weight), first
            )
        self._follow(call)
        self._follow_spikes(call, kind)

    def _weight(self, call: Call, signals: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        """The parameter that a signal meets, by the name that it has in the running module where it has several; its axes."""
        position = next((i for i in call.factors if i not in signals and call.operands[i].ndim > 1), None)
        if position is None:
            return "", ()
        operand = call.operands[position]
        base = operand if operand._base is None else operand._base
        names = self.parameters.get(id(base), [])
        own = [name for name in names if name.startswith(f"{self.owner()}.")]
        return (own or names or [""])[0], call.output_axes(position) if operand is base else ()

    def _follow_spikes(self, call: Call, kind: Kind | None) -> None:
        """What is made of spikes by views, sums, products and common factors are still counts of spikes.

        Of a product one operand is enough: where membrane neurons are, the other one gets some.
        """
        signals = [operand for operand in call.operands if self.is_signal(operand)]
        are = [id(operand) in self.spiking for operand in signals]
        if not any(are) or not (all(are) or kind == "product"):
            return
        constants = [operand for operand in call.operands if not self.is_signal(operand)]
        moved = call.name in VIEWS | SUMS and not constants
        scaled = kind == "scale" and all(operand.numel() == 1 for operand in constants)
        if moved or scaled or kind == "product":
            self.spiking |= {id(tensor) for tensor in tensors_in([call.result])}

    def _follow(self, call: Call) -> None:
        """Note who made a tensor, and how often it is read since."""
        made = tensors_in([call.result])
        self.held += made
        for operand in call.operands if made else ():
            self.readers[id(operand)] += 1
        for tensor in made:
            self.makers[id(tensor)] = self.owner()
            self.readers[id(tensor)] = 0  # also where it was changed in place
