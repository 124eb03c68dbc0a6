"""Cards hold what the Hub reads, with lineage and results, and nothing of the machine they were made on."""

import json

import pytest
from huggingface_hub import ModelCard

from llmrecipes.cards import repo_name, scrub, write_model_card

SECRET = "hf_" + "a1B2" * 8


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "quickstart" / "dpo"
    folder.mkdir(parents=True)
    (tmp_path / "quickstart" / "sft").mkdir()
    sources = [{"path": str(tmp_path / "quickstart" / "rank"), "name": None, "split": "train", "weight": None},
               {"path": "org/data", "name": "chat", "split": "train", "weight": 2.0}]  # fmt: skip
    (tmp_path / "quickstart" / "rank").mkdir()
    config = {"output_dir": str(folder), "model_name_or_path": str(tmp_path / "quickstart" / "sft"), "datasets": sources,
              "license": "mit"}  # fmt: skip
    manifest = {"stage": "dpo", "status": "finished", "made": "chat model", "wall_seconds": 3.0, "fingerprint": "f00d",
                "command": f"python {tmp_path}/recipes/dpo.py --hub_token {SECRET}",
                "commit": "abc", "hardware": {"cores": 2},
                "packages": {"torch": "2.13.0"}, "config": config | {"learning_rate": 1e-4}, "output_fingerprint": "beef",
                "metrics": {"eval_loss": 0.5, "eval_runtime": 2.0}}  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (folder / "model.safetensors").write_bytes(b"x")
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def test_metadata_is_read_back_by_the_hubs_own_classes(run):
    data = ModelCard.load(write_model_card(run)).data
    assert data.base_model == "quickstart-sft" and data.datasets == ["org/data", "quickstart-rank"]
    assert data.license == "mit" and data.tags == ["llmrecipes", "dpo"] and data.pipeline_tag == "text-generation"
    assert [(r.metric_type, r.metric_value) for r in data.eval_results] == [("eval_loss", 0.5)]


def test_an_evaluation_puts_its_intervals_on_the_card_and_a_new_run_drops_them(run):
    scores = {"correct": {"value": 0.75, "low": 0.6, "high": 0.9, "n": 40}}
    card = ModelCard.load(write_model_card(run, scores))
    assert "| correct | 0.75 | 0.6 to 0.9 | 40 |" in card.text and card.data.eval_results[0].metric_value == 0.75
    assert "0.6 to 0.9" in write_model_card(run).read_text(), "kept for later cards"
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"output_fingerprint": "other"}))
    assert "0.6 to 0.9" not in write_model_card(run).read_text()


def test_no_machine_path_and_no_token_is_on_a_card(run, tmp_path):
    text = write_model_card(run).read_text()
    assert str(tmp_path) not in text and tmp_path.parts[1] + "/" not in text and SECRET not in text
    assert "python recipes/dpo.py" in text and "[removed]" in text
    assert scrub("see https://arxiv.org/abs/1234 and /opt/a/b/c.py") == "see https://arxiv.org/abs/1234 and b/c.py"


def test_card_says_how_to_load_what_lies_there(run):
    assert 'AutoModelForCausalLM.from_pretrained("quickstart-dpo")' in write_model_card(run).read_text()
    (run / "config.json").write_text(json.dumps({"architectures": ["LlamaForSequenceClassification"]}))
    card = ModelCard.load(write_model_card(run))
    assert "AutoModelForSequenceClassification" in card.text and card.data.pipeline_tag == "text-classification"


def test_unfinished_runs_and_folders_without_a_model_get_no_card(run, tmp_path):
    assert write_model_card("org/model") is None and write_model_card(tmp_path) is None
    (run / "manifest.json").write_text(json.dumps({"status": "running"}))
    assert write_model_card(run) is None and not (run / "README.md").exists()


def test_names_of_repositories():
    assert repo_name("org/model") == "org/model" and repo_name("outputs/quickstart/sft") == "quickstart-sft"
