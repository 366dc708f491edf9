"""Weights as users bring them: wrapped, averaged, of other libraries, of other sizes, and files that are none."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

from vit2snn.commands.models import load_ann
from vit2snn.convert import load_model, read_checkpoint
from vit2snn.errors import CheckpointError, ModelError

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


def vit(seed: int = 0, classes: int = 3, **arguments: Any) -> Any:
    """A small ViT of timm, all of whose weights are random."""
    torch.manual_seed(seed)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=classes, **{**SMALL, **arguments}).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def folder(path: Path, classes: int = 3, **arguments: Any) -> Any:
    """A folder of timm with such a model, and the model."""
    model = vit(1, classes, **arguments)
    channels, size = model.in_chans, model.patch_embed.img_size[0]
    path.mkdir()
    cfg = {
        "input_size": [channels, size, size], "fixed_input_size": True, "mean": [0.5] * channels, "std": [0.5] * channels,
        "num_classes": classes, "first_conv": "patch_embed.proj", "classifier": "head",
    }  # fmt: skip
    config = {"architecture": "vit_tiny_patch16_224", "model_args": {**SMALL, **arguments}, "num_classes": classes}
    (path / "config.json").write_text(json.dumps({**config, "pretrained_cfg": cfg}))
    save_file(model.state_dict(), path / "model.safetensors")
    return model


@pytest.fixture
def name(tmp_path: Path) -> str:
    folder(tmp_path / "model")
    return f"local-dir:{tmp_path / 'model'}"


def prefixed(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in weights.items()}


def same(model: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in model.state_dict().items())


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "DataParallel": lambda weights: prefixed("module.", weights),
    "compiled": lambda weights: prefixed("_orig_mod.", weights),
    "both": lambda weights: {"model": prefixed("module._orig_mod.", weights)},
    "compiled block": lambda weights: {
        key.replace("blocks.0.", "blocks.0._orig_mod."): value for key, value in weights.items()
    },
    "Lightning": lambda weights: {"state_dict": prefixed("model.", weights) | {"loss.weight": torch.ones(3)}, "epoch": 3},
    "net": lambda weights: {"state_dict": prefixed("net.vit.", weights)},
    "model_state": lambda weights: {"model_state": weights, "optimizer": {"state": {}, "param_groups": []}},
    "nested": lambda weights: {"model": {"state_dict": weights}},
    "SWA": lambda weights: prefixed("module.", weights) | {"n_averaged": torch.tensor(5)},
}


@pytest.mark.parametrize("wrap", WRAPPED)
def test_wrapped_weights_are_found(wrap: str, name: str, tmp_path: Path) -> None:
    model = vit(5)
    torch.save(WRAPPED[wrap](model.state_dict()), tmp_path / "weights.pt")
    assert same(load_model(name, tmp_path / "weights.pt"), model)


@pytest.mark.parametrize("keys", [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_averaged_weights_are_taken_as_timm_does_and_it_is_said(
    keys: tuple[str, str], name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain, averaged = vit(5), vit(6)
    file = tmp_path / "last.pth.tar"
    torch.save({keys[0]: plain.state_dict(), keys[1]: averaged.state_dict(), "arch": "vit"}, file)
    assert same(load_model(name, file), averaged)
    assert f"those of {keys[1]!r} are taken (--no-ema" in caplog.text
    assert same(load_model(name, file, ema=False), plain)


def test_one_of_several_models_in_a_file_is_not_guessed(name: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save(prefixed("student.", vit(5).state_dict()) | prefixed("teacher.", vit(6).state_dict()), file)
    with pytest.raises(CheckpointError, match="holds 2 models: student, teacher"):
        load_model(name, file)
    torch.save(prefixed("model.", vit(5).state_dict()) | prefixed("ema_model.", vit(6).state_dict()), file)
    assert same(load_model(name, file), vit(6))
    assert same(load_model(name, file, ema=False), vit(5))


def test_a_head_of_another_size_is_never_random(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="have a head of 3 classes, and 5 are asked for: the new head would be random"):
        load_model(name, num_classes=5)
    assert load_model(name, num_classes=5, new_head=True).num_classes == 5
    features = load_model(name, num_classes=0)
    assert features(torch.randn(1, 3, 32, 32)).shape == (1, 48)
    torch.save(vit(5, classes=7).state_dict(), tmp_path / "seven.pt")
    with pytest.raises(CheckpointError, match=r"head\.weight has shape") as error:
        load_model(name, tmp_path / "seven.pt")
    assert "--num-classes 7" in error.value.hint
    assert same(load_model(name, tmp_path / "seven.pt", num_classes=7), vit(5, classes=7))
    assert load_model(name, tmp_path / "seven.pt", num_classes=0)(torch.randn(1, 3, 32, 32)).shape == (1, 48)


def test_model_arguments_that_make_a_random_head_are_refused(tmp_path: Path) -> None:
    folder(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"model_args": config["model_args"] | {"num_classes": 4}}))
    with pytest.raises(ModelError, match="would be random"):
        load_model(f"local-dir:{tmp_path / 'model'}")


def test_another_image_size_is_refused_or_resampled_as_timm_does(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    large = vit(5, img_size=48)
    torch.save(large.state_dict(), tmp_path / "large.pt")
    with pytest.raises(CheckpointError, match=r"pos_embed has shape \(1, 37, 48\)") as error:
        load_model(name, tmp_path / "large.pt")
    assert "--img-size 48" in error.value.hint
    loaded: Any = load_model(name, tmp_path / "large.pt", img_size=48)
    assert same(loaded, large) and loaded.pretrained_cfg["input_size"] == (3, 48, 48)
    loaded = load_model(name, tmp_path / "large.pt", img_size=32)
    assert "resampled to the image size: pos_embed" in caplog.text
    large.set_input_size((32, 32))
    torch.testing.assert_close(loaded.pos_embed, large.pos_embed)
    assert load_model(name, img_size=64)(torch.randn(1, 3, 64, 64)).shape == (1, 3)


def test_patches_of_another_size_are_not_resampled(name: str, tmp_path: Path) -> None:
    torch.save(vit(5, img_size=64, patch_size=16).state_dict(), tmp_path / "patches.pt")
    with pytest.raises(CheckpointError, match=r"patch_embed\.proj\.weight has shape"):
        load_model(name, tmp_path / "patches.pt", img_size=32)


def test_models_of_any_image_size_get_another_one_too() -> None:
    model: Any = load_model("convnext_atto", pretrained=False, img_size=64)
    assert model.pretrained_cfg["input_size"] == (3, 64, 64)


@pytest.mark.parametrize(("mean", "gray"), [([0.5, 0.5, 0.5], 0.5), ([0.2, 0.3, 0.7], 0.4)])
def test_models_of_gray_images_have_one_mean(
    mean: list[float], gray: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder(tmp_path / "model", in_chans=1)
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    config["pretrained_cfg"]["mean"] = mean
    file.write_text(json.dumps(config))
    model: Any = load_model(f"local-dir:{tmp_path / 'model'}")
    assert model.pretrained_cfg["mean"] == pytest.approx((gray,)) and ("of three colours" in caplog.text) == (gray == 0.4)
    config["pretrained_cfg"]["mean"] = mean[:2]
    config["model_args"]["in_chans"] = 3
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="a mean of 2 channels"):
        load_model(f"local-dir:{tmp_path / 'model'}", pretrained=False)


def test_weights_of_torchvision(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder(tmp_path / "model", num_heads=4)
    torch.manual_seed(2)
    theirs = TorchvisionViT(32, 8, 2, 4, 48, 192, num_classes=3).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    torch.save(theirs.state_dict(), tmp_path / "vit_b_16.pth")
    ours: Any = load_model(f"local-dir:{tmp_path / 'model'}", tmp_path / "vit_b_16.pth")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)
    assert ours.pretrained_cfg["mean"] == (0.485, 0.456, 0.406) and "as torchvision does" in caplog.text


def transformers_vit(path: Path, **changed: Any) -> dict[str, Any]:
    """A folder as transformers writes it, with random weights."""
    config = {
        "model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 3, "intermediate_size": 96, "image_size": 32, "patch_size": 8, "num_channels": 3,
        "hidden_act": "gelu", "layer_norm_eps": 1e-12, "qkv_bias": True, "id2label": {"0": "a", "1": "b", "2": "c"}, **changed,
    }  # fmt: skip
    torch.manual_seed(3)
    shapes = {
        "vit.embeddings.cls_token": (1, 1, 48), "vit.embeddings.position_embeddings": (1, 17, 48),
        "vit.embeddings.patch_embeddings.projection.weight": (48, 3, 8, 8),
        "vit.embeddings.patch_embeddings.projection.bias": (48,),
        "vit.layernorm.weight": (48,), "vit.layernorm.bias": (48,), "classifier.weight": (3, 48), "classifier.bias": (3,),
    }  # fmt: skip
    widths = {
        "attention.attention.query": (48, 48), "attention.attention.key": (48, 48), "attention.attention.value": (48, 48),
        "attention.output.dense": (48, 48), "intermediate.dense": (96, 48), "output.dense": (48, 96),
    }  # fmt: skip
    for layer in range(2):
        for part, shape in widths.items():
            shapes[f"vit.encoder.layer.{layer}.{part}.weight"] = shape
            shapes[f"vit.encoder.layer.{layer}.{part}.bias"] = shape[:1]
        for part in ("layernorm_before", "layernorm_after"):
            shapes |= {f"vit.encoder.layer.{layer}.{part}.{kind}": (48,) for kind in ("weight", "bias")}
    weights = {key: torch.randn(shape) * 0.2 for key, shape in shapes.items()}
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    save_file(weights, path / "model.safetensors")
    return weights


def test_folders_of_transformers(tmp_path: Path) -> None:
    """The logits of both libraries on these and other small models were equal to the bit (transformers 5.24)."""
    weights = transformers_vit(tmp_path / "hf")
    (tmp_path / "hf" / "preprocessor_config.json").write_text(
        json.dumps(
            {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "size": {"height": 32, "width": 32}, "resample": 2}
        )
    )
    model: Any = load_model(f"local-dir:{tmp_path / 'hf'}")
    assert model.num_classes == 3 and model.blocks[1].norm1.eps == 1e-12
    parts = [weights[f"vit.encoder.layer.1.attention.attention.{part}.weight"] for part in ("query", "key", "value")]
    assert torch.equal(model.blocks[1].attn.qkv.weight, torch.cat(parts))
    assert torch.equal(model.blocks[1].attn.proj.weight, weights["vit.encoder.layer.1.attention.output.dense.weight"])
    assert torch.equal(model.blocks[1].mlp.fc2.weight, weights["vit.encoder.layer.1.output.dense.weight"])
    cfg = model.pretrained_cfg
    assert (cfg["mean"], cfg["std"], cfg["interpolation"]) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear")
    assert (cfg["crop_mode"], cfg["crop_pct"], cfg["input_size"]) == ("squash", 1.0, (3, 32, 32))
    assert load_model(f"local-dir:{tmp_path / 'hf'}", num_classes=0)(torch.randn(1, 3, 32, 32)).shape == (1, 48)
    with pytest.raises(ModelError, match="would be random"):
        load_model(f"local-dir:{tmp_path / 'hf'}", num_classes=2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_type": "bert"}, "its model_type is 'bert'"),
        ({"patch_size": "many"}, "which timm cannot make"),
        ({"hidden_act": "unknown"}, "'unknown', or a value that is not known"),
        ({"num_attention_heads": 5}, "which timm cannot make"),
        ({"model_type": "dinov2"}, "its classifier reads the class token beside the mean"),
    ],
)
def test_folders_of_transformers_that_timm_cannot_make(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    transformers_vit(tmp_path / "hf", **changed)
    with pytest.raises(ModelError, match="Hugging Face transformers.*" + message):
        load_model(f"local-dir:{tmp_path / 'hf'}")


def test_hub_names_of_transformers_are_read_as_folders_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the cache of the hub, as it is on a machine that has fetched a model and is offline now."""
    commit = "a" * 40
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--someone--small"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    folder = repository / "snapshots" / commit
    transformers_vit(folder)
    model = load_model("hf-hub:someone/small")
    assert same(model, load_model(f"local-dir:{folder}")) and model.num_classes == 3
    assert load_model("hf-hub:someone/small", num_classes=0)(torch.randn(1, 3, 32, 32)).shape == (1, 48)
    with pytest.raises(ModelError, match="someone/absent") as error:
        load_model("hf-hub:someone/absent")
    assert "\n" not in str(error.value) and "check the name and the connection" in error.value.hint
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights of 'hf-hub:someone/small' can be fetched"):
        load_model("hf-hub:someone/small")


