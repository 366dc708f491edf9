"""What a converted network does: accuracy and agreement at every timestep, spikes, and where the error comes from."""

from .accuracy import Evaluation as Evaluation, Point as Point, evaluate as evaluate
from .curve import write_evaluation as write_evaluation
from .diagnosis import ModuleError as ModuleError, diagnose as diagnose
from .operations import Dispatched as Dispatched, dispatched as dispatched
from .scoring import Score as Score, Scores as Scores, score as score
