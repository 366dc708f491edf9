"""The authors' checkpoints: which of our models each published code base makes, by its configuration and its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from . import names
from .names import Arguments, Names


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

    def threshold(self, neuron: str, default: float) -> float:
        """The threshold of a neuron of the attention, which BrainCog keeps among the weights."""
        found = self.weights.get(f"block.0.attn.{neuron}.threshold")
        return default if found is None else float(found)

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
        dimensions: of the weights of linear maps of tokens, in attention and in MLPs: 2 for linear layers, 3 or 4 for
            convolutions.
        unused: patterns of keys that the published code makes and never uses.
    """

    variant: str
    arguments: Callable[[Source], Arguments]
    names: Callable[[Arguments], Names]
    linear: str
    dimensions: tuple[int, int]
    unused: tuple[str, ...] = ()


WIDTH = ("embed_dims", "embed_dim", "dim")
NORMS = r"block\.\d+\.norm[12]\.(weight|bias)"
BRAINCOG = r".*\.act_fun\.alpha"


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


def _tim(source: Source) -> Arguments:
    side = 16 * math.isqrt(source.size("block.0.attn.TIM.interactor.weight"))  # a token is 16 pixels wide
    return _sps_arguments(source, "conv") | {
        "num_heads": source.heads(16),
        "img_size": [source.get("img_size_h", default=side), source.get("img_size_w", default=side)],
        "alpha": source.get("TIM_alpha", default=0.5),
        "interaction_thresholds": [source.threshold("TIM.in_lif", 0.3), source.threshold("TIM.out_lif", 0.5)],
        "attention_threshold": source.threshold("attn_lif", 0.5),
    }


def _semm(source: Source) -> Arguments:
    attention = "block.0.attn."
    dim = source.size("patch_embed.rpe_conv.weight")
    return _sps_arguments(source, "linear") | {
        "experts": source.size(attention + "router1.weight"),
        "expert_dim": source.size(attention + "k_linear.weight"),
        "small_value": source.size(attention + "v_linear.weight") != dim,
        "scale": source.get("attn_scale", default=0.125),
        "expert_threshold": source.threshold("lif_list.0", 1.0),
        "pools": "0011",
        "qkv_bias": True,
    }


def _sdt(source: Source) -> Arguments:
    return _sps_arguments(source, "conv") | {
        "num_heads": source.heads(8),
        "pools": str(source.get("pooling_stat", default="1111")),
        "pooled_attention": bool(source.get("dvs_mode", default=False)),
        "neuron": source.get("spike_mode", default="plif" if "head_lif.w" in source.weights else "lif"),
    }


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


def _autost(source: Source) -> Arguments:
    dim, depth = source.size("patch_embed.rpe_conv.weight", 0, WIDTH), source.depth("block")
    heads = source.get("num_heads", default=8)
    return source.common("patch_embed.proj_conv.weight") | {
        "dim": dim,
        "num_heads": [heads] * depth if isinstance(heads, int) else list(heads)[:depth],
        "mlp_ratios": [source.size(f"block.{i}.mlp.fc1_linear.weight") / dim for i in range(depth)],
    }


LAYOUTS: dict[str, Layout] = {
    "qkformer_imagenet": Layout(
        "qkformer_10_384",
        _qkformer("imagenet", ("qk-token", "qk-token", "ssa"), None, "fc"),
        names.qkformer([["proj", "proj1", "proj2"], ["proj3", "proj4"]], 1, "attn", "fc"),
        "conv",
        (3, 4),
    ),
    "qkformer_cifar": Layout(
        "qkformer_4_384_cifar10",
        _qkformer("cifar", ("qk-token", "qk-token", "ssa"), 8, "mlp"),
        names.qkformer([["proj", "proj1"], ["proj3", "proj4"]], 1, "ssa", "mlp"),
        "conv",
        (3, 4),
    ),
    "qkformer_dvs": Layout(
        "qkformer_2_256_cifar10dvs",
        _qkformer("dvs", ("qk-token", "ssa"), 16, "mlp"),
        names.qkformer([["proj", "proj1", "proj2", "proj3"], ["proj", "proj4"]], 2, "ssa", "mlp"),
        "conv",
        (3, 4),
    ),
    "spikformer_imagenet": Layout(
        "spikformer_8_512", _spikformer("conv", 8, pools="1111", scale=0.125), names.spikformer, "conv", (3, 4), (NORMS,)
    ),
    "spikformer_cifar": Layout(
        "spikformer_4_384_cifar10",
        _spikformer("linear", 12, pools="0011", scale=0.125, qkv_bias=True),
        names.spikformer,
        "linear",
        (2, 2),
        (NORMS,),
    ),
    "spikformer_dvs": Layout(
        "spikformer_2_256_cifar10dvs",
        _spikformer("conv", 16, pools="1111", scale=0.25, timesteps=0),
        names.spikformer,
        "conv",
        (3, 3),
        (NORMS, "pos_embed", r"norm\.(weight|bias)"),
    ),
    "sdt": Layout(
        "sdt_8_512",
        _sdt,
        names.sdt,
        "conv",
        (4, 4),
        (r".*\.talking_heads\.weight", r".*\.attn_lif\.w", r"patch_embed\.rpe_lif\.w"),
    ),
    "spikingformer_imagenet": Layout(
        "spikingformer_8_512", _spikingformer("proj{}", "1111", 8), names.spikingformer("proj{}"), "conv", (3, 4), (NORMS,)
    ),
    "spikingformer_cifar": Layout(
        "spikingformer_4_384_cifar10",
        _spikingformer("block{}", "0011", 12),
        names.spikingformer("block{}"),
        "conv",
        (3, 4),
        (NORMS,),
    ),
    "semm_cifar": Layout("semm_spikformer_4_384_cifar10", _semm, names.semm, "linear", (2, 2), (BRAINCOG,)),
    "tim": Layout("tim_2_256_cifar10dvs", _tim, names.tim, "conv", (3, 3), (NORMS, BRAINCOG, r".*\.res_lif\.threshold")),
    "autost": Layout("autost_4_384_cifar100", _autost, names.autost, "linear", (2, 2)),
}
"""By the names that `vit2snn.zoo.from_official` takes."""
