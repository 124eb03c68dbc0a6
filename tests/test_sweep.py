"""Sweeps: a chain with one key at several values, through the real command line."""

import json
import os
import re
import signal
import time

import pytest
import yaml
from forked import run_python, start_python
from pipeline_toys import ROOT, STAGES

from llmrecipes.config import InputError
from llmrecipes.pipeline import PipelineArguments, plan_stages
from llmrecipes.sweep import comparison_folder


def swept(tmp_path, sweep, **changes):
    output_dir = str(tmp_path / "chain")
    args = PipelineArguments(stages=STAGES, output_dir=output_dir, sweep=sweep, **changes)
    return plan_stages(args, str(ROOT / "configs/smoke/pipeline.yaml"), force=False)


def test_sweep_makes_what_does_not_depend_on_the_key_once(tmp_path):
    stages = swept(tmp_path, "reward.learning_rate=1e-4,3e-4")
    assert [stage.title for stage in stages] == [
        "tokenizer",
        "pretrain",
        "sft",
        "sample",
        "rank",
        "dpo",
        "reward reward.learning_rate=1e-4",
        "ppo reward.learning_rate=1e-4",
        "evaluate reward.learning_rate=1e-4",
        "reward reward.learning_rate=3e-4",
        "ppo reward.learning_rate=3e-4",
        "evaluate reward.learning_rate=3e-4",
    ]
    home = tmp_path / "chain"
    by_title = {stage.title: stage for stage in stages}
    reward, ppo, evaluate = (by_title[f"{name} reward.learning_rate=3e-4"] for name in ("reward", "ppo", "evaluate"))
    assert reward.values["learning_rate"] == 3e-4 and reward.output_dir == home / "reward.learning_rate=3e-4" / "reward"
    assert ppo.values["reward_model_name_or_path"] == str(reward.output_dir)
    assert ppo.values["model_name_or_path"] == str(home / "sft") and "learning_rate" not in ppo.values
    assert evaluate.values["models"]["ppo"] == str(ppo.output_dir)
    assert evaluate.values["models"]["dpo"] == str(home / "dpo")


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("learning_rate=1e-4,3e-4", "say which, e.g. ppo.learning_rate="),
        ("dpo.betta=1,2", "has no key `betta`, did you mean `beta`"),
        ("dop.beta=1,2", "dop is not a stage of the chain"),
        ("dpo.beta=1", "two values or more"),
        ("dpo.beta=0.1,high", "beta"),
        ("dpo.beta=0.1,,0.2", "two values or more"),
        ("ppo.kl_coef=-1,0.1", "`kl_coef` is -1; it must be at least 0"),
        ("dpo.lora_r=8,16", "lora_r: has no effect without `use_peft: true`"),
        ("ppo.total_episodes=8,16", "total_episodes: and `max_steps: 2` both say how long"),
        ("dpo.lora_target_modules=[q_proj,v_proj]", "two values or more"),
        ("dpo.learning_rate=1e-4,0.0001", "1e-4 and 0.0001 are the same value"),
        ("dpo.beta=1,1.0", "1 and 1.0 are the same value"),
        ("dpo.model_name_or_path=a/b,a-b", "a/b and a-b would share the folder dpo.model_name_or_path=a-b"),
        ("dpo.output_dir=a,b", "`output_dir` cannot be swept, each value has a folder"),
        ("dpo.save_steps=1,2", "`save_steps` cannot be swept, as it changes nothing in what a stage makes"),
        ("dpo.license=mit,apache-2.0", "`license` cannot be swept"),
        ("pretrain.watch_items=4,8", "`watch_items` cannot be swept"),
        ("sft.packing_strategy=bfd,wrapped", "packing_strategy: has no effect without `packing`"),
        ("dpo.eval_steps=1,2", "eval_steps: has no effect without `eval_strategy`"),
        ("beta", "is not KEY=VALUE,VALUE"),
        (".beta=1,2", "is not KEY=VALUE,VALUE"),
        ("", "is not KEY=VALUE,VALUE"),
    ],
)
def test_sweep_that_cannot_be_is_one_line(tmp_path, sweep, message):
    with pytest.raises(InputError, match=message):
        swept(tmp_path, sweep)


