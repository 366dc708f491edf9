"""Models on the Hugging Face hub, against a stand-in that answers its HTTP calls; the library and the network are real."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from click.testing import CliRunner, Result
from conftest import make_vit
from hubserver import TOKEN, Hub, serving
from huggingface_hub import ModelCard, constants
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from torch import Tensor

import vit2snn
import vit2snn.zoo
from vit2snn.cli import cli
from vit2snn.errors import ArtifactError, HubError
from vit2snn.storage import open_network, save_model
from vit2snn.storage.hub import find, push
from vit2snn.storage.metadata import metadata

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # of huggingface_hub's own upload

IMAGES = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    disable_progress_bars()
    with serving() as hub:
        yield hub
        enable_progress_bars()
        huggingface_hub.close_session()  # whose connections keep the server's threads


@pytest.fixture
def hub(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """The hub, empty, with a cache of its own and somebody who is logged in."""
    server.repositories.clear()
    server.requests.clear()
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of its own, which the stand-in does not speak
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return server


@pytest.fixture(scope="module")
def snn() -> vit2snn.SpikingModel:
    return vit2snn.to_spiking(make_vit(), vit2snn.Recipe(timesteps=2), IMAGES)


@pytest.fixture(scope="module")
def saved(snn: vit2snn.SpikingModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sharing") / "out"
    snn.save(out, source="deit_tiny_patch16_224.fb_in1k")
    return out


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo, converted and scored."""
    out = tmp_path_factory.mktemp("sharing") / "demo"
    assert run("convert", "demo", "-o", out, "--samples", 8, "--timesteps", 1).exit_code == 0
    assert run("evaluate", out, "--samples", 20).exit_code == 0
    return out


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def fails(code: int, message: str, hint: str, *arguments: object) -> None:
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert message in result.stderr and hint in result.stderr
    assert len(result.stderr.splitlines()) <= 2 and result.stdout == ""


def files(hub: Hub, name: str, branch: str = "main") -> dict[str, bytes]:
    return hub.repositories[name].tree(branch)[1]


def snapshots(tmp_path: Path) -> list[Path]:
    return [file for file in (tmp_path / "cache").rglob("snapshots/*/*") if file.is_file()]


def test_a_model_that_was_pushed_gives_the_same_logits(hub: Hub, snn: vit2snn.SpikingModel, tmp_path: Path) -> None:
    name = snn.push_to_hub("tester/snn", private=True, commit_message="The first")
    commit = hub.repositories["tester/snn"].branches["main"]
    assert name == f"hf-hub:tester/snn@{commit}"
    assert hub.repositories["tester/snn"].private and hub.repositories["tester/snn"].messages[-1] == "The first"
    for place in (name, "hf-hub:tester/snn", "hf-hub:tester/snn@main"):
        assert torch.equal(vit2snn.load(place)(IMAGES), snn(IMAGES))
    assert sum("GET /objects/" in request for request in hub.requests) == 1  # the cache serves the others


@pytest.mark.slow
def test_a_process_of_its_own_pushes(hub: Hub, saved: Path, snn: vit2snn.SpikingModel) -> None:
    env = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "vit2snn", "push", str(saved), "snn", "--message", "From a shell", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    name = json.loads(done.stdout)["model"]
    assert name.startswith("hf-hub:tester/snn@") and hub.repositories["tester/snn"].messages[-1] == "From a shell"
    assert torch.equal(vit2snn.load(name)(IMAGES), snn(IMAGES))


def test_only_files_of_ours_are_sent_and_fetched(hub: Hub, saved: Path, tmp_path: Path) -> None:
    (saved / "notes.txt").write_text("of the user's own")
    theirs = {"theirs.txt": b"", "evil.py": b"1/0", "pytorch_model.bin": b"", "a/exits.json": b""}
    hub.put("tester/snn", theirs | {"metrics.csv": b"stale", "README.md": b"stale"})
    push(saved, "tester/snn")
    (saved / "notes.txt").unlink()
    own = {file.name for file in saved.iterdir()}
    assert set(files(hub, "tester/snn")) == own | set(theirs)
    assert files(hub, "tester/snn")["README.md"] != b"stale"
    find("hf-hub:tester/snn")
    assert {file.name for file in snapshots(tmp_path)} == own


