"""Damaged artifacts: whatever is wrong with a folder, commands work or end in one sentence that names what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner
from conftest import brief, make_vit
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import load_file, save_file

from vit2snn.cli import cli
from vit2snn.convert import Recipe, to_spiking
from vit2snn.storage import save, save_model

EXAMPLES = 40
USAGE = 2  # recipes and searches that are none; data that a model was not trained on is asked for
SCRIPT = "<script>alert(1)</script>"
NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 5, 17, 4096, 10**5, 10**6, 2**31, 2**64, 10**400, -0.5, 1e-300, 1e308, float("nan"),
    float("inf"), "", "x", "a" * 70_000,
    "../../etc/passwd", "hf-hub:some/model", "local-dir:/", f"</script>{SCRIPT}", "\ud800", "\x00",
    [], [[]], [[[[[1]]]]], [1, None], [1e9, 1e9, 1e9], {}, {"a": {}}, {"checkpoint_path": "/etc/passwd"},
)  # fmt: skip
TEXTS = (
    b"", b"{", b"null", b"[1, 2", b"\xff\xfe{\x00}\x00", b'{"a": 1, "a": 2}', b"[" * 50_000, b"{}garbage", b"\x00" * 64,
    b'{"architecture": "' + b"\xc3" + b'"}', b'{"vit2snn": {}, "vit2snn_zoo": {}}',
)  # fmt: skip


def _coded(out: Path) -> None:
    snn = to_spiking(make_vit(depth=1, num_classes=10), Recipe(timesteps=2), torch.randn(32, 3, 16, 16))
    save(snn, out, source="demo", records={"run.json": {"command": ["vit2snn"], "seed": 0, "data": None}})


def _membrane(out: Path) -> None:
    recipe = brief("qkformer-membrane").changed(timesteps=2)
    save(to_spiking(make_vit(num_classes=10), recipe, torch.randn(32, 3, 16, 16)), out, source="demo")


def _zoo(out: Path) -> None:
    model = timm.create_model(
        "spikformer_4_384_cifar10", dim=32, num_heads=2, depth=1, timesteps=2,
        pretrained_cfg_overlay={"input_size": (3, 16, 16)},
    )  # fmt: skip
    save_model(model, out, records={"run.json": {"command": ["vit2snn"], "seed": 0, "data": None}})


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole artifacts, each evaluated, a plan, and an outcome of a search."""
    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    for kind, make in {"coded": _coded, "membrane": _membrane, "zoo": _zoo}.items():
        make(folder / kind)
        assert run("evaluate", folder / kind) == 0
    (folder / "plan").mkdir()
    (folder / "plan" / "plan-0.json").write_text(json.dumps(brief("qkformer-membrane").to_json()))
    searched = ("--space", "spikformer", "--task", "cifar10", "--generations", "1", "--population", "4")
    (folder / "search").mkdir()
    result = CliRunner().invoke(cli, ["zoo", "search", *searched, "-o", str(folder / "search" / "found.json")])
    assert result.exit_code == 0, result.output
    return folder


def run(command: str, folder: Path) -> int:
    """The exit code of a command about a folder; what a traceback would show is raised."""
    few = ("--samples", "2", "--device", "cpu", "--workers", "0")
    arguments = {
        "evaluate": ("evaluate", folder, *few),
        "exits": ("evaluate", folder, *few, "--exit-confidence", "0.5"),
        "audit": ("audit", folder, *few),
        "report": ("report", folder, "-o", folder.with_name("report.html")),
        "inspect": ("inspect", folder),
        "recipe": ("inspect", "vit_tiny_patch16_224", "--recipe", folder / "plan-0.json"),
        "create": ("zoo", "create", folder / "found.json", "-o", folder.with_name("created"), "--overwrite"),
        "show": ("zoo", "show", folder),
    }[command]
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code


