"""Keeping to a budget: the price of a spike at which a network of coded neurons needs no more energy than it may."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from ..errors import RecipeError
from ..measure import spent
from ..spiking import SpikingNetwork
from .recipe import Recipe

LOWEST, HIGHEST = 1e-13, 1e-6  # prices between which the search goes on
HALVINGS = 6
MARGIN = 0.98  # of the budget, because the energy differs from image to image


def affordable(convert: Callable[[Recipe], SpikingNetwork], recipe: Recipe, images: Tensor) -> Recipe:
    """``recipe`` with the lowest price of spikes at which the energy of all its timesteps is within its ``max_energy``.

    All thresholds and silences follow from the price, site by site: a spike is sent where it saves the logits an error that is
    worth it (reverse water-filling). The energy falls with the price, so halving the interval of its logarithm finds it.

    Args:
        convert: makes the network of a recipe; called some eight times.
        recipe: with ``max_energy``.
        images: ``[B, C, H, W]``, on which the energy is measured.

    Raises:
        RecipeError: what is analog needs more than the budget, or a network that hardly fires does.
    """
    assert recipe.max_energy is not None

    def priced(price: float) -> Recipe:
        return recipe.changed(price=price, max_energy=None)

    def costs(price: float) -> float:
        return spent(convert(priced(price)), images).total

    bound, lowest, highest = MARGIN * recipe.max_energy, LOWEST, HIGHEST
    free = spent(convert(priced(0.0)), images)
    if free.total <= bound:
        return priced(0.0)
    if free.silent >= bound or costs(highest) > bound:
        raise RecipeError(
            f"a budget of {recipe.max_energy} of the ANN's energy is out of reach in {recipe.timesteps} timesteps: without it "
            f"the network needs {free.total:.3f}, of that {free.silent:.3f} for functions that stay analog",
            "raise the budget, or take fewer timesteps",
        )
    for _ in range(HALVINGS):
        middle = math.sqrt(lowest * highest)
        if costs(middle) > bound:
            lowest = middle
        else:
            highest = middle
    return priced(highest)
