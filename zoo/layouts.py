"""The authors' checkpoints: how each published code base names its parameters, and which arguments they belong to.

A layout maps every module of ours to the authors' modules that it takes its weights from. The authors' names have ``{}`` where
the kind of module stands: ``block.0.attn.q_{}`` is ``q_conv`` or ``q_linear``, ``q_bn`` and ``q_lif``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import CheckpointError

Arguments = dict[str, Any]
Names = Iterator[tuple[str, str]]


class Source:
    """An authors' configuration and the weights that go with it. What the weights tell is not asked of the configuration."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        self.config = config
        self.weights = weights
        self.used: set[str] = set()

    def get(self, *names: str, default: Any = None) -> Any:
        """The first of these keys of the configuration that is there."""
        self.used.update(names)
        return next((self.config[name] for name in names if name in self.config), default)

    def size(self, key: str, axis: int = 0, claims: tuple[str, ...] = ()) -> int:
        """The size of a weight along an axis, which the configuration must not contradict under the keys ``claims``.

        Raises:
            CheckpointError: it does.
        """
        size = int(self.weights[key].shape[axis])
        claimed = self.get(*claims, default=size)
        if claimed != size:
            raise CheckpointError(
                f"the configuration says {'/'.join(claims)}={claimed}, but {key!r} has shape {tuple(self.weights[key].shape)}",
                "give the configuration that belongs to these weights, or leave the entry out",
            )
        return size

    def depth(self, prefix: str) -> int:
        """How many blocks ``prefix.0``, ``prefix.1``, ... there are."""
        numbers = [key[len(prefix) + 1 :].partition(".")[0] for key in self.weights if key.startswith(prefix + ".")]
        return 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)

    def common(self, first_conv: str, timesteps: int = 4) -> Arguments:
        """What all architectures have."""
        return {
            "num_classes": self.size("head.weight", 0, ("num_classes",)),
            "in_chans": self.size(first_conv, 1, ("in_channels", "in_chans")),
            "timesteps": self.get("T", "step", "time_steps", "time_step", default=timesteps),
        }

    def heads(self, default: int) -> int:
        """The number of heads, which leaves no trace in the weights; the authors' lists hold one number several times."""
        heads = self.get("num_heads", default=default)
        return int(heads if isinstance(heads, int) else heads[0])


@dataclass(frozen=True)
class Layout:
    """One code base's checkpoints.

    Attributes:
        variant: the registered zoo model that a checkpoint becomes, with other arguments.
        arguments: of the model, from configuration and weights.
        names: of its modules, ours and theirs, from the arguments.
        linear: what a linear map of tokens is called, ``linear`` or ``conv``.
        dimensions: of the weight of the first layer of an MLP: 2 for a linear layer, 3 or 4 for a convolution.
        unused: patterns of keys that the published code makes and never uses.
    """

    variant: str
    arguments: Callable[[Source], Arguments]
    names: Callable[[Arguments], Names]
    linear: str
    dimensions: int
    unused: tuple[str, ...] = ()


WIDTH = ("embed_dims", "embed_dim", "dim")
NORMS = r"block\.\d+\.norm[12]\.(weight|bias)"
BRAINCOG = r".*\.act_fun\.alpha"


# QKFormer ---------------------------------------------------------------------------------------------------------------