@pytest.mark.slow
def test_a_branch_is_another_model(hub: Hub, saved: Path, scored: Path) -> None:
    push(saved, "tester/snn")
    push(scored, "tester/snn", revision="demo/1")
    assert vit2snn.load("hf-hub:tester/snn").timesteps == 2
    assert vit2snn.load("hf-hub:tester/snn@demo/1").timesteps == 1
    push(scored, "tester/snn", revision="demo/1", commit_message="Again")  # of nothing new
    assert len(hub.repositories["tester/snn"].commits) == 3


def test_the_commit_is_told_and_stays(hub: Hub, saved: Path, scored: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="vit2snn")  # whatever libraries do to the root of all loggers
    first = push(saved, "tester/snn")
    assert find("hf-hub:tester/snn").name == first
    assert first in caplog.text
    push(scored, "tester/snn")
    caplog.clear()
    assert vit2snn.load(first).timesteps == 2
    assert not caplog.text
    assert vit2snn.load("hf-hub:tester/snn").timesteps == 1


def test_the_card_tells_a_hub_what_was_measured(hub: Hub, scored: Path) -> None:
    push(scored, "tester/demo")
    card = ModelCard(files(hub, "tester/demo")["README.md"].decode())
    assert card.data.library_name == "vit2snn" and card.data.pipeline_tag == "image-classification"
    assert card.data.license == "mit" and card.data.base_model is None
    measured = json.loads((scored / "evaluation.json").read_text())
    found = {result.metric_name: result.metric_value for result in card.data.eval_results or []}
    assert found == {
        "top-1 at T = 1 (%)": measured["snn"][-1]["top1"],
        "top-1 of the ANN (%)": measured["ann"]["top1"],
        "agreement with the ANN at T = 1 (%)": measured["snn"][-1]["agreement"],
    }
    assert (card.data.eval_results or [])[0].dataset_name == "Fashion-MNIST, embedded, 20 images"
    assert "model-index" not in (scored / "README.md").read_text()  # what lies in the folder is left as it is


def test_what_was_written_into_a_card_by_hand_stays(hub: Hub, scored: Path, tmp_path: Path) -> None:
    readme = scored / "README.md"
    before = readme.read_text()
    readme.write_text("---\nlanguage: en\nlicense: gpl-3.0\ntags:\n- mine\n---\n\n# By hand\n")
    try:
        push(scored, "tester/demo")
        card = ModelCard(files(hub, "tester/demo")["README.md"].decode())
        assert card.text.strip() == "# By hand" and card.data.language == "en"
        assert card.data.tags == ["mine", "spiking-neural-network", "vision-transformer"] and card.data.license == "mit"
        readme.write_text("---\nlanguage: [en\n---\n")
        with pytest.raises(ArtifactError, match=r"README\.md' has no front matter that can be read"):
            push(scored, "tester/demo")
    finally:
        readme.write_text(before)


def config(source: str = "", license_name: str | None = None, classes: int | None = 7) -> dict[str, Any]:
    cfg = {"license": license_name} if license_name else {}
    return {"architecture": "a", "num_classes": classes, "pretrained_cfg": cfg, "vit2snn": {"source": source}}


@pytest.mark.parametrize(
    ("source", "command", "base"),
    [
        ("deit_tiny_patch16_224.fb_in1k", [], "timm/deit_tiny_patch16_224.fb_in1k"),
        ("deit_tiny_patch16_224", [], "timm/deit_tiny_patch16_224.fb_in1k"),
        ("deit_tiny_patch16_224", ["vit2snn", "convert", "--checkpoint", "own.pth"], None),
        ("hf-hub:someone/vit@main", [], "someone/vit"),
        ("local-dir:/home/me/vit", [], None),
        ("demo", [], None),
        ("", [], None),
    ],
)
def test_the_base_model_is_named_where_it_is_on_the_hub(source: str, command: list[str], base: str | None) -> None:
    assert metadata(config(source), command).base_model == base


