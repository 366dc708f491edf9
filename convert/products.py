"""Products of two activations: found in the graph of the module that multiplies, and driven by neurons there.

Only that module is rewritten; its children keep their names, and so does the rest of the network.
"""

from __future__ import annotations

import inspect
import operator

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..errors import UnsupportedModuleError
from ..spiking import CodedNeuron, SpikingDotProductAttention
from .registry import NeuronFactory

MATRIX = {operator.matmul, torch.matmul, torch.bmm, "matmul", "bmm"}
ELEMENTWISE = {operator.mul, torch.mul, "mul", "mul_"}


class _OneModule(fx.Tracer):
    """Traces the ``forward`` of one module; its children are single nodes."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def rewrite_products(module: nn.Module, neuron: NeuronFactory) -> nn.Module:
    """Drive every product of two activations in ``module.forward`` by neurons on both operands.

    Fused attention is opened into product, softmax, product, with neurons on query, key, softmax and value. The attributes
    of ``module`` that its graph does not use are dropped. Arguments of ``forward`` with a default keep that value.

    Raises:
        UnsupportedModuleError: the module cannot be traced, or holds no product.
    """
    if hasattr(module, "fused_attn"):
        module.fused_attn = True  # type: ignore[assignment]
    graph = _trace(module)
    signals = _signals(graph)
    fused = [n for n in graph.nodes if n.op == "call_function" and n.target is F.scaled_dot_product_attention]
    matrix = [n for n in graph.nodes if n.target in MATRIX and _multiplies_signals(n, signals)]
    elementwise = [n for n in graph.nodes if n.target in ELEMENTWISE and _multiplies_signals(n, signals)]
    if not fused + matrix + elementwise:
        raise UnsupportedModuleError(f"{type(module).__name__} multiplies no two activations in its forward")
    for index, node in enumerate(fused):
        heads = (-3, -1)
        name = _add(module, "attention", index, SpikingDotProductAttention(
            query=neuron(heads), key=neuron(heads), weights=neuron((-3,)), value=neuron(heads)
        ))  # fmt: skip
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.call_module(name, node.args, node.kwargs))
        graph.erase_node(node)
    for index, node in enumerate(matrix + elementwise):
        axes = (-3,) if node in matrix else (-1,)
        for side, operand in enumerate(node.args[:2]):
            name = _add(module, ("left", "right")[side], index, neuron(axes))
            with graph.inserting_before(node):
                node.update_arg(side, graph.call_module(name, (operand,)))
    graph.lint()
    return fx.GraphModule(module, graph, class_name=f"Spiking{type(module).__name__}")


def _add(module: nn.Module, role: str, index: int, child: CodedNeuron | SpikingDotProductAttention) -> str:
    name = f"spiking_{role}" if index == 0 else f"spiking_{role}_{index}"
    module.add_module(name, child)
    return name


def _trace(module: nn.Module) -> fx.Graph:
    """The graph of ``module.forward``, with arguments that have a default fixed to it."""
    parameters = inspect.signature(module.forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    try:
        graph = _OneModule().trace(module, concrete_args=defaults)
    except Exception as error:
        raise UnsupportedModuleError(
            f"{type(module).__name__} cannot be traced: {error}",
            f"write a handler for it: @vit2snn.converts({type(module).__name__})",
        ) from error
    # torch.fx calls a fixed argument NAME_1 and checks its value in the graph: callers know it by its own name.
    for node in list(graph.nodes):
        if node.op == "placeholder" and node.target.removesuffix("_1") in defaults:
            node.target = node.target.removesuffix("_1")
            _erase_users(graph, node)
    return graph


def _erase_users(graph: fx.Graph, node: fx.Node) -> None:
    for user in list(node.users):
        _erase_users(graph, user)
        graph.erase_node(user)


def _signals(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that depend on values of the module's input: not its shape, nor what parameters alone give."""
    signals: set[fx.Node] = set()
    for node in graph.nodes:
        is_shape = node.target == "size" or (node.target is getattr and node.args[1] == "shape")
        if node.op == "placeholder" or (not is_shape and any(operand in signals for operand in node.all_input_nodes)):
            signals.add(node)
    return signals


def _multiplies_signals(node: fx.Node, signals: set[fx.Node]) -> bool:
    operands = node.args[:2]
    return len(operands) == 2 and all(isinstance(operand, fx.Node) and operand in signals for operand in operands)
