"""The spiking transformers of the literature; importing this package registers them with timm."""

from .autost import AutoST as AutoST
from .layouts import LAYOUTS as LAYOUTS
from .network import SpikingTransformer as SpikingTransformer
from .official import from_official as from_official
from .qkformer import QKFormer as QKFormer
from .registry import VARIANTS as VARIANTS, Published as Published, Variant as Variant
from .sdt import SpikeDrivenTransformer as SpikeDrivenTransformer
from .semm import SEMM as SEMM
from .spikformer import Spikformer as Spikformer
from .spikingformer import Spikingformer as Spikingformer
from .statistics import Statistics as Statistics, statistics as statistics
from .tim import TIMSpikformer as TIMSpikformer
