"""Membrane neurons in place of the functions of substitutes that they compute."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ..spiking import ByToken, TemporalInteraction
from ..spiking.substitutes import SubstituteAttention
from .blocks import BlockPlan, new_branches
from .branches import born_at
from .spikes import Membrane


def fire(network: VisionTransformer, plans: Sequence[BlockPlan], spikes: Membrane) -> None:
    """Put membrane neurons in place of the ReLUs and clipped lines in the substitutes that ``plans`` name, in place.

    What of a substitute's operands still are no spikes then gets neurons as in any conversion, from `Membrane.balanced`.
    """
    like = network.patch_embed.proj.weight
    tokens = network.patch_embed.num_patches + network.num_prefix_tokens
    for name in new_branches(plans):
        branch: Any = network.get_submodule(name)
        for path, module in list(branch.named_modules()):
            if isinstance(module, (nn.ReLU, nn.Hardtanh)):
                branch.set_submodule(path, born_at(like, partial(spikes.balanced, function=module)))
        if isinstance(branch, SubstituteAttention) and branch.interacts:
            term: Any
            for term in branch.terms.values():
                for path in term.queries:
                    term.get_submodule(path).interaction = ByToken(born_at(like, partial(TemporalInteraction, tokens)))
