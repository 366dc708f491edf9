from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from click.testing import CliRunner
from conftest import brief, make_vit
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import vit2snn
import vit2snn.zoo
from vit2snn.cli import cli
from vit2snn.convert import RECIPES, Recipe, Teacher, to_spiking
from vit2snn.convert.registry import _HANDLERS, NeuronFactory
from vit2snn.errors import ArtifactError, OutputExistsError
from vit2snn.files import check_output, write_whole
from vit2snn.finetune.checkpoint import load_checkpoint, save_checkpoint
from vit2snn.reading import read_json
from vit2snn.storage import open_network, save_model, tensors, trusting
from vit2snn.storage.schema import Calibration


@pytest.fixture
def snn(vit: nn.Module, images: Tensor) -> vit2snn.SpikingModel:
    return to_spiking(vit, "faithful", images)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", RECIPES)
def test_a_round_trip_gives_the_same_logits_bit_for_bit(name: str, vit: nn.Module, images: Tensor, tmp_path: Path) -> None:
    snn = to_spiking(vit, brief(name), images)
    snn.save(tmp_path / "out", source="test")
    again = vit2snn.load(tmp_path / "out")
    assert again.recipe == snn.recipe
    assert again.plan == snn.plan
    assert again.calibrated_on == snn.calibrated_on
    assert len(again.calibrated_on) == (0 if name == "exact" else len(images))
    with torch.no_grad():
        assert torch.equal(again(images, 3), snn(images, 3))
        assert torch.equal(again.ann(images), snn.ann(images))


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "vit_small_patch14_reg4_dinov2", "deit3_small_patch16_224"])
def test_other_members_of_the_family_come_back(name: str, images: Tensor, tmp_path: Path) -> None:
    snn = to_spiking(make_vit(name, num_classes=7), Recipe(ignore=("head",)), images)
    snn.save(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(vit2snn.load(tmp_path / "out")(images), snn(images))


def test_the_folder_holds_json_and_safetensors_only(snn: vit2snn.SpikingModel, tmp_path: Path) -> None:
    snn.save(tmp_path / "out", source="test", records={"run.json": {"command": ["x"]}}, errors={"head.neuron": [0.5, 0.25]})
    names = {path.name for path in (tmp_path / "out").iterdir()}
    documents = {"config.json", "conversion.json", "calibration.json", "exits.json", "run.json"}
    assert names == documents | {"model.safetensors", "README.md"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architecture"] == "vit_tiny_patch16_224"
    assert config["vit2snn"]["schema"] == 4
    assert Recipe.from_json(config["vit2snn"]["recipe"]) == Recipe()
    rows = {row["name"]: row for row in json.loads((tmp_path / "out" / "conversion.json").read_text())}
    assert rows["head"]["result"] == "SpikingLinear"
    assert rows["head"]["neurons"][0]["relative_error"] == [0.5, 0.25]
    assert len(rows["head"]["neurons"][0]["threshold"]) == 4
    assert {n["name"].rsplit(".", 1)[1] for n in rows["blocks.0.attn"]["neurons"]} == {"query", "key", "weights", "value"}
    assert rows["norm"]["action"] == "analog"
    keys = set(load_file(tmp_path / "out" / "model.safetensors"))
    assert "blocks.0.attn.qkv.weight" in keys
    assert "blocks.0.attn.qkv.neuron.threshold" in keys
    assert os.stat(tmp_path / "out" / "model.safetensors").st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_existing_folder_is_refused_and_kept(snn: vit2snn.SpikingModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    snn.save(out)
    before = everything(out)
    with pytest.raises(OutputExistsError, match="exists already") as error:
        snn.save(out)
    assert "--overwrite" in error.value.hint
    assert everything(out) == before
    snn.save(out, overwrite=True, source="second")
    assert json.loads((out / "config.json").read_text())["vit2snn"]["source"] == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_overwrite_replaces_only_what_vit2snn_wrote(snn: vit2snn.SpikingModel, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("work of years")
    with pytest.raises(ArtifactError, match="not a folder that vit2snn wrote"):
        snn.save(tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "work of years"
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="cannot be written: Not a directory"):
        snn.save(tmp_path / "file" / "out")


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), SafetensorError("No space left on device"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("exists", [False, True])
def test_nothing_half_written_is_left(
    failure: BaseException, exists: bool, snn: vit2snn.SpikingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    if exists:
        snn.save(out)
    before = everything(tmp_path)

    def fail(tensors: object, path: Path, **options: object) -> None:
        Path(path).write_bytes(b"half")
        raise failure

    monkeypatch.setattr(tensors, "save_file", fail)
    expected = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else ArtifactError
    with pytest.raises(expected) as error:
        snn.save(out, overwrite=exists)
    if expected is ArtifactError:
        assert "No space left on device" in str(error.value)
    assert everything(tmp_path) == before
    assert list(tmp_path.iterdir()) == ([out] if exists else [])


def test_a_failing_rename_puts_the_old_folder_back(
    snn: vit2snn.SpikingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    snn.save(out)
    before = everything(out)
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if Path(target) == out and self.name == "new":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(ArtifactError, match="Input/output error"):
        snn.save(out, overwrite=True)
    assert everything(out) == before
    assert list(tmp_path.iterdir()) == [out]


def test_a_text_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "evaluation.json"
    write_whole(path, "old")
    write = Path.write_text

    def half(self: Path, text: str, **options: object) -> int:
        write(self, text[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(ArtifactError, match="No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_models_that_cannot_be_rebuilt_are_not_saved(images: Tensor, tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 4), nn.Flatten(1)).eval()
    changed = make_vit()
    changed.blocks[0].mlp.fc1, changed.blocks[0].mlp.fc2 = nn.Linear(32, 50), nn.Linear(50, 32)
    direct = timm.models.VisionTransformer(img_size=16, patch_size=4, embed_dim=32, depth=1, num_heads=2, num_classes=3)
    for model in (plain, changed, direct):
        with pytest.raises(ArtifactError, match=r"cannot be described|is not this model") as error:
            to_spiking(model, "faithful", images).save(tmp_path / "out")
        assert "timm.create_model" in error.value.hint
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "is not a converted model"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json' cannot be read: Expecting property name"),
        (lambda folder: (folder / "config.json").write_text("5"), "is damaged: the document: expected object, got int"),
        (lambda folder: (folder / "config.json").write_text('{"vit2snn": 5}'), "is damaged"),
        (lambda folder: (folder / "exits.json").write_text("{"), "exits.json' cannot be read"),
        (lambda folder: (folder / "exits.json").write_text('{"sure": 5, "stays": []}'), "is damaged: sure: expected array"),
        (lambda folder: (folder / "exits.json").write_text('{"sure": [[1]], "stays": [[1, 0]]}'), "is damaged: tables of"),
        (lambda folder: (folder / "calibration.json").write_text("[5]"), "is damaged: the document: expected object"),
        (lambda folder: (folder / "config.json").write_text('{"architecture": "resnet18"}'), "is not a converted model"),
        (lambda folder: (folder / "config.json").write_text('{"vit2snn": {"schema": 77}}'), "has schema 77"),
        (lambda folder: (folder / "config.json").write_text('{"vit2snn": {"schema": 4}}'), "is damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be read: No such file"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 100), "cannot be read"),
    ],
)  # fmt: skip
def test_damage_is_told(damage: object, message: str, snn: vit2snn.SpikingModel, tmp_path: Path) -> None:
    snn.save(tmp_path / "out")
    damage(tmp_path / "out")  # type: ignore[operator]
    with pytest.raises(ArtifactError, match=message):
        vit2snn.load(tmp_path / "out")
    with pytest.raises(ArtifactError, match="there is no folder"):
        vit2snn.load(tmp_path / "nowhere")


@pytest.mark.parametrize("recipe", ["faithful", "shift", "qkformer-membrane"])
def test_a_model_that_was_changed_after_timm_made_it_is_not_saved(recipe: str, images: Tensor, tmp_path: Path) -> None:
    model = make_vit()
    for block in model.blocks:  # type: ignore[union-attr]
        block.norm2.eps = 0.3
    with pytest.raises(
        ArtifactError, match=r"is not this model: 'blocks\.0\.norm2' is .*eps=0\.3.*would be .*eps=1e-06"
    ) as error:
        to_spiking(model, brief(recipe), images).save(tmp_path / "out")
    assert "builder=" in error.value.hint
    assert not list(tmp_path.iterdir())


def edited_vit() -> nn.Module:
    """A builder, as a user might have one."""
    model = make_vit()
    for block in model.blocks:  # type: ignore[union-attr]
        block.mlp.act = nn.ReLU()
    return model


@pytest.mark.parametrize("recipe", ["faithful", "qkformer-membrane"])
def test_a_changed_model_is_carried_by_the_name_of_its_builder(recipe: str, images: Tensor, tmp_path: Path) -> None:
    builder = f"{__name__}:edited_vit"
    snn = to_spiking(edited_vit(), brief(recipe), images)
    with pytest.raises(ArtifactError, match=r"is not this model: 'blocks\.0\.mlp\.act' is ReLU"):
        snn.save(tmp_path / "out")
    snn.save(tmp_path / "out", builder=builder)
    with pytest.raises(ArtifactError, match=f"is built by code: {builder}") as error:
        vit2snn.load(tmp_path / "out")
    assert f"trust='{builder}'" in error.value.hint
    again = vit2snn.load(tmp_path / "out", trust=builder)
    with trusting(builder):
        vit2snn.load(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(again(images, 2), snn(images, 2))
        assert torch.equal(again.ann(images), snn.ann(images))
    with pytest.raises(ArtifactError, match="No module named 'nowhere'"):
        snn.save(tmp_path / "other", builder="nowhere.at_all:make")
    assert not (tmp_path / "other").exists()


def test_unfused_attention_comes_back_unfused(images: Tensor, tmp_path: Path) -> None:
    model = make_vit()
    model.blocks[0].attn.fused_attn = False  # type: ignore[union-attr]
    snn = to_spiking(model, "faithful", images)
    snn.save(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(vit2snn.load(tmp_path / "out")(images), snn(images))


def test_saving_and_loading_leave_the_random_numbers_of_others_alone(
    snn: vit2snn.SpikingModel, images: Tensor, tmp_path: Path
) -> None:
    before = torch.get_rng_state()
    snn.save(tmp_path / "out")
    vit2snn.load(tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["ternary", "faithful"])
def test_the_ann_of_a_network_that_was_trained_since_comes_back(name: str, images: Tensor, tmp_path: Path) -> None:
    snn = to_spiking(make_vit(), dataclasses.replace(RECIPES[name], timesteps=2), images)
    snn.teacher = Teacher(snn.original())
    with torch.no_grad():
        snn.network.head.weight.mul_(1.1)  # type: ignore[union-attr, operator]
        snn.save(tmp_path / "out")
        again = vit2snn.load(tmp_path / "out")
        assert torch.equal(again(images), snn(images))
        assert torch.equal(again.ann(images), snn.ann(images))
        assert not torch.equal(again.ann(images), snn(images)[-1])


def test_rules_of_the_users_own_have_to_be_registered_to_load(images: Tensor, tmp_path: Path) -> None:
    kind = type(make_vit().blocks[0].attn)  # type: ignore[index, union-attr]

    @vit2snn.converts(kind)
    def keep(module: nn.Module, neuron: NeuronFactory) -> nn.Module:
        return module

    try:
        snn = to_spiking(make_vit(), "faithful", images)
        snn.save(tmp_path / "out")
        with torch.no_grad():
            assert torch.equal(vit2snn.load(tmp_path / "out")(images), snn(images))
    finally:
        _HANDLERS.pop(kind)
    with pytest.raises(ArtifactError, match="a rule of its own for Attention, which is not registered"):
        vit2snn.load(tmp_path / "out")


@pytest.mark.parametrize("place", [".", "..", "a/file/out", "x" * 300])
def test_where_nothing_can_be_written_is_told_before_the_work(
    place: str, snn: vit2snn.SpikingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match=r"is the folder that you are in|cannot be written"):
        check_output(Path(place), True, lambda folder: True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_older_artifact_is_refused_with_the_command_that_makes_it_anew(snn: vit2snn.SpikingModel, tmp_path: Path) -> None:
    snn.save(tmp_path / "out", source="demo")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["vit2snn"]["schema"] = 3
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="has schema 3, this vit2snn reads schema 4") as caught:
        vit2snn.load(tmp_path / "out")
    assert caught.value.hint == f"make it anew: vit2snn convert demo -o {tmp_path / 'out'} --overwrite"


def test_one_way_opens_all_kinds_of_networks(snn: vit2snn.SpikingModel, images: Tensor, tmp_path: Path) -> None:
    snn.save(tmp_path / "converted")
    model = timm.create_model("spikformer_4_384_cifar10", dim=48, num_heads=2, depth=1, timesteps=2).eval()
    save_model(model, tmp_path / "zoo")
    with torch.no_grad():
        assert torch.equal(open_network(tmp_path / "converted").readout(images), snn(images))
        assert torch.equal(open_network(tmp_path / "zoo").readout(images), model.readout(images))  # type: ignore[operator]
    with pytest.raises(ArtifactError, match="is not a converted model") as error:
        vit2snn.load(tmp_path / "zoo")
    assert "open_network" in error.value.hint


def test_a_builder_is_trusted_on_the_command_line(images: Tensor, tmp_path: Path) -> None:
    builder = f"{__name__}:edited_vit"
    to_spiking(edited_vit(), "faithful", images).save(tmp_path / "out", builder=builder)
    refused = CliRunner().invoke(cli, ["inspect", str(tmp_path / "out")])
    assert refused.exit_code == 1
    assert f"--trust {builder}" in refused.stderr
    assert CliRunner().invoke(cli, ["--trust", builder, "inspect", str(tmp_path / "out")]).exit_code == 0


def edited(folder: Path, *path: str, to: object) -> Path:
    """A folder whose ``config.json`` has another value at a path."""
    config = part = json.loads((folder / "config.json").read_text())
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = to
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("architecture", "hf-hub:some/model", "timm has no architecture 'hf-hub:some/model'"),
        ("architecture", "local-dir:/tmp", "timm has no architecture 'local-dir:/tmp'"),
        ("model_args.checkpoint_path", "/etc/hostname", "model_args.checkpoint_path is no argument of an architecture"),
        ("model_args.pretrained", True, "model_args.pretrained is no argument of an architecture"),
        ("model_args.depth", 60_000, "it has far more parts than there are weights"),
        ("model_args.depth", 2**40, r"is damaged: model_args\[...\]: expected int <= 1048576"),
        ("model_args.embed_dim", 2**20, r"describes a model of \d{13,15} bytes, and .*model.safetensors' has far less"),
        ("model_args.embed_dim", 64, r"model.safetensors' does not fit the model: cls_token has shape \[1, 1, 32\]"),
        ("model_args.norm_layer", "none of timm's", "describes no model: KeyError"),
        ("pretrained_cfg.mean", [0.5] * 7, "pretrained_cfg.mean has 7 values"),
        ("pretrained_cfg.crop_pct", 1e-9, r"is damaged: pretrained_cfg.crop_pct: expected float >= 0.25"),
        ("vit2snn.input_size", [3, 16], "is damaged: vit2snn.input_size: expected array of length 3"),
        ("vit2snn.input_size", [3, 64, 64], r"is damaged: VisionTransformer cannot be run on an image of size \(3, 64, 64\)"),
        ("vit2snn.dtype", "int8", "is damaged: vit2snn.dtype: invalid enum value"),
        ("vit2snn.recipe", {"timesteps": 0}, "config.json' is damaged: recipe field 'timesteps' must be from 1"),
    ],
)
def test_what_a_stranger_writes_is_neither_opened_nor_made(
    path: str, value: object, message: str, snn: vit2snn.SpikingModel, tmp_path: Path
) -> None:
    snn.save(tmp_path / "out")
    with pytest.raises(ArtifactError, match=message):
        vit2snn.load(edited(tmp_path / "out", *path.split("."), to=value))


def test_weights_that_lie_elsewhere_are_not_fetched(
    snn: vit2snn.SpikingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snn.save(tmp_path / "out")
    for name, value in {"url": "http://example.org/x", "file": "/etc/hostname", "hf_hub_id": "a/b", "source": "hf-hub"}.items():
        edited(tmp_path / "out", "pretrained_cfg", name, to=value)
    for place in ("load_pretrained", "load_custom_pretrained"):
        monkeypatch.setattr(f"timm.models._builder.{place}", lambda *args, **kwargs: pytest.fail("it fetches weights"))
    cfg = vit2snn.load(tmp_path / "out").network.pretrained_cfg
    assert not any(dict(cfg).get(name) for name in ("url", "file", "hf_hub_id", "source"))  # type: ignore[arg-type]


def test_the_size_of_a_tensor_is_known_before_it_is_read(snn: vit2snn.SpikingModel, tmp_path: Path) -> None:
    snn.save(tmp_path / "out")
    weights = tmp_path / "out" / "model.safetensors"
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    for content in (b"\xff" * 64, len(header).to_bytes(8, "little") + header + b"\0" * 64, weights.read_bytes()[:-1]):
        weights.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"model.safetensors' cannot be read"):
            vit2snn.load(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("head.weight", lambda x: x.T, r"head.weight has shape \[32, 7\], expected \[7, 32\]"),
        ("head.weight", lambda x: None, "head.weight is missing"),
        ("head.weight", lambda x: x.int(), "head.weight holds torch.int32, expected torch.float32"),
        ("head.weight", lambda x: x * torch.nan, "head.weight holds a value that is no number"),
        ("head.neuron.threshold", lambda x: x[:0], "head.neuron has no thresholds"),
        ("head.neuron.threshold", lambda x: -x, "threshold of head.neuron is below 0"),
        ("head.neuron.threshold", lambda x: x[:2], "head.neuron has 2 thresholds, and ratio of 4 timesteps"),
        (
            "blocks.0.attn.qkv.neuron.prior",
            lambda x: x[..., :5],
            r"prior of blocks.0.attn.qkv.neuron has shape \[17, 5\], and what it sees \[17, 32\]",
        ),
        ("blocks.0.attn.qkv.neuron.prior", lambda x: x.expand(2, *x.shape), r"has shape \[2, 17, 32\], and what it sees"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    name: str, change: Callable[[Tensor], Tensor | None], message: str, snn: vit2snn.SpikingModel, tmp_path: Path
) -> None:
    snn.save(tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    changed = weights | {name: change(weights[name])}
    save_file({n: x.contiguous() for n, x in changed.items() if x is not None}, tmp_path / "out" / "model.safetensors")
    with pytest.raises(ArtifactError, match=message):
        vit2snn.load(tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"digests": [], "digests": ["x"]}', "it gives 'digests' twice"),
        (b'{"digests": ["\\ud800"]}', "surrogates not allowed"),
        (b'{"digests": ["\xff"]}', "'utf-8' codec can't decode"),
        (b"[" * 100_000, "cannot be read: "),
        (b"[" + b"0," * 2**22 + b"0]", "it holds more than 4194304 values"),
        (b'{"digests": [1]}', r"is damaged: digests\[0\]: expected str, got int"),
        (b"{}", "the document has no 'digests'"),
    ],
)
def test_documents_are_read_with_bounds(text: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(ArtifactError, match=rf"x.json' .*{message}"):
        read_json(tmp_path / "x.json", Calibration)


def test_no_large_file_and_no_pipe_is_read(tmp_path: Path) -> None:
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ArtifactError, match="it has 1099511627776 bytes, expected at most"):
        read_json(tmp_path / "large.json", dict)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ArtifactError, match="it is no regular file"):
        read_json(tmp_path / "pipe.json", dict)


def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"update": 3}, {"lr": 0.1})
    path = tmp_path / "checkpoint"
    assert load_checkpoint(tmp_path, {"lr": 0.1}) == {"update": 3}
    whole = path.read_bytes()
    for content in (b"", b"x" * 100, whole[:-20], whole.replace(b"update", b"updatf", 1)):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match="cannot be read"):
            load_checkpoint(tmp_path, {"lr": 0.1})
    for document in ([1], {"identity": "{}"}, {"identity": 3, "state": {}}, {"identity": "[]", "state": {}}):
        torch.save(document, path)
        with pytest.raises(ArtifactError, match="cannot be read"):
            load_checkpoint(tmp_path, {})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("checkpoint/data.pkl", b"\0" * 10**6)
    with pytest.raises(ArtifactError, match="cannot be read: it is packed"):
        load_checkpoint(tmp_path, {})
