"""Attention of experts behind a router: static mixers of tokens, which are ours, and SEMM's expert heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..branches.base import BlockSize
from .base import SPREAD, Read, Term, spread_out, term

MIXERS = 4
UNLIKE = 0.3
"""Relative standard deviation by which mixers differ when they start."""


@term("experts")
class RoutedMixers(Term):
    """Σ_e r_e ⊙ (A_e v),  r = relu(W x + b): in each head, four static maps A_e of tokens ``[N, N]``, mixed token by token.

    This is ours, and not SEMM's: an expert is a fixed pattern of attention, such as "the patch above", which costs additions
    alone, and what depends on the image is how much of each pattern a token takes. The patterns start from the ANN's mean
    attention; the number of tokens is fixed.
    """

    inherited = ("maps",)

    def __init__(self, size: BlockSize) -> None:
        super().__init__(size)
        self.maps = nn.Parameter(torch.zeros(MIXERS, size.heads, size.tokens, size.tokens))
        self.router = nn.Linear(size.channels, MIXERS * size.heads)
        self.rectify = nn.ReLU()

    @torch.no_grad()
    def start(self, attention: Tensor, read: Read, wanted: Tensor) -> None:
        """The sum of all experts is the ANN's mean attention; a router that does not look at the token yet."""
        self.maps.copy_(attention * (1 + UNLIKE * torch.randn(self.maps.shape).to(attention)))
        self.router.weight.copy_(0.02 * torch.randn(self.router.weight.shape))
        self.router.bias.fill_(1 / MIXERS)

    def forward(self, normed: Tensor, read: Read) -> Tensor:
        """Mix the value."""
        routes = self.rectify(self.router(normed)).unflatten(-1, (MIXERS, -1)).permute(0, 2, 3, 1).unsqueeze(-1)
        mixed: Tensor = routes * (self.maps @ read["value"].unsqueeze(1))  # [B, e, heads, N, C / heads]
        return mixed.sum(1)


@term("emsa")
class ExpertHeads(Term):
    """Σ_i r_i ⊙ E_i,  E_i = relu(g_i ⊙ (relu(Q_i) (relu(K)ᵀ V) / N) + b_i): queries of each expert, one key, one value.

    SEMM's EMSA (Zhou et al., NeurIPS 2024) has spikes in place of the ReLUs and of the clipped router r. There are as many
    experts as heads; each sees all channels of the value.
    """

    reads = ("expert-query", "shared-key", "value")
    queries = ("rectify_query",)

    def __init__(self, size: BlockSize) -> None:
        super().__init__(size)
        self.router = nn.Linear(size.channels, size.heads)
        self.gain = nn.Parameter(torch.ones(size.heads, 1, size.channels))
        self.offset = nn.Parameter(torch.zeros(size.heads, 1, size.channels))
        self.rectify_query, self.rectify_key, self.rectify = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.clip = nn.Hardtanh(0.0, 1.0)

    @torch.no_grad()
    def start(self, attention: Tensor, read: Read, wanted: Tensor) -> None:
        """Experts that hardly cut off anything, and a router that lets half of everything pass."""
        gain, offset = spread_out(self._products(read), (0, 2), 1.0, 1.0)
        self.gain.copy_(gain)
        self.offset.copy_(offset)
        self.router.weight.copy_(SPREAD * torch.randn(self.router.weight.shape) / self.router.in_features**0.5)
        self.router.bias.fill_(0.5)

    def forward(self, normed: Tensor, read: Read) -> Tensor:
        """The experts' sum, cut into heads."""
        routes = self.clip(self.router(normed)).transpose(-1, -2).unsqueeze(-1)  # [B, experts, N, 1]
        experts = self.rectify(self._products(read) * self.gain + self.offset)  # [B, experts, N, C]
        mixture: Tensor = (routes * experts).sum(1).unflatten(-1, (read["value"].shape[1], -1)).transpose(1, 2)
        return mixture

    def _products(self, read: Read) -> Tensor:
        q, k, v = self.rectify_query(read["expert-query"]), self.rectify_key(read["shared-key"]), read["value"]
        whole = v.transpose(1, 2).flatten(2).unsqueeze(1)  # [B, 1, N, C]
        products: Tensor = q @ (k.transpose(-1, -2) @ whole) / v.shape[-2]
        return products
