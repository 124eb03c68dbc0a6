"""The whole chain from configs/smoke through the real command line: runs, skips, continues, reports, stops on failure."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import PurePath

import pytest
from forked import run_python, start_python
from pipeline_toys import ROOT, STAGES, pipeline

import llmrecipes.pipeline as pipeline_module
from llmrecipes.code_files import code_digest
from llmrecipes.config import InputError
from llmrecipes.durable import write_json
from llmrecipes.manifest import global_batch, inputs_of, move_paths, output_files, run_fingerprint
from llmrecipes.pipeline import PipelineArguments, plan_stages, trains
from llmrecipes.rounds import add_rounds


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("outputs") / "smoke"
    result = pipeline(output_dir)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return output_dir, result.stdout


def reasons(output_dir, *argv):
    lines = pipeline(output_dir, "--dry_run", *argv).stdout.splitlines()
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}


def test_a_dry_run_stands_in_columns_however_long_a_stages_name_is(tmp_path):
    lines = pipeline(tmp_path, "--dry_run", config="configs/quickstart/pipeline-methods.yaml").stdout.splitlines()
    assert max(len(line.split()[0]) for line in lines) == 16
    assert {line.index("run: not run yet") for line in lines} == {18}


def test_every_stage_leaves_a_finished_manifest(chain):
    for stage in STAGES:
        manifest = json.loads((chain[0] / stage / "manifest.json").read_text())
        assert manifest["status"] == "finished" and manifest["output_fingerprint"], stage


def test_what_the_models_said_while_they_learned_is_kept(chain):
    for stage in ("pretrain", "sft", "dpo", "ppo"):
        rows = [json.loads(line) for line in (chain[0] / stage / "watch.jsonl").read_bytes().splitlines()]
        assert rows and all(list(row["answers"]) == ["The cat"] for row in rows), stage
    for report in ("report.html", "report.md"):
        text = (chain[0] / report).read_text()
        assert "tinytown_grammar" in text.split("during training")[-1].split("How each stage learned")[0], report


def test_cards_of_all_stages_are_read_by_the_hubs_own_classes(chain):
    from huggingface_hub import DatasetCard, ModelCard

    for stage in STAGES:
        kind = DatasetCard if stage in ("sample", "rank", "evaluate") else ModelCard
        card = kind.load(chain[0] / stage / "README.md", ignore_metadata_errors=False)
        assert card.data.tags == ["llmrecipes", stage] and "## Reproduce" in card.text, stage


def test_models_load_by_from_pretrained_and_data_by_load_dataset(chain, tmp_path):
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    for stage in ("pretrain", "sft", "dpo", "ppo"):
        model = AutoModelForCausalLM.from_pretrained(chain[0] / stage)
        tokenizer = AutoTokenizer.from_pretrained(chain[0] / stage)
        assert len(tokenizer) <= model.config.vocab_size
        assert not list((chain[0] / stage).glob("*.bin"))
    assert AutoModelForSequenceClassification.from_pretrained(chain[0] / "reward").config.num_labels == 1
    assert len(load_dataset(str(chain[0] / "sample"), split="train", cache_dir=tmp_path)) == 24
    assert {"prompt", "chosen", "rejected"} <= set(
        load_dataset(str(chain[0] / "rank"), split="train", cache_dir=tmp_path).column_names
    )


def test_report_has_a_row_for_each_stage(chain):
    for text in (chain[1], (chain[0] / "report.md").read_text()):
        rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
        assert rows[2 : 2 + len(STAGES)] == STAGES


def test_each_evaluation_set_has_figures_of_its_own(chain):
    metrics = json.loads((chain[0] / "reward" / "manifest.json").read_text())["metrics"]
    assert {"eval_test_accuracy", "eval_train_accuracy"} <= set(metrics) and "eval_accuracy" not in metrics


def test_chain_ends_with_the_path_of_its_page(chain):
    page = chain[0] / "report.html"
    assert chain[1].rstrip().endswith(str(page))
    text = page.read_text()
    assert all(f"<td>{stage}</td>" in text for stage in STAGES) and "<svg" in text


def test_training_history_stays_in_the_run_folder_without_checkpoints(chain):
    from llmrecipes.report import read_history

    for stage in ("pretrain", "sft", "reward", "dpo", "ppo"):
        assert (chain[0] / stage / "trainer_state.json").exists()
        assert any("loss" in entry for entry in read_history(chain[0] / stage)), stage


def test_unchanged_chain_is_skipped(chain):
    assert set(reasons(chain[0]).values()) == {"skip: finished, nothing changed"}
    assert set(reasons(chain[0], "--only", "sft").values()) == {
        "skip: finished, nothing changed",
        "skip: not selected",
    }


def test_what_stands_behind_a_rerun_stage_runs_too(chain):
    got = reasons(chain[0], "--seed", "7")
    assert all(reason.startswith("run") for reason in got.values())
    got = reasons(chain[0], "--force", "--from", "reward", "--to", "ppo")
    assert [stage for stage in STAGES if got[stage].startswith("run")] == ["reward", "dpo", "ppo"]


@pytest.mark.long  # a launch more
def test_a_chain_takes_several_processes_for_stages_that_train_and_skips_them_afterwards(tmp_path):
    argv = ["--to", "pretrain", "--accelerate_config", "configs/accelerate/cpu.yaml"]
    done = pipeline(tmp_path / "o", *argv)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((tmp_path / "o" / name / "manifest.json").read_text()) for name in ("tokenizer", "pretrain")]
    assert [manifest["launch"]["processes"] for manifest in found] == [1, 2] and found[1]["batch"] == 8
    assert reasons(tmp_path / "o", *argv)["pretrain"] == "skip: finished, nothing changed"
    assert reasons(tmp_path / "o", "--to", "pretrain")["pretrain"].startswith("run: 8 rows in an optimizer step, now 4")


def test_unhealthy_reward_model_stops_the_chain_before_ppo_and_force_overrides(chain):
    path = chain[0] / "reward" / "health.json"
    found = json.loads(path.read_text())
    assert found["verdict"] == "healthy" and found["num_pairs"] > 0
    path.write_text(json.dumps({"verdict": "unhealthy", "reasons": ["it guesses"]}))
    made = (chain[0] / "ppo" / "manifest.json").stat().st_mtime_ns
    result = pipeline(chain[0], "--only", "ppo", "--seed", "9")
    assert result.returncode == 3 and result.stderr.count("\n") == 2, result.stderr
    assert "ppo not run" in result.stderr and "reward is unhealthy: it guesses, read" in result.stderr
    assert (chain[0] / "ppo" / "manifest.json").stat().st_mtime_ns == made
    result = pipeline(chain[0], "--only", "ppo", "--force")
    assert result.returncode == 0, result.stderr
    assert (chain[0] / "ppo" / "manifest.json").stat().st_mtime_ns > made
    path.write_text(json.dumps(found))


def test_failing_stage_stops_the_chain_with_its_reason(tmp_path):
    result = pipeline(tmp_path / "smoke", "--from", "sft")
    assert result.returncode == 2
    assert "does not exist" in result.stderr and "pipeline: sft failed" in result.stderr
    assert not (tmp_path / "smoke" / "sample").exists()


def test_unknown_stage_is_one_line(tmp_path):
    result = pipeline(tmp_path / "smoke", "--only", "sfft")
    assert result.returncode == 2 and re.fullmatch(r"error: command line: sfft is not a stage .*\n", result.stderr)


def test_killed_chain_continues_with_the_same_command(tmp_path):
    argv = ["--config", "configs/smoke/pipeline.yaml", "--to", "pretrain", "--output_dir", tmp_path / "smoke"]
    first = start_python("recipes/pipeline.py", *argv, output=tmp_path / "log.txt")
    checkpoint = tmp_path / "smoke" / "pretrain" / "checkpoint-1" / "checksums.json"
    deadline = time.time() + 120
    while not checkpoint.exists() and first.poll() is None and time.time() < deadline:
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    again = pipeline(tmp_path / "smoke", "--to", "pretrain")
    assert again.returncode == 0, again.stderr
    assert "##### tokenizer" not in again.stdout
    assert json.loads((tmp_path / "smoke" / "pretrain" / "manifest.json").read_text())["status"] == "finished"


def planned(output_dir, **values):
    """Stages by name, planned in this process; nothing is written."""
    arguments = PipelineArguments(stages=list(STAGES), output_dir=str(output_dir), **values)
    stages = plan_stages(arguments, "configs/smoke/pipeline.yaml", force=False)
    assert not output_dir.exists() or "configs" not in os.listdir(output_dir)
    return {stage.name: stage for stage in stages}


def test_a_selection_of_no_stage_is_an_error(tmp_path):
    for values in ({"from_stage": "ppo", "to_stage": "sft"}, {"only": ["sft"], "from_stage": "dpo"}):
        with pytest.raises(InputError, match="--from, --to and --only leave none of tokenizer, pretrain"):
            planned(tmp_path / "o", **values)


@pytest.mark.parametrize(
    ("stages", "part"),
    [
        (["tokenizer", "sft", "pretrain"], "sft reads .*/pretrain, which pretrain writes after it; put pretrain before sft"),
        (["tokenizer", "sft", "tokenizer"], "`stages` names tokenizer twice"),
        (["sft", "pipeline"], "pipeline is a chain, which cannot be a stage"),
        (["sft", "sft-more"], "sft-more.yaml: output_dir: .*/sft/more is not apart from sft's, .*/sft;"),
    ],
)
def test_stages_in_a_wrong_order_or_folder_are_told_before_any_runs(tmp_path, stages, part):
    shutil.copytree(ROOT / "configs" / "smoke", tmp_path / "c")
    text = (tmp_path / "c" / "sft.yaml").read_text()
    (tmp_path / "c" / "sft-more.yaml").write_text(text.replace("outputs/smoke/sft", "outputs/smoke/sft/more"))
    arguments = PipelineArguments(stages=stages, output_dir=str(tmp_path / "o"))
    with pytest.raises(InputError, match=part):
        plan_stages(arguments, str(tmp_path / "c" / "pipeline.yaml"), force=False)


def test_a_stage_says_itself_whether_it_trains():
    found = {path.stem: trains(path) for path in (ROOT / "recipes").glob("*.py")}
    assert all(found[name] for name in ("pretrain", "sft", "reward", "dpo", "ppo"))
    assert not any(found[name] for name in ("tokenizer", "sample", "rank", "evaluate", "chat", "push", "pipeline"))


def test_chain_moves_by_whole_folders(tmp_path):
    home = PurePath("outputs/quickstart")
    values = {"a": "outputs/quickstart/sft", "b": ["outputs/quickstart-42/sft", {"c": "outputs/quickstart"}], "d": 1}
    moved = move_paths(values, {home: PurePath("outputs/mine")})
    assert moved == {"a": "outputs/mine/sft", "b": ["outputs/quickstart-42/sft", {"c": "outputs/mine"}], "d": 1}


def pretend_finished(stage, **changes):
    """A manifest as the stage's recipe leaves it, and something trained beside it."""
    stage.output_dir.mkdir(parents=True)
    (stage.output_dir / "model.safetensors").write_text("trained")
    given = stage.given | changes
    batch = global_batch(given, 1) if trains(stage.recipe) else None
    manifest = {"stage": stage.recipe.stem, "status": "finished", "given": given, "inputs": inputs_of(given), "batch": batch}
    manifest |= {"fingerprint": run_fingerprint(stage.recipe.stem, given, batch), "files": output_files(stage.output_dir)}
    manifest["code"] = changes.get("code", code_digest(stage.recipe, given))
    write_json(stage.output_dir / "manifest.json", manifest)


