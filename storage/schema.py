"""What the documents of a model may hold; see `vit2snn.reading`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, TypedDict

from msgspec import Meta

from ..reading import WIDEST, Amount, Count, Number, Text

CONFIG = "config.json"
SECTION: Literal["vit2snn"] = "vit2snn"
ZOO_SECTION = "vit2snn_zoo"
"""Of ``config.json``, what is ours: of a converted model, and of one of the zoo."""
SCHEMA = 4
"""Of converted models."""

Whole = Annotated[int, Meta(ge=-(2**20), le=2**20)]
Scalar: TypeAlias = bool | Whole | Number | Text | None
Value: TypeAlias = Scalar | list[Scalar | list[Scalar]] | dict[Text, Scalar]
"""An argument of a model, or an entry of its pretrained configuration."""

Channels = Annotated[int, Meta(ge=1, le=1024)]
Side = Annotated[int, Meta(ge=1, le=WIDEST)]
Size: TypeAlias = tuple[Channels, Side, Side]
Colours = Annotated[list[Number], Meta(min_length=1, max_length=1024)]
Spreads = Annotated[list[Annotated[float, Meta(ge=1e-6, le=1e6)]], Meta(min_length=1, max_length=1024)]
Crop = Annotated[float, Meta(ge=0.25, le=4)]


class PretrainedCfg(TypedDict, total=False):
    """timm's pretrained configuration, without what names files, addresses or hubs: weights lie beside it."""

    architecture: Text | None
    tag: Text | None
    input_size: Size
    test_input_size: Size | None
    min_input_size: Size | None
    fixed_input_size: bool
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
    crop_pct: Crop
    test_crop_pct: Crop | None
    crop_mode: Literal["center", "squash", "border"]
    mean: Colours
    std: Spreads
    num_classes: Count
    label_offset: int | None
    label_names: Value
    label_descriptions: Value
    pool_size: Value
    test_pool_size: Value
    first_conv: Value
    classifier: Value
    license: Text | None
    description: Text | None
    origin_url: Text | None
    paper_name: Text | None
    paper_ids: Value
    notes: Value


class _Arguments(TypedDict, total=False):
    model_args: dict[Text, Value]


class Made(_Arguments):
    """How timm makes a model."""

    architecture: Text
    num_classes: Annotated[int, Meta(ge=0, le=2**20)] | None
    pretrained_cfg: PretrainedCfg


class _Versions(TypedDict, total=False):
    versions: dict[Text, Text]


class Section(_Versions):
    """What ``config.json`` says of a conversion."""

    schema: int
    source: Text
    builder: Text | None
    recipe: dict[str, Any]
    input_size: Size
    teacher: Literal["ann", "network"] | None
    dtype: Literal["float16", "bfloat16", "float32", "float64"]
    unfused: list[Text]
    handlers: list[Text]


class Config(Made):
    """``config.json`` of a converted model."""

    vit2snn: Section


class ZooConfig(Made):
    """``config.json`` of a zoo model."""

    vit2snn_zoo: _Versions


class Calibration(TypedDict):
    """``calibration.json``."""

    digests: list[Text]


class Exits(TypedDict):
    """``exits.json``: of each timestep and image, how sure the readout was, and whether it stays."""

    sure: Annotated[list[Annotated[list[Amount], Meta(min_length=1)]], Meta(min_length=1)]
    stays: Annotated[list[Annotated[list[Literal[0, 1]], Meta(min_length=1)]], Meta(min_length=1)]
