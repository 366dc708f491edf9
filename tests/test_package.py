from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

import vit2snn

ROOT = Path(__file__).parents[1]


def test_the_package_list_in_setup_cfg_names_every_folder_of_the_package() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    files = [file for top in ROOT.glob("*/__init__.py") for file in top.parent.rglob("__init__.py")]
    folders = {".".join(("vit2snn", *file.parent.relative_to(ROOT).parts)) for file in files}
    assert listed == folders | {"vit2snn"}


def test_all_that_is_required_has_a_lowest_version() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = "\n".join([config["options"]["install_requires"], *config["options.extras_require"].values()])
    assert [line for line in listed.split() if ">=" not in line] == ["vit2snn[events,tensorboard,onnx,nir]"]


@pytest.mark.parametrize("statement", ["import vit2snn", "import vit2snn.cli", "import vit2snn.errors"])
def test_importing_loads_neither_torch_nor_timm(statement: str) -> None:
    check = f"import sys; {statement}; print(sorted({{'torch', 'timm', 'numpy'}} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", check], text=True).strip() == "[]"


def test_help_loads_neither_torch_nor_timm() -> None:
    check = "import sys; sys.argv = ['vit2snn', '--help']\nfrom vit2snn.cli import cli\ntry: cli()\nfinally: "
    check += "assert not {'torch', 'timm'} & set(sys.modules), 'slow import'"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "convert" in done.stdout


def test_public_names_resolve_and_others_do_not() -> None:
    for name in vit2snn.__all__:
        assert getattr(vit2snn, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = vit2snn.nonsense
