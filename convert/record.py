"""Which module does what to the signal: one run of the model, recorded call by call, without weights or data."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from ..errors import ModelError

WEIGHTED = {
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose2d",
    "addmm",
    "bilinear",
    "multi_head_attention_forward",
}
FUSED = {"scaled_dot_product_attention"}
MATRIX = {"matmul", "__matmul__", "__rmatmul__", "bmm", "mm", "baddbmm", "einsum"}
ELEMENTWISE = {"mul", "__mul__", "__rmul__", "mul_", "__imul__", "multiply", "addcmul"}
TRANSFORMS = {
    "layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm", "normalize", "gelu", "relu", "relu_", "relu6",
    "silu", "silu_", "hardswish", "hardsigmoid", "leaky_relu", "elu", "mish", "sigmoid", "sigmoid_", "tanh", "softmax",
    "log_softmax", "exp", "log", "sqrt", "rsqrt", "pow", "max_pool2d", "rfft2", "irfft2",
}  # fmt: skip

Kind = Literal["weighted", "product", "analog", "scale"]


@dataclass(frozen=True)
class Operation:
    """What a module's own ``forward`` did to the signal in one call.

    ``kind`` is ``weighted`` (a signal meets a matrix of parameters), ``product`` (two signals meet), ``analog`` (a nonlinear
    function) or ``scale`` (a signal is multiplied element by element with a constant, which folds into the layer before).
    ``macs`` are the multiply-accumulates of the first two kinds for one image.
    """

    module: str
    kind: Kind
    function: str
    macs: int


def record(model: nn.Module, input_size: tuple[int, ...]) -> list[Operation]:
    """Every synaptic and nonlinear operation of one forward pass, in order of execution.

    The model is run as a copy on torch's ``meta`` device, which computes shapes only: weights are neither copied nor read.

    Args:
        model: any model of one image tensor.
        input_size: of one image, ``(C, H, W)``.

    Raises:
        ModelError: the model cannot be run on one tensor of that size, or uses a synaptic module twice.
    """
    shadow = on_meta(model)
    calls: dict[str, int] = defaultdict(int)
    recorder = _Recorder(shadow, calls)
    with recorder, torch.no_grad():
        dtype = next((p.dtype for p in shadow.parameters()), torch.float32)
        images = torch.empty(1, *input_size, dtype=dtype, device="meta")
        recorder.mark(images)
        try:
            shadow(images)
        except Exception as error:
            raise ModelError(
                f"{type(model).__name__} cannot be run on one image of size {tuple(input_size)}: {error}",
                "check the input size; models with several inputs are not supported",
            ) from error
    for operation in recorder.operations:
        if operation.macs and calls[operation.module] > 1:
            raise ModelError(
                f"module {operation.module!r} is used {calls[operation.module]} times in one pass",
                "a neuron has one state: give each place a module of its own (copy.deepcopy) before converting",
            )
    return recorder.operations


def on_meta(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode on torch's ``meta`` device: it has shapes, and no values."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in model.parameters()}
    memo |= {id(b): b.to("meta") for b in model.buffers()}
    return copy.deepcopy(model, memo).eval()


class Calls(TorchFunctionMode):
    """Sees every call of a torch function within its context."""

    def see(self, name: str, operands: list[Tensor], result: Any) -> None:
        """A function of that name made ``result`` of these tensors."""
        raise NotImplementedError

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        operands = tensors_in([*args, *kwargs.values()])
        result = func(*args, **kwargs)
        self.see(getattr(func, "__name__", ""), operands, result)
        return result


class _Recorder(Calls):
    def __init__(self, model: nn.Module, calls: dict[str, int]) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.calls = calls
        self.names = {id(module): name for name, module in model.named_modules()}
        self.stack: list[str] = []
        self.signals: dict[int, Tensor] = {}  # the tensors are held so that no id is used twice
        self.handles: list[RemovableHandle] = []
        for module in model.modules():
            self.handles.append(module.register_forward_pre_hook(self._enter))
            self.handles.append(module.register_forward_hook(self._leave))

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        name = self.names[id(module)]
        self.stack.append(name)
        self.calls[name] += 1

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.stack.pop()
        # A custom autograd function, such as that of a neuron, is not seen by this mode.
        if any(id(tensor) in self.signals for tensor in tensors_in(inputs)):
            self.mark(output)

    def mark(self, value: Any) -> None:
        """Note tensors as depending on the image."""
        for tensor in tensors_in([value]):
            self.signals[id(tensor)] = tensor

    def see(self, name: str, operands: list[Tensor], result: Any) -> None:
        """Follow signals, and note what is done to them."""
        signals = sum(id(operand) in self.signals for operand in operands)
        if signals:
            self.mark(result)
        if signals or name in WEIGHTED | FUSED:
            self._note(name, operands, result, signals)

    def _note(self, name: str, operands: list[Tensor], result: Any, signals: int) -> None:
        kind: Kind
        if name in FUSED or (name in MATRIX | ELEMENTWISE and signals > 1):
            kind = "product"
        elif name in WEIGHTED or name in MATRIX:
            kind = "weighted"
        elif name in TRANSFORMS | ELEMENTWISE:
            kind = "analog" if name in TRANSFORMS else "scale"
        else:
            return
        module = self.stack[-1] if self.stack else ""
        macs = count_macs(name, operands, result) if kind in ("weighted", "product") else 0
        self.operations.append(Operation(module, kind, name.strip("_"), macs))

    def __exit__(self, *exception: Any) -> None:
        for handle in self.handles:
            handle.remove()
        super().__exit__(*exception)  # type: ignore[no-untyped-call]


def count_macs(name: str, operands: list[Tensor], result: Tensor) -> int:
    """Multiply-accumulates of one call of a synaptic operation, for one image."""
    first, second = operands[0], operands[1]
    if name == "scaled_dot_product_attention":
        value = operands[2]
        return math.prod(first.shape[:-1]) * second.shape[-2] * (first.shape[-1] + value.shape[-1])
    if name.startswith("conv"):
        return result.numel() * second[0].numel()
    if name in ELEMENTWISE:
        return result.numel()
    return result.numel() * first.shape[-1]


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among ``values`` and in lists and tuples among them."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += tensors_in(value)
    return found
