"""Command lines that nobody would type: each ends soon and small, with an exit code that is documented, and a sentence."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import click
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from PIL import Image

from vit2snn.cli import cli
from vit2snn.zoo.demo import demo_images

SECONDS = 60  # for a command
BYTES = 1_900_000_000  # of memory at a command's peak, beside what is there before: 1.1 GB of PyTorch, timm and tests
SMALL = {"--samples": "4", "--timesteps": "1", "--population": "4", "--generations": "1", "--epochs": "1", "--max-steps": "1"}
TEXTS = [
    "", "0", "-1", "1", "2", "3", "0.5", "1e-300", "nan", "inf", "-inf", "1e999", "65537", "2147483648", "18446744073709551616",
    "9" * 5000, "demo", "out", "front", "data", "file", "nowhere", "link", ".", "/", "/dev/null", "/dev/full", "a/b/c",
    "x" * 300, "é\n\udcff", "--", "-", "faithful", "qkformer", "auto", "cpu", "cuda:9", "cpu:7", "mps", "meta", "1,2", "1,",
    "labels=1", "soft=nan", "labels=-1", "depth=1", "depth=[", "depth=99999999999", "x=", "1M-2M", "2M-1M", "-M", "1mJ",
    "autost-tiny", "spikformer", "cifar10", "cifar10dvs", "spikformer_4_384_cifar10", "vit_tiny_patch16_224", "local-dir:out",
    "hfds/none", "torch/none", "wds/none", "train", "validation", "val", "os:system", "adamw", "sgd", "none",
    "rand-m9-mstd0.5", "1e3", "[]",
]  # fmt: skip

LIKELY = {
    "model": ("demo", "out", "link", "spikformer_4_384_cifar10"), "models": ("out", "link"),
    "name": ("spikformer_4_384_cifar10",), "recipe": ("qkformer", "frugal", "file"),
    "out": ("out", "link"), "data": ("data",), "space": ("autost-tiny",),
    "seed": ("1",), "device": ("cpu", "auto"), "timesteps": ("1", "1,2", "3"), "split": ("train", "validation"),
    "loss": ("soft=1", "labels=1,features=0.5"), "count": ("2",),
    "arguments": ("depth=1", "dim=32"), "task": ("cifar10", "cifar10dvs"),
    "file": ("found.json", "file"), "page": ("page.html", "file"), "checkpoint": ("file", "out/model.safetensors"),
}  # fmt: skip
"""Values with which commands get further than to a sentence about the value, by the name of the parameter."""


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands, by what is typed for them."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        elif name != "demo":  # which takes a minute, whatever its options
            yield (*path, name), command


def values(parameter: click.Parameter) -> st.SearchStrategy[str]:
    """What may well be given to a parameter."""
    if isinstance(parameter.type, click.Choice):
        return st.sampled_from([str(choice) for choice in parameter.type.choices])
    if isinstance(parameter.type, click.IntRange):
        return st.sampled_from(LIKELY.get(str(parameter.name), ("1", "2")))
    if isinstance(parameter.type, click.FloatRange):
        return st.sampled_from(("0.5", "1", "1e-3"))
    if parameter.name == "out" and isinstance(parameter, click.Option):
        return st.sampled_from(("new", "link", "new/er"))
    return st.sampled_from(LIKELY.get(str(parameter.name), TEXTS))


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """A command with its arguments, and some of its options; those that tell how much is done are small unless drawn."""
    path, command = draw(st.sampled_from(list(commands(cli))))
    line, given = list(path), set()
    for parameter in command.params:
        text = draw(st.sampled_from([values(parameter)] * 5 + [st.sampled_from(TEXTS)]))
        if isinstance(parameter, click.Argument):
            line += draw(st.lists(text, min_size=1, max_size=2 if parameter.nargs < 0 else 1))
        elif parameter.required or draw(st.integers(0, 7)) == 0:
            name = draw(st.sampled_from(parameter.opts))
            given.update(parameter.opts)
            flag = isinstance(parameter, click.Option) and parameter.is_flag
            line += [name] if flag else [name, *(draw(text) for _ in range(parameter.nargs))]
    known = {name for parameter in command.params for name in parameter.opts}
    if "--overwrite" in known - given and draw(st.booleans()):
        line.append("--overwrite")
    return line + [word for name in SMALL.keys() & known - given for word in (name, SMALL[name])]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a converted model ``out``, images ``data``, a ``file``, and a ``link`` to ``out``."""
    folder = tmp_path_factory.mktemp("fuzz")
    images, labels = demo_images("val")
    for index in range(20):
        path = folder / "data" / f"class{labels[index]}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[index]).save(path)
    (folder / "file").write_text("mine")
    (folder / "link").symlink_to("out")
    done = CliRunner().invoke(cli, ["convert", "demo", "-o", str(folder / "out"), "--samples", "4", "--timesteps", "1"])
    assert done.exit_code == 0, done.output
    search = ["zoo", "search", "--space", "autost-tiny", "--population", "4", "--generations", "0"]
    assert CliRunner().invoke(cli, [*search, "-o", str(folder / "found.json")]).exit_code == 0
    return folder


@contextmanager
def limited() -> Iterator[None]:
    """Within this context a command that takes too long, or too much memory, fails."""

    def end(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"it takes more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    forget_peak()
    there = resident("VmRSS:")
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    taken = resident("VmHWM:") - there
    assert taken <= BYTES, f"it takes {taken / 1e9:.1f} GB"


def forget_peak() -> None:
    """Let the kernel measure this process's peak of resident memory anew (Linux, where /proc may be written)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def resident(which: str) -> int:
    """Bytes of resident memory of this process, or at its peak since :func:`forget_peak`; 0 where no kernel tells."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(which)), 0)


@pytest.mark.slow
def test_command_lines_end_with_a_sentence(place: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    @settings(
        max_examples=pytestconfig.getoption("--fuzz-examples") or 20, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip
    @given(lines())
    def run(line: list[str]) -> None:
        with limited():
            result = CliRunner().invoke(cli, line)
        told = f"{line}\n{result.output[-2000:]}\n{result.exception!r}"
        print(f"exit code {result.exit_code}, {resident('VmHWM:') / 1e9:.2f} GB: {line}"[:300])  # pytest -s shows all
        assert isinstance(result.exception, SystemExit | None), told
        assert result.exit_code in (0, 1, 2, 3), told
        assert "Traceback" not in result.output, told
        assert result.exit_code == 0 or result.stderr.strip(), told

    run()
    assert (place / "file").read_text() == "mine"