def test_an_input_named_by_its_full_path_is_not_missed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, values in {"sft": {}, "dpo": {"model_name_or_path": f"{tmp_path}/o/sft"}}.items():
        text = yaml.safe_dump(values | {"output_dir": f"o/{name}", "datasets": ["rows"]})
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "pipeline.yaml").write_text("output_dir: o")
    args = PipelineArguments(stages=["sft", "dpo"], output_dir="o", sweep="sft.learning_rate=1e-4,3e-4")
    with pytest.raises(InputError, match=f"dpo.yaml: {tmp_path}/o/sft is below o/sft; name it so, for a sweep moves it"):
        plan_stages(args, "pipeline.yaml", force=False)


def test_a_sweep_of_stages_that_are_not_to_run_is_one_line(tmp_path):
    for changes in ({"only": ["sft"]}, {"to_stage": "reward"}):
        with pytest.raises(InputError, match="sweep: changes dpo, evaluate, of which --from, --to and --only leave none"):
            swept(tmp_path, "dpo.beta=0.1,0.5", **changes)
    assert swept(tmp_path, "dpo.beta=0.1,0.5", from_stage="evaluate")[-1].selected


def test_spaces_between_values_make_no_other_folder(tmp_path):
    plain, spaced = (swept(tmp_path, f"dpo.beta={values}") for values in ("0.1,0.5", "0.1, 0.5"))
    assert [stage.output_dir for stage in plain] == [stage.output_dir for stage in spaced]


def test_sweeps_of_one_key_of_two_stages_have_folders_of_their_own(tmp_path):
    folders = [
        {s.output_dir for s in swept(tmp_path, f"{name}.learning_rate=1,2") if s.variant} for name in ("reward", "ppo")
    ]
    assert folders[0] and folders[1] and not folders[0] & folders[1]
    sizes = {s.variant for s in swept(tmp_path, "dpo.per_device_train_batch_size=1,2") if s.variant}
    assert len(sizes) == 2, "another batch is another run"


def test_a_value_too_long_for_a_folders_name_has_a_short_one(tmp_path):
    long = "[{path: " + "x" * 300 + "}]"
    folders = {stage.variant for stage in swept(tmp_path, f"dpo.datasets={long},{long.replace('x', 'y')}") if stage.variant}
    assert len(folders) == 2 and all(len(name) < 100 and name.startswith("dpo.datasets=") for name in folders)


def test_each_sweep_has_a_comparison_of_its_own(tmp_path):
    longer = ",".join("[{" + f"path: {letter * 200}" + "}]" for letter in "ab")
    given = ["dpo.beta=1,2", "dpo.beta=1,3", "ppo.kl_coef=1,2", "evaluate.tasks=[a,b],[a]", f"dpo.datasets={longer}"]
    folders = [comparison_folder(swept(tmp_path, sweep), str(tmp_path)) for sweep in given]
    assert len(set(folders)) == len(given) and all(len(folder.name) < 256 for folder in folders)
    assert folders[3].name == "tasks=[a,b],[a]"


@pytest.mark.parametrize(
    ("sweep", "values"),
    [
        ("evaluate.tasks=[a,b],[a]", [["a", "b"], ["a"]]),
        ("pretrain.model_config={a: {b: 1}, c: [1, [2]]},{a: {}}", [{"a": {"b": 1}, "c": [1, [2]]}, {"a": {}}]),
        ("sft.chat_template_path='a, b',it's", ["a, b", "it's"]),
        ('evaluate.tasks=["[a, b"],[c\'s, d]', [["[a, b"], ["c's", "d"]]),
    ],
)
def test_commas_inside_brackets_and_quotes_are_the_values_own(tmp_path, sweep, values):
    name, _, key = sweep.partition("=")[0].partition(".")
    assert [stage.values[key] for stage in swept(tmp_path, sweep) if stage.variant and stage.name == name] == values


def test_a_key_of_a_stage_that_runs_in_rounds_is_swept_in_all_of_them(tmp_path):
    for sweep in ("reward.learning_rate=1e-4,3e-4", "center_rewards_coefficient=0.1,0.2"):
        stages = [s for s in swept(tmp_path, sweep, rounds=2) if s.variant]
        key, _, values = sweep.partition(".")[2].partition("=") if sweep[0] == "r" else sweep.partition("=")
        found = [(s.name, s.values[key]) for s in stages if s.name.startswith("reward")]
        assert found == [(name, float(v)) for v in values.split(",") for name in ("reward", "reward-round2")]
    later = [s for s in swept(tmp_path, "reward-round2.learning_rate=1e-4,3e-4", rounds=2) if s.name == "reward"]
    assert [(s.variant, s.values.get("learning_rate")) for s in later] == [("", None)]


