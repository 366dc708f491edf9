"""Networks in NIR: every neuron of theirs sends the spikes of ours, in a reading of NIR of our own and in two simulators.

In double precision: the less is rounded, the rarer is a membrane that lies within a rounding error of its threshold.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import enliven, make_recipe, make_vit
from hypothesis import given, strategies as st
from torch import Tensor, nn

from vit2snn.convert import Recipe, load_model, to_spiking
from vit2snn.errors import ExportError
from vit2snn.export.nir.targets import check_target
from vit2snn.spiking import IF, LIF, PLIF, Balanced, Neuron
from vit2snn.zoo import QKFormer, SpikeDrivenTransformer

nir = pytest.importorskip("nir", reason="nir is not installed")

from vit2snn.export.nir import FILE, STEP, nir_graph, write_nir  # noqa: E402
from vit2snn.export.nir.integers import scales_of  # noqa: E402

T = 5
MIXED = {"0": "qk-token+conv", "1": "qk-channel"}
Outputs = dict[str, Tensor]
Step = Callable[[Tensor], Outputs]


def recipe(attention: Any, **fields: Any) -> Recipe:
    common: dict[str, Any] = dict(mlp="relu", norm="static", refit="ridge", neuron="lif", timesteps=3)
    return make_recipe(attention=attention, **(common | fields))


def converted(attention: Any = "qk-channel+conv", **fields: Any) -> Any:
    chosen = recipe(attention, **fields)
    return to_spiking(make_vit(), chosen, torch.randn(32, 3, 16, 16)).eval()


def ignoring(name: str) -> Any:
    return to_spiking(make_vit(), recipe("qk-channel", ignore=(name,)), torch.randn(32, 3, 16, 16))


def zoo(architecture: type[nn.Module], **arguments: Any) -> Any:
    network: Any = architecture(num_classes=7, timesteps=3, num_heads=2, **arguments)
    network.pretrained_cfg = {"input_size": (3, 16, 16)}
    return enliven(network, torch.rand(3, 2, 3, 16, 16) * 2)


def qkformer(kind: str = "qk-channel", neuron: Any = "lif") -> Any:
    return zoo(QKFormer, dims=(16,), depths=(2,), attention=(kind,), stem="cifar", neuron=neuron)


def spike_driven(pools: str = "0110", neuron: Any = "lif") -> Any:
    return zoo(SpikeDrivenTransformer, dim=32, depth=2, pools=pools, neuron=neuron)


@torch.no_grad()
def ours(network: Any, x: Tensor) -> tuple[Tensor, Outputs]:
    """The readout ``[T, B, classes]``, and the spikes of all neurons ``[T, B, ...]``."""
    spikes: Outputs = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            spikes[name] = output.unflatten(0, (T, -1)).clone()

        return hook

    balanced = {name: m.neuron for name, m in network.network.named_modules() if isinstance(m, Balanced)}
    neurons = balanced or {name: m for name, m in network.network.named_modules() if isinstance(m, Neuron)}
    hooks = [neuron.register_forward_hook(keep(name)) for name, neuron in neurons.items()]
    logits: Tensor = network.readout(x, T)
    for hook in hooks:
        hook.remove()
    return logits, spikes


@torch.no_grad()
def theirs(step: Step, x: Tensor) -> tuple[Tensor, Outputs]:
    """The same of a simulator, by node."""
    steps = [step(x) for _ in range(T)]
    outputs = {name: torch.stack([outputs[name] for outputs in steps]) for name in steps[0]}
    return outputs["output"].flatten(2).cumsum(0) / torch.arange(1, T + 1).reshape(-1, 1, 1), outputs


def ordered(graph: Any) -> list[str]:
    """Its nodes, receivers behind what they receive: edges are written in that order, and files sort nodes by name."""
    return list(dict.fromkeys(name for edge in graph.edges for name in edge))


def documented(graph: Any) -> Step:
    """NIR as its documentation has it, by Euler's method: one call is one timestep."""
    membranes: Outputs = {}

    def fired(name: str, node: Any, x: Tensor) -> Tensor:
        number = {key: torch.tensor(getattr(node, key)).to(x.dtype) for key in ("r", "v_threshold", "v_reset")}
        v = membranes.get(name, torch.zeros_like(x))
        if isinstance(node, nir.LIF):
            # In double precision as the parameters are: a share of a half is a half.
            share = torch.tensor(STEP / node.tau).to(x.dtype)
            v = v + share * (torch.tensor(node.v_leak).to(x.dtype) - v + number["r"] * x)
        else:
            v = v + number["r"] * x
        spikes = v > number["v_threshold"]
        membranes[name] = torch.where(spikes, number["v_reset"], v)
        return spikes.to(x.dtype)

    def computed(name: str, node: Any, x: Tensor) -> Tensor:
        if isinstance(node, nir.Conv2d):
            weight, bias = torch.tensor(node.weight).to(x.dtype), torch.tensor(node.bias).to(x.dtype)
            return nn.functional.conv2d(x, weight, bias, tuple(node.stride), tuple(node.padding), 1, int(node.groups))
        if isinstance(node, nir.SumPool2d):
            return nn.functional.avg_pool2d(x, tuple(node.kernel_size.tolist())) * float(np.prod(node.kernel_size))
        return fired(name, node, x) if isinstance(node, (nir.IF, nir.LIF)) else x

    def step(x: Tensor) -> Outputs:
        outputs: Outputs = {}
        for name in ordered(graph):
            sources = [outputs[source] for source, target in graph.edges if target == name]
            outputs[name] = computed(name, graph.nodes[name], torch.stack(sources).sum(0) if sources else x)
        return outputs

    return step


