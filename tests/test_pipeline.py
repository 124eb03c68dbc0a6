"""The whole chain from configs/smoke through the real command line: runs, skips, continues, reports, stops on failure."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked import run_python

import llmrecipes.pipeline as pipeline_module
from llmrecipes.pipeline import code_files

ROOT = Path(__file__).parent.parent
STAGES = ["tokenizer", "pretrain", "sft", "sample", "rank", "reward", "dpo", "ppo", "evaluate"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def pipeline(output_dir, *argv, config="configs/smoke/pipeline.yaml"):
    return run_python("recipes/pipeline.py", "--config", config, "--output_dir", output_dir, *argv, children=True)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("outputs") / "smoke"
    result = pipeline(output_dir)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return output_dir, result.stdout


def reasons(output_dir, *argv):
    lines = pipeline(output_dir, "--dry_run", *argv).stdout.splitlines()
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}


def test_every_stage_leaves_a_finished_manifest(chain):
    for stage in STAGES:
        manifest = json.loads((chain[0] / stage / "manifest.json").read_text())
        assert manifest["status"] == "finished" and manifest["output_fingerprint"], stage


def test_what_the_models_said_while_they_learned_is_kept(chain):
    for stage in ("pretrain", "sft", "dpo", "ppo"):
        rows = [json.loads(line) for line in (chain[0] / stage / "watch.jsonl").read_text().splitlines()]
        assert rows and all(list(row["answers"]) == ["The cat"] for row in rows), stage
    for report in ("report.html", "report.md"):
        text = (chain[0] / report).read_text()
        assert "tinytown_grammar" in text.split("while it learned")[-1].split("Abilities by stage")[0], report


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
    assert result.returncode == 2 and re.fullmatch(r"error: command line: sfft is no stage .*\n", result.stderr)


@pytest.mark.slow
def test_killed_chain_continues_with_the_same_command(tmp_path):
    command = [sys.executable, "recipes/pipeline.py", "--config", "configs/smoke/pipeline.yaml", "--to", "pretrain"]
    command += ["--output_dir", str(tmp_path / "smoke")]
    first = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, start_new_session=True)
    checkpoint = tmp_path / "smoke" / "pretrain" / "checkpoint-1" / "trainer_state.json"
    deadline = time.time() + 120
    while not checkpoint.exists() and first.poll() is None and time.time() < deadline:
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    again = pipeline(tmp_path / "smoke", "--to", "pretrain")
    assert again.returncode == 0, again.stderr
    assert "tokenizer: run" not in again.stdout
    assert json.loads((tmp_path / "smoke" / "pretrain" / "manifest.json").read_text())["status"] == "finished"


def test_code_of_a_stage_is_what_it_imports():
    names = {file.name for file in code_files(ROOT / "recipes" / "tokenizer.py")}
    assert {"tokenizer.py", "config.py", "models.py", "run.py"} <= names
    assert "ppo" not in {file.parent.name for file in code_files(ROOT / "recipes" / "tokenizer.py")}


def test_a_rule_that_a_yaml_names_belongs_to_the_code_of_its_stage(monkeypatch, tmp_path):
    looked_at = []
    monkeypatch.setattr(pipeline_module, "code_files", lambda script: looked_at.append(script) or set())
    recipe, values = ROOT / "recipes" / "rank.py", {"rule": "llmrecipes.data.tinytown.gold:gold_score"}
    pipeline_module._key(pipeline_module.Stage("rank", recipe, tmp_path, tmp_path, [], values))
    assert looked_at == [recipe, ROOT / "llmrecipes" / "data" / "tinytown" / "gold.py"]


def test_further_rounds_start_from_the_newest_policy_and_keep_all_rankings(tmp_path):
    """Only planned: what each round reads and writes."""
    import yaml

    result = pipeline(tmp_path / "chain", "--rounds", "3", "--dry_run")
    names = [line.split()[0] for line in result.stdout.splitlines()]
    rounds = [f"{stage}-round{r}" for r in (2, 3) for stage in ("sample", "rank", "reward", "ppo")]
    assert names == [*STAGES[:-1], *rounds, "evaluate"], result.stderr
    home = str(tmp_path / "chain")
    read = {
        name: yaml.safe_load((tmp_path / "chain" / "configs" / f"{name}.yaml").read_text()) for name in [*rounds, "evaluate"]
    }
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
    result = pipeline("outputs/none", "--rounds", "0", "--dry_run")
    assert result.returncode == 2 and "rounds: 0" in result.stderr
