from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file, save_file

from vit2snn.cli import cli
from vit2snn.files import PREFIX, whole_folder, write_whole
from vit2snn.zoo.demo import FOLDER, demo_images


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def fails(code: int, message: str, *arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    return result


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "out"
    result = run("convert", "demo", "-o", out, "--samples", 48, "--timesteps", 3, "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["spiking"] == 22 and summary["images"] == 48 and summary["timesteps"] == 3
    assert "vit2snn evaluate" in result.stderr
    assert [point["timestep"] for point in summary["parity"]["snn"]] == [1, 2, 3]
    assert summary["parity"]["snn"][2]["relative_error"] < summary["parity"]["snn"][0]["relative_error"] < 0.5
    assert "top1" not in summary["parity"]["snn"][0]  # the images are those of the calibration
    assert summary["parity"] == json.loads((out / "parity.json").read_text())
    assert summary["worst"][0]["relative_error"] == max(row["relative_error"] for row in summary["worst"])
    return out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The embedded scoring images as a folder of class folders."""
    images, labels = demo_images("val")
    for index, (image, label) in enumerate(zip(images[:60], labels[:60], strict=True)):
        place = tmp_path / "data" / f"class{label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{index}.png")
    return tmp_path / "data"


def test_the_artifact_is_complete(converted: Path) -> None:
    assert {path.name for path in converted.iterdir()} >= {
        "config.json", "model.safetensors", "conversion.json", "calibration.json", "run.json", "README.md"
    }  # fmt: skip
    record = json.loads((converted / "calibration.json").read_text())
    assert record["images"] == len(set(record["digests"])) == 48
    rows = json.loads((converted / "conversion.json").read_text())
    errors = [n["relative_error"] for row in rows for n in row.get("neurons", [])]
    assert all(len(error) == 3 and error[2] < error[0] for error in errors)


def test_evaluate_prints_the_document_of_the_contract(converted: Path) -> None:
    result = run("evaluate", converted, "--timesteps", "1,2,4", "--samples", 60, "--batch-size", 25, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["images"] == 60
    assert set(document["ann"]) == {"top1"}
    assert [point["timestep"] for point in document["snn"]] == [1, 2, 4]
    keys = {"timestep", "top1", "agreement", "relative_error", "spikes_per_neuron", "operations", "energy", "latency"}
    assert all(set(point) == keys for point in document["snn"])
    assert document["snn"][-1]["agreement"] >= 95
    assert document["snn"][0]["relative_error"] > document["snn"][-1]["relative_error"]
    assert "calibrated for 3 timesteps" in result.stderr
    written = json.loads((converted / "evaluation.json").read_text())
    assert written.pop("command")
    assert written.pop("read") == {"data": "demo", "split": "validation", "images": 1000, "skipped": 0}
    assert written == document
    assert (converted / "evaluation.csv").is_file() and (converted / "curve.svg").is_file()


def test_a_folder_of_images_gives_what_the_embedded_images_give(converted: Path, folder: Path) -> None:
    given = json.loads(run("evaluate", converted, "--data", folder, "--json").stdout)
    assert given["images"] == 60
    assert given["ann"]["top1"] > 70


@pytest.mark.slow
def test_scored_images_are_never_calibration_images(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("convert", "demo", "-o", out, "--data", folder, "--samples", 25, "--timesteps", 1).exit_code == 0
    document = json.loads(run("evaluate", out, "--data", folder, "--json").stdout)
    assert document["images"] == 35
    document = json.loads(run("evaluate", out, "--data", folder, "--samples", 10, "--json").stdout)
    assert document["images"] == 10
    assert run("convert", "demo", "-o", tmp_path / "all", "--data", folder, "--timesteps", 1).exit_code == 0
    fails(1, "no images to use", "evaluate", tmp_path / "all", "--data", folder)
    (out / "calibration.json").unlink()
    fails(1, "does not tell which images", "evaluate", out, "--data", folder)


@pytest.mark.slow
def test_a_model_saved_from_python_is_scored_without_its_calibration_images(tmp_path: Path) -> None:
    import vit2snn
    from vit2snn.convert import load_model
    from vit2snn.data import array_source, prepared

    ann = load_model("demo")
    images = torch.stack([s.image for s in prepared(ann, array_source(*demo_images("val")), count=30)])
    vit2snn.to_spiking(ann, vit2snn.Recipe(timesteps=1), images).save(tmp_path / "out", source="demo")
    assert json.loads(run("evaluate", tmp_path / "out", "--json").stdout)["images"] == 970


@pytest.mark.slow
def test_the_same_seed_gives_the_same_model(tmp_path: Path) -> None:
    weights: list[dict[str, torch.Tensor]] = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("convert", "demo", "-o", tmp_path / name, "--samples", 20, "--timesteps", 1, "--seed", seed)
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    a, b, c = weights
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


def test_recipes_come_by_name_or_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"timesteps": 2, "spikes": {"levels": 2}, "ignore": ["head"]}))
    assert run("convert", "demo", "-o", tmp_path / "out", "--recipe", path, "--samples", 8).exit_code == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vit2snn"]["recipe"]["spikes"]["levels"] == 2
    fails(2, "no recipe and no file 'fast'", "convert", "demo", "-o", tmp_path / "x", "--recipe", "fast")


def test_inspect_needs_no_data() -> None:
    result = run("inspect", "deit_tiny_patch16_224", "--json")
    document = json.loads(result.stdout)
    assert document["macs"] == 1_253_683_200  # 1.254 G, attention included
    assert len([m for m in document["modules"] if m["action"] == "spiking"]) == 62
    table = run("inspect", "vit_base_patch16_siglip_224").stdout
    assert "blocks.0.attn.qkv" in table and "q, k, softmax, v" in table and "(analog)" in table
    assert max(map(len, table.splitlines())) <= 80
    assert "goes into conv1" in run("inspect", "resnet10t").stdout


def test_env_names_versions() -> None:
    assert json.loads(run("env", "--json").stdout)["torch"] == str(torch.__version__)


@pytest.mark.slow
def test_demo_runs_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vit2snn.zoo.demo

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vit2snn.commands.conversion.DEMO_TIMESTEPS", 2)
    small: Any = lambda split: tuple(part[:40] for part in demo_images(split))  # noqa: E731
    monkeypatch.setattr(vit2snn.zoo.demo, "demo_images", small)
    first, second = run("demo"), run("demo", "--json")
    assert first.exit_code == second.exit_code == 0, first.output
    assert "ANN top-1" in first.stdout
    assert json.loads(second.stdout)["images"] == 40
    assert {p.name for p in tmp_path.iterdir()} == {"vit2snn-demo"}
    fails(2, "exists already", "demo", "-o", "vit2snn-demo")


# Bad input


def test_quality_gate(converted: Path) -> None:
    result = run("evaluate", converted, "--samples", 30, "--max-drop", -1000)
    assert result.exit_code == 3
    assert "no T keeps to --max-drop -1000" in result.stderr
    assert "ANN top-1" in result.stdout
    assert run("evaluate", converted, "--samples", 30, "--max-drop", 100).exit_code == 0


def test_nothing_converted_has_its_exit_code(tmp_path: Path) -> None:
    recipe = tmp_path / "nothing.json"
    recipe.write_text('{"ignore": ["*"]}')
    fails(3, "nothing in VisionTransformer would be converted", "convert", "demo", "-o", tmp_path / "o", "--recipe", recipe)
    assert not (tmp_path / "o").exists()


def test_usage_errors_have_exit_code_2(converted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fails(2, "exists already", "convert", "demo", "-o", converted)
    fails(2, "Missing option", "convert", "demo")
    fails(2, "does not exist", "convert", "demo", "-o", out, "--checkpoint", tmp_path / "none.pth")
    fails(2, "not a list of timesteps", "evaluate", converted, "--timesteps", "1,x")
    fails(2, "0 is not in the range", "evaluate", converted, "--timesteps", "0,1")
    fails(2, "--data", "convert", f"local-dir:{FOLDER}", "-o", out)
    fails(2, "cannot be used", "convert", "demo", "-o", out, "--device", "quantum")
    assert not out.exists()


def test_bad_models_checkpoints_and_data_have_exit_code_1(converted: Path, folder: Path, tmp_path: Path) -> None:
    out, broken = tmp_path / "out", tmp_path / "broken.safetensors"
    result = fails(1, "no model 'vit_tinny_patch16_224'", "convert", "vit_tinny_patch16_224", "--data", folder, "-o", out)
    assert "did you mean" in result.stderr
    broken.write_bytes(b"junk")
    fails(1, "cannot be read", "convert", "demo", "-o", out, "--checkpoint", broken)
    weights = load_file(FOLDER / "model.safetensors")
    save_file(weights | {"blocks.2.mlp.fc1.weight": torch.full((256, 64), float("nan"))}, broken)
    fails(1, "'blocks.2.mlp.fc1.weight' are not finite", "convert", "demo", "-o", out, "--checkpoint", broken)
    fails(1, "there is no folder", "convert", "demo", "-o", out, "--data", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    fails(1, "holds no images", "evaluate", converted, "--data", tmp_path / "empty")
    (folder / "class1" / "fake.png").write_text("no image")
    fails(1, "is not an image", "evaluate", converted, "--data", folder)
    (folder / "class1" / "fake.png").unlink()
    shutil.rmtree(folder / "class9")
    fails(1, "9 class folders, the model tells 10 classes apart", "evaluate", converted, "--data", folder)
    fails(1, "is not a converted model", "evaluate", folder)
    assert not out.exists()


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vit2snn.storage.artifact.write_tensors", interrupt)
    fails(130, "interrupted", "convert", "demo", "-o", tmp_path / "out", "--samples", 4, "--timesteps", 1)
    assert not list(tmp_path.iterdir())


def test_a_request_to_end_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def terminate(*arguments: object, **options: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("vit2snn.storage.artifact.write_tensors", terminate)
    result = fails(143, "terminated", "convert", "demo", "-o", tmp_path / "out", "--samples", 4, "--timesteps", 1)
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_request_to_end_is_heard_where_an_import_makes_another_error_of_it(
    number: signal.Signals, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    def imported(*arguments: object, **options: object) -> None:
        try:
            signal.raise_signal(number)
        except BaseException:
            raise ImportError("initialization failed") from None  # as NumPy's does

    monkeypatch.setattr("vit2snn.storage.artifact.write_tensors", imported)
    before = signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler
    there = signal.signal(number, before)  # the processes of xdist do not listen to Ctrl-C
    request.addfinalizer(lambda: signal.signal(number, there))
    fails(code, "nothing half-written", "convert", "demo", "-o", tmp_path / "out", "--samples", 4, "--timesteps", 1)
    assert not list(tmp_path.iterdir()) and signal.getsignal(number) == before


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "/x"), "Error: '/x' cannot be used: No space left on device"),
        (MemoryError(), "Error: memory ran out: of the host"),
        (BrokenPipeError(32, "Broken pipe"), ""),  # click's own way
        (EOFError("Ran out of input"), "fault of vit2snn: EOFError: Ran out of input"),
        (ZeroDivisionError("division by zero\nmore"), "fault of vit2snn: ZeroDivisionError: division by zero\nHint: please"),
    ],
)
def test_other_errors_are_one_sentence(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.undo()  # the fixture that lets faults fail tests
    monkeypatch.setattr("platform.platform", fail)
    fails(1, said, "env")
    assert run("--debug", "env").exit_code == 1


def test_debug_shows_the_traceback_of_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("platform.platform", fail)
    assert isinstance(run("--debug", "env").exception, ZeroDivisionError)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = run("--debug", "evaluate", tmp_path)
    assert type(result.exception).__name__ == "ArtifactError"


def test_replacing_needs_the_flag_and_leaves_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("convert", "demo", "-o", out, "--samples", 4, "--timesteps", 1)
    assert run(*arguments).exit_code == 0
    (out / "mark").write_text("first")
    fails(2, "exists already", *arguments)
    assert (out / "mark").exists()
    (out / "evaluation.json").write_text("of the first")
    (out / "notes").mkdir()
    (out / "notes" / "run.json").write_text("mine")
    assert run(*arguments, "--overwrite").exit_code == 0
    assert (out / "mark").read_text() == "first" and (out / "notes" / "run.json").read_text() == "mine"
    assert not (out / "evaluation.json").exists()
    assert list(tmp_path.iterdir()) == [out]
    (out / "curve.svg").mkdir()
    fails(1, "where vit2snn writes a file", *arguments, "--overwrite")


@pytest.mark.parametrize("config", ['{"vit2snn": "0.1"}', '{"vit2snn": {"schema": 4, "recipe": {}}}', '{"vit2snn_zoo": {}}'])
def test_a_folder_that_only_looks_like_one_of_ours_is_kept(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "README.md").write_text("mine")
    fails(1, "not a folder that vit2snn wrote", "convert", "demo", "-o", tmp_path, "--overwrite")
    fails(1, "not a folder that vit2snn wrote", "train", "demo", "-o", tmp_path, "--overwrite")
    assert (tmp_path / "config.json").read_text() == config


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "loop").symlink_to("loop")
    convert = ("convert", "demo", "--samples", 4, "--timesteps", 1, "-o")
    assert run(*convert, tmp_path / "link").exit_code == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "config.json").is_file()
    assert run(*convert, tmp_path / "link", "--overwrite").exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"real", "link", "loop"}
    fails(1, "leads to itself", *convert, tmp_path / "loop")


def test_what_dead_processes_left_is_cleared_away(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "mine") as live:
        dead, torn, foreign = (tmp_path / f"{PREFIX}{name}" for name in ("dead", "torn", "other"))
        for folder in (dead / "new", torn / "old" / "out" / "notes", foreign.with_name(".vit2snn-elsewhere-x")):
            folder.mkdir(parents=True)
        assert run("convert", "demo", "-o", tmp_path / "x", "--samples", 4, "--timesteps", 1).exit_code == 0
        assert live.is_dir()  # it is locked
    # A process was killed between moving the old folder away and moving the new one in.
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "out", "x", ".vit2snn-elsewhere-x"}
    assert (tmp_path / "out" / "notes").is_dir()


def test_the_users_files_survive_a_kill_after_the_new_folder_is_there(tmp_path: Path) -> None:
    old = tmp_path / f"{PREFIX}dead" / "old" / "out"
    for folder in (old, tmp_path / "out"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(folder.parent.name)
    (old / "notes").write_text("mine")
    write_whole(tmp_path / "report.html", "")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "report.html"}
    assert (tmp_path / "out" / "notes").read_text() == "mine"
    assert (tmp_path / "out" / "config.json").read_text() == tmp_path.name


@pytest.mark.parametrize("place", [".", "thesis.html", "thesis.html/page", "x" * 300])
def test_a_report_replaces_nothing_of_the_users(
    place: str, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis.html").write_text("mine")
    assert run("evaluate", converted, "--samples", 8, "--timesteps", 1).exit_code == 0
    monkeypatch.chdir(tmp_path)
    fails(1, "name", "report", converted, "-o", place)
    assert (tmp_path / "thesis.html").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.html"]
    for _ in range(2):
        assert run("report", converted, "-o", "page.html").exit_code == 0


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--timesteps", 2147483648), ("--samples", 18446744073709551616), ("--workers", 100000), ("--seed", -1),
        ("--batch-size", 10**9), ("--num-classes", 10**9), ("--passes", 10**9), ("--budget", "nan"), ("--budget", "inf"),
    ],
)  # fmt: skip
def test_numbers_have_bounds(option: str, value: object, tmp_path: Path) -> None:
    fails(2, f"Invalid value for '{option}'", "convert", "demo", "-o", tmp_path / "out", option, value)


def test_more_samples_than_images_are_all(tmp_path: Path, folder: Path) -> None:
    arguments = ("convert", "demo", "-o", tmp_path / "out", "--timesteps", 1, "--data", folder, "--json")
    assert json.loads(run(*arguments, "--samples", 10**9).stdout)["images"] == 60


def test_more_images_than_memory_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of images, no device is known yet; what is computed with them fits.
    monkeypatch.setattr("vit2snn.commands.memory.memory", lambda device=None: 10**12 if device else 100_000)
    result = fails(1, "128 images of 1x28x28 take", "convert", "demo", "-o", tmp_path / "out", "--timesteps", 1)
    assert "--samples 7" in result.stderr  # half of what there is


STREAMS = {
    "encoded": ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 PYTHONIOENCODING=ascii", "", 0, ""),
    "narrow": ("COLUMNS=40 NO_COLOR=1 TERM=dumb", "", 0, ""),
    "cut": ("", "| true", 0, "what it was sent to has stopped reading"),
    "closed": ("", ">&-", 1, "the standard output is closed"),
    "full": ("", "> /dev/full", 1, "cannot be printed: No space left"),
    "silent": ("", "2>&-", 0, ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", STREAMS)
def test_any_streams_will_do(case: str) -> None:
    variables, redirection, code, said = STREAMS[case]
    command = f"{variables} {sys.executable} -m vit2snn env {redirection}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == code, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr and "ignored" not in done.stderr


def test_grey_images_in_colour_files_are_read(converted: Path, folder: Path) -> None:
    path = next(folder.glob("class0/*.png"))
    pixels = np.asarray(Image.open(path))
    Image.fromarray(np.stack([pixels] * 3, -1)).save(path)
    assert run("evaluate", converted, "--data", folder, "--timesteps", "1").exit_code == 0


@pytest.mark.slow
def test_a_budget_is_kept_or_refused(tmp_path: Path) -> None:
    convert = ["convert", "demo", "--timesteps", 1, "--samples", 16]
    result = run(*convert, "--budget", 0.17, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["parity"]["snn"][0]["energy"] <= 0.17
    recipe = json.loads((tmp_path / "out" / "config.json").read_text())["vit2snn"]["recipe"]
    assert recipe["spikes"]["price"] > 0 and recipe["max_energy"] is None
    result = run(*convert, "--budget", 0.001, "-o", tmp_path / "none")
    assert result.exit_code == 2 and "out of reach in 1 timesteps" in result.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_layer_synchronous_network_tells_its_latency(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("convert", "demo", "--recipe", "ternary-synchronous", "--timesteps", 3, "--samples", 16, "-o", out)
    assert result.exit_code == 0, result.output
    result = run("evaluate", out, "--samples", 16)
    depth = 2 + 4 * 6
    assert f"3 per layer, {3 * depth} in all" in result.stdout
    result = run("evaluate", out, "--samples", 16, "--json")
    first, *later = [point["latency"] for point in json.loads(result.stdout)["snn"]]
    assert later == [2 * depth, 3 * depth]
    assert depth <= first < 2 * depth  # layers that take more than a run has, and none takes less than one
