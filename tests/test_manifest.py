"""One notion of "the same run": what its fingerprint covers and leaves out, what a folder holds, who may write there."""

import ast
import fcntl
import json
import os
from pathlib import Path

import pytest

from llmrecipes import locks
from llmrecipes import manifest as manifest_module
from llmrecipes.checkpoints import find_damage, last_complete_checkpoint, seal_checkpoint
from llmrecipes.code_files import code_digest, code_files, own_imports
from llmrecipes.config import InputError
from llmrecipes.durable import write_json
from llmrecipes.locks import find_holder, hold_folder, release_folder
from llmrecipes.manifest import fingerprint, global_batch, in_order, output_files, run_fingerprint, standing
from llmrecipes.parsing import read_argv, read_given


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def finish(folder: Path, run: str = "r") -> None:
    """Marks `folder` as a finished run's, as `finish_run` does."""
    files = output_files(folder)
    write_json(folder / "manifest.json", {"status": "finished", "fingerprint": run, "files": files})


def test_run_is_its_config_and_the_contents_of_its_inputs(tmp_path, model):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("1\n")
    given = {
        "learning_rate": 1e-4,
        "model_name_or_path": str(model),
        "eval_datasets": [{"path": str(rows), "split": "test"}],
    }
    first = run_fingerprint("sft", given)
    assert run_fingerprint("sft", given | {"learning_rate": "1e-4", "output_dir": "x", "watch_steps": 5}) == first
    assert run_fingerprint("sft", given | {"learning_rate": 2e-4}) != first
    assert run_fingerprint("dpo", given) != first
    rows.write_text("2\n")
    assert run_fingerprint("sft", given) != first, "evaluation sets are read too"
    rows.write_text("1\n")
    (tmp_path / "moved").mkdir()
    assert run_fingerprint("sft", given | {"model_name_or_path": str(model.rename(tmp_path / "moved" / "m"))}) == first


@pytest.mark.parametrize(
    "given",
    [{"datasets": ["a.jsonl"]}, {"blocked_words": "a.jsonl"}, {"sources": "folder"}, {"datasets": [{"path": "~/a.jsonl"}]}],
)
def test_an_input_named_without_its_folder_is_one_too(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "folder").mkdir()
    found = set()
    for content in "12":
        for name in ("a.jsonl", "folder/b.jsonl"):
            (tmp_path / name).write_text(content)
        found.add(run_fingerprint("sft", given))
    assert len(found) == 2


def test_weights_altered_after_a_run_has_finished_are_another_input(model):
    finish(model)
    before = fingerprint(model)
    os.utime(model / "model.safetensors")  # copied elsewhere, say
    assert fingerprint(model) == before
    (model / "model.safetensors").write_bytes(b"weighty")
    assert fingerprint(model) != before


def test_seconds_and_what_is_written_about_a_run_are_not_its_output(model):
    finish(model)
    before = fingerprint(model)
    for name in (
        "watch.jsonl",
        "trainer_state.json",
        "README.md",
        "health.json",
        "evaluation.json",
        ".lock",
        "manifest.tmp",
    ):
        (model / name).write_text('{"seconds": 1}')
    assert fingerprint(model) == before


