"""What depends on the image: signals, followed through a network call by call, and what each call does to them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from .calls import ELEMENTWISE, FUSED, MATRIX, SYNAPTIC, WEIGHTED, Calls, function_name, tensors_in

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

AHEAD = "seen_ahead"
"""See `vit2snn.tracing.wavefront`."""

VIEWS = {
    "transpose", "permute", "reshape", "view", "flatten", "unflatten", "contiguous", "squeeze", "unsqueeze", "expand",
    "dropout", "getitem", "roll", AHEAD,
}  # fmt: skip
"""Functions that only move spikes."""

ADDS_FIRST = {"baddbmm", "addcmul", "addmm"}
"""Functions whose first tensor is only added."""

Kind = Literal["weighted", "product", "analog", "scale", "opaque"]


@dataclass(frozen=True)
class Call:
    """A call of a torch function: its name, its arguments, all tensors among them, and what it made."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
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
    def is_constant(self) -> bool:
        """Whether it makes the same of everything: a layer norm over a single value makes its bias."""
        if self.name != "layer_norm":
            return False
        shape: Iterable[int] = self.args[1] if len(self.args) > 1 else self.kwargs["normalized_shape"]
        return math.prod(shape) == 1

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

    def output_axes(self, position: int) -> tuple[int, ...]:
        """The axes of a matrix, the operand at that position, along which the channels of the result lie; none if unknown."""
        if self.name == "linear" or (self.name.startswith("conv") and "transpose" not in self.name):
            return (0,)
        if self.name in ("matmul", "mm"):
            return (self.operands[position].ndim - (2 if position == 0 else 1),)
        if self.name == "einsum" and "." not in self.args[0]:
            terms = self.args[0].replace(" ", "").split("->")[0].split(",")
            met = "".join(term for index, term in enumerate(terms) if index != position)
            return tuple(axis for axis, letter in enumerate(terms[position]) if letter not in met)
        return (1,) if self.name == "addmm" else ()


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


def on_meta(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode on torch's ``meta`` device: it has shapes, and no values."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in model.parameters()}
    memo |= {id(b): b.to("meta") for b in model.buffers()}
    return copy.deepcopy(model, memo).eval()


class Signals(Calls):
    """Follows what depends on the image through a network.

    What is known of a tensor is kept in an attribute of it, so it lives no longer than the tensor does.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.names = {id(module): name for name, module in network.named_modules()}
        self.constant = {id(tensor) for tensor in (*network.parameters(), *network.buffers())}

    def mark(self, value: Any, signal: bool = True) -> None:
        """Note tensors as depending on the image, or as not depending on it."""
        for tensor in tensors_in([value]):
            tensor.is_signal = signal  # type: ignore[attr-defined]

    def is_signal(self, tensor: Tensor) -> bool:
        """Whether it depends on the image."""
        return getattr(tensor, "is_signal", False)

    def owner(self) -> str:
        """The module whose own ``forward`` is running; the network itself where that is none of its own."""
        return self.names.get(id(self.stack[-1]), "") if self.stack else ""

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """A module returns; what it made without a function that this mode sees depends on what went in."""
        super().leave(module, inputs, output)
        found = tensors_in([output])
        unseen = [tensor for tensor in found if not hasattr(tensor, "is_signal") and id(tensor) not in self.constant]
        if unseen and any(self.is_signal(tensor) for tensor in tensors_in([inputs])):
            self.mark(unseen)
            self.unseen(module)

    def unseen(self, module: nn.Module) -> None:
        """Called for a module with outputs that no function seen by this mode made: recurrent layers, custom autograd."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name, operands = function_name(func), tensors_in([args, kwargs])
        call = Call(name, args, kwargs, operands, self.compute(partial(func, *args, **kwargs), name, operands))
        result = call.result
        depends = not call.is_constant and any(map(self.is_signal, operands))
        if depends and call.name in ("setitem", "copy_"):
            self.mark(operands[0])
        else:
            self.mark(result, depends)
        factors = () if call.is_constant else call.factors
        self.see(call, tuple(index for index in factors if self.is_signal(operands[index])))
        return result

    def compute(self, call: partial[Any], name: str, operands: list[Tensor]) -> Any:
        """What the call of that name and of these tensors gives: a subclass may do it in another way."""
        return call()

    def see(self, call: Call, signals: tuple[int, ...]) -> None:
        """A function was called; ``signals`` are the positions of the factors that depend on the image."""
        raise NotImplementedError
