"""What a network does, as numbers: accuracy, spikes and energy at every timestep, how spike-driven it is, and what broke it.

All of it asks a `vit2snn.spiking.SpikingNetwork`, and does not know how that was made.
"""

from .accuracy import evaluate as evaluate
from .audit import Audit as Audit, AuditRow as AuditRow, audit as audit
from .cost import Costs as Costs, Operand as Operand, OperationCost as OperationCost
from .diagnosis import ModuleError as ModuleError, diagnose as diagnose
from .dispatch import Dispatched as Dispatched, dispatched as dispatched
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
from .evaluation import (
    Advice as Advice,
    EarlyExit as EarlyExit,
    Evaluation as Evaluation,
    Point as Point,
    Score as Score,
)
from .exits import ExitTable as ExitTable, anytime as anytime, exit_table as exit_table
from .kinds import Kind as Kind, observe as observe, spikes_in as spikes_in
from .meter import Meter as Meter
from .neurobench import NeuroBench as NeuroBench
from .replay import Replay as Replay, replay as replay
from .spending import Spent as Spent, dense as dense, spent as spent
from .tally import Stream as Stream, Tally as Tally
