"""What the plan says to make a run fit does so, and the stage takes it; what the run would refuse is refused."""

import json
import re

import pytest
import yaml
from plan_toys import LLAMA, ROOT, job, of_stage, plan_of, write_sft

from llmrecipes.config import InputError
from llmrecipes.plan import make_plan
from llmrecipes.plan.reading import read_settings


@pytest.fixture
def sft(tmp_path):
    return write_sft(tmp_path)


def keys_in(plan) -> dict:
    """The keys that the plan would have the user set, as it writes them."""
    texts = [part for text in plan["would_fit_with"] for part in re.split(" with | and ", text.split(" (")[0])]
    return dict(text.split(": ", 1) for text in texts)


def test_keys_that_would_make_it_fit_make_it_fit(sft):
    plan = plan_of(sft, gpu="rtx4090")
    assert not plan["fits"] and plan["fits_with"] and 1 <= len(plan["would_fit_with"]) <= 3
    again = plan_of(sft, keys_in(plan), gpu="rtx4090")
    assert again["fits"] and again["peak"] == pytest.approx(plan["peak_with"], rel=1e-9)
    assert again["global_batch_size"] == plan["global_batch_size"]


REWARDED = {"reward_functions": ["json:dumps"], "max_completion_length": 512, "max_steps": 3}
DECODED = {"per_device_generation_batch_size": 512, "rollout_batch_size": 512}
QLORA = REWARDED | {"use_peft": True, "load_in_4bit": True}


@pytest.mark.parametrize(
    ("stage", "given", "gpu", "never"),
    [
        ("kto", {"per_device_train_batch_size": 6}, "a100", "per_device_train_batch_size: 1"),
        ("dpo", {"sync_ref_model": True}, "h100", "use_peft"),
        ("pretrain", {"label_smoothing_factor": 0.1}, "l4", "fused_lm_head"),
        ("pretrain", {"per_device_train_batch_size": 1, "fused_lm_head": True}, "l4", "left out); max_length"),
        ("grpo", QLORA | {"per_device_train_batch_size": 64, "generation_batch_size": 64}, "l4", "steps_per_generation"),
        ("ppo", {"use_vllm": True, "use_peft": True, "max_prompt_length": 512} | REWARDED, "l4", "load_in_4bit"),
        ("ppo", QLORA | DECODED | {"max_prompt_length": 512}, "l40s", "; per_device_generation_batch_size: 32"),
    ],
)
def test_only_keys_that_the_stage_takes_are_offered_and_each_once(sft, stage, given, gpu, never):
    values = yaml.safe_load(sft.read_text()) | {"max_length": 16384, "max_steps": 3} | given
    for key in ("num_train_epochs", *(["max_length"] if "reward_functions" in given else [])):
        del values[key]
    if stage == "pretrain":
        del values["model_name_or_path"]
        sizes = {"vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 16384}
        values |= {"model_config": {**LLAMA, **sizes, "num_hidden_layers": 16}, "tokenizer_name_or_path": "t"}
    (path := sft.with_name(f"{stage}.yaml")).write_text(yaml.safe_dump(values))
    settings = lambda words: read_settings(["--config", str(path), *words], None, ROOT / "recipes")[0]
    prompts = {"prompt_tokens": 256} if stage == "grpo" else {}
    plan = make_plan(settings([]), str(path), gpu=gpu, **prompts)
    assert not plan["fits"] and never not in "; ".join(plan["would_fit_with"])
    words = [word for key, value in keys_in(plan).items() for word in (f"--{key}", value)]
    assert len(words) >= 2 and len({*words[::2]}) == len(words) / 2
    again = make_plan(settings(words), str(path), gpu=gpu, **prompts)
    assert again["peak"] == pytest.approx(plan["peak_with"], rel=1e-9) and again["peak"] < plan["peak"]
    assert again["global_batch_size"] == plan["global_batch_size"]


def test_precision_that_is_offered_is_that_of_the_reward_model_too(sft):
    given = {"reward_functions": None, "reward_model_name_or_path": str(sft.parent / "model"), "use_peft": True}
    ppo = rolled_out(sft, "ppo", **given, max_prompt_length=512, dtype="float32", gradient_checkpointing=True)
    plan = plan_of(ppo, gpu="l40s")
    assert "dtype: bfloat16" in "; ".join(plan["would_fit_with"])
    assert plan_of(ppo, keys_in(plan), gpu="l40s")["peak"] == pytest.approx(plan["peak_with"], rel=1e-9)


def rolled_out(sft, stage, **given):
    small = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "num_train_epochs": None}
    values = yaml.safe_load(sft.read_text()) | REWARDED | small | {"max_length": None} | given
    (path := sft.with_name(f"{stage}.yaml")).write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}))
    return path


