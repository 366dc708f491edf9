"""Energies that papers print, from the rates that their authors publish and the operations that the meter finds."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "benchmarks" / "published_energy.py"


def test_the_energy_of_spikingformer_follows_from_its_authors_rates() -> None:
    spec = importlib.util.spec_from_file_location("published_energy", PATH)
    assert spec and spec.loader
    benchmark = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = benchmark  # its annotations are looked up there
    spec.loader.exec_module(benchmark)
    row = benchmark.compare("spikingformer_8_512")
    assert row["convention_mj"] == pytest.approx(row["published_mj"], rel=0.05)
    assert row["authors_rules_mj"] == pytest.approx(row["log_mj"], rel=1e-4)
    assert row["ours_if_even_mj"] < row["ours_at_most_mj"]