def test_a_stage_is_identified_without_its_secrets(tmp_path):
    """As by its recipe, whose manifest holds none."""
    stage = planned(tmp_path / "o", only=["pretrain"])["pretrain"]
    stage.values["watch_prompts"] = ["My token is hf_" + "a" * 34]
    assert stage.given["watch_prompts"] == ["My token is [removed]"]


def test_changed_code_is_a_note_and_changed_config_never_a_deletion(tmp_path, monkeypatch):
    stage = planned(tmp_path / "o", only=["pretrain"])["pretrain"]
    pretend_finished(stage)
    assert planned(tmp_path / "o", only=["pretrain"])["pretrain"].reason == "skip: finished, nothing changed"
    monkeypatch.setattr(pipeline_module, "code_digest", lambda *_: "other")
    assert planned(tmp_path / "o", only=["pretrain"])["pretrain"].reason == (
        "skip: finished, nothing changed (code changed since; --force reruns)"
    )
    monkeypatch.undo()
    weights = stage.output_dir / "model.safetensors"
    weights.write_text("changed by hand")
    assert planned(tmp_path / "o", only=["pretrain"])["pretrain"].reason == (
        "skip: finished (model.safetensors changed since; --force reruns)"
    )
    weights.unlink()
    assert planned(tmp_path / "o", only=["pretrain"])["pretrain"].reason == (
        "run: finished, but without model.safetensors; only --force overwrites it"
    )
    weights.write_text("trained")
    changed = planned(tmp_path / "o", seed=7, only=["pretrain"])["pretrain"]
    assert changed.reason == "run: `seed` was not given, is 7, which only --force overwrites"
    commands = []

    class Popen:
        def __init__(self, command, **kwargs):
            commands.append(command)

        def send_signal(self, signum):
            raise AssertionError

        def wait(self):
            return 2

    monkeypatch.setattr(pipeline_module.subprocess, "Popen", Popen)
    for force in (False, True):
        with pytest.raises(SystemExit):
            pipeline_module.run_stages([changed], None, "x", force)
    assert ["--force" in command for command in commands] == [False, True]