@pytest.mark.parametrize(
    ("stage", "given", "says"),
    [
        ("ppo", {"max_completion_length": 32768}, "max_completion_length: 32768 leaves no room for a prompt in the context"),
        ("grpo", {"max_completion_length": 40000, "num_generations": 2}, "max_completion_length: 40000 leaves no room"),
        ("ppo", {"rollout_batch_size": 7}, "rollout_batch_size: 7 is not a multiple of 2 rows a step on 1 GPUs"),
        ("ppo", {"rollout_batch_size": 8, "num_mini_batches": 3}, "rollout_batch_size: 8 is not num_mini_batches 3 x 2"),
        ("ppo", {"rollout_batch_size": 8, "num_generations": 3}, "num_generations: 3 does not divide a rollout of 8"),
        ("grpo", {"num_generations": 4}, "num_generations: 4 does not divide a rollout of 2 responses"),
        ("grpo", {"num_generations": 3, "generation_batch_size": 9}, "generation_batch_size: 9 is not a multiple of 2 rows"),
    ],
)
def test_a_rollout_that_the_run_refuses_is_one_line(sft, stage, given, says):
    with pytest.raises(InputError, match=says):
        plan_of(rolled_out(sft, stage, **given))


def test_prompts_and_decoded_responses_are_no_more_than_the_run_has(sft):
    short = {"max_completion_length": 4096, "rollout_batch_size": 64, "per_device_generation_batch_size": 64}
    plan = plan_of(rolled_out(sft, "ppo", **short))
    assert plan["tokens"] / plan["steps"] == 2 * 32768 / 4  # whole contexts; each response is used in four steps
    beyond = plan_of(rolled_out(sft, "ppo", **short, max_prompt_length=32768))
    assert (beyond["tokens"], beyond["peak"]) == (plan["tokens"], plan["peak"])
    more = plan_of(rolled_out(sft, "ppo", **short | {"per_device_generation_batch_size": 1024}))
    assert more["memory"]["sampling"] == plan["memory"]["sampling"], "a rollout has 64 responses"


def test_a_head_that_a_smaller_micro_batch_changes_is_reckoned_in_what_is_offered():
    large = job(LLAMA, batch=8).changed(tiled_where_it_pays=True)
    assert (large.head, large.changed(batch=4).head) == ("chunked", "logits")


def test_quantising_alone_is_offered_with_the_precision_that_was_reckoned(sft):
    config = sft.parent / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 60}))
    lora = {"use_peft": True, "lora_target_modules": "all-linear", "per_device_train_batch_size": 1}
    plan = plan_of(sft, lora, gpu="rtx4090")
    assert "load_in_4bit: true with dtype: bfloat16" in plan["would_fit_with"]
    assert plan_of(sft, lora | keys_in(plan), gpu="rtx4090")["peak"] == pytest.approx(plan["peak_with"], rel=1e-9)


def test_pretraining_is_offered_no_adapters(sft):
    pretrain = of_stage(sft, "pretrain")
    assert not any("peft" in text for text in plan_of(pretrain, gpu="l4")["would_fit_with"])


def test_frozen_models_are_not_offered_to_be_offloaded_and_sharded_at_once(sft):
    values = {"reward_functions": ["json:dumps"], "max_completion_length": 64, "max_prompt_length": 64}
    ppo = of_stage(sft, "ppo", **values, num_gpus=8, max_length=None)
    ppo.write_text(yaml.safe_dump({k: v for k, v in yaml.safe_load(ppo.read_text()).items() if k != "max_length"}))
    for words in ({}, {"offload_frozen_models": True}):
        offered = " ".join(plan_of(ppo, words, gpu="l4")["would_fit_with"])
        assert not ("fsdp2" in offered and (words or "offload" in offered)), offered


def test_pretraining_fits_by_the_fused_head_where_its_logits_are_what_is_too_large(sft):
    model = {"model_type": "llama", "vocab_size": 128_256, "hidden_size": 512, "num_hidden_layers": 4,
             "num_attention_heads": 8, "intermediate_size": 1024, "max_position_embeddings": 32768}  # fmt: skip
    given = {"model_name_or_path": None, "model_config": model, "tokenizer_name_or_path": "t", "max_length": 32768,
             "per_device_train_batch_size": 1}  # fmt: skip
    plan = plan_of(of_stage(sft, "pretrain", **given), gpu="rtx4090")
    assert not plan["fits"] and plan["would_fit_with"] == ["fused_lm_head: true"]
    fused = plan_of(of_stage(sft, "pretrain", fused_lm_head=True, **given), gpu="rtx4090")
    assert fused["fits"] and not fused.get("would_fit_with")
