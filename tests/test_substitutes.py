"""The parts that take the places of attention, perceptron and norm: each against its equation, and what it starts from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import make_vit
from torch import Tensor, nn
from torch.nn.functional import conv2d, hardtanh, linear, relu

from vit2snn.convert.branches import block_size, own_maps
from vit2snn.errors import ModelError
from vit2snn.spiking import BlockSize
from vit2snn.spiking.substitutes import (
    ExpertMlp,
    GatedNorm,
    StaticNorm,
    SubstituteAttention,
    SubstituteMlp,
    interacts,
    is_sum,
    summands,
    terms,
)

SIZE = BlockSize(channels=12, heads=3, hidden=20, grid=(2, 3), prefix=1)
N, HEADS, WIDTH = SIZE.tokens, 3, 4


def attention(kind: str) -> SubstituteAttention:
    """With parameters that let every part matter."""
    made = SubstituteAttention(kind, SIZE)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def maps(made: SubstituteAttention, x: Tensor) -> dict[str, Tensor]:
    """Each map of the tokens, ``[B, heads, N, channels]``."""
    parts = made.qkv(x).split(list(made.widths.values()), -1)
    return {name: part.reshape(*x.shape[:2], -1, WIDTH).transpose(1, 2) for name, part in zip(made.widths, parts, strict=True)}


def wanted(made: SubstituteAttention, x: Tensor) -> Tensor:
    """The equation of the only term, written anew, head by head and token by token."""
    ((kind, term),) = made.terms.items()
    m = maps(made, x)
    v = m["value"]
    if kind == "qk-token":
        a = hardtanh(relu(m["query"]).mean(-1, keepdim=True) * term.gate.gain + term.gate.offset, 0, 1)
        return a * v
    if kind == "qk-channel":
        a = hardtanh(relu(m["query"]).mean(-2, keepdim=True) * term.gate.gain + term.gate.offset, 0, 1)
        return a * v
    if kind == "qk-mixed":
        token = hardtanh(relu(m["query"][:, :1]).mean(-1, keepdim=True) * term.token.gain + term.token.offset, 0, 1)
        channel = hardtanh(relu(m["query"][:, 1:]).mean(-2, keepdim=True) * term.channel.gain + term.channel.offset, 0, 1)
        return torch.cat([token * v[:, :1], channel * v[:, 1:]], 1)
    if kind == "sdsa":
        products = relu(m["query"]) * relu(m["key"])
        return hardtanh(products.mean(2, keepdim=True) * term.gain + term.offset, 0, 1) * v
    if kind == "ssa":
        q = relu(m["query"] * term.query_gain + term.query_offset)
        k = relu((m["key"] - m["key"].mean(2, keepdim=True)) * term.key_gain + term.key_offset)
        return (q @ k.mT) @ v * term.gain / N
    if kind == "qk-relu":
        scores = m["query"] @ (m["key"] - m["key"].mean(2, keepdim=True)).mT / WIDTH**0.5
        softmax = term.softmax
        a = sum(relu(g * scores + b) for g, b in zip(softmax.gains, softmax.offsets, strict=True))
        rows = [0] + [1] * (N - 1)
        lines = zip(softmax.slopes, softmax.levels, strict=True)
        share = softmax.least[:, rows] + sum(relu(a.mean(-1, keepdim=True) * d[:, rows] + c[:, rows]) for d, c in lines)
        return share * (a @ v) / N
    if kind == "conv":
        grid = v.transpose(-1, -2).reshape(len(x), 12, N)
        patches = conv2d(grid[..., 1:].reshape(-1, 12, 2, 3), term.conv.weight, term.conv.bias, padding=1, groups=12).flatten(2)
        alone = grid[..., :1] * term.conv.weight[:, :, 1, 1] + term.conv.bias[:, None]
        return torch.cat([alone, patches], 2).reshape(len(x), HEADS, WIDTH, N).transpose(-1, -2)
    if kind == "experts":
        routes = relu(term.router(x)).reshape(len(x), N, -1, HEADS)
        return sum(routes[:, :, e].mT[..., None] * (term.maps[e] @ v) for e in range(routes.shape[2]))  # type: ignore[return-value]
    assert kind == "emsa"
    routes, q, k = hardtanh(term.router(x), 0, 1), relu(m["expert-query"]), relu(m["shared-key"])[:, 0]
    whole = v.transpose(1, 2).flatten(2)
    experts = [relu((q[:, i] @ k.mT) @ whole / N * term.gain[i] + term.offset[i]) for i in range(HEADS)]
    mixture = sum(routes[..., i : i + 1] * expert for i, expert in enumerate(experts))
    return mixture.reshape(len(x), N, HEADS, WIDTH).transpose(1, 2)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", terms())
def test_a_term_is_its_equation(kind: str) -> None:
    made, x = attention(kind), torch.randn(5, N, 12)
    mixed = wanted(made, x).transpose(1, 2).flatten(2)
    torch.testing.assert_close(made.mixed(x), mixed)
    torch.testing.assert_close(made(x), linear(mixed, made.proj.weight, made.proj.bias))
    assert made(x[:1]).shape == (1, N, 12)


def test_a_sum_is_the_sum_of_its_terms_and_reads_each_map_once() -> None:
    made, x = attention("qk-channel+ssa+conv"), torch.randn(5, N, 12)
    assert list(made.widths) == ["query", "key", "value"] and made.qkv.out_features == 36
    parts = []
    for name, term in made.terms.items():
        alone = attention(name)
        rows = torch.cat([torch.arange(12) + 12 * list(made.widths).index(read) for read in alone.widths])
        alone.qkv.weight.data, alone.qkv.bias.data = made.qkv.weight.data[rows], made.qkv.bias.data[rows]
        alone.terms[name] = term
        parts.append(alone.mixed(x))
    torch.testing.assert_close(made.mixed(x), sum(parts))
    assert attention("conv").qkv.out_features == 12


@pytest.mark.parametrize(
    "kind", ["", "ssa+", "ssa+ssa", "softmax", "tim", "tim+ssa", "ssa+tim+conv", "ssa+tim+tim", "conv+tim"]
)
def test_what_is_no_sum_of_different_terms_is_refused(kind: str) -> None:
    assert not is_sum(kind)
    with pytest.raises(ModelError, match="there is no attention"):
        SubstituteAttention(kind, SIZE)


TIMED = ["qk-token", "qk-channel", "qk-mixed", "sdsa", "ssa", "emsa"]


def test_a_temporal_interaction_stands_behind_a_sum_with_a_function_of_the_query() -> None:
    assert {kind for kind in terms() if is_sum(f"{kind}+tim")} == set(TIMED)
    assert is_sum("ssa+conv+tim") and is_sum("conv+ssa+tim") and not is_sum("conv+experts+tim")
    assert [interacts(kind) for kind in ("ssa+tim", "ssa+conv+tim", "ssa", "ssa+conv")] == [True, True, False, False]
    assert list(summands("ssa+conv+tim")) == ["ssa", "conv"]


@pytest.mark.parametrize("kind", TIMED)
def test_without_time_an_interaction_does_nothing_and_what_shall_interact_is_of_the_query_alone(kind: str) -> None:
    plain, timed, x = attention(kind), SubstituteAttention(f"{kind}+tim", SIZE), torch.randn(5, N, 12)
    timed.load_state_dict(plain.state_dict())
    assert timed.interacts and not plain.interacts
    torch.testing.assert_close(timed(x), plain(x))
    found: list[Tensor] = []
    term: Any = timed.terms[kind]
    for path in term.queries:
        term.get_submodule(path).register_forward_hook(lambda module, inputs, output: found.append(output.detach()))
    timed(x)
    start = 12 * list(timed.widths).index("expert-query" if kind == "emsa" else "query")
    nn.init.zeros_(timed.qkv.weight[start : start + 12])
    timed(x)
    assert len(found) == 2 * len(term.queries) > 0
    spread = [float((output - output[0]).abs().max()) for output in found]  # over images
    assert min(spread[: len(term.queries)]) > 0 == max(spread[len(term.queries) :])


def test_one_head_cannot_be_mixed_and_a_mask_is_refused() -> None:
    with pytest.raises(ModelError, match="at least 2 heads"):
        SubstituteAttention("qk-mixed", BlockSize(12, 1, 20, (2, 3), 1))
    with pytest.raises(ValueError, match="no mask"):
        attention("conv")(torch.randn(1, N, 12), is_causal=True)


@pytest.mark.parametrize(
    "kind", ["qk-channel", "qk-token", "qk-mixed", "sdsa", "ssa", "experts", "emsa", "qk-channel+ssa+experts+conv"]
)
def test_a_term_starts_within_the_slopes_of_its_functions_and_near_the_ann(kind: str) -> None:
    block = make_vit().blocks[0]  # type: ignore[index]
    size, x = block_size(make_vit(), block), torch.randn(32, 17, 32)  # type: ignore[arg-type]
    made, caught = SubstituteAttention(kind, size), []
    made.inherit(own_maps(block.attn))
    handle = block.attn.proj.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    with torch.no_grad():
        block.attn(x)
        handle.remove()
        made.start(x, own_maps(block.attn), caught[0])
        gates = []
        for module in made.modules():
            if isinstance(module, nn.Hardtanh):
                module.register_forward_hook(lambda module, inputs, output: gates.append(output))
        error = (made.mixed(x) - caught[0]).norm() / caught[0].norm()
    for gate in gates:
        assert float(((gate > 0) & (gate < 1)).float().mean()) > 0.99
    if kind in ("ssa", "experts"):
        assert error < 1.0  # no worse than nothing
    if kind == "qk-relu":
        assert error < 0.5


def test_the_static_norm_is_the_least_squares_map_of_patches_and_of_each_token_before_them() -> None:
    norm = StaticNorm(6, prefix=2)
    gain, offset = torch.randn(3, 6), torch.randn(3, 6)
    x = torch.randn(40, 7, 6) * 3 + 1
    rows = [0, 1, 2, 2, 2, 2, 2]
    norm.start(x, x * gain[rows] + offset[rows])
    torch.testing.assert_close(norm.weight.data, gain, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(norm(x), x * gain[rows] + offset[rows], atol=1e-2, rtol=1e-2)
    pooled = StaticNorm(6)
    pooled.start(x[:, 0], 2 * x[:, 0])
    assert pooled(x[:, 0]).shape == (40, 6)


def test_a_static_norm_of_a_constant_is_that_constant() -> None:
    norm = StaticNorm(4, prefix=1)
    x = torch.ones(8, 3, 4)
    norm.start(x, 5 * x)
    torch.testing.assert_close(norm(x), 5 * x)


def test_a_gated_norm_is_its_equation() -> None:
    norm = GatedNorm(6, prefix=1)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, mean=0.5)
    x = torch.randn(5, 4, 6)
    rows = [0, 1, 1, 1]
    gates = ((x - norm.centre).abs().mean(-1, keepdim=True) * norm.slope[rows] + norm.level[rows]).clamp(0.25, 4)
    torch.testing.assert_close(norm(x), gates * x * norm.weight[rows] + norm.bias[rows])


@pytest.mark.parametrize("shape", [(64, 5, 16), (64, 16)])
def test_a_gated_norm_follows_the_size_of_tokens_as_a_static_one_cannot(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    x = x * (1 + 2 * torch.rand(*shape[:-1], 1))
    target = nn.functional.layer_norm(x, shape[-1:])
    errors = []
    for norm in (StaticNorm(16, prefix=len(shape) - 2), GatedNorm(16, prefix=len(shape) - 2)):
        norm.start(x, target)
        errors.append((norm(x) - target).square().mean().item())
    assert errors[1] < 0.7 * errors[0]


def test_a_gated_norm_of_equal_tokens_is_a_constant() -> None:
    norm = GatedNorm(4, prefix=1)
    x = torch.ones(8, 3, 4)
    norm.start(x, 5 * x)
    torch.testing.assert_close(norm(x), 5 * x)
    assert norm(torch.zeros(8, 3, 4)).isfinite().all()


def test_perceptrons_are_their_equations() -> None:
    x = torch.randn(5, N, 12)
    plain, gated = SubstituteMlp(SIZE), ExpertMlp(SIZE)
    torch.testing.assert_close(plain(x), plain.fc2(relu(plain.fc1(x))))
    nn.init.normal_(gated.router.weight)
    h = relu(gated.fc1(x))
    grid = h[:, 1:].mT.reshape(5, 20, 2, 3)
    near = conv2d(grid, gated.router.weight, gated.router.bias, padding=1, groups=20).flatten(2).mT
    alone = h[:, :1] * gated.router.weight[:, 0, 1, 1] + gated.router.bias
    gates = hardtanh(torch.cat([alone, near], 1), 0, 1)
    torch.testing.assert_close(gated(x), gated.fc2(gates * h))
