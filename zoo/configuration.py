"""What the authors' arguments may be, where a layout reads them; see `vit2snn.reading`. Other entries may hold anything."""

from __future__ import annotations

from typing import Annotated, TypedDict

from msgspec import Meta

from ..reading import Number

Size = Annotated[int, Meta(ge=1, le=2**20)]
Heads = Annotated[int, Meta(ge=1, le=2**10)]
Steps = Annotated[int, Meta(ge=1, le=2**10)]
Side = Annotated[int, Meta(ge=1, le=2**12)]
Name = Annotated[str, Meta(max_length=64)]


class Configuration(TypedDict, total=False):
    """By the names that the code bases give them."""

    num_classes: Size
    in_channels: Size
    in_chans: Size
    embed_dims: Size
    embed_dim: Size
    dim: Size
    num_heads: Heads | Annotated[list[Heads], Meta(min_length=1, max_length=2**10)]
    T: Steps
    step: Steps
    time_steps: Steps
    time_step: Steps
    img_size_h: Side
    img_size_w: Side
    TIM_alpha: Number
    attn_scale: Number
    pooling_stat: Name | Annotated[int, Meta(ge=0, le=1111)]
    spike_mode: Name
    dvs_mode: bool
