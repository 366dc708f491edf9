"""Why tests may be skipped: a plugin of pytest, which counts the reasons, and fails a run for one that does not hold here."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("VIT2SNN_SHARED", Path(__file__).parents[2] / "shared"))
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
NO_DATA = f"the development data is not at {SHARED}"

# The reasons, and whether each holds here.
EXPECTED = {
    NO_DATA: not SHARED.is_dir(),
    "no chromium or chrome is installed": BROWSER is None,
    "playwright is not installed": find_spec("playwright") is None,
    "no C compiler": COMPILER is None,
    **{f"{name} is not installed": find_spec(name) is None for name in ("neurobench", "nir", "norse", "snntorch")},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "shared" in item.keywords and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason=NO_DATA))


def skips(reporter: pytest.TerminalReporter) -> Counter[str]:
    """How many tests, or files of tests, were skipped for what reason."""
    return Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reporter.stats.get("skipped", ()))


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")  # the processes of xdist have none
    unexpected = reporter and any(not EXPECTED.get(reason) for reason in skips(reporter))
    if unexpected and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reason, count in skips(terminalreporter).items():
        expected = EXPECTED.get(reason)
        told = "" if expected else "which was not expected and fails the run, "
        terminalreporter.write_line(f"{count} skipped, {told}for: {reason}", red=not expected)
