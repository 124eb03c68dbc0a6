"""Adapters of quantised bases: exact under the next one, merged as they were trained."""

import math

import pytest
import torch
from adapter_toys import CONFIGS, TEXTS, add_adapter, assert_close, load, logits, run_merge, run_recipe
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llmrecipes.adapters import lora_config
from llmrecipes.config import InputError, ModelArguments
from llmrecipes.models import build_policy
from llmrecipes.tokenizers import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300, 64)


@pytest.fixture(scope="module")
def qlora(tokenizer, tmp_path_factory) -> tuple[str, torch.Tensor]:
    """(adapter trained on a base in 4 bits, the logits of the two)."""
    pytest.importorskip("bitsandbytes", reason="QLoRA needs bitsandbytes (requirements-dev.txt)")
    folder = tmp_path_factory.mktemp("qlora")
    torch.manual_seed(0)
    build_policy(CONFIGS["llama"] | {"hidden_size": 64}, tokenizer).save_pretrained(folder / "base")
    start = load(folder / "base", load_in_4bit=True)
    return folder / "sft", logits(add_adapter(start, folder / "sft", tokenizer=tokenizer, target_modules="all-linear"))


def test_adapter_of_a_quantised_base_stays_exact_under_the_next_one(qlora, tokenizer, tmp_path):
    sft, trained = qlora
    start = load(sft, load_in_4bit=True)
    assert_close(logits(start), trained)
    assert (logits(load(sft.with_name("base"), load_in_4bit=True)) - trained).abs().max() > 0.1
    second = add_adapter(start, tmp_path / "second", seed=4, target_modules="all-linear")
    assert_close(logits(load(tmp_path / "second", load_in_4bit=True)), logits(second))
    with second.disable_adapter():
        assert_close(logits(second), trained)
    with pytest.raises(InputError, match="quantised weights cannot be trained; add use_peft"):
        lora_config(ModelArguments(load_in_4bit=True), start)
    add_adapter(load(sft.with_name("base"), load_in_4bit=True), tmp_path / "dora", use_dora=True, target_modules=["q_proj"])
    with pytest.raises(InputError, match="only plain LoRA stays on quantised weights"):
        load(tmp_path / "dora", load_in_4bit=True)


def test_a_reward_model_in_four_bits_trains_its_head_in_the_dtype_of_what_it_reads(qlora, tokenizer, tmp_path):
    """TRL rounds all that is trained there to bfloat16, and without autocast the first step was an error."""
    base = qlora[0].with_name("base")
    tokenizer.save_pretrained(base)
    options = ["--health_check", "false", "--learning_rate", "1e-2", "--load_in_4bit", "true"]
    manifest = run_recipe("reward", base, tmp_path / "out", *options)
    assert math.isfinite(manifest["metrics"]["train_loss"])
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {part.dtype for name, part in weights.items() if "score" in name} == {torch.float32}


def test_merge_of_qlora_writes_what_was_trained(qlora, tmp_path):
    sft, trained = qlora
    run_merge(sft, tmp_path / "whole", "--load_in_4bit", "true")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert not getattr(whole, "is_quantized", False) and whole.dtype == torch.float32
    assert_close(logits(whole), trained)


def test_a_base_that_is_stored_in_four_bits_is_trained_and_merged_without_a_key(qlora, tokenizer, tmp_path):
    start = load(qlora[0].with_name("base"), load_in_4bit=True)
    start.save_pretrained(tmp_path / "stored")
    tokenizer.save_pretrained(tmp_path / "stored")
    stored = load(tmp_path / "stored")
    assert_close(logits(stored), logits(start))
    packs = [m.support_avx512bf16_for_cpu for m in stored.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    assert packs and not any(packs), "a packed layer would pass no gradient back after an evaluation"
    trained = logits(add_adapter(stored, tmp_path / "sft", tokenizer=tokenizer, target_modules="all-linear"))
    run_merge(tmp_path / "sft", tmp_path / "whole")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert not getattr(whole, "is_quantized", False) and whole.dtype == torch.float32
    assert_close(logits(whole), trained)