def test_altered_weights_and_evaluation_rows_are_changed_inputs(tmp_path):
    stages = planned(tmp_path / "o")
    pretend_finished(stages["sft"])
    pretend_finished(stages["rank"])
    pretend_finished(stages["dpo"])
    assert planned(tmp_path / "o", only=["dpo"])["dpo"].reason.startswith("skip: finished")
    (stages["rank"].output_dir / "test.jsonl").write_text("{}")
    assert "rank has changed, which only --force overwrites" in planned(tmp_path / "o", only=["dpo"])["dpo"].reason
    (stages["rank"].output_dir / "test.jsonl").unlink()
    assert planned(tmp_path / "o", only=["dpo"])["dpo"].reason.startswith("skip: finished")
    (stages["sft"].output_dir / "model.safetensors").write_text("altered")
    assert "sft has changed" in planned(tmp_path / "o", only=["dpo"])["dpo"].reason


def test_further_rounds_start_from_the_newest_policy_and_keep_all_rankings(tmp_path):
    """Only planned: what each round reads and writes."""
    read = {name: stage.values for name, stage in planned(tmp_path / "chain", rounds=3).items()}
    rounds = [f"{stage}-round{r}" for r in (2, 3) for stage in ("sample", "rank", "reward", "ppo")]
    assert list(read) == [*STAGES[:-1], *rounds, "evaluate"]
    home = str(tmp_path / "chain")
    assert read["sample-round2"]["model_name_or_path"] == f"{home}/ppo"
    assert read["sample-round3"]["model_name_or_path"] == f"{home}/ppo-round2"
    assert read["rank-round3"]["datasets"][0]["path"] == f"{home}/sample-round3" and read["rank-round3"]["round"] == 3
    assert [s["path"] for s in read["reward-round3"]["datasets"]] == [
        f"{home}/rank-round3",
        f"{home}/rank",
        f"{home}/rank-round2",
    ]
    assert read["ppo-round3"]["reward_model_name_or_path"] == f"{home}/reward-round3"
    assert read["ppo-round3"]["model_name_or_path"] == f"{home}/ppo-round2"
    assert read["ppo-round3"]["output_dir"] == f"{home}/ppo-round3"
    assert read["evaluate"]["models"]["ppo_round3"] == f"{home}/ppo-round3"


