"""Which module does what to the signal: one run of the model, recorded call by call, without weights or data."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..spiking import Neuron
from ..spiking.calls import ELEMENTWISE, FUSED, MATRIX, SYNAPTIC, WEIGHTED, Calls, function_name, tensors_in

TRANSFORMS = {
    "layer_norm", "rms_norm", "group_norm", "instance_norm", "local_response_norm", "normalize", "norm", "softmax",
    "log_softmax", "gelu", "relu", "relu6", "hardtanh", "silu", "hardswish", "hardsigmoid", "leaky_relu", "elu", "celu",
    "selu", "mish", "softplus", "prelu", "sigmoid", "tanh", "exp", "log", "sqrt", "rsqrt", "pow", "square", "reciprocal",
    "abs", "erf", "sin", "cos", "clamp", "maximum", "minimum", "max", "min", "amax", "amin", "std", "var", "var_mean",
    "topk", "sort", "argmax", "max_pool1d", "max_pool2d", "adaptive_max_pool2d",
}  # fmt: skip
DIVISIONS = {"div", "truediv", "rtruediv", "itruediv", "true_divide"}
OPAQUE = {
    "multi_head_attention_forward", "bilinear", "glu", "grid_sample", "rfft2", "irfft2", "fft2", "ifft2", "rfft", "irfft",
    "lerp", "addbmm", "mul_", "cumprod", "prod", "lstm", "gru", "rnn_tanh", "rnn_relu",
}  # fmt: skip
"""Functions that multiply signals and that no neuron can be put in front of from outside."""

ADDS_FIRST = {"baddbmm", "addcmul", "addmm"}
"""Functions whose first tensor is only added."""

BATCH = 2
Kind = Literal["weighted", "product", "analog", "scale", "opaque"]


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
        behind: the module whose own ``forward`` made the first of these operands, if nothing else reads it.
    """

    module: str
    kind: Kind
    function: str
    macs: int
    use: int = 0
    call: int = 0
    operands: tuple[int, ...] = ()
    shapes: tuple[torch.Size, ...] = ()
    behind: str = ""


@dataclass(frozen=True)
class Call:
    """A call of a torch function: its name, its arguments by position, all tensors among its arguments, and what it made."""

    name: str
    args: tuple[Any, ...]
    operands: list[Tensor]
    result: Any

    @property
    def factors(self) -> range:
        """The positions of operands that are not just added."""
        return range(1 if self.name in ADDS_FIRST else 0, len(self.operands))

    def kind(self, signals: int) -> Kind | None:
        """What it does where so many factors are signals; None where it only moves or adds."""
        if not signals or (self.name == "einsum" and len(self.operands) == 1):
            return None
        if ":" in self.name or (self.name in OPAQUE and (signals > 1 or self.name not in ELEMENTWISE)):
            return "opaque"
        if self.name in SYNAPTIC and signals > 1:
            several = self.name == "einsum" and len(self.operands) > 2
            return "opaque" if self.name in WEIGHTED or several else "product"
        if self.name in WEIGHTED | MATRIX | FUSED:
            return "weighted"
        name = self.name.removesuffix("_")  # of functions that work in place
        if name in TRANSFORMS or (name in DIVISIONS and signals > 1):
            return "analog"
        return "scale" if name in ELEMENTWISE | DIVISIONS | {"batch_norm"} else None

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a synaptic operation, for all images in it."""
        first, second = (self.operands[index] for index in self.factors[:2])
        if self.name in FUSED:
            value = self.operands[2]
            return math.prod(first.shape[:-1]) * second.shape[-2] * (first.shape[-1] + value.shape[-1])
        if self.name == "conv_transpose2d":
            return first.numel() * second[0].numel()
        if self.name.startswith("conv"):
            return int(self.result.numel()) * second[0].numel()
        if self.name in ELEMENTWISE:
            return int(self.result.numel())
        if self.name == "einsum":
            return _einsum_macs(self.args[0], self.operands)
        return int(self.result.numel()) * (second if self.name == "rmatmul" else first).shape[-1]


def _einsum_macs(equation: str, operands: Iterable[Tensor]) -> int:
    """The product of the sizes of all indices; those of an ellipsis are counted from the right."""
    sizes: dict[str | int, int] = {}
    for term, operand in zip(equation.replace(" ", "").split("->")[0].split(","), operands, strict=True):
        before, dots, after = term.partition("...")
        hidden = operand.ndim - len(before) - len(after)
        indices = [*before, *(range(-hidden, 0) if dots else ()), *after]
        for index, size in zip(indices, operand.shape, strict=True):
            sizes[index] = max(size, sizes.get(index, 1))
    return math.prod(sizes.values())


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


def on_meta(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode on torch's ``meta`` device: it has shapes, and no values."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in model.parameters()}
    memo |= {id(b): b.to("meta") for b in model.buffers()}
    return copy.deepcopy(model, memo).eval()


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


class Signals(Calls):
    """Follows what depends on the image through a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.names = {id(module): name for name, module in network.named_modules()}
        self.constant = {id(tensor) for tensor in (*network.parameters(), *network.buffers())}
        self.signals: set[int] = set()
        self.held: list[Any] = []  # so that no id is used twice

    def mark(self, value: Any) -> None:
        """Note tensors as depending on the image."""
        found = tensors_in([value])
        self.held += found
        self.signals |= {id(tensor) for tensor in found}

    def is_signal(self, tensor: Tensor) -> bool:
        """Whether it depends on the image."""
        return id(tensor) in self.signals

    def owner(self) -> str:
        """The module whose own ``forward`` is running."""
        return self.names[id(self.stack[-1])] if self.stack else ""

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """A module returns; what it made without a function that this mode sees depends on what went in."""
        super().leave(module, inputs, output)
        found = tensors_in([output])
        unseen = [tensor for tensor in found if not self.is_signal(tensor) and id(tensor) not in self.constant]
        if unseen and any(self.is_signal(tensor) for tensor in tensors_in([inputs])):
            self.mark(unseen)
            self.unseen(module)

    def unseen(self, module: nn.Module) -> None:
        """Called for a module with outputs that no function seen by this mode made: recurrent layers, custom autograd."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        call = Call(function_name(func), args, tensors_in([args, kwargs]), func(*args, **kwargs))
        operands, result = call.operands, call.result
        depends = any(map(self.is_signal, operands))
        if depends and call.name in ("setitem", "copy_"):
            self.mark(operands[0])
        elif depends:
            self.mark(result)
        else:
            found = tensors_in([result])
            self.held += found
            self.constant |= {id(tensor) for tensor in found}
        self.see(call, tuple(index for index in call.factors if self.is_signal(operands[index])))
        return result

    def see(self, call: Call, signals: tuple[int, ...]) -> None:
        """A function was called; ``signals`` are the positions of the factors that depend on the image."""
        raise NotImplementedError


class _Recorder(Signals):
    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.operations: list[Operation] = []
        self.uses: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.makers: dict[int, str] = {}  # of tensors
        self.readers: Counter[int] = Counter()  # of tensors
        self.first: list[int] = []  # of each operation, the first tensor that it reads

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
            self._note(Operation(self.owner(), kind, call.name, macs, use, number, signals, shapes, behind), first)
        self._follow(call)

    def _follow(self, call: Call) -> None:
        """Note who made a tensor, and how often it is read since."""
        made = tensors_in([call.result])
        for operand in call.operands if made else ():
            self.readers[id(operand)] += 1
        for tensor in made:
            self.makers[id(tensor)] = self.owner()
            self.readers[id(tensor)] = 0  # also where it was changed in place
