"""NIR graphs as they are built: nodes, what they add up to, and linear maps that wait to be folded into one.

All signals are maps ``[C, H, W]`` of one image, without a batch axis, as NIR has them. A linear layer on tokens is a 1x1
convolution. Only nodes are written that the simulators read alike: Conv2d of one group, SumPool2d of a whole map, LIF and IF.
Grouped convolutions are not among them: NIR 1.0.8 itself takes the second axis of their weights for the channels of their
input, and so do Norse, snnTorch and sinabs. So they are written out, with zeros, which cost a chip nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ...errors import ExportError

if TYPE_CHECKING:
    import nir

Array = npt.NDArray[np.float64]
Shape = tuple[int, int, int]
INPUT, OUTPUT = "input", "output"


def installed() -> Any:
    """The package `nir`.

    Raises:
        ExportError: it is not installed.
    """
    try:
        import nir
    except ModuleNotFoundError:
        raise ExportError("the package nir, which writes such graphs, is not installed", "pip install 'vit2snn[nir]'") from None
    return nir


class Signal(NamedTuple):
    """``scale`` times the sum of what some nodes put out.

    Attributes:
        sources: names of nodes.
        shape: ``[C, H, W]``.
        scale: folds into whatever receives the signal.
    """

    sources: tuple[str, ...]
    shape: Shape
    scale: float = 1.0


class Term(NamedTuple):
    """A convolution of the sum of what some nodes put out: weight ``[C, C', h, w]``."""

    sources: tuple[str, ...]
    weight: Array
    stride: int = 1
    padding: tuple[int, int] = (0, 0)


class Current(NamedTuple):
    """A sum of convolutions and a bias ``[C]``, of which no node has been written yet."""

    terms: tuple[Term, ...]
    bias: Array
    shape: Shape

    def scaled(self, gain: Array | float, offset: Array | float = 0.0) -> Current:
        """gain ⊙ x + offset, a number for each channel."""
        gains = np.broadcast_to(gain, self.bias.shape)
        terms = tuple(term._replace(weight=term.weight * gains[:, None, None, None]) for term in self.terms)
        return Current(terms, self.bias * gains + offset, self.shape)

    def part(self, start: int, stop: int) -> Current:
        """Some of its channels."""
        terms = tuple(term._replace(weight=term.weight[start:stop]) for term in self.terms)
        return Current(terms, self.bias[start:stop], (stop - start, *self.shape[1:]))

    def plus(self, other: Current | Signal) -> Current:
        """The sum of both."""
        added = as_current(other)
        assert added.shape == self.shape, (added.shape, self.shape)
        return Current(self.terms + added.terms, self.bias + added.bias, self.shape)


def convolved(
    x: Signal, weight: Array, bias: Array | None = None, stride: int = 1, padding: tuple[int, int] = (0, 0)
) -> Current:
    """A convolution of one group, with weight ``[C, C', h, w]``."""
    kernel = weight.shape[2:]
    sizes = zip(x.shape[1:], padding, kernel, strict=True)
    height, width = ((side + 2 * pad - size) // stride + 1 for side, pad, size in sizes)
    term = Term(x.sources, weight * x.scale, stride, padding)
    return Current((term,), np.zeros(len(weight)) if bias is None else bias, (len(weight), height, width))


def as_current(x: Signal | Current) -> Current:
    """The same, to be added to others."""
    return x if isinstance(x, Current) else convolved(x, pointwise(np.eye(x.shape[0])))


def pointwise(weight: Array) -> Array:
    """The weight ``[C, C']`` of a linear map of tokens as that of a 1x1 convolution."""
    return weight[:, :, None, None]


def ungrouped(weight: Array, groups: int) -> Array:
    """The weight ``[C, C' / groups, h, w]`` of a grouped convolution as that of one group, with zeros."""
    outputs, inputs = len(weight) // groups, weight.shape[1]
    whole = np.zeros((len(weight), inputs * groups, *weight.shape[2:]))
    for group in range(groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        whole[rows, group * inputs : (group + 1) * inputs] = weight[rows]
    return whole


def numbers(x: Tensor) -> Array:
    """A parameter in the precision in which maps are folded."""
    return x.detach().cpu().to(torch.float64).numpy()


def refused(name: str, module: nn.Module | None, why: str, hint: str) -> ExportError:
    """The error for what NIR cannot say."""
    kind = f" ({type(module).__name__})" if module is not None else ""
    return ExportError(f"module {name!r}{kind} cannot be said in NIR: {why}", hint)


class Builder:
    """Writes nodes and edges. Their names are those of our modules, with what they are for behind them.

    Args:
        shape: of one image, ``[C, H, W]``.

    Attributes:
        image: what the input node puts out.
    """

    def __init__(self, shape: Shape) -> None:
        self.nir = installed()
        self.nodes: dict[str, nir.NIRNode] = {INPUT: self.nir.Input(input_type={"input": np.array(shape)})}
        self.edges: list[tuple[str, str]] = []
        self.image = Signal((INPUT,), shape)

    def add(self, name: str, sources: tuple[str, ...], node: nir.NIRNode) -> None:
        """A node, and an edge from each of its sources: what comes in is added up."""
        assert name not in self.nodes, name
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]

    def realise(self, name: str, x: Signal | Current) -> Signal:
        """The nodes that put out a current: a convolution for each of its terms that changes something."""
        current, bias, sources = as_current(x), as_current(x).bias, list[str]()
        for index, term in enumerate(current.terms):
            if not bias.any() and _is_identity(term):
                sources += term.sources
                continue
            node = f"{name}.{index}" if index else name
            self.add(node, term.sources, self._convolution(term, bias))
            sources.append(node)
            bias = np.zeros_like(bias)
        return Signal(tuple(sources), current.shape)

    def summed(self, name: str, x: Signal) -> Signal:
        """The sum over a whole map, ``[C, 1, 1]``."""
        size = np.array(x.shape[1:])
        if (size == 1).all():
            return x
        self.add(name, x.sources, self.nir.SumPool2d(kernel_size=size, stride=size, padding=np.array([0, 0])))
        return Signal((name,), (x.shape[0], 1, 1), x.scale)

    def spread(self, name: str, x: Signal, height: int, width: int) -> Current:
        """``[C, 1, 1]`` on all positions of a map: along columns first, and then along rows, which takes fewer weights."""
        eye = np.eye(x.shape[0])[:, :, None, None]
        if height == width == 1:
            return as_current(x)
        column = self.realise(name, convolved(x, np.repeat(eye, height, 2), padding=(height - 1, 0)))
        return convolved(column, np.repeat(eye, width, 3), padding=(0, width - 1))

    def graph(self, output: Current) -> nir.NIRGraph:
        """The whole graph, whose output is that current."""
        last = self.realise("head", output)
        self.add(OUTPUT, last.sources, self.nir.Output(output_type={"output": np.array(last.shape)}))
        read = {OUTPUT}
        for source, target in reversed(self.edges):  # nobody reads what becomes of a class token behind the last attention
            read |= {source} if target in read else set()
        nodes = {name: node for name, node in self.nodes.items() if name in read}
        return self.nir.NIRGraph(nodes, [edge for edge in self.edges if edge[1] in read])

    def _convolution(self, term: Term, bias: Array) -> nir.NIRNode:
        return self.nir.Conv2d(
            input_shape=None, weight=term.weight.astype(np.float32), stride=term.stride, padding=term.padding, dilation=1,
            groups=1, bias=bias.astype(np.float32),
        )  # fmt: skip


def _is_identity(term: Term) -> bool:
    outputs, inputs, *kernel = term.weight.shape
    return outputs == inputs and kernel == [1, 1] and bool((term.weight[:, :, 0, 0] == np.eye(outputs)).all())
