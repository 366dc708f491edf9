"""The search for spiking transformers that need no training to be compared (AutoST)."""

from .count import FIRING_RATE as FIRING_RATE, Figures as Figures, count as count, figures as figures
from .create import create as create
from .evolution import Search as Search, Settings as Settings
from .front import front as front, front_svg as front_svg
from .latency import latency as latency
from .result import (
    Request as Request,
    check_files as check_files,
    picture_of as picture_of,
    read_outcome as read_outcome,
    resume as resume,
    write_outcome as write_outcome,
    write_progress as write_progress,
)
from .space import (
    SPACES as SPACES,
    TASKS as TASKS,
    Architecture as Architecture,
    Space as Space,
    Task as Task,
    arguments as arguments,
)
from .windows import UNITS as UNITS, Window as Window
