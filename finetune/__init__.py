"""Training with surrogate gradients, from scratch or of a converted model; in one process or, by accelerate, in many."""

from .checkpoint import (
    Workspace as Workspace,
    check_folder as check_folder,
    close_folder as close_folder,
    drop_folder as drop_folder,
    folder_of as folder_of,
    open_folder as open_folder,
)
from .distributed import synchronised as synchronised
from .loop import Summary as Summary, train as train
from .metrics import Step as Step
from .objectives import Distillation as Distillation, Objective as Objective, classification as classification
from .optimisation import layer_scale as layer_scale
from .settings import Precision as Precision, Settings as Settings
