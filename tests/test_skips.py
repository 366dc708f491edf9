from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

UNEXPECTED = "import pytest\ndef test_one(): pytest.skip('of no account')\n"
EXPECTED = "import pytest\n@pytest.mark.shared\ndef test_two(): pass\n@pytest.mark.shared\ndef test_three(): pass\n"


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["0", "1"])
def test_a_skip_fails_the_run_if_it_was_not_expected(processes: str, tmp_path: Path) -> None:
    (tmp_path / "test_unexpected.py").write_text(UNEXPECTED)
    (tmp_path / "test_expected.py").write_text(EXPECTED)
    missing = tmp_path / "missing"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "VIT2SNN_SHARED": str(missing)}

    def run(*files: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "pytest", "-p", "skips", "-n", processes, *files]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout

    status, told = run("test_expected.py")
    assert status == 0 and f"2 skipped, for: the development data is not at {missing}\n" in told, told
    status, told = run("test_expected.py", "test_unexpected.py")
    assert status == 1 and "1 skipped, which was not expected and fails the run, for: of no account\n" in told, told
