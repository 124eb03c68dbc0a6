"""Sample tables of a PPO stage arrive where the run reports to."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import ppo_toys as toys
from forked import run_python

ROOT = Path(__file__).parent.parent


def test_trackio_holds_every_evaluations_samples_also_the_one_after_training(tmp_path):
    toys.policy().save_pretrained(tmp_path / "base")
    toys.tokenizer().save_pretrained(tmp_path / "base")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"w{i} w{i + 1}"}) + "\n" for i in range(22)))
    options = {
        "model_name_or_path": tmp_path / "base",
        "datasets": prompts,
        "test_split_size": 6,
        "output_dir": tmp_path / "ppo",
        "reward_functions": "ppo_toys:even_share",
        "max_completion_length": 8,
        "max_steps": 4,
        "num_ppo_epochs": 2,
        "gradient_accumulation_steps": 1,
        "per_device_train_batch_size": 4,
        "use_cpu": "true",
        "bf16": "false",
        "eval_strategy": "steps",
        "eval_steps": 2,
        "report_to": "trackio",
        "project": "toy",
        "num_completions_to_print": 0,
    }
    argv = [word for key, value in options.items() for word in (f"--{key}", value)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    done = run_python("recipes/ppo.py", *argv, env={"PYTHONPATH": paths, "TRACKIO_DIR": None})
    assert done.returncode == 0, done.stderr[-3000:]

    files = sorted((tmp_path / "ppo" / "completions").glob("eval-*.jsonl"))
    written = {int(file.stem.split("-")[1]): [json.loads(line) for line in file.read_bytes().splitlines()] for file in files}
    with closing(sqlite3.connect(tmp_path / "trackio" / "toy.db")) as database:
        names = {name for (name,) in database.execute("SELECT run_name FROM metrics")}
        logs = [json.loads(text) for (text,) in database.execute("SELECT metrics FROM metrics ORDER BY step")]
    assert names == {"ppo"}, "one run, the last evaluation in it"
    shown = re.search(r"curves: TRACKIO_DIR=(\S+) trackio show --project (\S+)", done.stdout)
    listing = [Path(sys.executable).with_name("trackio"), "list", "runs", "--project", shown[2]]
    listed = subprocess.run(listing, env={**os.environ, "TRACKIO_DIR": shown[1]}, capture_output=True, text=True, check=True)
    assert "ppo" in listed.stdout
    tables = [(log["train/global_step"], log["eval_completions"]) for log in logs if "eval_completions" in log]
    assert [step for step, _ in tables] == [2, 4, 4] and sorted(written) == [2, 4]
    for step, table in tables:
        assert table["_type"] == "trackio.table" and len(table["_value"]) == 6
        assert table["_value"] == written[step]
