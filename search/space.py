"""What is searched: architectures as genes, and the spaces that they are drawn from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Any

from ..errors import ModelError
from ..spiking.branches import find
from ..zoo.frames import FRAMES


@dataclass(frozen=True)
class Architecture:
    """The genes of a model of `vit2snn.zoo.AutoST`.

    Attributes:
        dim: channels of the last stage.
        depths: blocks of each stage.
        attention: kind of each block.
        num_heads: of each block.
        mlp_ratios: of each block.
        timesteps: T.
    """

    dim: int
    depths: tuple[int, ...]
    attention: tuple[str, ...]
    num_heads: tuple[int, ...]
    mlp_ratios: tuple[float, ...]
    timesteps: int

    @property
    def depth(self) -> int:
        """Blocks of all stages."""
        return sum(self.depths)

    def to_json(self) -> dict[str, Any]:
        """A dictionary that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Architecture:
        """The inverse of `to_json`.

        Raises:
            ModelError: the fields are not those of an architecture.
        """
        try:
            genes: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in fields.items()}
            return cls(**genes)
        except (TypeError, AttributeError) as error:
            raise ModelError(f"{fields!r} is no architecture: {error}", "search again") from error


@dataclass(frozen=True)
class Task:
    """The images that a model is for.

    Attributes:
        size: height and width.
        in_chans: channels.
        num_classes: classes.
        stem: the stem of frames for images of this size: ``imagenet``, ``cifar`` or ``dvs``.
    """

    size: int
    in_chans: int
    num_classes: int
    stem: str


TASKS: dict[str, Task] = {
    "cifar10": Task(32, 3, 10, "cifar"),
    "cifar100": Task(32, 3, 100, "cifar"),
    "imagenet": Task(224, 3, 1000, "imagenet"),
    "cifar10dvs": Task(128, 2, 10, "dvs"),
}
"""Tasks by name."""


@dataclass(frozen=True)
class Space:
    """The values that genes may take.

    Attributes:
        frame: a name in `vit2snn.zoo.frames.FRAMES`.
        dims: widths of the last stage.
        depths: the fewest and the most blocks of each stage.
        mlp_ratios: of each block.
        num_heads: of each block.
        attention: kinds of each block, names in `vit2snn.spiking.branches`.
        timesteps: T.
        neuron: of all models.

    Raises:
        ModelError: there is no such kind of attention.
    """

    frame: str
    dims: tuple[int, ...]
    depths: tuple[tuple[int, int], ...]
    mlp_ratios: tuple[float, ...]
    num_heads: tuple[int, ...] = (4, 8)
    attention: tuple[str, ...] = ("ssa",)
    timesteps: tuple[int, ...] = (4,)
    neuron: str = "lif"

    def __post_init__(self) -> None:
        for kind in self.attention:
            find("attention", kind)

    def draw(self, random: Random) -> Architecture:
        """Every gene evenly from its values."""
        depths = self._depths(random)
        return self._complete(random, random.choice(self.dims), depths, random.choice(self.timesteps), [])

    def mutated(self, random: Random, parent: Architecture, structure: float, block: float) -> Architecture:
        """A copy in which genes are drawn anew.

        Args:
            random: the source of chance.
            parent: what is copied.
            structure: probability for the depth, for the width, and for T.
            block: probability for each gene of each block. Blocks that a larger depth adds are drawn.
        """
        dim = random.choice(self.dims) if random.random() < structure else parent.dim
        depths = self._depths(random) if random.random() < structure else parent.depths
        timesteps = random.choice(self.timesteps) if random.random() < structure else parent.timesteps
        genes = zip(parent.attention, parent.num_heads, parent.mlp_ratios, strict=True)
        kept = [
            tuple(
                random.choice(values) if random.random() < block else gene
                for gene, values in zip(of_block, self._of_block, strict=True)
            )
            for of_block in genes
        ]
        return self._complete(random, dim, depths, timesteps, kept)

    def crossed(self, random: Random, one: Architecture, other: Architecture) -> Architecture:
        """Every gene from either of two parents of the same depths."""
        pick = [getattr(random.choice((one, other)), name) for name in ("dim", "timesteps")]
        blocks = [
            tuple(map(random.choice, zip(*pair, strict=True)))
            for pair in zip(*(zip(p.attention, p.num_heads, p.mlp_ratios, strict=True) for p in (one, other)), strict=True)
        ]
        return self._complete(random, pick[0], one.depths, pick[1], blocks)

    def nudged(self, random: Random, architecture: Architecture, larger: bool) -> Architecture | None:
        """The MLP ratio of one block moved to the next larger or smaller value; None where all are at the end."""
        values = sorted(self.mlp_ratios)
        places = [values.index(ratio) + (1 if larger else -1) for ratio in architecture.mlp_ratios]
        movable = [block for block, place in enumerate(places) if 0 <= place < len(values)]
        if not movable:
            return None
        ratios, block = list(architecture.mlp_ratios), random.choice(movable)
        ratios[block] = values[places[block]]
        return dataclasses.replace(architecture, mlp_ratios=tuple(ratios))

    def corners(self) -> Iterator[Architecture]:
        """Architectures with the same genes in all blocks, at both ends of every range: no other has more or less of anything.

        Counts are sums over blocks and grow with width, depth, MLP ratio and T.
        """
        genes: tuple[tuple[Any, ...], ...] = (self.dims, self.mlp_ratios, self.num_heads, self.timesteps)
        ends = (sorted({min(values), max(values)}) for values in genes)
        for dim, ratio, heads, timesteps in product(*ends):
            for kind, end in product(self.attention, (0, 1)):
                depths = tuple(span[end] for span in self.depths)
                count = sum(depths)
                yield Architecture(dim, depths, (kind,) * count, (heads,) * count, (ratio,) * count, timesteps)

    def to_json(self) -> dict[str, Any]:
        """A dictionary that JSON can hold."""
        return dataclasses.asdict(self)

    @property
    def _of_block(self) -> tuple[tuple[Any, ...], ...]:
        return self.attention, self.num_heads, self.mlp_ratios

    def _depths(self, random: Random) -> tuple[int, ...]:
        return tuple(random.randint(*span) for span in self.depths)

    def _complete(
        self, random: Random, dim: int, depths: tuple[int, ...], timesteps: int, blocks: Sequence[tuple[Any, ...]]
    ) -> Architecture:
        """With as many blocks as ``depths`` say: those given, as far as they go, and drawn ones."""
        count = sum(depths)
        drawn = (tuple(map(random.choice, self._of_block)) for _ in range(count - len(blocks)))
        attention, num_heads, mlp_ratios = zip(*blocks[:count], *drawn, strict=True)
        return Architecture(dim, depths, attention, num_heads, mlp_ratios, timesteps)