def test_a_folder_of_transformers_with_other_weights_than_it_says_is_refused(tmp_path: Path) -> None:
    transformers_vit(tmp_path / "hf", num_hidden_layers=3)
    with pytest.raises(CheckpointError, match=r"blocks\.2\.norm1\.weight is missing"):
        load_model(f"local-dir:{tmp_path / 'hf'}")
    (tmp_path / "hf" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        load_model(f"local-dir:{tmp_path / 'hf'}")


def test_weights_in_parts(name: str, tmp_path: Path) -> None:
    weights = vit(5).state_dict()
    files = {key: f"model-{number % 2}.safetensors" for number, key in enumerate(weights)}
    for file in set(files.values()):
        save_file({key: value for key, value in weights.items() if files[key] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    assert same(load_model(name, index), vit(5))
    for part in ("../model-0.safetensors", "absent.safetensors"):
        index.write_text(json.dumps({"weight_map": files | {"head.bias": part}}))
        with pytest.raises(CheckpointError, match="does not lie beside it"):
            load_model(name, index)


class Ran(nn.Module):
    def __reduce__(self) -> Any:
        return (print, ("code ran",))


def archive(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(name, b"")


def circular(path: Path) -> None:
    held: dict[str, Any] = {}
    held["model"] = held
    torch.save(held, path)


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a folder": (lambda path: path.mkdir(), "is a folder"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read: it is empty"),
    "text": (lambda path: path.write_text("no weights at all"), "cannot be read"),
    "cut off": (lambda path: (torch.save(vit(5), path), path.write_bytes(path.read_bytes()[:9000])), "cannot be read"),
    "a model": (lambda path: torch.save(vit(5), path), r"Python objects \(timm\."),
    "a model of old": (lambda path: torch.save(vit(5), path, _use_new_zipfile_serialization=False), r"Python objects \(timm\."),
    "code": (lambda path: torch.save({"state_dict": Ran()}, path), r"Python objects \(print\)"),
    "TorchScript": (lambda path: archive(path, "weights/constants.pkl"), "TorchScript"),
    "NumPy": (lambda path: archive(path, "head.npy"), "NumPy arrays"),
    "an archive": (lambda path: archive(path, "letter.txt"), "damaged, or neither"),
    "a list": (lambda path: torch.save([torch.ones(2)], path), "holds a list"),
    "a tensor": (lambda path: torch.save(torch.ones(2), path), "holds a Tensor"),
    "an optimizer": (lambda path: torch.save({"optimizer": {"lr": 1}}, path), "optimizer is no tensor"),
    "nothing": (lambda path: torch.save({"state_dict": {}}, path), "is not a state_dict .*it is empty"),
    "circular": (circular, "model is no tensor"),
    "numbers": (lambda path: torch.save({1: torch.ones(2)}, path), "1 is no tensor"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_files_that_are_no_weights(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, message = FILES[kind]
    make(tmp_path / "weights.bin")
    with pytest.raises(CheckpointError, match=message) as error:
        read_checkpoint(tmp_path / "weights.bin")
    assert "\n" not in str(error.value) and error.value.hint
    assert "code ran" not in capsys.readouterr().out


def test_integers_are_no_weights(name: str, tmp_path: Path) -> None:
    weights = vit(5).state_dict()
    torch.save(weights | {"head.weight": weights["head.weight"].to(torch.int8)}, tmp_path / "int8.pt")
    with pytest.raises(CheckpointError, match=r"head\.weight has numbers of torch\.int8"):
        load_model(name, tmp_path / "int8.pt")


def test_the_files_of_authors_are_adapted_by_timm(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    weights = vit(5).state_dict()
    weights["patch_embed.proj.weight"] = weights["patch_embed.proj.weight"].flatten(1)  # as linear maps, as it was once
    torch.save(weights | {"pre_logits.fc.weight": torch.ones(1)}, tmp_path / "old.pt")
    assert same(load_model(name, tmp_path / "old.pt"), vit(5)) and "adapted by timm" in caplog.text


@pytest.mark.parametrize(("classes", "channels", "message"), [(1, 3, "num_classes is 1"), (3, 4, "images of 4 channels")])
def test_models_that_the_command_line_cannot_score_are_refused(
    classes: int, channels: int, message: str, tmp_path: Path
) -> None:
    folder(tmp_path / "model", classes, in_chans=channels)
    with pytest.raises(ModelError, match=message):
        load_ann(f"local-dir:{tmp_path / 'model'}", {})
