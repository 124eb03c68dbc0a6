"""Start and finish of a run: nothing is overwritten, interrupted work continues, results are compared with the card."""

import json
from dataclasses import dataclass

import pytest
from accelerate import DeepSpeedPlugin

from llmrecipes.checkpoints import last_complete_checkpoint, seal_checkpoint
from llmrecipes.config import InputError, RunArguments
from llmrecipes.durable import write_json
from llmrecipes.manifest import fingerprint, read_manifest
from llmrecipes.run import _find_checkpoint, check_expected, check_run, finish_run, start_run


@dataclass
class Arguments:
    output_dir: str
    seed: int = 1
    size: int = 3


def start(folder, run=None, keep=(), **values):
    args = Arguments(str(folder), **values)
    run = run or RunArguments()
    state = check_run("sample", run, args, (run, args), keep=keep)
    start_run(state)
    return state


def test_one_process_on_several_gpus_is_refused(tmp_path):
    """Trainer would wrap the model in DataParallel and take twice the rows a step."""
    args = Arguments(str(tmp_path / "o"))
    args.n_gpu = 2
    with pytest.raises(InputError, match="2 GPUs in one process.*accelerate launch"):
        check_run("sft", RunArguments(), args, (args,))
    assert not (tmp_path / "o").exists()


def checkpoint(state, step):
    """A sealed checkpoint of the run, as a training would leave it."""
    folder = state.output_dir / f"checkpoint-{step}"
    folder.mkdir()
    for name in ("trainer_state.json", "optimizer.pt", "model.safetensors"):
        (folder / name).write_text(f"{name} of step {step}")
    seal_checkpoint(folder, state.manifest["fingerprint"], step=step, seconds=1.0, launch=state.manifest["launch"])
    return folder


def test_folder_of_another_run_is_refused_and_untouched(tmp_path):
    finish_run(start(tmp_path / "o"), {"loss": 1.0}, made="thing")
    before = (tmp_path / "o" / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="`size` was 3, is 4.*--force"):
        start(tmp_path / "o", size=4)
    assert (tmp_path / "o" / "manifest.json").read_bytes() == before


def test_run_that_failed_before_its_first_checkpoint_is_in_nobodys_way(tmp_path):
    start(tmp_path / "o")
    state = start(tmp_path / "o", size=4)
    assert state.resume_from_checkpoint is None
    checkpoint(state, 5)
    with pytest.raises(InputError, match="`size` was 4, is 5"):
        start(tmp_path / "o", size=5)


@pytest.mark.parametrize("name", ["samples.partial.jsonl", "samples.jsonl", "work/cleaned/000001/words.npy"])
def test_what_a_stage_without_checkpoints_has_done_is_not_overwritten_by_another_run(tmp_path, name):
    file = start(tmp_path / "o").output_dir / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("")
    if name.startswith("samples"):  # nothing was done yet
        start(tmp_path / "o", size=4)
        file.write_text("a row")
    old = 4 if name.startswith("samples") else 3
    with pytest.raises(InputError, match=f"`size` was {old}, is 5.*--force"):
        start(tmp_path / "o", size=5)
    assert file.exists()


def test_samples_beside_a_damaged_manifest_are_not_overwritten(tmp_path):
    file = start(tmp_path / "o").output_dir / "samples.partial.jsonl"
    file.write_text("a row")
    (tmp_path / "o" / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="its manifest.json cannot be read"):
        start(tmp_path / "o")
    assert file.exists()


def test_interrupted_run_without_a_checkpoint_says_that_it_begins_anew(tmp_path, capsys):
    start(tmp_path / "o")
    assert "no checkpoint" not in capsys.readouterr().out
    start(tmp_path / "o")
    assert f"sample: the run that was interrupted in {tmp_path / 'o'} had no checkpoint yet" in capsys.readouterr().out
    start(tmp_path / "o", RunArguments(force=True))
    assert "no checkpoint" not in capsys.readouterr().out


@pytest.mark.parametrize("key", ["inputs", "model_name_or_path", "reward_model_name_or_path", "datasets", "eval_datasets"])
def test_folder_of_an_unfinished_run_is_read_by_nobody(tmp_path, key):
    state = start(tmp_path / "input")
    path, args = str(tmp_path / "input"), Arguments(str(tmp_path / "o"))
    inputs, config = [path] if key == "inputs" else [], {key: [{"path": path}] if "datasets" in key else path}
    with pytest.raises(InputError, match=f"{path}: the sample run that writes it has not finished .*'running'"):
        check_run("sft", RunArguments(), args, (args, config), inputs)
    finish_run(state, {}, made="thing")
    check_run("sft", RunArguments(), args, (args, config), inputs)