def arguments(architecture: Architecture, space: Space, task: Task) -> dict[str, Any]:
    """Of `vit2snn.zoo.AutoST`, for an architecture of a space."""
    return {
        "dim": architecture.dim,
        "depths": list(architecture.depths),
        "attention": list(architecture.attention),
        "num_heads": list(architecture.num_heads),
        "mlp_ratios": list(architecture.mlp_ratios),
        "timesteps": architecture.timesteps,
        "frame": space.frame,
        "pools": FRAMES[space.frame].stems[task.stem],
        "neuron": space.neuron,
        "num_classes": task.num_classes,
        "in_chans": task.in_chans,
    }


def _ours(frame: str, attention: Sequence[str], depths: tuple[tuple[int, int], ...] = ((1, 10),)) -> Space:
    ratios, steps = (1, 2, 3, 4, 5), (1, 2, 4)
    return Space(frame, (128, 192, 256, 320, 384, 448, 512), depths, ratios, (2, 4, 8), tuple(attention), steps)


_FREE = ("ssa", "qk-token", "qk-channel", "emsa")

SPACES: dict[str, Space] = {
    "autost-tiny": Space("autost", (192, 256, 320, 384), ((1, 10),), (3, 4, 5), neuron="plif"),
    "autost-small": Space("autost", tuple(range(256, 513, 64)), ((2, 12),), (3, 4, 5), neuron="plif"),
    "autost-base": Space("autost", tuple(range(384, 769, 64)), ((4, 15),), (3, 4, 5, 6), neuron="plif"),
    "spikformer": _ours("spikformer", _FREE),
    "spikingformer": _ours("spikingformer", _FREE),
    "sdt": _ours("sdt", [*_FREE, "sdsa"]),
    "qkformer": _ours("qkformer", _FREE, ((1, 2), (1, 2), (1, 6))),
}
"""The published spaces (AutoST, section 4), and one for each frame: kinds of attention block by block, and T."""
