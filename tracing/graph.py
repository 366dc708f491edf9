"""What is made of what in one run of a network: its calls as a graph, on shapes alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .calls import changes_first, tensors_in
from .record import untied
from .signals import Call, Signals, on_meta


@dataclass(frozen=True)
class Node:
    """One call of a torch function on the signal.

    Attributes:
        index: its place in the order of execution.
        function: its name.
        module: whose own ``forward`` makes the call.
        use: number of the call of that module.
        number: among the calls of this function in that ``forward``.
        sources: the nodes that made what it reads, by index; none made the image.
        shapes: of the signals that it reads.
        shape: of what it makes (of the first tensor, where it makes several).
        dim: its argument of that name, where it is a number.
    """

    index: int
    function: str
    module: str
    use: int
    number: int
    sources: tuple[int, ...]
    shapes: tuple[torch.Size, ...]
    shape: torch.Size
    dim: int | None = None


class Graph:
    """The calls of one run in order of execution.

    Args:
        nodes: each after those that made what it reads.
        called: the modules that are called as such, by name; others only hold them.
    """

    def __init__(self, nodes: list[Node], called: Collection[str]) -> None:
        self.nodes = nodes
        self.called = called
        self.readers: list[list[int]] = [[] for _ in nodes]
        self._before: list[int] = []  # of each node, the set of all that it depends on, as bits
        for node in nodes:
            before = 0
            for source in node.sources:
                self.readers[source].append(node.index)
                before |= self._before[source] | (1 << source)
            self._before.append(before)

    def depends(self, later: int, earlier: int) -> bool:
        """Whether one node is made, by way of others, of another."""
        return bool(self._before[later] >> earlier & 1)

    def sources(self, start: int, passes: Callable[[Node], bool]) -> list[Node]:
        """The nearest nodes before ``start`` that do not let pass."""
        return self._nearest(start, passes, lambda node: node.sources)

    def receivers(self, start: int, passes: Callable[[Node], bool]) -> list[Node]:
        """The nearest nodes behind ``start`` that do not let pass."""
        return self._nearest(start, passes, lambda node: self.readers[node.index])

    def _nearest(self, start: int, passes: Callable[[Node], bool], following: Callable[[Node], Iterable[int]]) -> list[Node]:
        found, seen, left = [], set[int](), list(following(self.nodes[start]))
        while left:
            index = left.pop()
            if index in seen:
                continue
            seen.add(index)
            node = self.nodes[index]
            if passes(node):
                left += following(node)
            else:
                found.append(node)
        return sorted(found, key=lambda node: node.index)


def graph(model: nn.Module, input_size: tuple[int, ...]) -> Graph:
    """The graph of ``model`` for an image of ``input_size`` ``(C, H, W)``; see `vit2snn.tracing.record`.

    The model is one that can be recorded. Weights are neither copied nor read.
    """
    shadow = untied(on_meta(model))
    grapher = _Grapher(shadow)
    dtype = next((p.dtype for p in shadow.parameters()), torch.float32)
    images = torch.empty(1, *input_size, dtype=dtype, device="meta")
    grapher.mark(images)
    with grapher, torch.no_grad():
        shadow(images)
    return Graph(grapher.nodes, grapher.uses.keys())


class _Grapher(Signals):
    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.nodes: list[Node] = []
        self.makers: dict[int, int] = {}  # of tensors
        self.held: list[Tensor] = []  # so that no id is used twice
        self.uses: Counter[str] = Counter()
        self.calls: Counter[tuple[str, str]] = Counter()

    def enter(self, module: nn.Module, inputs: Any) -> None:
        super().enter(module, inputs)
        owner = self.owner()
        self.uses[owner] += 1
        for key in [key for key in self.calls if key[0] == owner]:
            del self.calls[key]

    def see(self, call: Call, signals: tuple[int, ...]) -> None:
        owner = self.owner()
        number = self.calls[owner, call.name]
        self.calls[owner, call.name] += 1
        made = tensors_in([call.result]) or (call.operands[:1] if changes_first(call.name) else [])
        read = [operand for operand in call.operands if self.is_signal(operand)]
        if not made or not read:
            return
        index = len(self.nodes)
        sources = tuple(sorted({self.makers[id(tensor)] for tensor in read if id(tensor) in self.makers}))
        shapes = tuple(operand.shape for operand in read)
        self.nodes.append(
            Node(index, call.name, owner, self.uses[owner] - 1, number, sources, shapes, made[0].shape, _dim(call))
        )
        self.held += made
        self.makers |= {id(tensor): index for tensor in made}
        if changes_first(call.name):
            self.makers[id(call.operands[0])] = index


def _dim(call: Call) -> int | None:
    given = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else None)
    return given if isinstance(given, int) else None
