"""bandit finds nothing that is not justified beside the line or in pyproject.toml."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.long  # as `make lint`
def test_bandit_finds_nothing():
    command = [sys.executable, "-m", "bandit", "-q", "-r", "llmrecipes", "recipes", "-c", "pyproject.toml"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
