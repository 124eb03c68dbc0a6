"""Runs stand in their trackers under their stage's name, and the command that shows them is printed."""

from dataclasses import dataclass, field

import trackio

from llmrecipes.checkpoints import seal_checkpoint
from llmrecipes.config import RunArguments
from llmrecipes.run import check_run, finish_run, start_run


@dataclass
class Arguments:
    output_dir: str
    seed: int = 1
    report_to: list[str] = field(default_factory=lambda: ["trackio"])
    project: str = "toy"
    run_name: str | None = None


def start(folder, run=None, **values):
    args = Arguments(str(folder), **values)
    state = check_run("sft", run or RunArguments(), args, (run or RunArguments(), args))
    start_run(state)
    return state, args.run_name


def test_runs_are_named_by_stage_and_numbered_unless_they_continue(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    tracked = []
    monkeypatch.setattr(trackio.Api, "runs", lambda self, project: [type("Run", (), {"name": name}) for name in tracked])
    assert start(tmp_path / "sft")[1] == "sft"
    assert start(tmp_path / "sft-long")[1] == "sft-long" and start(tmp_path / "mine")[1] == "sft-mine"
    assert start(tmp_path / "named", run_name="abc")[1] == "abc"
    tracked += ["sft"]
    state, name = start(tmp_path / "sft", RunArguments(force=True))
    assert name == "sft-2"
    tracked += [name]
    checkpoint = tmp_path / "sft" / "checkpoint-5"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text('{"global_step": 5}')
    seal_checkpoint(checkpoint, state.manifest["fingerprint"], step=5, seconds=1.0, launch=state.manifest["launch"])
    assert start(tmp_path / "sft")[1] == "sft-2", "a run that continues keeps its name"
    assert start(tmp_path / "sft", RunArguments(force=True))[1] == "sft-3"
    assert start(tmp_path / "untracked", report_to=[])[1] is None


def test_command_that_shows_a_run_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    monkeypatch.setattr(trackio.Api, "runs", lambda self, project: [])
    finish_run(start(tmp_path / "sft")[0], {}, made="thing")
    assert f"curves: TRACKIO_DIR={tmp_path / 'trackio'} trackio show --project toy\n" in capsys.readouterr().out


def test_secrets_reach_no_tracker(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "S3cr3t-of-mine")
    monkeypatch.setattr(trackio.Api, "runs", lambda self, project: [])
    args = Arguments(str(tmp_path / "sft"), run_name="mine-S3cr3t-of-mine", project="https://me:pass-word@host")
    check_run("sft", RunArguments(), args, (args,))
    assert (args.run_name, args.project) == ("mine-removed", "https://removed@host")
    said = capsys.readouterr().out
    assert "tracking: `run_name` holds a secret" in said and "tracking: `project` holds a secret" in said
    assert start(tmp_path / "other", run_name="token-count", project="token_study")[1] == "token-count"
    assert "secret" not in capsys.readouterr().out