def test_finished_run_is_believed_only_with_the_files_that_it_wrote(tmp_path, capsys):
    state, path = start(tmp_path / "o"), tmp_path / "o" / "manifest.json"
    write_json(path, read_manifest(path.parent) | {"status": "finished"})  # by hand
    with pytest.raises(InputError, match="has not finished .*'finished' but lists no files"):
        check_run("sft", RunArguments(), Arguments(str(tmp_path / "p")), (), [str(tmp_path / "o")])
    state = start(tmp_path / "o")
    for name in ("a.txt", "b.txt"):
        (tmp_path / "o" / name).write_text("some text")
    finish_run(state, {}, made="thing")

    def again():
        capsys.readouterr()
        with pytest.raises(SystemExit):
            start(tmp_path / "o")
        check_run("sft", RunArguments(), Arguments(str(tmp_path / "p")), (), [str(tmp_path / "o")])
        return capsys.readouterr().out

    assert again() == f"sample: already finished in {tmp_path / 'o'}; --force runs it again\n"
    (tmp_path / "o" / "b.txt").write_text("more text")
    assert again() == (
        f"sample: already finished in {tmp_path / 'o'}; b.txt changed since; --force runs it again\n"
        f"{tmp_path / 'o'}: b.txt changed since its sample run finished; what is there now is read\n"
    )
    for name in ("a.txt", "b.txt"):
        (tmp_path / "o" / name).unlink()
    with pytest.raises(InputError, match="/o: finished, but without a.txt and 1 more; put that back, or --force"):
        again()
    assert read_manifest(tmp_path / "o")["status"] == "finished"


def test_a_file_in_a_runs_folder_is_checked_as_the_folder_is(tmp_path, capsys):
    """A single file, and a folder of them, of an unfinished run are refused; what else has changed there is not told."""
    state, folder = start(tmp_path / "rank"), tmp_path / "rank"
    (folder / "data" / "web").mkdir(parents=True)
    for name in ("train.jsonl", "test.jsonl", "data/web/0.jsonl"):
        (folder / name).write_text("{}\n")
    (folder / "checkpoint-5").mkdir()

    def read(name, output="other"):
        capsys.readouterr()
        config = {"datasets": [{"path": str(folder / name)}]}
        check_run("sft", RunArguments(), Arguments(str(tmp_path / output)), (Arguments(str(tmp_path / output)), config))
        return capsys.readouterr().out

    for name in ("train.jsonl", "data/web"):
        with pytest.raises(InputError, match=f"{folder / name}: the sample run that writes it has not finished"):
            read(name)
    assert read("checkpoint-5") == "", "while it trains, its checkpoints may be looked at"
    finish_run(state, {}, made="thing")
    assert read("train.jsonl") == read("data/web") == ""
    (folder / "test.jsonl").write_text("{}\n{}\n")
    (folder / "data" / "web" / "0.jsonl").unlink()
    assert read("train.jsonl") == ""
    told = "since its sample run finished; what is there now is read\n"
    assert read("test.jsonl") == f"{folder / 'test.jsonl'}: test.jsonl changed {told}"
    assert read("data/web") == f"{folder / 'data/web'}: data/web/0.jsonl gone {told}"


def test_force_overwrites(tmp_path):
    finish_run(start(tmp_path / "o"), {}, made="thing")
    (tmp_path / "o" / "old.txt").write_text("x")
    start(tmp_path / "o", RunArguments(force=True), size=4)
    assert not (tmp_path / "o" / "old.txt").exists()


def test_input_that_turns_out_unusable_costs_nothing_that_was_there(tmp_path):
    from llmrecipes.config import DataArguments
    from recipes.tokenizer import TokenizerArguments, main

    def train(text, **run):
        (tmp_path / "data.jsonl").write_text(text)
        data = DataArguments(datasets=[{"path": str(tmp_path / "data.jsonl")}])
        main(RunArguments(**run), data, TokenizerArguments(str(tmp_path / "o"), vocab_size=300))

    with pytest.raises(InputError, match="data.jsonl"):
        train("no JSON\n")
    assert not (tmp_path / "o").exists()
    train('{"text": "the cat sat on the mat"}\n')
    before = {path.name: path.read_bytes() for path in (tmp_path / "o").iterdir()}
    with pytest.raises(InputError, match="data.jsonl"):
        train("no JSON\n", force=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "o").iterdir()} == before


def test_folder_that_was_being_cleared_is_cleared_on(tmp_path):
    """A kill in the middle of what --force asked for: what is left of the old run is not continued from."""
    state = start(tmp_path / "o")
    checkpoint(state, 5)
    (tmp_path / "o" / "old.txt").write_text("x")
    write_json(tmp_path / "o" / "manifest.json", state.manifest | {"clearing": True})
    assert start(tmp_path / "o").resume_from_checkpoint is None
    assert {path.name for path in (tmp_path / "o").iterdir()} == {"manifest.json", ".lock"}
    assert "clearing" not in read_manifest(tmp_path / "o")


