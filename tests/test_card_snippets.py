"""The lines under "How to load" of each card are run as they stand, from where the run was started."""

import json
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from ppo_toys import tokenizer as toy_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM
from transformers import LlamaForSequenceClassification as LlamaClassifier

from llmrecipes.cards.dataset import write_card
from llmrecipes.cards.loading import QUESTION
from llmrecipes.cards.model import write_model_card
from llmrecipes.config import ModelArguments
from llmrecipes.models import load_policy
from llmrecipes.reward_models.scoring import RewardScorer

TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Folder of a chain, named from where its runs were started."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = TEMPLATE
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        num_labels=1,
        **sizes,
    )
    chain = tmp_path / "outputs" / "toy"
    LlamaForCausalLM(config).save_pretrained(chain / "pretrain")
    LlamaForCausalLM(config).save_pretrained(chain / "sft")
    LlamaClassifier(config).save_pretrained(chain / "reward")
    for name, kind, base in (("lora", "CAUSAL_LM", "sft"), ("reward_lora", "SEQ_CLS", "reward")):
        auto = AutoModelForCausalLM if kind == "CAUSAL_LM" else AutoModelForSequenceClassification
        adapter = LoraConfig(r=2, target_modules=["q_proj"], task_type=kind)
        get_peft_model(auto.from_pretrained(f"outputs/toy/{base}"), adapter).save_pretrained(chain / name)
    for name in ("tokenizer", "pretrain", "sft", "reward", "lora", "reward_lora"):
        tokenizer.save_pretrained(chain / name)
    return chain


def finish(folder, stage, **config):
    """The manifest of a finished run."""
    config = {"output_dir": f"outputs/toy/{folder.name}"} | config
    manifest = {
        "stage": stage,
        "status": "finished",
        "made": "thing",
        "wall_seconds": 1.0,
        "fingerprint": "f",
        "metrics": {},
        "output_fingerprint": "o",
        "command": "python",
        "config": config,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return manifest


def run_lines(card):
    lines = card.split("```python\n")[1].split("```")[0]
    found = {}
    exec(lines, found)
    return lines, found


@pytest.mark.parametrize(
    ("stage", "evaluated"),
    [*((stage, False) for stage in ("tokenizer", "pretrain", "sft", "reward", "lora", "reward_lora")), ("sft", True)],
)
def test_lines_of_a_models_card_run(models, capsys, stage, evaluated):
    base = None if stage in ("tokenizer", "pretrain") else "outputs/toy/pretrain"
    finish(models / stage, stage, model_name_or_path=base)
    scores = {"correct": {"value": 0.5, "low": 0.1, "high": 0.9, "n": 4}} if evaluated else None
    lines, found = run_lines(write_model_card(models / stage, scores, models / "evaluate").read_text())
    assert f'from_pretrained("outputs/toy/{stage}"' in lines
    assert capsys.readouterr().out.strip() or stage not in ("tokenizer", "reward", "reward_lora")
    if stage != "tokenizer":
        assert (
            "Classification" in type(getattr(found["model"], "base_model", found["model"])).__name__
            or "SequenceClassification" in lines
        ) == stage.startswith("reward")
        assert ("apply_chat_template" in lines) == (stage != "pretrain")


@pytest.mark.parametrize("ends_in", ["{{ eos_token }}", "", None], ids=["EOS", "no end", "text"])
def test_lines_of_a_reward_models_card_read_it_as_every_stage_does(models, capsys, ends_in):
    """pad = eos: transformers' own head would take the final EOS for padding."""
    folder = models / "reward"
    tokenizer = toy_tokenizer(pad_is_eos=True)
    tokenizer.chat_template = None if ends_in is None else TEMPLATE + ends_in
    tokenizer.save_pretrained(folder)
    if ends_in is None:
        (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": tokenizer.eos_token_id}))
    finish(folder, "reward", model_name_or_path="outputs/toy/pretrain")
    run_lines(write_model_card(folder).read_text())
    prompt = f"{QUESTION} " if ends_in is None else [{"role": "user", "content": QUESTION}]
    expected = RewardScorer(ModelArguments(), str(folder)).score([{"prompt": prompt}], ["Blue."])
    assert float(capsys.readouterr().out) == pytest.approx(expected[0], abs=1e-5)


def test_lines_of_a_second_adapters_card_load_it_after_the_first_one_added_tokens(models):
    base = LlamaForCausalLM.from_pretrained("outputs/toy/sft")
    base.resize_token_embeddings(size := base.config.vocab_size + 3, mean_resizing=False)
    first = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(base, first).save_pretrained(models / "lora", save_embedding_layers=True)
    merged = load_policy(ModelArguments(model_name_or_path="outputs/toy/lora"))
    second = LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(merged, second).save_pretrained(models / "dpo")
    toy_tokenizer().save_pretrained(models / "dpo")
    finish(models / "dpo", "dpo", model_name_or_path="outputs/toy/lora")
    _, found = run_lines(write_model_card(models / "dpo").read_text())
    ids = torch.tensor([[5, 6, size - 1]])
    loaded = load_policy(ModelArguments(model_name_or_path="outputs/toy/dpo")).eval()
    assert torch.allclose(found["model"].eval()(ids).logits, loaded(ids).logits, atol=1e-5)


def test_lines_of_a_data_sets_card_run(models, capsys):
    pairs = {"default": {"train": "train.jsonl", "test": "test.jsonl"}, "gold": {"test": "gold.jsonl"}}
    stages = {"sample": {"default": {"train": "samples.jsonl"}}, "evaluate": {"default": {"test": "a.jsonl"}}, "rank": pairs}
    for stage, configs in stages.items():
        folder = models / stage
        manifest = finish(folder, stage)
        for files in configs.values():
            for file in files.values():
                (folder / file).write_text('{"prompt": "What?"}\n')
        run = SimpleNamespace(stage=stage, card=SimpleNamespace(license=None, published=None), manifest=manifest)
        write_card(folder, "Rows", configs, "Text.", run)
        _, found = run_lines((folder / "README.md").read_text())
        assert found["rows"][0] == {"prompt": "What?"} and "What?" in capsys.readouterr().out


def test_card_of_ppo_names_its_reward_model_and_its_episodes_and_shows_an_answer(models):
    folder = models / "sft"
    finish(
        folder,
        "ppo",
        model_name_or_path="outputs/toy/pretrain",
        reward_model_name_or_path="outputs/toy/reward",
        reward_functions=["mine:short"],
        total_episodes=7680,
    )
    (folder / "completions").mkdir()
    row = {"prompt": [{"role": "user", "content": "What is up?"}], "completion": "The sky.\n```\n# No heading", "score": 1.0}
    (folder / "completions" / "eval-000010.jsonl").write_text(json.dumps(row) + "\n")
    text = write_model_card(folder).read_text()
    assert "Reward model: `toy-reward`." in text and "`mine:short`" in text and "| total_episodes | 7680 |" in text
    assert "    > What is up?\n    The sky.\n    ```\n    # No heading\n" in text
