"""Products of two activations: found in the graph of the module that multiplies, and driven by neurons there.

Only that module is rewritten; its children keep their names, and so does the rest of the network.
"""

from __future__ import annotations

import inspect

from torch import fx, nn

from ..errors import UnsupportedModuleError
from ..spiking import CodedNeuron, SpikingDotProductAttention
from .record import FUSED, WEIGHTED
from .registry import NeuronFactory

MATRIX = {"matmul", "bmm", "mm", "einsum"}
ELEMENTWISE = {"mul", "mul_", "imul", "multiply"}
NOT_REWRITTEN = WEIGHTED | {"baddbmm", "addcmul", "addbmm"}


class _OneModule(fx.Tracer):
    """Traces the ``forward`` of one module; its children are single nodes."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def rewrite_products(module: nn.Module, neuron: NeuronFactory) -> nn.Module:
    """Drive every product of two activations in ``module.forward`` by neurons on both operands.

    Fused attention is opened into product, softmax, product, with neurons on query, key, softmax and value. The attributes
    of ``module`` that its graph does not use are dropped. Arguments of ``forward`` with a default keep that value.

    Raises:
        UnsupportedModuleError: the module cannot be traced, multiplies nothing, or has a synaptic operation of another kind
            in its own ``forward``, such as a functional linear map.
    """
    if hasattr(module, "fused_attn"):
        module.fused_attn = True  # type: ignore[assignment]
    graph = _trace(module)
    signals = _signals(graph)
    operands = {node: [i for i, a in enumerate(node.args) if isinstance(a, fx.Node) and a in signals] for node in graph.nodes}
    fused = [node for node in graph.nodes if _function(node) in FUSED]
    products = [node for node in graph.nodes if _function(node) in MATRIX | ELEMENTWISE and len(operands[node]) > 1]
    others = {_function(node) for node in graph.nodes if operands[node] and _function(node) in NOT_REWRITTEN}
    if others or not fused + products:
        what = f"calls {', '.join(sorted(others))}" if others else "multiplies no two activations"
        raise UnsupportedModuleError(
            f"the forward of {type(module).__name__} {what}, which rewrite_products does not handle",
            f"use a module such as nn.Linear for weights, or write a handler: @vit2snn.converts({type(module).__name__})",
        )
    for index, node in enumerate(fused):
        heads = (-3, -1)
        name = _add(module, "attention", index, SpikingDotProductAttention(
            query=neuron(heads), key=neuron(heads), weights=neuron((-3,)), value=neuron(heads)
        ))  # fmt: skip
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.call_module(name, node.args, node.kwargs))
        graph.erase_node(node)
    for index, node in enumerate(products):
        axes = (-3,) if _function(node) in MATRIX else (-1,)
        for side, position in enumerate(operands[node]):
            name = _add(module, f"operand{side}", index, neuron(axes))
            with graph.inserting_before(node):
                node.update_arg(position, graph.call_module(name, (node.args[position],)))
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


def _function(node: fx.Node) -> str:
    """The name of the function or method that a node calls; empty for other nodes."""
    if node.op == "call_method":
        return str(node.target)
    return getattr(node.target, "__name__", "") if node.op == "call_function" else ""