def _changed(draw: st.DrawFn, document: Any) -> Any:
    """The document, of which a value, near the surface more often, is another one, or missing."""
    part: Any = [document]
    whole = part
    key: Any = 0
    while isinstance(part[key], (dict, list)) and part[key] and draw(st.sampled_from((True, True, True, False))):
        part = part[key]
        key = draw(st.sampled_from(sorted(part))) if isinstance(part, dict) else draw(st.integers(0, len(part) - 1))
    if isinstance(part, dict) and draw(st.sampled_from((True, False, False))):
        del part[key]
    else:
        part[key] = draw(st.sampled_from(NASTY))
    return whole[0]


def _bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes cut off, flipped, or others."""
    kind = draw(st.sampled_from(("cut", "flip", "other")))
    place = draw(st.integers(0, len(content) - 1))
    if kind == "cut":
        return content[:place]
    if kind == "flip":
        place = min(place, draw(st.sampled_from((len(content) - 1, 7, 400))))  # the front is where the header is
        return content[:place] + bytes([content[place] ^ (1 << draw(st.integers(0, 7)))]) + content[place + 1 :]
    return draw(st.sampled_from(TEXTS))


def _tensors(draw: st.DrawFn, path: Path) -> None:
    """Tensors renamed, missing, of other shapes, types and values."""
    tensors = load_file(path)
    name = draw(st.sampled_from(sorted(tensors)))
    value = tensors.pop(name)
    kind = draw(st.sampled_from(("gone", "renamed", "flat", "more", "turned", "type", "nan", "huge", "negative", "swapped")))
    if kind == "renamed":
        tensors[name + "x"] = value
    elif kind == "swapped":
        other = draw(st.sampled_from(sorted(tensors)))
        tensors[name], tensors[other] = tensors[other], value
    elif kind != "gone":
        tensors[name] = {
            "flat": lambda: value.flatten(),
            "more": lambda: value[None].expand(3, *value.shape),
            "turned": lambda: value.movedim(0, -1) if value.ndim else value,
            "type": lambda: value.to(torch.int64 if value.is_floating_point() else torch.float32),
            "nan": lambda: torch.full_like(value, torch.nan) if value.is_floating_point() else value,
            "huge": lambda: torch.full_like(value, 3e38) if value.is_floating_point() else value,
            "negative": lambda: -value,
        }[kind]()
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, path, metadata={"format": "pt"})


COMMANDS = {
    "coded": ("evaluate", "exits", "audit", "report", "inspect"),
    "membrane": ("evaluate", "audit", "report", "inspect"),
    "zoo": ("evaluate", "audit", "report", "show"),
    "plan": ("recipe",),
    "search": ("create",),
}


def _damaged(draw: st.DrawFn, folder: Path) -> str:
    path = draw(st.sampled_from(sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors"))))
    how = draw(st.sampled_from(("content", "content", "content", "bytes", "gone")))
    if how == "gone":
        path.unlink()
    elif how == "bytes":
        path.write_bytes(_bytes(draw, path.read_bytes()))
    elif path.suffix == ".json":
        path.write_text(json.dumps(_changed(draw, json.loads(path.read_text()))))
    else:
        _tensors(draw, path)
    return f"{path.name} {how}"


def _examples(config: pytest.Config) -> int:
    return int(config.getoption("--fuzz-examples", default=None) or EXAMPLES)


@pytest.mark.slow
def test_damaged_artifacts_work_or_are_told(whole: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    @settings(
        max_examples=_examples(request.config), deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data())
    def damaged(data: st.DataObject) -> None:
        kind = data.draw(st.sampled_from(sorted(COMMANDS)))
        command = data.draw(st.sampled_from(COMMANDS[kind]))
        folder, page = tmp_path / "copy", tmp_path / "report.html"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole / kind, folder)
        _damaged(data.draw, folder)
        page.unlink(missing_ok=True)
        assert run(command, folder) in (0, 1, USAGE if kind in ("plan", "search", "zoo") else 1)
        assert not page.exists() or SCRIPT not in page.read_text(encoding="utf-8")

    damaged()
