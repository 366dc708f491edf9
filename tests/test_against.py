"""The ANN with integers of few bits, beside the spiking network."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from conftest import brief, make_vit
from hypothesis import given, strategies as st
from torch import Tensor

from vit2snn.cli import cli
from vit2snn.convert import quantised, to_spiking
from vit2snn.convert.quantised import rounded
from vit2snn.errors import ModelError
from vit2snn.measure import evaluate
from vit2snn.measure.against import Rival, contest, energies, is_as_good, of_bits
from vit2snn.measure.energy import MODELS
from vit2snn.measure.report import report_page
from vit2snn.storage.documents import read_artifacts

SEVEN = torch.arange(20) % 7


def converted(recipe: str = "faithful", **arguments: Any) -> Any:
    ann = make_vit(**({"depth": 1} | arguments))
    return to_spiking(ann, brief(recipe).changed(timesteps=3), torch.randn(32, 3, 16, 16))


@pytest.fixture
def scored() -> tuple[Tensor, Tensor]:
    return torch.randn(20, 3, 16, 16), SEVEN


@given(bits=st.integers(2, 9), seed=st.integers(0, 9), signed=st.booleans())
def test_rounded_values_are_so_many_multiples_of_a_scale(bits: int, seed: int, signed: bool) -> None:
    x = torch.randn(3, 500, generator=torch.Generator().manual_seed(seed))
    x = x if signed else x.abs()
    found = rounded(x, bits, (-1,))
    for row, original in zip(found, x, strict=True):
        values = row.unique()
        assert len(values) <= (2**bits - 1 if signed else 2**bits)
        multiples = row / values.diff().min()
        assert torch.allclose(multiples, multiples.round(), atol=0.1)
        most = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
        plain = (original / (original.abs().max() / most)).round() * original.abs().max() / most
        assert (row - original).square().sum() <= (plain - original).square().sum() * (1 + 1e-5)


def test_nothing_is_rounded_to_nothing_and_what_is_not_finite_stays_so() -> None:
    assert torch.equal(rounded(torch.zeros(2, 5), 4, (-1,)), torch.zeros(2, 5))
    assert not rounded(torch.tensor([[torch.nan, 1.0]]), 4, (-1,)).isfinite().all()


@pytest.mark.parametrize("recipe", ["faithful", "qkformer-membrane", "exact", "hybrid"])
def test_of_many_bits_the_ann_is_what_it_was_and_of_few_it_is_not(recipe: str, scored: tuple[Tensor, Tensor]) -> None:
    snn, (x, _) = converted(recipe), scored
    before = {name: value.clone() for name, value in snn.state_dict().items()}
    ann = snn.ann(x)
    with torch.no_grad():
        errors = [float((quantised(snn, bits)(x) - ann).norm() / ann.norm()) for bits in (12, 8, 4, 2)]
    assert errors == sorted(errors)
    assert errors[0] < 0.02 < errors[2]
    assert all(torch.equal(before[name], value) for name, value in snn.state_dict().items())


def test_all_but_the_image_has_so_few_bits() -> None:
    ann = quantised(converted(), 3)
    bits = {name: module.bits for name, module in ann.named_modules() if hasattr(module, "bits")}
    assert {name for name, count in bits.items() if count != 3} == {"patch_embed.proj.neuron"}
    weight = ann.get_submodule("blocks.0.mlp.fc1").weight
    assert max(len(row.unique()) for row in weight) <= 7


def test_an_evaluation_scores_them_on_the_same_images(scored: tuple[Tensor, Tensor]) -> None:
    snn, (x, y) = converted(), scored
    rivals = {bits: quantised(snn, bits) for bits in (8, 3)}
    batches = [(x[:12], y[:12]), (x[12:], y[12:])]
    result = evaluate(snn, batches, against=rivals)
    assert result.contest
    with torch.no_grad():
        for rival in result.contest.rivals:
            logits, ann = rivals[rival.bits](x), snn.ann(x)
            assert rival.top1 == pytest.approx(100 * float((logits.argmax(1) == y).float().mean()))
            assert rival.agreement == pytest.approx(100 * float((logits.argmax(1) == ann.argmax(1)).float().mean()))
            assert rival.relative_error == pytest.approx(float((logits - ann).norm() / ann.norm()), rel=1e-4)
            assert rival.energy_uj == energies(result.costs, rival.bits)
    assert len(result.contest.verdicts) == 4
    assert [len(spent) for spent in result.contest.energy_uj] == [3, 3]
    plain = evaluate(snn, batches)
    assert plain.contest is None
    assert plain.points == result.points


@pytest.mark.parametrize("recipe", ["faithful", "ternary-synchronous"])
def test_words_of_all_timesteps_are_those_of_the_last(recipe: str, scored: tuple[Tensor, Tensor]) -> None:
    costs = evaluate(converted(recipe), [scored]).costs
    words = costs.words_so_far()
    assert float(words[-1]) == pytest.approx(costs.words)
    assert (words.diff() > 0).all()


def test_fewer_bits_take_less_and_eight_are_the_models_own() -> None:
    eight = next(model for model in MODELS if model.name == "45 nm int8")
    assert (of_bits(8).mac, of_bits(8).ac) == pytest.approx((eight.mac, eight.ac))
    assert of_bits(4).mac == pytest.approx(0.2 / 4 + 0.03)


def test_the_verdict_names_who_wins_and_where(scored: tuple[Tensor, Tensor]) -> None:
    result = evaluate(converted(), [scored])
    last = result.points[-1]
    beaten, costly = (Rival(4, last.top1, last.agreement, 0.1, (uj, uj)) for uj in (1e3, 1e-9))
    better = Rival(8, 101.0, 100.0, 0.0, (1.0, 1.0))
    verdicts = contest([beaten, costly, better], result.points, result.costs, result.images).verdicts
    assert "by computing alone, the SNN beats the ANN of 4 bits" in verdicts[0]
    assert "at T = " in verdicts[1]
    assert "by computing alone, the ANN of 4 bits wins: the SNN takes" in verdicts[2]
    assert verdicts[5] == "by computing and memory, the ANN of 8 bits wins: the SNN is less accurate at every T"


def test_a_difference_that_few_images_leave_to_chance_decides_nothing(scored: tuple[Tensor, Tensor]) -> None:
    point = dataclasses.replace(evaluate(converted(), [scored]).points[-1], top1=79.0, agreement=99.0)
    rival = Rival(8, 79.8, 98.0, 0.1, (1.0, 1.0))  # 3 % of the images may have another class: 0.77 points of 500
    assert not is_as_good(point, rival, 500)
    assert is_as_good(point, dataclasses.replace(rival, top1=79.7), 500)
    assert not is_as_good(point, dataclasses.replace(rival, top1=79.7), 5000)
    assert is_as_good(dataclasses.replace(point, top1=None), rival, 500)  # by agreement


def test_features_are_compared_and_numbers_are_not(scored: tuple[Tensor, Tensor]) -> None:
    x, y = scored
    snn = converted(num_classes=0)
    found = evaluate(snn, [x], against={8: quantised(snn, 8)}).contest
    assert found
    assert found.rivals[0].top1 is None
    assert found.rivals[0].agreement is not None
    snn = converted(num_classes=1)
    with pytest.raises(ModelError, match="puts out numbers"):
        evaluate(snn, [(x, y.float())], against={8: quantised(snn, 8)})
    with pytest.raises(ValueError, match="at least 2 bits, got 1"):
        quantised(snn, 1)


@pytest.mark.slow
def test_the_command_sets_them_beside_the_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(cli, [*arguments])

    assert run("convert", "demo", "-o", "snn", "--samples", "8", "--timesteps", "2").exit_code == 0
    done = run("evaluate", "snn", "--samples", "16", "--against", "int8,int4")
    assert done.exit_code == 0, done.output
    assert "ANN, 8 bits" in done.stdout
    assert [rival["bits"] for rival in json.loads(Path("snn/evaluation.json").read_text())["contest"]["rivals"]] == [8, 4]
    assert "Against the quantised ANN" in report_page(read_artifacts([Path("snn")]))
    for wrong in ("fp4", "int1", "int64", ","):
        assert run("evaluate", "snn", "--against", wrong).exit_code == 2
