"""Conversion of a timm model into a spiking one: the recipe, the rules, and the result."""

from .auto import candidates as candidates, opened as opened, provisional as provisional
from .checkpoints import read_checkpoint as read_checkpoint
from .conversion import structure as structure, to_spiking as to_spiking
from .fitting import Fitting as Fitting, Progress as Progress
from .model import SpikingModel as SpikingModel
from .planning import Plan as Plan, PlannedModule as PlannedModule, plan as plan
from .plans import Compromise as Compromise, compromises as compromises
from .quantised import quantised as quantised
from .recipe import RECIPES as RECIPES, Recipe as Recipe
from .registry import NeuronFactory as NeuronFactory, converts as converts, keep_analog as keep_analog
from .source import load_model as load_model
from .spikes import Coded as Coded, Membrane as Membrane
from .structures import Structure as Structure
from .teacher import Teacher as Teacher, analog_copy as analog_copy
from .zero_shot import read_embeddings as read_embeddings, zero_shot as zero_shot