def _qkformer(stem: str, attention: tuple[str, ...], heads: int | None, mlp: str) -> Callable[[Source], Arguments]:
    def arguments(source: Source) -> Arguments:
        stages = range(1, len(attention) + 1)
        dims = [source.size(f"stage{i}.0.mlp.{mlp}1_conv.weight", 1) for i in stages]
        source.size("head.weight", 1, WIDTH)
        return source.common("patch_embed1.proj_conv.weight", 0 if stem == "dvs" else 4) | {
            "dims": dims,
            "depths": [source.depth(f"stage{i}") for i in stages],
            "attention": list(attention),
            # The CIFAR and event code overwrites the argument with a constant.
            "num_heads": heads or source.heads(default=max(1, dims[-1] // 64)),
            "mlp_ratio": source.size(f"stage1.0.mlp.{mlp}1_conv.weight") / dims[0],
            "stem": stem,
        }

    return arguments


def _qkformer_names(embeds: list[list[str]], stem: int, last: str, mlp: str) -> Callable[[Arguments], Names]:
    def names(arguments: Arguments) -> Names:
        for i, depth in enumerate(arguments["depths"]):
            yield from _speds(f"stages.{i}.embed", f"patch_embed{i + 1}", embeds[min(i, 1)], stem if i == 0 else 0)
            for j in range(depth):
                theirs = f"stage{i + 1}.{j}"
                kind = "tssa" if arguments["attention"][i] == "qk-token" else last
                yield from _attention(f"stages.{i}.blocks.{j}", f"{theirs}.{kind}", value=kind == last)
                yield from _mlp(f"stages.{i}.blocks.{j}", f"{theirs}.mlp.{mlp}")

    return names


def _speds(ours: str, theirs: str, convolutions: list[str], stem: int) -> Names:
    for i, name in enumerate(convolutions):
        place = f"stem.{i}" if i < stem else f"body.main.{i - stem}"
        yield f"{ours}.{place}", f"{theirs}.{name}_{{}}"
    yield f"{ours}.body.shortcut", f"{theirs}.proj_res_{{}}"


# Spikformer and its relatives -------------------------------------------------------------------------------------------


def _attention(ours: str, theirs: str, value: bool = True, mask: str = "attn_lif") -> Names:
    """Attention in a SEW shortcut: the neuron of the projection is the shortcut's."""
    yield from _attention_branch(f"{ours}.attention", theirs, value, mask)
    yield f"{ours}.attention.neuron", f"{theirs}.proj_lif"


def _attention_branch(ours: str, theirs: str, value: bool = True, mask: str = "attn_lif") -> Names:
    for mine, name in (("query", "q"), ("key", "k"), ("value", "v"))[: 3 if value else 2]:
        yield f"{ours}.branch.{mine}", f"{theirs}.{name}_{{}}"
    yield f"{ours}.branch.neuron", f"{theirs}.{mask}"
    yield f"{ours}.branch.out", f"{theirs}.proj_{{}}"


def _mlp(ours: str, theirs: str) -> Names:
    """A perceptron in a SEW shortcut."""
    yield f"{ours}.mlp.branch.expand", f"{theirs}1_{{}}"
    yield f"{ours}.mlp.branch.reduce", f"{theirs}2_{{}}"
    yield f"{ours}.mlp.neuron", f"{theirs}2_lif"


def _membrane_mlp(ours: str, theirs: str) -> Names:
    """A perceptron in a membrane shortcut: each layer's neuron comes before it."""
    yield f"{ours}.mlp.neuron", f"{theirs}1_lif"
    yield f"{ours}.mlp.branch.expand.project", f"{theirs}1_{{}}"
    yield f"{ours}.mlp.branch.expand.neuron", f"{theirs}2_lif"
    yield f"{ours}.mlp.branch.reduce", f"{theirs}2_{{}}"


def _splitting(neuron: str | None = "rpe_lif") -> Names:
    """The patch embedding, with the name of the neuron in its position embedding."""
    for i in range(4):
        yield f"stages.0.embed.layers.{i}", f"patch_embed.proj_{{}}{i or ''}"
    yield "stages.0.embed.position.branch", "patch_embed.rpe_{}"
    if neuron:
        yield "stages.0.embed.position.neuron", f"patch_embed.{neuron}"


def _sps_arguments(source: Source, mlp: str) -> Arguments:
    dim = source.size("patch_embed.rpe_conv.weight", 0, WIDTH)
    return source.common("patch_embed.proj_conv.weight") | {
        "dim": dim,
        "depth": source.depth("block"),
        "mlp_ratio": source.size(f"block.0.mlp.fc1_{mlp}.weight") / dim,
    }


def _spikformer(mlp: str, heads: int, **constants: Any) -> Callable[[Source], Arguments]:
    def arguments(source: Source) -> Arguments:
        found = _sps_arguments(source, mlp) | {"num_heads": source.heads(heads)} | constants
        if "timesteps" in constants:
            found["timesteps"] = source.get("T", "step", default=constants["timesteps"])
        return found

    return arguments


def _spikformer_names(arguments: Arguments) -> Names:
    yield from _splitting()
    for i in range(arguments["depth"]):
        yield from _attention(f"stages.0.blocks.{i}", f"block.{i}.attn")
        yield from _mlp(f"stages.0.blocks.{i}", f"block.{i}.mlp.fc")


def _tim(source: Source) -> Arguments:
    def threshold(name: str) -> float:
        return float(source.weights[f"block.0.attn.{name}.threshold"])

    return _sps_arguments(source, "conv") | {
        "num_heads": source.heads(16),
        "img_size": [source.get("img_size_h", default=64), source.get("img_size_w", default=64)],
        "alpha": source.get("TIM_alpha", default=0.5),
        "interaction_thresholds": [threshold("TIM.in_lif"), threshold("TIM.out_lif")],
        "attention_threshold": threshold("attn_lif"),
    }


def _tim_names(arguments: Arguments) -> Names:
    yield from _spikformer_names(arguments)
    for i in range(arguments["depth"]):
        ours, theirs = f"stages.0.blocks.{i}.attention.branch.interaction", f"block.{i}.attn.TIM"
        yield f"{ours}.conv", f"{theirs}.interactor"
        yield f"{ours}.inner", f"{theirs}.in_lif"
        yield f"{ours}.outer", f"{theirs}.out_lif"


def _semm(source: Source) -> Arguments:
    attention = "block.0.attn."
    dim = source.size("patch_embed.rpe_conv.weight")
    return _sps_arguments(source, "linear") | {
        "experts": source.size(attention + "router1.weight"),
        "expert_dim": source.size(attention + "k_linear.weight"),
        "small_value": source.size(attention + "v_linear.weight") != dim,
        "scale": source.get("attn_scale", default=0.125),
        "expert_threshold": float(source.weights[attention + "lif_list.0.threshold"]),
        "pools": "0011",
        "qkv_bias": True,
    }


def _semm_names(arguments: Arguments) -> Names:
    yield from _splitting()
    for i in range(arguments["depth"]):
        ours, theirs = f"stages.0.blocks.{i}", f"block.{i}.attn"
        branch = f"{ours}.attention.branch"
        for j in range(arguments["experts"]):  # several of theirs for one of ours are put one after another
            yield f"{branch}.query", f"{theirs}.ff_list.{j}.unit_{{}}"
            yield f"{branch}.neuron", f"{theirs}.lif_list.{j}"
        yield f"{branch}.key", f"{theirs}.k_{{}}"
        yield f"{branch}.value", f"{theirs}.v_{{}}"
        yield f"{branch}.router.project.conv", f"{theirs}.router1"
        yield f"{branch}.router.project.bn", f"{theirs}.router2"
        yield f"{branch}.router.neuron", f"{theirs}.router3"
        yield f"{branch}.out", f"{theirs}.proj_{{}}"
        yield f"{ours}.attention.neuron", f"{theirs}.proj_lif"
        yield f"{ours}.mlp.branch.router", f"block.{i}.mlp.dw_{{}}"
        yield from _mlp(ours, f"block.{i}.mlp.fc")


# Membrane shortcuts: Spike-driven Transformer, AutoST ---------------------------------------------------------------------


def _sdt(source: Source) -> Arguments:
    return _sps_arguments(source, "conv") | {
        "num_heads": source.heads(8),
        "pools": str(source.get("pooling_stat", default="1111")),
        "pooled_attention": bool(source.get("dvs_mode", default=False)),
        "neuron": source.get("spike_mode", default="plif" if "head_lif.w" in source.weights else "lif"),
    }


def _sdt_names(arguments: Arguments) -> Names:
    yield from _splitting("proj_lif3")
    yield "head_neuron", "head_lif"
    for i in range(arguments["depth"]):
        ours, theirs = f"stages.0.blocks.{i}", f"block.{i}.mlp.fc"
        yield f"{ours}.attention.neuron", f"block.{i}.attn.shortcut_lif"
        yield from _attention_branch(f"{ours}.attention", f"block.{i}.attn", mask="talking_heads_lif")
        if arguments["mlp_ratio"] == 1:
            for j in range(2):
                yield f"{ours}.mlp.{j}.neuron", f"{theirs}{j + 1}_lif"
                yield f"{ours}.mlp.{j}.branch", f"{theirs}{j + 1}_{{}}"
        else:
            yield from _membrane_mlp(ours, theirs)


def _spikingformer(convolutions: str, pools: str, heads: int) -> Callable[[Source], Arguments]:
    def arguments(source: Source) -> Arguments:
        first, last = (f"patch_embed.{convolutions.format(i)}_conv.weight" for i in ("" if "proj" in convolutions else 0, 4))
        dim = source.size(last, 0, WIDTH)
        return source.common(first) | {
            "dim": dim,
            "depth": source.depth("block"),
            "mlp_ratio": source.size("block.0.mlp.mlp1_conv.weight") / dim,
            "num_heads": source.heads(heads),
            "pools": pools,
        }

    return arguments


def _spikingformer_names(convolutions: str) -> Callable[[Arguments], Names]:
    def names(arguments: Arguments) -> Names:
        for i in range(5):
            number = i if i or "proj" not in convolutions else ""
            ours = f"stages.0.embed.layers.{i}.project" if i < 4 else "stages.0.embed.position"
            yield ours, f"patch_embed.{convolutions.format(number)}_{{}}"
        for i in range(arguments["depth"]):
            ours, theirs = f"stages.0.blocks.{i}", f"block.{i}.attn"
            yield f"{ours}.attention.neuron", f"{theirs}.proj_lif"
            yield from _attention_branch(f"{ours}.attention", theirs)
            yield from _membrane_mlp(ours, f"block.{i}.mlp.mlp")

    return names


def _autost(source: Source) -> Arguments:
    dim, depth = source.size("patch_embed.rpe_conv.weight", 0, WIDTH), source.depth("block")
    heads = source.get("num_heads", default=8)
    return source.common("patch_embed.proj_conv.weight") | {
        "dim": dim,
        "num_heads": [heads] * depth if isinstance(heads, int) else list(heads)[:depth],
        "mlp_ratios": [source.size(f"block.{i}.mlp.fc1_linear.weight") / dim for i in range(depth)],
    }


def _autost_names(arguments: Arguments) -> Names:
    yield from _splitting(neuron=None)
    for i in range(len(arguments["num_heads"])):
        ours, theirs = f"stages.0.blocks.{i}", f"block.{i}.attn"
        yield f"{ours}.attention.neuron", f"{theirs}.lif"
        yield from _attention_branch(f"{ours}.attention", theirs)
        yield from _membrane_mlp(ours, f"block.{i}.mlp.fc")


LAYOUTS: dict[str, Layout] = {
    "qkformer_imagenet": Layout(
        "qkformer_10_384",
        _qkformer("imagenet", ("qk-token", "qk-token", "ssa"), None, "fc"),
        _qkformer_names([["proj", "proj1", "proj2"], ["proj3", "proj4"]], 1, "attn", "fc"),
        "conv",
        4,
    ),
    "qkformer_cifar": Layout(
        "qkformer_4_384_cifar10",
        _qkformer("cifar", ("qk-token", "qk-token", "ssa"), 8, "mlp"),
        _qkformer_names([["proj", "proj1"], ["proj3", "proj4"]], 1, "ssa", "mlp"),
        "conv",
        4,
    ),
    "qkformer_dvs": Layout(
        "qkformer_2_256_cifar10dvs",
        _qkformer("dvs", ("qk-token", "ssa"), 16, "mlp"),
        _qkformer_names([["proj", "proj1", "proj2", "proj3"], ["proj", "proj4"]], 2, "ssa", "mlp"),
        "conv",
        4,
    ),
    "spikformer_imagenet": Layout(
        "spikformer_8_512", _spikformer("conv", 8, pools="1111", scale=0.125), _spikformer_names, "conv", 4, (NORMS,)
    ),
    "spikformer_cifar": Layout(
        "spikformer_4_384_cifar10",
        _spikformer("linear", 12, pools="0011", scale=0.125, qkv_bias=True),
        _spikformer_names,
        "linear",
        2,
        (NORMS,),
    ),
    "spikformer_dvs": Layout(
        "spikformer_2_256_cifar10dvs",
        _spikformer("conv", 16, pools="1111", scale=0.25, timesteps=0),
        _spikformer_names,
        "conv",
        3,
        (NORMS, "pos_embed", r"norm\.(weight|bias)"),
    ),
    "sdt": Layout(
        "sdt_8_512", _sdt, _sdt_names, "conv", 4, (r".*\.talking_heads\.weight", r".*\.attn_lif\.w", r"patch_embed\.rpe_lif\.w")
    ),
    "spikingformer_imagenet": Layout(
        "spikingformer_8_512", _spikingformer("proj{}", "1111", 8), _spikingformer_names("proj{}"), "conv", 4, (NORMS,)
    ),
    "spikingformer_cifar": Layout(
        "spikingformer_4_384_cifar10", _spikingformer("block{}", "0011", 12), _spikingformer_names("block{}"), "conv", 4, (NORMS,)
    ),
    "semm_cifar": Layout("semm_spikformer_4_384_cifar10", _semm, _semm_names, "linear", 2, (BRAINCOG,)),
    "tim": Layout("tim_2_256_cifar10dvs", _tim, _tim_names, "conv", 3, (NORMS, BRAINCOG, r".*\.res_lif\.threshold")),
    "autost": Layout("autost_4_384_cifar100", _autost, _autost_names, "linear", 2),
}
"""By the names that `vit2snn.zoo.from_official` takes."""
