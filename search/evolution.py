"""AutoST's evolutionary search: selection, mutation and crossover on counted figures, without training and without data.

Wang et al., "AutoST", ICASSP 2024 (arXiv 2307.00293); its defaults are those of `Settings`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any, Literal

from ..errors import SearchError
from .count import Figures
from .front import by_front
from .space import Architecture, Space
from .windows import Window, check_reach, excluded

Selection = Literal["score", "front"]
FIRST_TRIES = 200  # draws for each architecture of the first population, which has nothing to start from


@dataclass(frozen=True)
class Settings:
    """How a search goes.

    Attributes:
        generations: after the first, random population.
        population: architectures of a generation.
        parents: the best so far, from which the next generation comes.
        mutations: of a generation.
        crossovers: of a generation; the rest of the population is drawn.
        structure: probability that a mutation draws the depth anew, the width, or T.
        block: probability that it draws a gene of a block anew.
        tries: for each mutation, crossover or draw that is wanted; new ones within all windows may be rare.
        repair: move MLP ratios of what is outside of a window, step by step, until it is within. In the paper it is thrown
            away, which leaves out what is within with few of its genes only, such as the greatest depth with all ratios small.
        select: parents by ``score`` as in the paper, or by ``front``: by dominance in score, parameters and energy.
        seed: of all chance.
    """

    generations: int = 20
    population: int = 50
    parents: int = 10
    mutations: int = 25
    crossovers: int = 25
    structure: float = 0.4
    block: float = 0.2
    tries: int = 10
    repair: bool = True
    select: Selection = "score"
    seed: int = 0


class Search:
    """A search that goes on generation by generation.

    Args:
        space: what is searched.
        name: of the space, for messages.
        windows: constraints.
        settings: how.
        counted: figures of an architecture in closed form.
        measured: its latency in seconds; asked for only if a window is on it, and all other windows hold.

    Attributes:
        found: all architectures within the windows that were met, with their figures, in that order.
        population: of the present generation.
        parents: of the next one.
        generation: how many are over; -1 before the first population.

    Raises:
        SearchError: a window excludes the whole space.
    """

    def __init__(
        self,
        space: Space,
        name: str,
        windows: Sequence[Window],
        settings: Settings,
        counted: Callable[[Architecture], Figures],
        measured: Callable[[Architecture], float] | None = None,
    ) -> None:
        self.space, self.name, self.windows, self.settings = space, name, windows, settings
        self.counted, self.measured = counted, measured
        self.random = Random(settings.seed)
        self.found: dict[Architecture, Figures] = {}
        self.population: list[Architecture] = []
        self.parents: list[Architecture] = []
        self.generation = -1
        self._counting = [window for window in windows if window.figure != "latency"]
        self._timing = [window for window in windows if window.figure == "latency"]
        check_reach(self._counting, map(counted, space.corners()), name)

    @property
    def finished(self) -> bool:
        """Whether all generations are over."""
        return self.generation >= self.settings.generations

    @property
    def best(self) -> Architecture:
        """The one of the highest score; of several, the one with the fewest parameters and then the least energy."""
        return min(self.found, key=lambda a: (-self.found[a].score, self.found[a].parameters, self.found[a].energy))

    def advance(self) -> None:
        """One generation.

        Raises:
            SearchError: no architecture of the first population is within all windows.
        """
        settings = self.settings
        if self.generation < 0:
            self.population = self._first()
        else:
            population = self._new(settings.mutations, self._mutated)
            pairs = self._pairs()
            population += self._new(settings.crossovers, lambda: self._crossed(pairs)) if pairs else []
            self.population = population + self._new(settings.population - len(population), self._drawn)
        self.parents = self._select([*self.parents, *self.population])
        self.generation += 1

    def _first(self) -> list[Architecture]:
        """Raises `SearchError` if there are none."""
        met: list[Figures] = []
        population = self._new(self.settings.population, self._drawn, self.settings.population * FIRST_TRIES, met)
        if not population:
            raise excluded(self.windows, met, self.name)
        return population

    def _new(
        self, wanted: int, make: Callable[[], Architecture], tries: int | None = None, met: list[Figures] | None = None
    ) -> list[Architecture]:
        """New architectures within the windows, as many as wanted or as so many tries give; ``met`` takes all figures."""
        made: list[Architecture] = []
        for _ in range(wanted * self.settings.tries if tries is None else tries):
            if len(made) == wanted:
                break
            architecture, figures = self._repaired(make())
            if architecture in self.found:
                continue
            figures = self._timed(architecture, figures)
            if met is not None:
                met.append(figures)
            if all(window.holds(figures) for window in self.windows):
                self.found[architecture] = figures
                made.append(architecture)
        return made

    def _repaired(self, architecture: Architecture) -> tuple[Architecture, Figures]:
        """The architecture, or one like it that is within the windows on what is counted, and its figures."""
        figures, ways = self.counted(architecture), set[bool]()
        while self.settings.repair:
            missed = next((window for window in self._counting if not window.holds(figures)), None)
            if missed is None:
                break
            ways.add(getattr(figures, missed.figure) < missed.low)
            moved = self.space.nudged(self.random, architecture, *ways) if len(ways) == 1 else None
            if moved is None:  # at the end, or back and forth
                break
            architecture, figures = moved, self.counted(moved)
        return architecture, figures

    def _timed(self, architecture: Architecture, figures: Figures) -> Figures:
        """With the latency, if a window is on it and all others hold."""
        if self._timing and self.measured and all(window.holds(figures) for window in self._counting):
            return replace(figures, latency=self.measured(architecture))
        return figures

    def _drawn(self) -> Architecture:
        return self.space.draw(self.random)

    def _mutated(self) -> Architecture:
        return self.space.mutated(self.random, self.random.choice(self.parents), self.settings.structure, self.settings.block)

    def _pairs(self) -> list[tuple[Architecture, Architecture]]:
        """Parents of the same depths."""
        return [(a, b) for i, a in enumerate(self.parents) for b in self.parents[:i] if a.depths == b.depths]

    def _crossed(self, pairs: Sequence[tuple[Architecture, Architecture]]) -> Architecture:
        return self.space.crossed(self.random, *self.random.choice(pairs))

    def _select(self, candidates: Iterable[Architecture]) -> list[Architecture]:
        """The best, which stay parents until others are better."""
        different = list(dict.fromkeys(candidates))
        figures = [self.found[architecture] for architecture in different]
        if self.settings.select == "front":
            order = by_front(figures)
        else:
            order = sorted(range(len(different)), key=lambda i: -figures[i].score)
        return [different[i] for i in order[: self.settings.parents]]

    def state(self) -> dict[str, Any]:
        """All that a search needs to go on, for JSON."""
        numbers = {architecture: index for index, architecture in enumerate(self.found)}
        version, internal, gauss = self.random.getstate()
        return {
            "generation": self.generation,
            "random": [version, list(internal), gauss],
            "found": [{"architecture": a.to_json(), "figures": asdict(f)} for a, f in self.found.items()],
            "population": [numbers[a] for a in self.population],
            "parents": [numbers[a] for a in self.parents],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`; what follows is what would have followed.

        Raises:
            SearchError: it is no state of a search.
        """
        try:
            found = [(Architecture.from_json(e["architecture"]), Figures(**e["figures"])) for e in state["found"]]
            version, internal, gauss = state["random"]
            self.random.setstate((version, tuple(internal), gauss))
            self.population, self.parents = ([found[i][0] for i in state[name]] for name in ("population", "parents"))
            self.generation = int(state["generation"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise SearchError(f"the search cannot be resumed: its file is damaged ({error})", "begin again") from error
        self.found = dict(found)