def test_seeds_are_not_swept_where_one_is_given_for_all(tmp_path):
    assert swept(tmp_path, "dpo.seed=1,2")[-2].given["seed"] == 2
    with pytest.raises(InputError, match="`seed` cannot be swept, --seed sets it"):
        swept(tmp_path, "dpo.seed=1,2", seed=3)


def test_key_of_one_stage_needs_no_name(tmp_path):
    assert swept(tmp_path, "vocab_size=300,400")[0].title == "tokenizer vocab_size=300"
    # The folder is that of the whole chain's sweep, whose other stages have the key too.
    assert swept(tmp_path, "learning_rate=1e-4,3e-4", only=["dpo"])[-2].title == "dpo dpo.learning_rate=3e-4"


def interrupted(argv, checkpoint, log, number):
    """Starts the chain and ends it with the signal `number` once the checkpoint is written; its exit code."""
    chain = start_python("recipes/pipeline.py", *argv, output=log)
    deadline = time.time() + 240
    while not (checkpoint / "checksums.json").exists():
        assert chain.poll() is None and time.time() < deadline, log.read_text()[-3000:]
        time.sleep(0.01)
    os.killpg(chain.pid, number) if number == signal.SIGKILL else os.kill(chain.pid, number)
    return chain.wait(60)


def test_a_sweep_that_is_ended_twice_continues_and_makes_nothing_again(tmp_path):
    home, configs = tmp_path / "chain", tmp_path / "configs"
    configs.mkdir()
    steps, unwatched = 14, [f"watch_{name}" for name in ("steps", "prompts", "max_new_tokens", "tasks", "items", "share")]
    for name in ("tokenizer", "pretrain"):
        values = yaml.safe_load((ROOT / f"configs/smoke/{name}.yaml").read_text())
        values = {key: value for key, value in values.items() if key not in unwatched}
        values |= {"max_steps": steps, "save_total_limit": 1} if name == "pretrain" else {}
        (configs / f"{name}.yaml").write_text(yaml.safe_dump(values))
    (configs / "pipeline.yaml").write_text("stages: [tokenizer, pretrain]\noutput_dir: outputs/smoke\n")
    argv = ["--config", configs / "pipeline.yaml", "--output_dir", home, "--sweep", "pretrain.learning_rate=1e-3,3e-3"]
    one, two = (home / f"learning_rate={value}" / "pretrain" for value in ("1e-3", "3e-3"))
    stages = lambda printed: re.findall(r"^##### ([\w =.-]+?)(?: \(|$)", printed, re.M)
    manifest = lambda folder: json.loads((folder / "manifest.json").read_text())
    stand = lambda *folders: {f: f.stat().st_mtime_ns for folder in folders for f in folder.rglob("*") if f.is_file()}

    assert interrupted(argv, one / "checkpoint-2", tmp_path / "first.txt", signal.SIGTERM) == 143
    assert "the same command continues from here" in (tmp_path / "first.txt").read_text()
    assert manifest(one)["status"] == "interrupted" and not two.exists()
    shared = stand(home / "tokenizer")

    interrupted(argv, two / "checkpoint-2", tmp_path / "second.txt", signal.SIGKILL)
    assert stages((tmp_path / "second.txt").read_text()) == [f"pretrain learning_rate={value}" for value in ("1e-3", "3e-3")]
    assert manifest(one)["status"] == "finished" and manifest(two)["status"] != "finished"
    kept = shared | stand(one)

    again = run_python("recipes/pipeline.py", *argv, children=True)
    assert again.returncode == 0, again.stderr
    assert stages(again.stdout) == ["pretrain learning_rate=3e-3"], "all else was finished"
    assert stand(home / "tokenizer", one) == kept
    for folder in (one, two):
        assert manifest(folder)["status"] == "finished"
        logged = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        assert [row["step"] for row in logged if "loss" in row] == list(range(1, steps + 1)), "each step once"
    assert list(home.glob("learning_rate=1e-3,3e-3/compare-pretrain/*.html")), "the comparison at its end"