@pytest.mark.parametrize("name", ["report.json", "logs/b.jsonl", "runs/c.jsonl"])
def test_a_users_data_of_any_name_are_an_input(tmp_path, name):
    """In a folder of data nothing is left out by a name that a run's own files have."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    found = set()
    for content in "12":
        (tmp_path / name).write_text(content)
        found.add(fingerprint(tmp_path))
    assert len(found) == 2


def test_rows_in_a_step_count_and_not_how_they_are_cut_up():
    one = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    two = {"per_device_train_batch_size": "4"}
    assert run_fingerprint("sft", one, global_batch(one, 1)) == run_fingerprint("sft", two, global_batch(two, 2))
    assert run_fingerprint("sft", one, global_batch(one, 1)) != run_fingerprint("sft", one, global_batch(one, 2))


def test_yaml_and_command_line_are_one_config(tmp_path):
    (tmp_path / "a.yaml").write_text("max_steps: 5\nseed: 1\nbf16: true\n")
    given = read_given(
        read_argv(["--config", str(tmp_path / "a.yaml"), "--seed=2", "--models", "a", "b", "--no_bf16", "--force"])
    )
    assert given == {"max_steps": 5, "seed": 2, "models": ["a", "b"], "bf16": False, "force": True}


@pytest.mark.parametrize(
    ("files", "held"),
    [
        ({}, "nothing"),
        ({"manifest.tmp": "{", ".lock": ""}, "nothing"),
        ({"manifest.json": '{"stage": "sf', "checkpoint-5/model.safetensors": "x"}, "nothing"),
        ({"manifest.json": '{"stage": "sf', "model.safetensors": "x"}, "another"),
        ({"thesis.txt": "x"}, "foreign"),
        ({"checkpoint-5/model.safetensors": "x"}, "nothing"),
        ({"manifest.json": '{"fingerprint": "r", "status": "running"}'}, "unfinished"),
        ({"manifest.json": '{"fingerprint": "r", "status": "finished", "files": {}}'}, "finished"),
        ({"manifest.json": '{"fingerprint": "r", "status": "finished"}'}, "unfinished"),  # somebody wrote that by hand
        ({"manifest.json": '{"fingerprint": "s", "status": "finished"}'}, "another"),
        ({"manifest.json": '{"fingerprint": "s", "status": "running"}'}, "nothing"),
        ({"manifest.json": "[]"}, "nothing"),
    ],
)
def test_what_a_folder_holds(tmp_path, files, held):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert standing(tmp_path, "r") == held


def test_torn_manifest_beside_checkpoints_of_the_run_is_that_run(tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "model.safetensors").write_text("x")
    seal_checkpoint(tmp_path / "checkpoint-5", "r")
    (tmp_path / "manifest.json").write_text('{"stage"')
    assert standing(tmp_path, "r") == "unfinished"
    assert standing(tmp_path, "s") == "another"


PARTS = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state_1.pth", "progress.pt")
PARTS += ("adapter_model.safetensors", "ppo_state_1.pt", "value_model/model.safetensors")


@pytest.mark.parametrize("name", [*PARTS, "checksums.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "missing", "list"])
def test_damaged_checkpoint_is_never_the_last_complete_one(tmp_path, name, damage):
    for step in (5, 10):
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "value_model").mkdir(parents=True)
        for part in PARTS:
            (folder / part).write_text(f"{part} of {step}")
        seal_checkpoint(folder, "r")
    path = tmp_path / "checkpoint-10" / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        changed = {"flip": bytes([data[0] ^ 1]) + data[1:], "cut": data[:-3], "empty": b"", "list": b"[]\xff"}[damage]
        path.write_bytes(changed)
    last, damaged = last_complete_checkpoint(tmp_path, "r")
    assert last.endswith("checkpoint-5")
    assert (len(damaged) == 1 and name in damaged[0]) or (name, damage) == ("checksums.json", "missing")
    assert last_complete_checkpoint(tmp_path, "another run")[0] is None


def test_whole_checkpoint_has_no_damage(tmp_path):
    (tmp_path / "value_model").mkdir()
    (tmp_path / "value_model" / "model.safetensors").write_text("x")
    seal_checkpoint(tmp_path, "r", step=3)
    assert find_damage(tmp_path) == ""
    assert json.loads((tmp_path / "checksums.json").read_text())["step"] == 3


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def refuse(*args):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    hold_folder(tmp_path)
    assert find_holder(tmp_path) == "" and "has no locks, so a second run that writes" in capsys.readouterr().err


def test_folder_that_another_process_writes_to_is_one_line(tmp_path):
    hold_folder(tmp_path)
    hold_folder(tmp_path)  # this process may
    assert find_holder(tmp_path) == ""
    release_folder(tmp_path)
    assert not (tmp_path / ".lock").exists()
    with (tmp_path / ".lock").open("w") as other:  # another opening of the file is what another process has
        other.write("process 7 on earth")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="process 7 on earth is writing there"):
            hold_folder(tmp_path)
    hold_folder(tmp_path)  # the process has died, its file is still there
    release_folder(tmp_path)


def test_a_worker_that_outlives_its_killed_parent_does_not_hold_the_folder(tmp_path):
    hold_folder(tmp_path)
    (is_up, up), (wakes, wake) = os.pipe(), os.pipe()
    if not (worker := os.fork()):
        os.close(wake)
        os.write(up, b"x")
        os.read(wakes, 1)
        os._exit(0)
    os.read(is_up, 1)
    os.close(locks._held.pop(tmp_path.resolve()))  # all that the kernel does for a killed process
    try:
        hold_folder(tmp_path)
        release_folder(tmp_path)
    finally:
        os.close(wake)
        os.waitpid(worker, 0)


def test_imports_are_those_that_python_finds_in_the_whole_file():
    tricky = """
