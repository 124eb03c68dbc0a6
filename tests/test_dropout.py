"""`disable_dropout` turns off all of it, also what an architecture keeps in numbers instead of Dropout modules; what
is saved keeps the model's own probabilities."""

import json

import ppo_toys as toys
import pytest
import torch
import trl
from datasets import Dataset
from transformers import OPTConfig, OPTForCausalLM, OPTForSequenceClassification

from llmrecipes.dpo import DPOTrainer
from llmrecipes.grpo import GRPOTrainer
from llmrecipes.kto import KTOTrainer
from llmrecipes.reward_models.trainer import RewardTrainer

PAIRS = [{"prompt": f"w{i} ", "chosen": "w10 w11", "rejected": f"w20 w{21 + i}"} for i in range(8)]
LABELLED = [{"prompt": f"w{i} ", "completion": "w10 w11", "label": i % 2 == 0} for i in range(8)]
PROMPTS = [{"prompt": f"w{i} w{i + 1}"} for i in range(8)]
STAGES = {
    "dpo": (DPOTrainer, trl.DPOConfig, PAIRS, {"ref_model": True}),
    "kto": (KTOTrainer, trl.KTOConfig, LABELLED, {"ref_model": True}),
    "grpo": (GRPOTrainer, trl.GRPOConfig, PROMPTS, {"reward_funcs": [toys.even_share]}),
    "reward": (RewardTrainer, trl.RewardConfig, PAIRS, {}),
}


def opt(stage: str):
    """Its dropout is 0.1 by default, kept as a number of each layer."""
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"pad_token_id": toys.PAD, "eos_token_id": toys.EOS, "bos_token_id": 1, "num_labels": 1}
    config = OPTConfig(vocab_size=toys.VOCABULARY, max_position_embeddings=64, attention_dropout=0.3, **sizes, **ids)
    return (OPTForSequenceClassification if stage == "reward" else OPTForCausalLM)(config)


@pytest.mark.parametrize("off", [True, False])
@pytest.mark.parametrize("stage", STAGES)
def test_dropout_is_off_where_the_key_says_so(stage, off, tmp_path, capsys):
    kind, arguments, rows, more = STAGES[stage]
    settings = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 1}
    settings |= {"max_completion_length": 8, "num_generations": 4} if stage == "grpo" else {}
    trainer = kind(
        model=opt(stage),
        args=arguments(disable_dropout=off, **settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=toys.tokenizer(),
        **({"ref_model": opt(stage)} if "ref_model" in more else more),
    )
    model, ids = trainer.model.train(), torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        first, second = model(input_ids=ids).logits, model(input_ids=ids).logits
    assert torch.equal(first, second) == off
    assert (model.config.dropout, model.config.attention_dropout) == ((0.0, 0.0) if off else (0.1, 0.3))
    assert ("keeps the model's own: dropout 0.1, attention_dropout 0.3\n" in capsys.readouterr().out) == off
    trainer.save_model()
    assert own_dropout(tmp_path) == (0.1, 0.3)
    assert model.config.dropout == (0.0 if off else 0.1), "as before it was saved"


def own_dropout(folder) -> tuple[float, float]:
    config = json.loads((folder / "config.json").read_text())
    return config["dropout"], config["attention_dropout"]


def test_ppo_saves_the_models_own_dropout(tmp_path):
    trainer = toys.trainer(tmp_path, model=opt("ppo"))
    assert trainer.model.policy.config.dropout == trainer.model.value_model.config.dropout == 0
    trainer.save_model()
    assert own_dropout(tmp_path) == own_dropout(tmp_path / "value_model") == (0.1, 0.3)
