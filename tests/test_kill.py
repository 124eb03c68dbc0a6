"""benchmarks/kill.py, thinned: a stage that trains and one that does not, killed and started again, end byte-equal."""

import pytest
from forked import run_python


@pytest.mark.slow
def test_killed_stages_end_with_the_files_of_an_undisturbed_run():
    done = run_python("benchmarks/kill.py", "--kills", "2", "--seed", "3", "--stages", "tokenizer,pretrain", timeout=1200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].endswith("in 2 runs, 2 finished, 2 byte-equal")