def test_checkpoints_of_nobody_are_never_continued_from(tmp_path):
    other = start(tmp_path / "other", size=9)
    (tmp_path / "o").mkdir()
    checkpoint(other, 5).rename(tmp_path / "o" / "checkpoint-5")
    (tmp_path / "o" / "thesis.txt").write_text("x")
    start(tmp_path / "o", RunArguments(force=True))
    assert start(tmp_path / "o").resume_from_checkpoint is None  # killed before the first checkpoint, given again


def test_torn_manifest_beside_good_checkpoints_goes_on(tmp_path):
    folder = checkpoint(start(tmp_path / "o"), 5)
    (tmp_path / "o" / "manifest.json").write_text('{"stage": "sam')
    with pytest.raises(InputError, match="its manifest.json cannot be read"):
        start(tmp_path / "o", size=4)
    assert start(tmp_path / "o").resume_from_checkpoint == str(folder)


def test_evaluation_sets_belong_to_the_run(tmp_path):
    (tmp_path / "eval.jsonl").write_text("1\n")
    config = {"eval_datasets": [{"path": str(tmp_path / "eval.jsonl")}]}
    check = lambda: check_run("sft", RunArguments(), Arguments(str(tmp_path / "o")), (config,))
    state = check()
    start_run(state)
    checkpoint(state, 5)
    assert check().resume_from_checkpoint
    (tmp_path / "eval.jsonl").write_text("2\n")
    with pytest.raises(InputError, match="eval.jsonl has changed"):
        check()


def test_what_a_stage_keeps_outlives_a_run_that_broke_off_but_not_force(tmp_path):
    start(tmp_path / "o")
    for name in ("paid.jsonl", "old.txt"):
        (tmp_path / "o" / name).write_text("x")
    (tmp_path / "o" / "folder").mkdir()
    start(tmp_path / "o", keep=("paid.jsonl",), size=4)
    assert {path.name for path in (tmp_path / "o").iterdir()} == {"paid.jsonl", "manifest.json", ".lock"}
    assert read_manifest(tmp_path / "o")["config"]["size"] == 4
    start(tmp_path / "o", RunArguments(force=True), keep=("paid.jsonl",), size=4)
    assert {path.name for path in (tmp_path / "o").iterdir()} == {"manifest.json", ".lock"}


@dataclass
class ShardedArguments(Arguments):
    fsdp_plugin_args: dict | None = None
    deepspeed_plugin: DeepSpeedPlugin | None = None


ZERO_2, ZERO_3, UNSAVED = (
    DeepSpeedPlugin(zero_stage=stage, zero3_save_16bit_model=save) for stage, save in ((2, False), (3, True), (3, False))
)