def test_licences_and_tasks_are_those_that_a_hub_knows() -> None:
    known, other, none = (metadata(config(license_name=name)) for name in ("cc-by-nc-4.0", "dinov3-license", None))
    assert (known.license, known.license_name) == ("cc-by-nc-4.0", None)
    assert (other.license, other.license_name) == ("other", "dinov3-license")
    assert (none.license, none.license_name) == (None, None)
    tasks = [metadata(config(classes=classes)).pipeline_tag for classes in (7, 0, 1, None)]
    assert tasks == ["image-classification", "image-feature-extraction", None, None]


@pytest.mark.parametrize(
    ("data", "kind", "name"),
    [
        ("/home/me/imagenet/val", "imagefolder", "imagenet"),
        ("imagenet", "imagefolder", "imagenet"),
        ("hfds/some/set", "some/set", "some/set"),
        ("hfds//home/me/set", "imagefolder", "set"),
        ("torch/cifar10", "imagefolder", "cifar10"),
    ],
)
def test_a_data_set_is_named_without_its_place(data: str, kind: str, name: str) -> None:
    point = {"timestep": 1, "top1": 50.0, "agreement": 60.004}
    read = {"data": data, "split": "val", "images": 3, "skipped": 0}
    evaluation = {"output": "classes", "snn": [point], "ann": {}, "images": 3, "read": read}
    results = metadata(config(), (), evaluation).eval_results or []
    assert [result.metric_value for result in results] == [50.0, 60.0]
    assert {(result.dataset_type, result.dataset_name) for result in results} == {(kind, f"{name}, 3 images")}


def test_zoo_models_are_shared_too(hub: Hub, tmp_path: Path) -> None:
    model: Any = timm.create_model("qkformer_4_384_cifar10", dims=[8, 16, 32], num_classes=4).eval()
    save_model(model, tmp_path / "zoo")
    result = run("push", tmp_path / "zoo", "tester/zoo")
    assert result.exit_code == 0, result.output
    x = torch.randn(2, *model.pretrained_cfg["input_size"])
    network: Any = open_network("hf-hub:tester/zoo")
    assert torch.equal(network.readout(x), model.readout(x))
    card = ModelCard(files(hub, "tester/zoo")["README.md"].decode())
    assert card.data.library_name == "vit2snn" and "of the zoo" in card.text
    shown = run("zoo", "show", "hf-hub:tester/zoo", "--json")
    assert shown.exit_code == 0 and json.loads(shown.stdout)["statistics"]["parameters"] > 0
    with pytest.raises(ArtifactError, match="is not a converted model"):
        vit2snn.load("hf-hub:tester/zoo")