def f():
    import os; import llmrecipes.a as b
    from llmrecipes.c import (  # (a bracket)
        d as e,
        g,
    )
"""
    assert own_imports(tricky) == {"llmrecipes.a", "llmrecipes.c", "llmrecipes.c.d", "llmrecipes.c.g"}
    assert own_imports('"""from here on import llmrecipes of\n"""\nimport llmrecipes') == {"llmrecipes"}
    for folder in ("llmrecipes", "recipes"):
        for file in (manifest_module.ROOT / folder).rglob("*.py"):
            source = file.read_text()
            nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
            assert own_imports(source) == own_imports("\n".join(map(ast.unparse, nodes))), file


def test_code_note_covers_the_recipes_imports_and_functions_that_the_config_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = manifest_module.ROOT / "recipes" / "tokenizer.py"
    names = {file.name for file in code_files(recipe)}
    assert {"tokenizer.py", "config.py", "tokenizers.py", "run.py"} <= names
    assert "ppo" not in {file.parent.name for file in code_files(recipe)}
    (tmp_path / "mine.py").write_text("def reward(prompts, completions): return [0.0]\n")
    given = {"reward_functions": ["mine:reward"]}
    before = code_digest(recipe, given)
    (tmp_path / "mine.py").write_text("def reward(prompts, completions): return [1.0]\n")
    assert code_digest(recipe, given) != before
    assert run_fingerprint("ppo", given) == run_fingerprint("ppo", given)


def test_code_note_covers_what_a_users_module_imports_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts").mkdir()
    files = {"mine.py": "import os, datasets\nfrom words import LENGTH", "words.py": "from parts import short\nLENGTH = 1"}
    files |= {"parts/__init__.py": "", "parts/short.py": "from .longer import X", "parts/longer.py": "X = 1", "other.py": ""}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    recipe, given = manifest_module.ROOT / "recipes" / "rank.py", {"rule": "mine:score"}
    for name in files:
        before = code_digest(recipe, given)
        (tmp_path / name).write_text(files[name] + "\n# changed")
        assert (code_digest(recipe, given) != before) == (name != "other.py"), name


def test_empty_folder_is_in_nobodys_way(tmp_path):
    (tmp_path / "completions").mkdir()
    assert standing(tmp_path, "r") == "nothing"
    (tmp_path / "completions" / "mine.txt").write_text("x")
    assert standing(tmp_path, "r") == "foreign"


def test_what_a_run_reads_stands_before_it_whatever_the_order_or_place(tmp_path):
    for name, reads in (("ppo", ["out/sft", "out/reward"]), ("reward", ["out/sft", "hub"]), ("sft", [])):
        (tmp_path / name).mkdir()
        inputs = dict.fromkeys(reads, "")
        write_json(tmp_path / name / "manifest.json", {"config": {"output_dir": f"out/{name}"}, "inputs": inputs})
    folders = [tmp_path / name for name in ("ppo", "none", "reward", "sft")]
    assert [folder.name for folder in in_order(folders)] == ["none", "sft", "reward", "ppo"]
