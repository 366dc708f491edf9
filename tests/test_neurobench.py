"""The metrics of NeuroBench: beside the package, and beside the meter where their rules agree."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import enliven, make_recipe, make_vit
from torch import Tensor, nn

from vit2snn.cli import cli
from vit2snn.convert import to_spiking
from vit2snn.measure import NeuroBench, evaluate
from vit2snn.spiking import Neuron
from vit2snn.zoo import SpikeDrivenTransformer, Spikformer

T, B = 3, 8


@pytest.fixture
def frames() -> Tensor:
    return torch.randint(0, 3, (T, B, 3, 16, 16)).float()


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(B) % 4


def zoo(architecture: type[nn.Module], frames: Tensor) -> Any:
    """A small network, a fifth of whose weights are 0."""
    network = architecture(dim=16, depth=1, num_heads=2, pools="0011", num_classes=4, timesteps=T)
    for module in enliven(network, frames).modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.weight.data[torch.rand_like(module.weight) < 0.2] = 0
    return network


def parts(x: Tensor, labels: Tensor, size: int = 5) -> list[tuple[Tensor, Tensor]]:
    """Batches of images or frames, the last one smaller."""
    return list(zip(x.split(size, x.ndim - 4), labels.split(size), strict=True))


def measured(network: Any, batches: list[tuple[Tensor, Tensor]], timesteps: int | None = None) -> dict[str, Any]:
    bench = NeuroBench(network, timesteps)
    return bench.metrics(evaluate(network, bench.counted(batches), timesteps))


@pytest.mark.parametrize("architecture", [Spikformer, SpikeDrivenTransformer])
def test_networks_of_binary_spikes_have_the_figures_of_the_package(
    architecture: type[nn.Module], frames: Tensor, labels: Tensor
) -> None:
    pytest.importorskip("neurobench", reason="neurobench is not installed")
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.static import ConnectionSparsity, Footprint
    from neurobench.metrics.workload import ActivationSparsity, ClassificationAccuracy, SynapticOperations
    from neurobench.models import TorchModel
    from torch.utils.data import DataLoader, TensorDataset

    class Wrapped(TorchModel):
        """NeuroBench's batches have their timesteps second."""

        def __call__(self, batch: Tensor) -> Tensor:
            logits: Tensor = self.net.readout(batch.transpose(0, 1))[-1]
            return logits

    network = zoo(architecture, frames)
    wrapped = Wrapped(network)
    wrapped.add_activation_module(Neuron)
    loader = DataLoader(TensorDataset(frames.transpose(0, 1), labels), batch_size=5)
    metrics = [[Footprint, ConnectionSparsity], [ActivationSparsity, SynapticOperations, ClassificationAccuracy]]
    with torch.no_grad():
        theirs = Benchmark(wrapped, loader, [], [lambda logits: logits.argmax(-1)], metrics).run(quiet=True)
    ours = measured(network, parts(frames, labels))["neurobench"]
    assert ours.keys() == theirs.keys()
    assert ours.pop("SynapticOperations") == theirs.pop("SynapticOperations")
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert 0 < ours["ClassificationAccuracy"] < 1 and ours["ConnectionSparsity"] > 0.1


@torch.no_grad()
def heard(network: nn.Module, frames: Tensor) -> dict[str, float]:
    """What hooks say of a run, by the definition; all calls of one batch."""
    sums = dict.fromkeys(("Effective_MACs", "Effective_ACs", "Dense", "zeros", "values"), 0.0)

    def binary(layer: nn.Module, dense: bool) -> nn.Module:
        made = copy.deepcopy(layer).double()
        made.weight.data = (made.weight != 0).double() if not dense else torch.ones_like(made.weight)
        made.bias = None
        return made

    def connect(some: nn.Module, every: nn.Module, x: Tensor) -> None:
        kind = "Effective_ACs" if {-1.0, 0.0, 1.0}.issuperset(x.unique().tolist()) else "Effective_MACs"
        sums[kind] += float(some((x != 0).double()).sum())
        sums["Dense"] += float(every(torch.ones_like(x).double()).sum())

    def activate(output: Tensor) -> None:
        sums["zeros"] += int((output == 0).sum())
        sums["values"] += output.numel()

    layers = [(module, binary(module, False), binary(module, True)) for module in network.modules()
              if isinstance(module, (nn.Linear, nn.Conv2d))]  # fmt: skip
    handles = [layer.register_forward_pre_hook(lambda _, x, pair=pair: connect(*pair, x[0])) for layer, *pair in layers]
    found = [module for module in network.modules() if isinstance(module, Neuron)]
    handles += [module.register_forward_hook(lambda _, x, output: activate(output)) for module in found]
    network.readout(frames)
    for handle in handles:
        handle.remove()
    return sums


