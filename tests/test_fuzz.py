"""A few hundred inputs of benchmarks/fuzz.py, always the same ones, and every input that ever broke something."""

import sys
from pathlib import Path

import pytest
from fuzz_corpus import CORPUS

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

from fuzz import KINDS, fuzz, outcome  # noqa: E402


@pytest.mark.parametrize(("kind", "example"), CORPUS, ids=lambda part: str(part)[:50])
def test_what_once_broke_is_one_line_or_fine(kind, example):
    assert outcome(kind, example) in ("fine", "refused")


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_of_every_kind_end_in_a_result_or_in_one_line(kind):
    counts, broken = fuzz(kind, examples=20, start=7)
    assert not broken and sum(counts.values()) >= 15
