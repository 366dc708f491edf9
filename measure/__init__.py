"""What a network does: accuracy, agreement, spikes and energy at every timestep, how spike-driven it is, and what broke it."""

from .accuracy import EarlyExit as EarlyExit, Evaluation as Evaluation, Point as Point, evaluate as evaluate
from .advice import Advice as Advice, advise as advise
from .audit import Audit as Audit, AuditRow as AuditRow, audit as audit
from .cost import Costs as Costs, Operand as Operand, OperationCost as OperationCost
from .curve import write_evaluation as write_evaluation
from .diagnosis import ModuleError as ModuleError, diagnose as diagnose
from .operations import Dispatched as Dispatched, dispatched as dispatched
from .replay import Replay as Replay, replay as replay
from .scoring import Score as Score, Scores as Scores, score as score
