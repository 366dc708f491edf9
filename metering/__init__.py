"""What a network costs: every operation, counted on the values that flow, and energy models as data."""

from .energy import (
    FLOAT32 as FLOAT32,
    MODELS as MODELS,
    Dense as Dense,
    EnergyModel as EnergyModel,
    conventional as conventional,
    energy as energy,
    least_words as least_words,
    most_words as most_words,
)
from .kinds import Kind as Kind, observe as observe, spikes_in as spikes_in
from .meter import Meter as Meter
from .tally import Stream as Stream, Tally as Tally