def test_rounds_need_the_stages_of_the_loop():
    with pytest.raises(InputError, match="rounds: 2 .* needs the stages sample, rank, reward, ppo"):
        add_rounds(["sft", "rank"], 2, ["sample", "rank", "reward", "ppo"], "a.yaml")


@pytest.mark.parametrize(
    "recipe_and_words",
    [
        [
            "pipeline",
            "--config",
            "configs/smoke/pipeline.yaml",
            "--dry_run",
            "--sweep",
            "dpo.beta=1,2",
            "--sweep=dpo.beta=3,4",
        ],
        ["pipeline", "--config", "configs/smoke/pipeline.yaml", "--dry_run", "--from", "sft", "--from=dpo"],
        ["plan", "--config", "configs/smoke/sft.yaml", "--gpu", "h100", "--gpu", "a100"],
        ["plan", "--config", "configs/smoke/sft.yaml", "--seed", "1", "--seed", "2"],
        ["compare", "a", "b", "--runs", "c", "d"],
    ],
)
def test_an_option_given_twice_is_refused_and_the_last_does_not_replace_the_first(recipe_and_words):
    done = run_python(f"recipes/{recipe_and_words[0]}.py", *recipe_and_words[1:])
    assert done.returncode == 2 and re.fullmatch(r"error: command line: --\w+ is given twice; .*\n", done.stderr), (
        done.stderr
    )
