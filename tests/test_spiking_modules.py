"""Attention, experts, interaction, shortcuts and patch embeddings against their equations, written out."""

from __future__ import annotations

import pytest
import torch
from conftest import enliven
from torch import Tensor, nn

from vit2snn.errors import ModelError
from vit2snn.spiking import (
    LIF,
    SPEDS,
    ConvBN,
    ExpertMixtureAttention,
    ExpertMixturePerceptron,
    MembraneShortcut,
    QKChannelAttention,
    QKMixedAttention,
    QKTokenAttention,
    SEWShortcut,
    SpikeDrivenSelfAttention,
    SpikingMLP,
    SpikingPatchSplitting,
    SpikingSelfAttention,
    TemporalInteraction,
    simulate,
)
from vit2snn.spiking.branches.attention import attend

B, C, H, W, HEADS = 2, 16, 3, 4, 4


@pytest.fixture
def spikes() -> Tensor:
    """Spikes and small integers, as a SEW shortcut gives them."""
    return torch.randint(0, 3, (B, C, H, W)).float()


def fires(h: Tensor, threshold: float) -> Tensor:
    """LIF at its first timestep."""
    return (h / 2 >= threshold).float()


def split(x: Tensor) -> Tensor:
    return x.reshape(B, HEADS, C // HEADS, H * W)


def test_self_attention_is_its_equation(spikes: Tensor) -> None:
    module = enliven(SpikingSelfAttention(C, HEADS, LIF), spikes)
    q, k, v = (split(p(spikes)) for p in (module.query, module.key, module.value))
    y = torch.zeros_like(v)
    for n in range(H * W):
        for m in range(H * W):
            y[..., n] += (q[..., n] * k[..., m]).sum(-1, keepdim=True) * v[..., m] * 0.125
    assert 0.02 < fires(y, 0.5).mean() < 0.9
    assert torch.equal(module.mix(q, k, v), fires(y, 0.5))
    assert torch.equal(module(spikes), module.out(fires(y, 0.5).reshape(B, C, H, W)))


@pytest.mark.parametrize(("tokens", "width"), [(4, 9), (9, 4)])
def test_both_orders_of_the_product_give_the_same_integers(tokens: int, width: int) -> None:
    q, k = (torch.randint(0, 2, (3, width, tokens)).float() for _ in range(2))
    v = torch.randint(0, 2, (3, 5, tokens)).float()
    assert torch.equal(attend(q, k, v), torch.einsum("bdn,bdm,bcm->bcn", q, k, v))


def test_token_and_channel_attention_mask_the_key(spikes: Tensor) -> None:
    token = enliven(QKTokenAttention(C, HEADS, LIF), spikes)
    q, k = split(token.query(spikes)), split(token.key(spikes))
    by_token = fires(q.sum(2, keepdim=True), 0.5) * k
    assert token.value is None
    assert torch.equal(token(spikes), token.out(by_token.reshape(B, C, H, W)))
    channel = QKChannelAttention(C, HEADS, LIF).eval()
    channel.load_state_dict(token.state_dict())
    by_channel = fires(q.sum(3, keepdim=True), 0.5) * k
    assert torch.equal(channel(spikes), channel.out(by_channel.reshape(B, C, H, W)))
    mixed = QKMixedAttention(C, HEADS, LIF).eval()
    mixed.load_state_dict(token.state_dict())
    both = torch.cat([by_token[:, :2], by_channel[:, 2:]], 1)
    assert torch.equal(mixed(spikes), mixed.out(both.reshape(B, C, H, W)))
    assert not torch.equal(by_token, by_channel)


def test_spike_driven_attention_masks_the_query_by_channel(spikes: Tensor) -> None:
    module = enliven(SpikeDrivenSelfAttention(C, HEADS, LIF), spikes)
    q, k, v = (split(p(spikes)) for p in (module.query, module.key, module.value))
    expected = q * fires((k * v).sum(3, keepdim=True), 0.5)
    assert 0 < expected.mean() < q.mean()
    assert torch.equal(module(spikes), module.out(expected.reshape(B, C, H, W)))


def test_the_pooled_variant_takes_maxima_over_positions_and_over_channels_by_tokens(spikes: Tensor) -> None:
    module = enliven(SpikeDrivenSelfAttention(C, HEADS, LIF, pooled=True), spikes)
    pool = nn.MaxPool2d(3, 1, 1)
    q, k, v = module.query(spikes), pool(module.key(spikes)), pool(module.value(spikes))
    mask = fires(pool(split(k * v)).sum(3, keepdim=True), 0.5)
    expected = pool(split(q) * mask)
    assert torch.equal(module(spikes), module.out(expected.reshape(B, C, H, W)))


def test_experts_are_gated_by_a_bit_for_each_token_and_summed(spikes: Tensor) -> None:
    m, width = 3, 5
    module = enliven(ExpertMixtureAttention(C, LIF, experts=m, expert_dim=width, scale=0.5), spikes)
    q = module.query(spikes).reshape(B, m, width, H * W)
    k, v, r = (p(spikes).flatten(2) for p in (module.key, module.value, module.router))
    y = torch.zeros(B, C, H * W)
    for i in range(m):
        expert = fires(torch.einsum("bdn,bdm,bcm->bcn", q[:, i], k, v) * 0.5, 1.0)
        y += r[:, i : i + 1] * expert
    assert y.max() >= 2
    assert torch.equal(module(spikes), module.out(y.reshape(B, C, H, W)))


def test_a_smaller_value_of_the_experts_is_projected_back(spikes: Tensor) -> None:
    module = ExpertMixtureAttention(C, LIF, experts=2, expert_dim=6, value_dim=6)
    assert module.out.conv.weight.shape == (C, 6, 1, 1)
    assert module(spikes).shape == spikes.shape


def test_one_half_of_the_perceptron_gates_the_other(spikes: Tensor) -> None:
    module = enliven(ExpertMixturePerceptron(C, 4 * C, LIF), spikes)
    hidden = module.expand(spikes)
    first, second = hidden[:, : 2 * C], hidden[:, 2 * C :]
    gate = fires(module.router.project.bn(module.router.project.conv(first)), 1.0)
    assert module.router.project.conv.groups == 2 * C
    assert torch.equal(module(spikes), module.reduce(gate * second))


def interaction_by_hand(module: TemporalInteraction, q: Tensor) -> Tensor:
    """``[T, heads, width, tokens]``, from the text of the paper's equation and the authors' two neurons."""
    before, out = q[0], [q[0]]
    v_in, v_out = torch.zeros_like(q[0]), torch.zeros_like(q[0])
    for now in q[1:]:
        mixed = torch.stack([nn.functional.conv1d(h.T, module.conv.weight, module.conv.bias, padding=2).T for h in before])
        h = v_in + (mixed - v_in) / 2
        s = (h >= 0.3).float()
        v_in = h * (1 - s)
        h = v_out + (module.alpha * s + (1 - module.alpha) * now - v_out) / 2
        before = (h >= 0.5).float()
        v_out = h * (1 - before)
        out.append(before)
    return torch.stack(out)


def test_temporal_interaction_is_its_recursion_and_fires_after_the_first_timestep() -> None:
    module, q = TemporalInteraction(tokens=6, alpha=0.6), (torch.rand(5, 3, 8, 6) < 0.6).float()
    module.conv.weight.data *= 4
    with torch.no_grad():
        found = simulate(module, q.unsqueeze(1), 5).squeeze(1)
        assert torch.equal(found, interaction_by_hand(module, q))
        assert torch.equal(simulate(module, q.unsqueeze(1), 5, chunk=2).squeeze(1), found)
    assert all(found[t].mean() > 0.02 for t in range(1, 5))
    assert module.conv.weight.numel() + module.conv.bias.numel() == 6 * 6 * 5 + 6


@pytest.mark.parametrize(
    "make",
    [
        lambda tim: SpikingSelfAttention(C, HEADS, LIF, interaction=tim),
        lambda tim: QKTokenAttention(C, HEADS, LIF, interaction=tim),
        lambda tim: QKChannelAttention(C, HEADS, LIF, interaction=tim),
        lambda tim: QKMixedAttention(C, HEADS, LIF, interaction=tim),
        lambda tim: SpikeDrivenSelfAttention(C, HEADS, LIF, interaction=tim),
        lambda tim: ExpertMixtureAttention(C, LIF, experts=2, expert_dim=4, interaction=tim),
    ],
)
def test_any_attention_takes_an_interaction_on_its_query(make: object) -> None:
    frames = torch.randint(0, 3, (4, B, C, H, W)).float()
    module = enliven(make(TemporalInteraction(H * W)), frames.flatten(0, 1))  # type: ignore[operator]
    seen: list[Tensor] = []
    module.interaction.register_forward_hook(lambda *call: seen.append(call[2]))  # type: ignore[operator, union-attr]
    with torch.no_grad():
        out = simulate(module, frames, 4)
    assert out.shape == frames.shape
    assert set(seen[0].unique().tolist()) <= {0.0, 1.0}
    out = simulate(module, frames, 4)
    out.square().mean().backward()
    assert module.interaction.conv.weight.grad.abs().sum() > 0


def test_shortcuts_keep_integers_or_membranes(spikes: Tensor) -> None:
    sew = enliven(SEWShortcut(SpikingMLP(C, 2 * C, LIF), LIF), spikes)
    out = sew(spikes)
    assert torch.equal(out, spikes + fires(sew.branch(spikes), 1.0))
    assert torch.equal(out, out.round())
    assert out.max() >= 2
    x = torch.randn(B, C, H, W) * 2
    membrane = enliven(MembraneShortcut(SpikingMLP(C, 2 * C, LIF), LIF), x)
    assert torch.equal(membrane(x), x + membrane.branch(fires(x, 1.0)))


def test_patch_splitting_pools_spikes_where_it_is_told() -> None:
    x = torch.rand(B, 3, 32, 32)
    module = SpikingPatchSplitting(3, 16, LIF, "0110", SEWShortcut(ConvBN(16, 16, 3), LIF))
    module = enliven(module, x)
    y = module(x)
    assert module.stride == 4
    assert y.shape == (B, 16, 8, 8)
    assert set(y.unique().tolist()) <= {0.0, 1.0, 2.0}
    by_hand = x
    for i, pooled in enumerate("0110"):
        layer = module.layers[i]
        by_hand = fires(layer.project(by_hand), 1.0)
        by_hand = nn.functional.max_pool2d(by_hand, 3, 2, 1) if pooled == "1" else by_hand
    assert torch.equal(y, by_hand + fires(module.position.branch(by_hand), 1.0))


def test_the_deformed_shortcut_adds_two_spikes() -> None:
    x = torch.rand(B, 3, 16, 16)
    module = enliven(SPEDS(3, (8, 16), "11", 1, LIF), x)
    stem, (main,), shortcut = module.stem[0], module.body.main, module.body.shortcut
    after = fires(nn.functional.max_pool2d(stem.project(x), 3, 2, 1), 1.0)
    expected = fires(nn.functional.max_pool2d(main.project(after), 3, 2, 1), 1.0) + fires(shortcut.project(after), 1.0)
    assert module.stride == 4
    assert shortcut.project.conv.stride == (2, 2)
    assert expected.max() == 2
    assert torch.equal(module(x), expected)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ModelError, match="5 heads do not divide a width of 16"):
        SpikingSelfAttention(16, 5, LIF)
    with pytest.raises(ModelError, match="at least 2 heads, got 1"):
        QKMixedAttention(16, 1, LIF)