@pytest.mark.slow
def test_commands_take_a_model_of_the_hub_and_write_nothing_into_the_cache(
    hub: Hub, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, model = push(scored, "tester/demo"), "hf-hub:tester/demo"
    find(model)
    cached = {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in snapshots(tmp_path)}
    for command in (["evaluate", "--samples", 10], ["audit", "--samples", 2], ["inspect"], ["report"]):
        result = run(command[0], model, *command[1:])
        assert result.exit_code == 0, result.output
        assert command[0] != "evaluate" or "--out FOLDER" in result.stderr
    assert name in (tmp_path / "report.html").read_text()
    assert run("evaluate", model, "--samples", 10, "--out", "here").exit_code == 0
    assert run("evaluate", model, "--samples", 11, "--out", "here").exit_code == 0
    assert {file.name for file in (tmp_path / "here").iterdir()} == {"evaluation.json", "evaluation.csv", "curve.svg"}
    assert json.loads((tmp_path / "here/evaluation.json").read_text())["model"] == name
    assert run("export", model, "-o", "exported", "--format", "pt2", "--timesteps", 1).exit_code == 0
    tuned = run("finetune", model, "-o", "tuned", "--max-steps", 1, "--batch-size", 4)
    assert tuned.exit_code == 0, tuned.output
    assert json.loads((tmp_path / "tuned/run.json").read_text())["model"] == name
    assert {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in snapshots(tmp_path)} == cached


def test_an_ann_of_the_hub_is_inspected_as_before(hub: Hub) -> None:
    cfg = {"input_size": [3, 224, 224], "num_classes": 10}
    document = {"architecture": "vit_tiny_patch16_224", "num_classes": 10, "pretrained_cfg": cfg}
    hub.put("someone/vit", {"config.json": json.dumps(document).encode()})
    result = run("inspect", "hf-hub:someone/vit", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["model"] == "hf-hub:someone/vit"


# Bad input


def test_what_is_not_there_is_told(hub: Hub, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = push(saved, "tester/snn")
    fails(1, "the hub has no 'tester/none', or not for you", "hf auth login", "evaluate", "hf-hub:tester/none")
    fails(1, "'tester/snn' has no revision 'v9' on the hub", "a branch", "audit", "hf-hub:tester/snn@v9")
    fails(1, "'a/b/c' is no name of a repository", "USER/NAME", "inspect", "hf-hub:a/b/c")
    fails(1, "holds no model of vit2snn", "vit2snn convert", "push", saved.parent, "tester/snn")
    fails(1, "does not let you do that with 'other/snn'", "token", "push", saved, "other/snn")
    fails(1, "holds no evaluation", "hf download", "report", name)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    fails(1, "the token is missing or not valid", "hf auth login", "push", saved, "tester/snn")


def test_a_private_model_needs_its_owner(hub: Hub, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(saved, "tester/secret", private=True)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "nowhere")
    with pytest.raises(HubError, match="has no 'tester/secret', or not for you"):
        vit2snn.load("hf-hub:tester/secret")


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "is no model that vit2snn wrote"),
        ({"config.json": b'{"architecture": "vit_tiny_patch16_224"}'}, "is no model that vit2snn wrote"),
        ({"config.json": b"[1]"}, "is no model that vit2snn wrote"),
        ({"config.json": b'{"vit2snn": {"schema": 99}}'}, "has schema 99, this vit2snn reads schema 4"),
        ({"config.json": b"{"}, "cannot be read"),
    ],
)
def test_other_repositories_are_refused_before_their_weights_are_fetched(
    tree: dict[str, bytes], message: str, hub: Hub, tmp_path: Path
) -> None:
    hub.put("someone/else", {**tree, "model.safetensors": b"x" * 100})
    with pytest.raises(ArtifactError, match=message):
        vit2snn.load("hf-hub:someone/else")
    assert {file.name for file in snapshots(tmp_path)} <= {"config.json"}


def test_code_that_a_repository_names_is_not_run(hub: Hub, saved: Path) -> None:
    push(saved, "tester/snn")
    tree = files(hub, "tester/snn")
    document = json.loads(tree["config.json"])
    document["vit2snn"]["builder"] = "os:getcwd"
    hub.put("someone/evil", {**tree, "config.json": json.dumps(document).encode()})
    with pytest.raises(ArtifactError, match="is built by code: os:getcwd"):
        vit2snn.load("hf-hub:someone/evil")


def test_without_a_network_the_cache_serves(hub: Hub, saved: Path, snn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = push(saved, "tester/snn")
    find("hf-hub:tester/snn")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    for place in (name, "hf-hub:tester/snn"):
        logits: Tensor = vit2snn.load(place)(IMAGES)
        assert torch.equal(logits, snn(IMAGES))
    fails(1, "HF_HUB_OFFLINE is set", "unset it", "evaluate", "hf-hub:tester/other")
    fails(1, "HF_HUB_OFFLINE is set", "unset it", "push", saved, "tester/snn")
    assert len(hub.requests) == asked


def test_a_hub_that_does_not_answer_is_told(hub: Hub, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library tries again and again
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere + "/{repo_id}/resolve/{revision}/{filename}")
    message = "'tester/snn' cannot be fetched from the hub, or sent to it"
    fails(1, message, f"the hub is {nowhere}", "audit", "hf-hub:tester/snn")
    fails(1, message, "check the connection", "push", saved, "tester/snn")