@pytest.mark.parametrize(
    ("key", "environment", "values"),
    [
        ("fsdp_version", {"FSDP_VERSION": "1", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}, {}),
        ("fsdp_state_dict_type", {"FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, {}),
        ("fsdp_version", {}, {"fsdp_plugin_args": {"fsdp_version": 1, "state_dict_type": "FULL_STATE_DICT"}}),
        ("zero3_save_16bit_model", {}, {"deepspeed_plugin": UNSAVED}),
    ],
)
def test_launch_that_would_save_no_whole_model_is_refused(tmp_path, monkeypatch, key, environment, values):
    for name, value in environment.items() | {("ACCELERATE_USE_FSDP", str(bool(environment)).lower())}:
        monkeypatch.setenv(name, value)
    args = ShardedArguments(str(tmp_path / "o"), **values)
    with pytest.raises(InputError, match=f"^{key}: "):
        check_run("sft", RunArguments(), args, (Arguments(args.output_dir),))


def test_checkpoint_of_another_launch_is_refused(tmp_path, monkeypatch):
    def check(plugin):
        args = ShardedArguments(str(tmp_path / "o"), deepspeed_plugin=plugin)
        return check_run("sft", RunArguments(), args, (Arguments(args.output_dir),))

    state = check(ZERO_2)
    start_run(state)
    checkpoint(state, 5)
    assert check(ZERO_2).resume_from_checkpoint
    with pytest.raises(InputError, match="under processes 1, sharding ZeRO-2, this launch has processes 1, sharding ZeRO-3"):
        check(ZERO_3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="launch as before"):
        check(ZERO_2)


def test_checkpoint_without_what_another_machine_wrote_is_refused(tmp_path):
    """Its random numbers would be others: transformers goes on with those that the process happens to have."""
    state = start(tmp_path / "o")
    state.manifest["launch"] = {"processes": 2, "sharding": "none"}
    folder = checkpoint(state, 5)
    (folder / "rng_state_0.pth").touch()
    with pytest.raises(InputError, match="checkpoint-5: what process 1 wrote is not there, so this run cannot be continued"):
        _find_checkpoint(state, None)
    (folder / "rng_state_1.pth").touch()
    _find_checkpoint(state, None)
    assert state.resume_from_checkpoint == str(folder)


def test_foreign_files_are_never_deleted(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="files that no run wrote"):
        start(tmp_path)
    start(tmp_path, RunArguments(force=True))
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize("force", [False, True])
def test_files_that_came_after_the_check_are_never_deleted(tmp_path, force):
    args, run = Arguments(str(tmp_path / "new" / "..")), RunArguments(force=force)  # once `new` is there, tmp_path itself
    state = check_run("sample", run, args, (run, args))
    (tmp_path / "thesis.txt").write_text("x")
    (tmp_path / "new").mkdir()
    with pytest.raises(InputError, match="files that no run wrote, and that were not seen"):
        start_run(state)
    assert (tmp_path / "thesis.txt").exists()


def test_same_finished_run_exits_0(tmp_path, capsys):
    finish_run(start(tmp_path / "o"), {}, made="thing")
    with pytest.raises(SystemExit) as caught:
        start(tmp_path / "o")
    assert caught.value.code == 0 and "already finished" in capsys.readouterr().out


def test_interrupted_run_continues_from_last_complete_checkpoint(tmp_path):
    state = start(tmp_path / "o")
    whole = [checkpoint(state, step) for step in (5, 10, 15)]
    (whole[-1] / "checksums.json").unlink()  # cut off before its last file
    assert last_complete_checkpoint(tmp_path / "o") == (str(whole[1]), [])
    assert start(tmp_path / "o").resume_from_checkpoint == str(whole[1])
    assert not whole[-1].exists()  # it will be written anew


def test_manifest_tells_what_was_run(tmp_path):
    state = start(tmp_path / "o")
    assert read_manifest(tmp_path / "o")["status"] == "running"
    finish_run(state, {"loss": 1.0}, made="thing")
    manifest = read_manifest(tmp_path / "o")
    assert manifest["status"] == "finished" and manifest["metrics"] == {"loss": 1.0}
    assert manifest["config"]["size"] == 3 and manifest["packages"]["torch"].startswith("2.13")
    assert manifest["output_fingerprint"] == fingerprint(str(tmp_path / "o"))


def test_a_clock_that_is_set_back_leaves_the_seconds_true(tmp_path, monkeypatch):
    state = start(tmp_path / "o")
    monkeypatch.setattr("time.time", lambda: 0.0)
    finish_run(state, {}, made="thing")
    assert 0 <= read_manifest(tmp_path / "o")["wall_seconds"] < 3600


def test_expected_is_met_missed_or_not_measured():
    got = check_expected({"a": [1.0, 0.1], "b": [1.0, 0.1], "c": [1.0, 0.1], "d": None}, {"a": 1.05, "b": 1.2, "d": 3})
    assert {name: v["verdict"] for name, v in got.items()} == {"a": "met", "b": "missed", "c": "not measured"}


def test_the_summary_names_what_is_expected_and_was_not_measured(tmp_path, capsys):
    finish_run(start(tmp_path / "o", RunArguments(expected={"a": [1.0, 0.1], "los": [2.0, 0.5]})), {"a": 1.0}, made="thing")
    told = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "a 1 expected 1.0 ± 0.1: met" in told and "los - expected 2.0 ± 0.5: not measured" in told


def test_fingerprint_sees_content_and_names_but_not_checkpoints(tmp_path):
    (tmp_path / "config.json").write_text("{}")  # of a model
    (tmp_path / "a.txt").write_text("1")
    first = fingerprint(str(tmp_path))
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "x").write_text("1")
    assert fingerprint(str(tmp_path)) == first
    (tmp_path / "a.txt").write_text("2")
    assert fingerprint(str(tmp_path)) != first
    assert fingerprint("org/model") == "hub:org/model"


def test_no_token_reaches_the_manifest(tmp_path):
    from transformers import TrainingArguments

    args = TrainingArguments(
        output_dir=str(tmp_path / "o"),
        hub_token="hf_secret",
        report_to="none",
        use_cpu=True,
        run_name="WANDB_API_KEY=hf_secret",
    )
    start_run(check_run("sft", RunArguments(), args, (args,)))
    assert "hf_secret" not in json.dumps(read_manifest(tmp_path / "o"))