def norse(graph: Any) -> Step:
    module = pytest.importorskip("norse.torch", reason="norse is not installed").from_nir(graph, dt=STEP).double()
    places = {name.replace(".", "_"): place for place, name in enumerate(ordered(graph))}
    # It goes depth first, and would leave out what a node with several sources has not received yet.
    module.execution_order.sort(key=lambda node: places[node.name])
    state: Any = None

    def step(x: Tensor) -> Outputs:
        nonlocal state
        _, state = module(x) if state is None else module(x, state)
        return {name: state.cache[name.replace(".", "_")] for name in graph.nodes}

    return step


def snntorch(graph: Any) -> Step:
    importer = pytest.importorskip("snntorch.import_nir", reason="snntorch is not installed")
    graph.nodes = {name: graph.nodes[name] for name in ordered(graph)}  # else it takes minutes to order them
    with contextlib.redirect_stdout(io.StringIO()):
        module = importer.import_from_nir(graph).double()
    outputs: Outputs = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            outputs[name] = output.double()  # its spikes are of single precision, whatever its membranes are
            return outputs[name]

        return hook

    for name, node in graph.nodes.items():
        if isinstance(node, nir.LIF):
            module.get_submodule(name.replace(".", "_")).register_forward_hook(keep(name))

    def step(x: Tensor) -> Outputs:
        output, _ = module(x)
        return {"output": output, **outputs}

    return step


def difference(name: str, sent: Tensor, found: Outputs) -> Iterator[int]:
    """How many spikes of a neuron, ``[T, B, ...]`` in our layout, are other ones in each of its nodes ``[T, B, C, H, W]``."""
    for node, spikes in found.items():
        if node != name and not node.startswith(f"{name}.token"):
            continue
        channels, positions = spikes.shape[2], spikes[0, 0, 0].numel()
        maps = sent
        if sent.ndim == 4 and sent.shape[-1] == channels:
            maps = sent.transpose(2, 3)  # [T, B, N, C]
        elif sent.ndim == 5 and sent.shape[2] * sent.shape[4] == channels and sent.shape[2] != channels:
            maps = sent.transpose(3, 4)  # [T, B, heads, N, C / heads]
        maps = maps.reshape(*spikes.shape[:2], channels, -1)
        maps = maps[..., :1] if ".token" in node else maps[..., -positions:]
        yield int((maps.reshape(spikes.shape) != spikes).sum())


