"""What a network is made of, whatever its family: attention, activation functions and norms, and the blocks that they lie in.

All of it is found in the calls that one run makes, on shapes alone (see `vit2snn.tracing.graph`):

* attention is a softmax whose weights meet another signal in a product, fused or not; where its scores come from, and what
  scales, biases, masks or mixes them in between, does not matter;
* an activation function is a call of one, or a module without weights that multiplies functions of what it reads;
* a norm is a module of a class that normalises over channels;
* a block is a module whose own ``forward`` adds to a stream what it has computed of it, x + f(x), or g(x) + f(x); or, around
  an activation function in none, such as in a stem, the outermost module that has no block in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import timm.layers as tl
from torch import nn

from ..tracing import Graph, Node, graph
from ..tracing.calls import ELEMENTWISE, FUSED, MATRIX
from ..tracing.signals import VIEWS
from .registry import handler_for

Role = Literal["attention", "mlp", "norm"]
ACTIVATIONS = {"gelu", "silu", "hardswish", "mish", "elu", "softplus"}
"""Functions of perceptrons and between convolutions that are no lines already, as a ReLU is."""
SUMS = {"add", "iadd", "add_", "radd"}
POWERS = {"pow", "square"}
BY_VALUE = ELEMENTWISE | POWERS | SUMS | {
    "sub", "rsub", "div", "truediv", "neg", "clamp", "relu", "relu6", "hardtanh", "sigmoid", "hardsigmoid", "tanh", "exp",
}  # fmt: skip
"""Calls that a module which is an activation function is made of, beside `ACTIVATIONS`."""
CHANNELS_FIRST = (tl.LayerNorm2d, tl.RmsNorm2d, tl.SimpleNorm2d)
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, tl.RmsNorm, tl.SimpleNorm, *CHANNELS_FIRST)


@dataclass(frozen=True)
class Function:
    """A function of a network that a substitute may take the place of.

    Attributes:
        role: what it is for.
        module: the module whose ``forward`` calls it, or that is it.
        function: its name; empty of a norm, which is a module.
        number: among the calls of this function in that ``forward``.
        whole: whether the module does nothing else, so that another one may take its place.
        dim: the axis of keys of a softmax, or of channels of a norm.
        shape: of what it reads, of one image.
        index: its place in the order of execution.
    """

    role: Role
    module: str
    function: str
    number: int
    whole: bool
    dim: int
    shape: tuple[int, ...]
    index: int


@dataclass(frozen=True)
class Part:
    """A block, or what lies in none: its name, and its functions in order of execution."""

    name: str
    functions: tuple[Function, ...]
    is_block: bool = True

    def has(self, role: Role) -> bool:
        """Whether some function has that role."""
        return any(function.role == role for function in self.functions)


@dataclass(frozen=True)
class Anatomy:
    """Of a network.

    Attributes:
        blocks: in order of execution, those that have some function.
        loose: the norms in no block.
        left: what nothing takes the place of, by module: a softmax that weighs nothing or lies in no block, what is called
            several times in a run, and what a handler converts.
    """

    blocks: tuple[Part, ...]
    loose: tuple[Function, ...]
    left: tuple[str, ...]


def anatomy(model: nn.Module, input_size: tuple[int, ...]) -> Anatomy:
    """Of a model for images of ``input_size`` ``(C, H, W)``, whose `torch.nn.MultiheadAttention` is open."""
    calls = graph(model, input_size)
    modules = dict(model.named_modules(remove_duplicate=False))
    found, left = _functions(calls, modules)
    adding = _adding(calls)
    attentions = [function.module for function in found if function.role == "attention"]
    around = {function: _block(function.module, adding, attentions) for function in found}
    blocks = set(around.values()) - {""}
    others = {
        _segment(function.module, blocks, calls.called)
        for function, block in around.items()
        if not block and function.role == "mlp"
    }
    inside: dict[str, list[Function]] = {}
    for function, block in around.items():
        segment = next((name for name in others - {""} if _is_within(function.module, name)), "")
        inside.setdefault(block or segment, []).append(function)
    loose = tuple(inside.pop("", []))
    left += [function.module for function in loose if function.role != "norm"]
    norms = tuple(function for function in loose if function.role == "norm")
    return Anatomy(tuple(Part(name, tuple(functions)) for name, functions in inside.items()), norms, tuple(left))


def _functions(calls: Graph, modules: dict[str, nn.Module]) -> tuple[list[Function], list[str]]:
    """All functions in order of execution, and the names of modules in which one is left."""
    repeated = {node.module for node in calls.nodes if node.use}
    each = Counter(node.module for node in calls.nodes)
    activations = _activations(calls, modules)
    found, left, done = list[Function](), dict[str, None](), set[str]()
    for node in calls.nodes:
        name = activations.get(node.module, node.module)
        module = modules[name]
        role = "mlp" if node.module in activations else _role(node, module)
        if role is None or node.use or name in done:
            continue
        axis = _channel_axis(module, node.shapes[0]) if role == "norm" else -1 if node.dim is None else node.dim
        is_kept = role == "attention" and not _weighs(calls, node)
        if name in repeated or handler_for(module) or is_kept or axis is None:
            left[name] = None
            continue
        if role == "norm" or node.module in activations:
            done.add(name)
        whole = name in done or (each[name] == 1 and not list(module.children()))
        function = "" if role == "norm" else node.function
        found.append(Function(role, name, function, node.number, whole, axis, tuple(node.shapes[0]), node.index))
    return found, list(left)


def _activations(calls: Graph, modules: dict[str, nn.Module]) -> dict[str, str]:
    """Of each module that is an activation function or part of one, the name of the whole."""
    within: dict[str, list[Node]] = {}
    for node in calls.nodes:
        parts = node.module.split(".")
        for depth in range(1, len(parts) + 1):
            within.setdefault(".".join(parts[:depth]), []).append(node)
    wholes = {
        tuple(node.index for node in nodes): name  # of modules that make the same calls, the innermost
        for name, nodes in within.items()
        if name and _is_activation(modules[name], nodes)
    }
    found: dict[str, str] = {}
    for name in sorted(wholes.values(), key=len):
        found |= {other: name for other in within if other not in found and _is_within(other, name)}
    return found


def _is_activation(module: nn.Module, nodes: Sequence[Node]) -> bool:
    """Whether a module, by the calls in it, is a function of each value that no line gives."""
    own = {node.index for node in nodes}
    names = {node.function.removesuffix("_") for node in nodes}
    multiplies = any(node.function in ELEMENTWISE and len(node.shapes) > 1 for node in nodes)
    return (
        all(parameter.numel() == 1 for parameter in module.parameters())
        and names <= BY_VALUE | ACTIVATIONS
        and len({source for node in nodes for source in node.sources} - own) <= 1
        and all(node.shape == nodes[0].shape for node in nodes)
        and (multiplies or bool(names & (POWERS | ACTIVATIONS)))
    )


def _role(node: Node, module: nn.Module) -> Role | None:
    """What a call is for, if it is one of a function that is looked for."""
    if isinstance(module, NORMS) and not list(module.children()):
        return "norm"
    if node.function in FUSED | {"softmax"}:
        return "attention"
    return "mlp" if node.function.removesuffix("_") in ACTIVATIONS else None


def _channel_axis(module: nn.Module, shape: Sequence[int]) -> int | None:
    """Of a norm, for an input of that shape; None if it normalises over something else."""
    if isinstance(module, nn.GroupNorm):
        return 1 if module.num_groups == 1 and len(shape) > 2 else None
    axis = 1 if isinstance(module, CHANNELS_FIRST) else -1
    sizes = tuple(module.normalized_shape)  # type: ignore[arg-type]
    return axis if sizes == (shape[axis],) else None


def _weighs(calls: Graph, node: Node) -> bool:
    """Whether the weights that a softmax gives meet another signal in a product."""
    if node.function in FUSED:
        return True

    def is_product(other: Node) -> bool:
        return other.function in MATRIX | ELEMENTWISE and len(other.shapes) > 1

    def passes(other: Node) -> bool:
        return not is_product(other) and (other.function in VIEWS or other.shape.numel() == node.shape.numel())

    return any(map(is_product, calls.receivers(node.index, passes)))


def _adding(calls: Graph) -> set[str]:
    """The modules, but for the whole, whose own ``forward`` adds x and what is made of it, or two things made of x."""
    found = set()
    for node in calls.nodes:
        if node.module and node.function in SUMS and len(node.sources) == 2:
            first, second = node.sources
            if (
                _is_made_of(calls, second, first)
                or _is_made_of(calls, first, second)
                or _reads(calls, node.module, first) & _reads(calls, node.module, second)
            ):
                found.add(node.module)
    return found


def _reads(calls: Graph, module: str, start: int) -> set[int]:
    """The nodes outside of a module that one in it is made of."""
    nodes = calls.nodes
    if not _is_within(nodes[start].module, module):
        return {start}
    return {node.index for node in calls.sources(start, lambda node: _is_within(node.module, module))}


def _is_within(name: str, module: str) -> bool:
    return f"{name}.".startswith(f"{module}.")


def _is_made_of(calls: Graph, later: int, earlier: int) -> bool:
    """Whether a node is made of another one, or of what that one is a view of: of one token, the others too."""
    is_view = calls.nodes[earlier].function in VIEWS
    whole = calls.sources(earlier, lambda node: node.function in VIEWS) if is_view else [calls.nodes[earlier]]
    return any(calls.depends(later, node.index) for node in whole)


def _block(name: str, adding: set[str], attentions: Sequence[str]) -> str:
    """The block that a module is in; empty if it is in none.

    It is the innermost module around that adds, or one around that which adds no more attention than there is in it: attention
    itself may add its queries to what it gives, and is no block by that.
    """

    def inside(block: str) -> int:
        return sum(_is_within(attention, block) for attention in attentions)

    parts = name.split(".")
    around = [".".join(parts[:depth]) for depth in range(len(parts), 0, -1)]
    blocks = [block for block in around if block in adding]
    return next((block for block in reversed(blocks) if inside(block) <= max(inside(blocks[0]), 1)), "")


def _segment(name: str, blocks: set[str], called: Collection[str]) -> str:
    """The outermost module around another one, of those that are called, that has no block in it; empty if there is none."""
    parts = name.split(".")
    around = [".".join(parts[:depth]) for depth in range(1, len(parts))]
    apart = (outer for outer in around if not any(_is_within(block, outer) for block in blocks))
    return next((outer for outer in apart if outer in called), "")
