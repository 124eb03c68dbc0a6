"""Masked language models of BERT's family as starts for the reward model: trained, saved, loaded again, scored alike."""

import pytest
import torch
from datasets import Dataset
from training_toys import TEXTS, arguments
from transformers import AutoConfig, AutoModelForMaskedLM
from trl import RewardConfig

from llmrecipes.config import InputError, ModelArguments
from llmrecipes.models import context_length, load_reward_model
from llmrecipes.reward_models.trainer import RewardTrainer
from llmrecipes.tokenizers import train_tokenizer

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
ENDS = {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
KINDS = {"bert": {}, "roberta": {}, "deberta-v2": {}, "electra": {}, "modernbert": ENDS}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300, 40)


def masked_model(kind, tokenizer, folder, **changes) -> ModelArguments:
    config = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id} | SIZES | KINDS[kind] | changes
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(AutoConfig.for_model(kind, **config)).save_pretrained(folder)
    return ModelArguments(model_name_or_path=str(folder))


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.long] * (kind != "bert")) for kind in KINDS])
def test_a_masked_language_model_becomes_a_reward_model(kind, tokenizer, tmp_path, capsys):
    model = load_reward_model(masked_model(kind, tokenizer, tmp_path / "start"), tokenizer)
    said = "has no pooler, the layer between trunk and head; it begins as random numbers, as the head does"
    assert (said in capsys.readouterr().out) == (kind == "bert")
    rows = [{"prompt": text, "chosen": " Yes.", "rejected": " No."} for text in TEXTS[:8]]
    args = arguments(tmp_path / "o", RewardConfig, max_length=40, max_steps=2)
    trainer = RewardTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer.train()
    trainer.save_model()
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    new = {name for name in before if name.endswith(".weight") and ("pooler" in name or "classifier" in name)}
    assert new <= moved and len(new) == {"bert": 2, "deberta-v2": 2, "modernbert": 1}.get(kind, 2)
    saved = load_reward_model(ModelArguments(model_name_or_path=str(tmp_path / "o")), tokenizer).eval()
    assert "pooler" not in capsys.readouterr().out
    longest = torch.arange(20, 20 + context_length(saved))[None]  # of as many tokens as its positions allow
    for ids in (longest, torch.tensor([tokenizer(TEXTS[0])["input_ids"]])):
        with torch.no_grad():
            assert torch.equal(saved(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


def test_a_pooler_that_was_lost_is_not_made_anew(tokenizer, tmp_path):
    start = masked_model("bert", tokenizer, tmp_path / "start")
    model = load_reward_model(start, tokenizer)
    left = {name: weight for name, weight in model.state_dict().items() if "pooler" not in name}
    model.save_pretrained(tmp_path / "torn", state_dict=left)
    with pytest.raises(InputError, match="2 weights .* in none of its files, such as bert.pooler.dense.bias"):
        load_reward_model(ModelArguments(model_name_or_path=str(tmp_path / "torn")), tokenizer)


def test_positions_counted_from_another_pad_token_are_refused(tokenizer, tmp_path):
    """They would be counted from the tokenizer's once the model is loaded again, which gives other scores."""
    start = masked_model("roberta", tokenizer, tmp_path / "start", pad_token_id=7)
    with pytest.raises(InputError, match=r"counts positions from token 7 \(.*\), .* but its tokenizer pads with <\|pad\|>"):
        load_reward_model(start, tokenizer)
    model = load_reward_model(masked_model("roberta", tokenizer, tmp_path / "own"), tokenizer)
    assert context_length(model) == SIZES["max_position_embeddings"] - tokenizer.pad_token_id - 1