def compare(network: Any, simulator: Callable[[Any], Step], folder: Path, x: Tensor) -> int:
    """Check a simulator on what was written and read; gives the number of neurons that were compared."""
    write_nir(network, folder)
    graph = nir.read(folder / FILE)
    wanted, sent = ours(network.double(), x.double())
    given, outputs = theirs(simulator(graph), x.double())
    found = {name: output for name, output in outputs.items() if isinstance(graph.nodes[name], (nir.IF, nir.LIF))}
    torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-5)
    assert given.std() > 0
    counts = {name: list(difference(name, spikes, found)) for name, spikes in sent.items()}
    assert not [name for name, count in counts.items() if any(count)]
    assert sum(float(spikes.sum()) for spikes in sent.values()) > 0
    return sum(bool(count) for count in counts.values())


NETWORKS: dict[str, Callable[[], Any]] = {
    "class token": converted,
    "mean": lambda: converted(MIXED, readout="mean"),
    "sdsa": lambda: converted("sdsa+conv"),
    "integers": lambda: converted(MIXED, weight_bits=4),
    "plif": lambda: converted(MIXED, neuron="plif"),
    "qkformer by token": lambda: qkformer("qk-token"),
    "qkformer by channel": qkformer,
    "spike-driven": spike_driven,
    "hard reset": lambda: qkformer(neuron=IF),
    "input kept": lambda: qkformer(neuron=lambda **constants: LIF(decay_input=False, tau=4.0, **constants)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_neuron_sends_the_same_spikes(name: str, tmp_path: Path) -> None:
    assert compare(NETWORKS[name](), documented, tmp_path, torch.rand(4, 3, 16, 16) * 2) > 5


SIMULATED = ("class token", "mean", "qkformer by token", "spike-driven")


# snnTorch wants one threshold for all neurons, and where weights are integers they are over their scales.
@pytest.mark.parametrize(
    ("name", "simulator"), [(name, s) for name in SIMULATED for s in (norse, snntorch)] + [("integers", norse)]
)
def test_simulators_send_the_same_spikes(name: str, simulator: Callable[[Any], Step], tmp_path: Path) -> None:
    logging.getLogger().setLevel(logging.ERROR)
    assert compare(NETWORKS[name](), simulator, tmp_path, torch.rand(4, 3, 16, 16) * 2) > 5


@pytest.mark.slow
@pytest.mark.parametrize("simulator", [documented, norse, snntorch])
def test_embedded_model(simulator: Callable[[Any], Step], demo_sample: tuple[Tensor, Tensor, Tensor], tmp_path: Path) -> None:
    logging.getLogger().setLevel(logging.ERROR)
    calibration, images, _ = demo_sample
    network = to_spiking(load_model("demo"), recipe("qk-channel+conv"), calibration)
    assert compare(network, simulator, tmp_path, images[:64]) > 30


def test_ties_at_the_threshold_fire_as_ours_do() -> None:
    network = qkformer("qk-token", IF)
    graph = nir_graph(network)
    (name,) = [name for name in graph.nodes if name.endswith("blocks.0.attention.branch.neuron")]
    threshold = graph.nodes[name].v_threshold
    assert (threshold < 0.5).all() and (np.nextafter(threshold.astype(np.float32), np.float32(1)) == 0.5).all()


def test_what_is_written_says_how_to_run_it(tmp_path: Path) -> None:
    told = write_nir(converted(), tmp_path)
    assert told["inputs"] == {"input": [3, 16, 16]} and told["outputs"] == {"output": [7, 1, 1]}
    assert told["timesteps"] == 3 and "mean" in told["readout"] and told["step_seconds"] == STEP
    assert len(told["preprocessing"]["mean"]) == 3


REFUSED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "soft reset": (lambda: converted(neuron="if"), "blocks.0.attn.", "soft reset"),
    "kept perceptron": (lambda: converted(mlp="mlp"), "blocks.0.norm2", "depends on the image"),
    "ssa": (lambda: converted("ssa"), "blocks.0.attn.terms.ssa", "mask"),
    "timed": (lambda: converted("qk-channel+tim"), "gate.rectify", "earlier"),
    "softmax": (lambda: to_spiking(make_vit(), "exact", torch.randn(8, 3, 16, 16)), "patch_embed.proj", "graded"),
    "zoo ssa": (lambda: qkformer("ssa"), "stages.0.blocks.0.attention.branch", "mask"),
    "integers": (lambda: spike_driven(neuron=lambda **_: nn.ReLU()), "stages.0.embed", "binary"),
    "analog layer": (lambda: ignoring("blocks.0.attn.qkv"), "blocks.0.attn.qkv", "no spikes"),
    "currents pooled": (lambda: spike_driven("0001"), "stages.0.embed.layers", "maximum"),
    "other reset": (lambda: qkformer(neuron=lambda **c: IF(v_reset=-1.0, **c)), "stages.0.embed", "-1.0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_said_is_refused_by_name(name: str) -> None:
    make, module, why = REFUSED[name]
    with pytest.raises(ExportError, match=why) as error:
        nir_graph(make())
    assert module in str(error.value) and error.value.hint


def test_targets_name_what_does_not_fit() -> None:
    graph = nir_graph(converted())
    assert check_target(graph, "spinnaker2") == []
    speck = "\n".join(check_target(graph, "speck"))
    for problem in ("layers of neurons, and the chip has 9", "leaks", "binary spikes alone", "8 bits"):
        assert problem in speck
    assert all("8 bits" in line for line in check_target(graph, "loihi2"))


def test_integer_weights_fit_eight_bits_and_are_written_as_such() -> None:
    graph = nir_graph(converted(weight_bits=8))
    assert check_target(graph, "loihi2") == []
    folded = 0
    for name, node in graph.nodes.items():
        read = [graph.nodes[receiver] for source, receiver in graph.edges if source == name]
        if isinstance(node, nir.Conv2d) and np.abs(node.weight).max() > 1 and (node.weight == node.weight.round()).all():
            assert np.abs(node.weight).max() <= 127 and isinstance(read[0], nir.LIF)
            folded += 1
    assert folded > 5


@given(seed=st.integers(0, 99), bits=st.integers(2, 8))
def test_rows_of_integers_are_told_from_others(seed: int, bits: int) -> None:
    generator = np.random.default_rng(seed)
    most = 2 ** (bits - 1) - 1
    integers = generator.integers(-most, most + 1, (5, 4, 1, 1)).astype(float)
    integers[0] = 0
    weight = (integers * generator.uniform(1e-3, 10, (5, 1, 1, 1))).astype(np.float32)
    scales = scales_of(weight, bits)
    assert scales is not None
    levels = weight[:, :, 0, 0] / scales[:, None]
    assert np.abs(levels - levels.round()).max() < 1e-3 and np.abs(levels).max() < most + 0.5
    weight[1, :2, 0, 0] = 1.0, np.pi / 1000
    assert scales_of(weight, bits) is None


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(ExportError, match="no target 'abacus'"):
        check_target(nir_graph(converted()), "abacus")


def test_leaks_that_are_learned_are_numbers_of_the_graph() -> None:
    network = qkformer(neuron=lambda **constants: PLIF(tau=3.0, **constants))
    taus = {
        float(tau) for node in nir_graph(network).nodes.values() if isinstance(node, nir.LIF) for tau in np.unique(node.tau)
    }
    assert any(abs(tau - 3 * STEP) < 1e-9 for tau in taus)
