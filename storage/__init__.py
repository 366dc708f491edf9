"""What is on disk: converted networks, models of the zoo, and the pretrained models that conversions begin with."""

from .artifact import load as load, save as save
from .folder import is_model_folder as is_model_folder, save_model as save_model
from .source import load_model as load_model, read_checkpoint as read_checkpoint
from .versions import versions as versions
