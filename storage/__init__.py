"""What is on disk: converted networks, and models of the zoo."""

from .artifact import load as load, save as save
from .building import trusting as trusting
from .folder import is_model_folder as is_model_folder, is_replaceable as is_replaceable, save_model as save_model
from .opening import open_network as open_network
from .versions import versions as versions