def test_zeros_on_either_side_cost_nothing(frames: Tensor, labels: Tensor) -> None:
    network = zoo(SpikeDrivenTransformer, frames)
    sums, found = heard(network, frames), measured(network, parts(frames, labels, B))["neurobench"]
    assert found["ActivationSparsity"] == pytest.approx(sums.pop("zeros") / sums.pop("values"))
    assert found["SynapticOperations"] == {name: count / B for name, count in sums.items()}
    assert min(sums.values()) > 0
    weights = [module.weight for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    share = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    assert found["ConnectionSparsity"] == round(share, 4) > 0.1
    kept = network.state_dict().values()
    assert found["Footprint"] == sum(len(tensor.numpy().tobytes()) for tensor in kept)


def test_a_static_image_counts_in_every_timestep(frames: Tensor, labels: Tensor) -> None:
    network = zoo(Spikformer, frames)
    shown = frames[0].expand(T, -1, -1, -1, -1)
    assert measured(network, parts(frames[0], labels)) == measured(network, parts(shown, labels, 3))
    once, twice = (measured(network, parts(frames[0], labels), timesteps) for timesteps in (1, 2))
    assert 2 * once["neurobench"]["SynapticOperations"]["Dense"] == twice["neurobench"]["SynapticOperations"]["Dense"]
    assert (once["vit2snn"]["timesteps"], twice["vit2snn"]["timesteps"]) == (1, 2)


def test_the_run_ends_with_the_last_timestep_that_is_reported(frames: Tensor, labels: Tensor) -> None:
    network = zoo(Spikformer, frames)
    whole, cut = (measured(network, parts(x, labels), 2)["neurobench"] for x in (frames, frames[:2]))
    assert whole == cut


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["stepwise", "layer-synchronous"])
@pytest.mark.parametrize("levels", [1, 4])
def test_of_coded_neurons_the_spikes_count(levels: int, schedule: str) -> None:
    """No weight is 0, so each spike meets as many of them as the meter says."""
    images = torch.randn(12, 3, 16, 16)
    recipe = make_recipe(levels=levels, schedule=schedule, timesteps=T, input_spikes=2)
    snn = to_spiking(make_vit(depth=1), recipe, images)
    found = measured(snn, parts(images, torch.arange(12) % 7))
    ours, meter = found["neurobench"]["SynapticOperations"], found["vit2snn"]
    spent = meter["accumulates"] - sum(kind["accumulates"] for kind in meter["unseen"].values())
    kind, other = ("Effective_ACs", "Effective_MACs") if levels == 1 else ("Effective_MACs", "Effective_ACs")
    assert ours[kind] == pytest.approx(spent) and spent > 0
    assert ours[other] == 0
    assert meter["unseen"].keys() == {"product", "function"}
    assert ours["Dense"] >= T * sum(p.numel() for p in snn.network.parameters() if p.ndim > 1 and p.shape[0] > 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("neurobench") / "out"
    result = run("convert", "demo", "-o", out, "--samples", 32, "--timesteps", 2)
    assert result.exit_code == 0, result.output
    return out


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_the_command_writes_the_metrics(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    for timesteps in ("1,2", "1"):  # its own file is replaced
        arguments = ("--samples", 20, "--timesteps", timesteps, "--neurobench", file, "--json")
        result = run("evaluate", model, *arguments)
        assert result.exit_code == 0, result.output
        written, document = json.loads(file.read_text()), json.loads(result.stdout)
        assert written["vit2snn"]["images"] == 20
        assert written["vit2snn"]["timesteps"] == int(timesteps[-1])
        assert written["neurobench"]["ClassificationAccuracy"] == pytest.approx(document["snn"][-1]["top1"] / 100)


@pytest.mark.parametrize("text", ["{}", "[1]", "no JSON"])
def test_nothing_of_the_users_is_replaced(model: Path, tmp_path: Path, text: str) -> None:
    file = tmp_path / "own.json"
    file.write_text(text)
    result = run("evaluate", model, "--neurobench", file)
    assert result.exit_code == 2
    assert "holds no metrics of NeuroBench" in result.stderr
    assert file.read_text() == text


def test_what_cannot_be_counted_or_written_is_refused_at_once(model: Path, tmp_path: Path) -> None:
    result = run("evaluate", model, "--neurobench", tmp_path / "none" / "metrics.json")
    assert result.exit_code == 1 and "is no folder to write 'metrics.json' into" in result.stderr
    result = run("evaluate", model, "--neurobench", tmp_path / "metrics.json", "--amp-dtype", "bfloat16")
    assert result.exit_code == 2 and "leave out --amp-dtype" in result.stderr
    assert not (tmp_path / "metrics.json").exists()
