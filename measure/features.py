"""Comparison of features: how like the ANN's they are, and whether neighbours are the same, and of the right class."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.sources import UNLABELLED
from ..errors import DataError
from ..spiking.shards import collected, processes, total
from .comparison import Comparison
from .evaluation import Score

KEPT = 10_000
"""Neighbours are sought among so many images, the first ones, whose features are kept: at D = 768, 31 MB for each timestep."""
BLOCK = 1024  # images whose cosines with all others are held at once


class Features(Comparison):
    """Features ``[B, D]``, and labels that are `UNLABELLED` where there are none.

    Neighbours of the ANN's features are sought among the ANN's, and those of a timestep's among that timestep's.
    """

    def __init__(self, timesteps: int, device: torch.device) -> None:
        super().__init__(timesteps, device)
        self.timesteps = timesteps
        self.cosine = torch.zeros(timesteps, dtype=torch.float64, device=device)
        self.room = -(-KEPT // processes())
        self.kept: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.right: list[float] = []
        self.agreed: list[float] = []
        self.labelled = False

    def add(self, readout: Tensor, ann: Tensor | None, exact: Tensor | None, labels: Tensor) -> None:
        """A batch; see `Comparison.add`."""
        super().add(readout, ann, exact, labels)
        if ann is not None:
            self.cosine += F.cosine_similarity(readout, ann[None].float(), dim=-1).double().sum(1)
        if self.room > 0:
            given = [readout, *(x[None].float() for x in (ann, exact) if x is not None)]
            self.kept.append(torch.cat(given)[:, : self.room])
            self.labels.append(labels[: self.room])
            self.room -= len(labels)

    def join(self) -> None:
        """Take in what the other processes of the group compared, and find the neighbours.

        Raises:
            DataError: there is one image only, or there are neither an ANN nor labels.
        """
        super().join()
        self.cosine = total(self.cosine)
        features, labels = _gathered(self.kept, 1), _gathered(self.labels, 0)
        self.labelled = bool((labels != UNLABELLED).all())
        if self.images < 2:
            raise DataError("features are scored by which images are near each other, and there is one image", "give more")
        if not self.compared and not self.labelled:
            raise DataError("features without an ANN are scored by the classes of images, and some have none", "give labels")
        near = torch.stack([nearest(x) for x in features])
        self.right = (100 * (labels[near] == labels).double().mean(1)).tolist()
        self.agreed = (100 * (near == near[self.timesteps % len(near)]).double().mean(1)).tolist()

    def figures(self) -> list[dict[str, float | None]]:
        """Accuracy by the nearest other image, agreement on it, and cosine."""
        return [
            {
                "top1": self._top1(row),
                "agreement": self.agreed[row] if self.compared else None,
                "similarity": cosine / self.images if self.compared else None,
            }
            for row, cosine in enumerate(self.cosine.tolist())
        ]

    @property
    def ann(self) -> Score | None:
        """The ANN's accuracy by the nearest other image."""
        return Score(top1=self._top1(self.timesteps)) if self.compared else None

    @property
    def substitute(self) -> Score | None:
        """The substitute's accuracy by the nearest other image."""
        return Score(top1=self._top1(-1)) if self.between else None

    def _top1(self, row: int) -> float | None:
        """Accuracy in per cent; rows are timesteps, then the ANN, then the substitute."""
        return self.right[row] if self.labelled else None


def nearest(features: Tensor) -> Tensor:
    """The index of the other image whose features are nearest by cosine, ``[N, D]`` to ``[N]``."""
    unit = F.normalize(features, dim=-1)
    found = []
    for begin in range(0, len(unit), BLOCK):
        cosines = unit[begin : begin + BLOCK] @ unit.T
        cosines.diagonal(begin).fill_(-torch.inf)  # of each image with itself
        found.append(cosines.argmax(1))
    return torch.cat(found)


def _gathered(blocks: list[Tensor], dim: int) -> Tensor:
    """The blocks of all processes, as one."""
    own = torch.cat(blocks, dim)
    return own if processes() == 1 else torch.cat(collected([own.cpu()]), dim).to(own.device)
