"""benchmarks/kill.py, thinned: a stage that trains and one that does not, killed and started again, end byte-equal."""

import sys
from pathlib import Path

import pytest
from forked import run_python

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))


def test_times_of_a_log_are_left_out_of_the_comparison():
    from kill import TIMES

    lines = [
        '"step_time": 0.208',
        '"train_runtime": 2.67',
        '"wall_seconds": 3e-05',
        '"peak_memory_gib": 1.5',
        "Measured: 0.74 GiB",
    ]
    assert [TIMES.sub("", line) for line in lines] == [""] * 5
    assert TIMES.sub("", '"reward": 0.5') == '"reward": 0.5'


def test_stages_that_are_not_watched_keep_all_other_options():
    from kill import OPTIONS, STEPS

    watched = STEPS.index("--watch_steps")
    assert sorted(OPTIONS["grpo"] + STEPS[watched : watched + 2]) == sorted(STEPS)
    assert all(words.count("--eval_steps") == words.count("4") - ("--watch_steps" in words) for words in OPTIONS.values())


def test_two_processes_read_one_yaml_that_is_written_before_they_start(tmp_path, monkeypatch):
    """Written by both, one could read what the other had just emptied."""
    from kill import Bench

    bench = object.__new__(Bench)
    bench.home = tmp_path / "chain"
    monkeypatch.setattr("kill.os.fork", lambda: 1)  # as in the parent
    assert bench.start("sft", 2) == [1, 1]
    assert f"output_dir: {bench.home}/sft\n" in (tmp_path / "sft.yaml").read_text()
    bench.start("sft-lora", 1)
    assert f"output_dir: {bench.home}/sft-lora\n" in (tmp_path / "sft-lora.yaml").read_text()


@pytest.mark.parametrize(
    "stages",
    ["tokenizer", *(pytest.param(stages, marks=pytest.mark.long) for stages in ("tokenizer,pretrain", "merge,push"))],
)
def test_killed_stages_end_with_the_files_of_an_undisturbed_run(stages):
    done = run_python("benchmarks/kill.py", "--kills", "2", "--seed", "3", "--stages", stages, timeout=1200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].endswith("in 2 runs, 2 finished, 2 byte-equal")
