"""The plan's closed form against torch's memory tracker and against what a process takes; its reading of configs."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import yaml
from plan_toys import LLAMA, of_stage, plan_of, write_sft

from llmrecipes.config import InputError
from llmrecipes.plan import make_plan, read_gpu, traced
from llmrecipes.plan.architecture import read_architecture
from llmrecipes.plan.of_run import plan_of_run
from llmrecipes.plan.reading import read_settings

ROOT = Path(__file__).parent.parent


@pytest.fixture
def sft(tmp_path):
    return write_sft(tmp_path)


def test_the_command_line_overrides_the_yamls_alternatives_as_in_a_run(sft, capfd):
    code, printed, warned = command(capfd, sft, "--max_steps", "7")  # the YAML has num_train_epochs
    assert code == 0 and " 7 steps" in printed and "num_train_epochs: left out because of the command line" in warned


def test_prompts_that_fill_no_rollout_are_named(sft):
    given = {"max_prompt_length": 64, "max_completion_length": 64, "rollout_batch_size": 64,
             "reward_functions": ["json:dumps"], "max_steps": None, "max_length": None}  # fmt: skip
    values = {key: value for key, value in (yaml.safe_load(sft.read_text()) | given).items() if value is not None}
    (path := sft.with_name("ppo.yaml")).write_text(yaml.safe_dump(values))
    plan = plan_of(path, train_rows=3)
    assert plan["steps"] is None and any("3 prompts fill no rollout of 64" in text for text in plan["unknown"])


def test_a_trace_of_ppo_has_the_value_models_own_sizes_and_the_reward_model(tmp_path):
    for name, width in (("policy", 64), ("reward", 256)):
        (tmp_path / name).mkdir()
        sizes = {**LLAMA, "vocab_size": 512, "hidden_size": width, "intermediate_size": 2 * width}
        (tmp_path / name / "config.json").write_text(json.dumps(sizes))
    values = {"model_name_or_path": str(tmp_path / "policy"), "reward_model_name_or_path": str(tmp_path / "reward"),
              "max_prompt_length": 8, "max_completion_length": 8, "datasets": ["d"], "total_episodes": 64,
              "output_dir": str(tmp_path), "num_gpus": 1}  # fmt: skip
    (path := tmp_path / "ppo.yaml").write_text(yaml.safe_dump(values))
    settings, _ = read_settings(["--config", str(path)], None, ROOT / "recipes")
    plan = make_plan(settings, str(path))
    found, update = traced(plan, settings, None), plan["memory"]["update"]
    assert found["reward model as planned"] == update["reward model"]
    weights = update["weights"] + update["value model"] + update["reference"]
    assert found["Parameter"] == pytest.approx(weights, rel=0.01)
    assert found["Total"] == pytest.approx(sum(update.values()), rel=0.1)


def test_a_value_model_of_its_own_is_counted_beside_an_adapter(sft):
    values = yaml.safe_load(sft.read_text())
    del values["max_length"]
    given = {"reward_functions": ["json:dumps"], "max_completion_length": 64, "max_prompt_length": 64, "max_steps": 3,
             "use_peft": True, "num_train_epochs": None}  # fmt: skip
    ppo = sft.with_name("ppo.yaml")
    ppo.write_text(yaml.safe_dump({k: v for k, v in (values | given).items() if v is not None}))
    assert "value model" not in plan_of(ppo)["memory"]["update"]
    own = plan_of(ppo, {"value_model_name_or_path": values["model_name_or_path"]}, gpu="l4")
    assert own["memory"]["update"]["value model"] > 4 * 7e9
    engine = plan_of(ppo, {"use_vllm": True, "vllm_gpu_memory_utilization": 0.3}, gpu="l4")
    assert any("vLLM will not start" in text for text in engine["unknown"])
    assert engine["memory"]["update"]["vLLM"] == 2 * 7241732096


def test_another_number_of_gpus_than_the_batch_was_meant_for_is_named(sft):
    plan = plan_of(sft, {"global_batch_size": 64}, num_gpus=2)
    assert plan["global_batch_size"] == 16
    assert any(
        "means 64 rows a step, planned are 16; keep it by gradient_accumulation_steps: 4" in t for t in plan["unknown"]
    )
    assert not plan_of(sft, {"global_batch_size": 64}, num_gpus=8)["unknown"]
    [text] = plan_of(sft, {"global_batch_size": 24}, num_gpus=8)["unknown"]
    assert text.endswith("keep it by per_device_train_batch_size: 3, gradient_accumulation_steps: 1")
    [text] = plan_of(sft, {"global_batch_size": 24}, num_gpus=7)["unknown"]
    assert text.endswith("keep it by another number of GPUs")


def test_without_a_limit_every_checkpoint_is_counted(sft):
    one = plan_of(sft, {"save_total_limit": 1})["disk"]["checkpoints"] / 2  # and the next, before the last is removed
    every = {"save_steps": 20}  # 160 steps
    assert plan_of(sft, every)["disk"]["checkpoints"] == pytest.approx(9 * one)
    assert plan_of(sft, {"save_steps": 0.5})["disk"]["checkpoints"] == pytest.approx(3 * one)
    assert plan_of(sft, {"save_strategy": "epoch"})["disk"]["checkpoints"] == pytest.approx(3 * one)
    assert plan_of(sft, {"save_strategy": "no"})["disk"]["checkpoints"] == 0
    assert any(t.startswith("save_total_limit") for t in plan_of(sft, every | {"datasets": "some/where"})["unknown"])


def test_steps_hours_and_price_follow_from_the_rows(sft):
    plan = plan_of(sft, gpu="h100", price=2.0)
    assert plan["steps"] == 2 * 640 / 8 and plan["tokens"] == plan["steps"] * 8 * 2048
    assert plan["hours"] * 3600 == pytest.approx(plan["flops"] / (0.4 * 989e12))
    assert plan["price"] == pytest.approx(2 * plan["hours"])
    eight = plan_of(sft, gpu="h100", num_gpus=8, price=2.0)
    assert eight["global_batch_size"] == 64 and eight["price"] == pytest.approx(plan["price"])


def test_kto_reads_single_answers_and_each_of_them_behind_another_prompt_too(sft):
    kto, dpo = (plan_of(of_stage(sft, stage)) for stage in ("kto", "dpo"))
    assert kto["tokens"] == 3 * 8 * 2048 == dpo["tokens"] / 2
    assert kto["flops"] / kto["tokens"] == pytest.approx(dpo["flops"] / dpo["tokens"] * (4 + 3) / (4 + 1))
    activations = [plan["memory"]["training step"]["activations"] for plan in (kto, dpo)]
    assert 0.4 < activations[0] / activations[1] < 0.7


def test_grpo_is_planned_by_phase(sft):
    given = {"max_completion_length": 512, "num_generations": 4, "num_iterations": 2, "max_steps": -1,
             "gradient_accumulation_steps": 2, "reward_functions": ["json:dumps"], "num_train_epochs": 1}  # fmt: skip
    values = yaml.safe_load(sft.read_text())
    del values["max_length"]
    path = sft.with_name("grpo.yaml")
    path.write_text(yaml.safe_dump(values | given))
    plan = plan_of(path, prompt_tokens=256)
    assert plan["steps"] == 640 * 4 * 2 / 16 and plan["tokens"] == 640 * 4 * (256 + 512)  # each response is read twice
    assert set(plan["memory"]) == {"sampling", "scoring", "log-probabilities and values", "update"}
    assert not any("reference" in parts for parts in plan["memory"].values())  # beta is 0
    against = plan_of(path, {"beta": 0.1}, prompt_tokens=256)
    assert against["memory"]["update"]["reference"] == 4 * against["parameters"]["all"]
    assert against["flops"] > plan["flops"]
    assert any("--prompt_tokens: not given" in text for text in plan_of(path)["unknown"])
    assert not any("generation_batch" in key or "offload" in key for key in plan["would_fit_with"])


def test_what_vllm_leaves_to_prompts_and_to_these_gpus_is_planned_as_it_runs(sft):
    given = {"reward_functions": ["json:dumps"], "max_completion_length": 512, "max_prompt_length": 1536,
             "rollout_batch_size": 64, "use_vllm": True, "max_steps": 4}  # fmt: skip
    values = yaml.safe_load(sft.read_text()) | given
    (ppo := sft.with_name("ppo.yaml")).write_text(
        yaml.safe_dump({k: v for k, v in values.items() if k not in ("max_length", "num_train_epochs")})
    )
    tokens = lambda **more: plan_of(ppo, more)["tokens"] / (4 / 4 * 64)
    assert (tokens(), tokens(vllm_max_model_length=768), tokens(vllm_max_model_length=9999)) == (2048, 768, 2048)
    with pytest.raises(InputError, match="leaves no room for a prompt in vllm_max_model_length, 512"):
        tokens(vllm_max_model_length=512)
    served = plan_of(ppo, {"vllm_mode": "server"})
    assert set(served["memory"]["sampling"]) < {*plan_of(ppo)["memory"]["sampling"], "weights"}
    assert any(text.startswith("vllm_mode: server: its GPUs are not") for text in served["unknown"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("torch_compile", "true"),
        ("attn_implementation", "eager"),
        ("use_liger_kernel", "true"),
        ("deepspeed", "ds.json"),
        ("parallelism_config", '{"cp_size": 2}'),
        ("lora_target_parameters", "mlp.experts.down_proj"),
    ],
)
def test_keys_that_the_closed_form_does_not_count_are_named(sft, key, value):
    assert any(text.startswith(key) for text in plan_of(sft, {key: value})["unknown"])
    assert not plan_of(sft)["unknown"]


def test_rows_beyond_the_context_are_said_to_be_no_longer_than_it(sft):
    plan = plan_of(sft, {"max_length": 65536})
    assert plan["tokens"] == plan_of(sft, {"max_length": 32768})["tokens"]
    assert any(text.startswith("max_length: 65536 is beyond the model's context of 32768") for text in plan["unknown"])


def test_an_activation_that_is_not_known_is_named(sft):
    file = sft.parent / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_act": "xielu"}))
    assert any("what xielu keeps" in text for text in plan_of(sft)["unknown"])


@pytest.mark.parametrize("launch", ["fsdp2", "zero2"])
def test_sharded_weights_that_are_trained_have_float32_copies(sft, launch):
    """accelerate makes FSDP2's trained weights float32 where bf16 computes, DeepSpeed keeps a copy in float32."""
    options = {"num_gpus": 8, "accelerate_config": str(ROOT / "configs" / "accelerate" / f"{launch}.yaml")}
    narrow = {"dtype": "bfloat16"}
    assert plan_of(sft, narrow, **options)["peak"] == plan_of(sft, **options)["peak"]
    assert plan_of(sft, narrow, num_gpus=8)["peak"] < plan_of(sft, num_gpus=8)["peak"]
    parts = plan_of(sft, narrow | {"use_peft": True}, **options)["memory"]["training step"]
    assert parts["weights"] < 4 * 7241732096 / (8 if launch == "fsdp2" else 1), "frozen weights stay as they are"


def test_four_bits_are_whole_on_every_gpu_unless_they_are_stored_as_floats(sft):
    """accelerate leaves 4-bit weights in integers out of FSDP2's shards."""
    options = {"num_gpus": 8, "accelerate_config": str(ROOT / "configs" / "accelerate" / "fsdp2.yaml")}
    words = {"use_peft": True, "load_in_4bit": True, "dtype": "bfloat16"}
    plan, floats = plan_of(sft, words, **options), plan_of(sft, words | {"bnb_4bit_quant_storage": "bfloat16"}, **options)
    weights, split = (found["memory"]["training step"]["weights"] for found in (plan, floats))
    assert weights > 6.9e9 * 0.5625 and split < 0.6 * weights
    assert any("quantised weights were not tried sharded" in text for text in plan["unknown"])


def test_no_head_is_counted_where_none_is_read(sft):
    """Reward and value models have no LM head; PPO's policy reads its own for responses alone."""
    weights, head, attention = 7241732096 - 2 * 131072000 - 65 * 4096, 131072000, 4 * 32 * 4096
    reward = plan_of(of_stage(sft, "reward"))
    each = 2 * weights + attention * 2048
    assert reward["flops"] / reward["tokens"] == pytest.approx((3 + 1) * each, rel=1e-4)
    given = {"reward_functions": ["json:dumps"], "max_completion_length": 512, "max_prompt_length": 1536,
             "rollout_batch_size": 64}  # fmt: skip
    values = {key: value for key, value in yaml.safe_load(sft.read_text()).items() if "epochs" not in key}
    ppo = sft.with_name("ppo.yaml")
    ppo.write_text(yaml.safe_dump({k: v for k, v in (values | given | {"max_steps": 4}).items() if k != "max_length"}))
    plan = plan_of(ppo, {"num_ppo_epochs": 1})
    policy = each + 2 * head / 4
    assert plan["flops"] / plan["tokens"] == pytest.approx((1 + 2 + 3) * policy + (1 + 3) * each, rel=1e-4)


def test_hours_of_float32_are_said_to_be_those_of_bf16(sft):
    assert any(text.startswith("bf16: off: hours") for text in plan_of(sft, {"bf16": False})["unknown"])
    assert not plan_of(sft, {"bf16": False, "dtype": "bfloat16"})["unknown"]


def launch_config(tmp_path, **values) -> str:
    (tmp_path / "launch.yaml").write_text(yaml.safe_dump({"num_processes": 8} | values))
    return str(tmp_path / "launch.yaml")


@pytest.mark.parametrize(
    ("launch", "sharded"),
    [
        ({"distributed_type": "MULTI_GPU"}, 0),
        ({"distributed_type": "FSDP", "fsdp_config": {"fsdp_sharding_strategy": "SHARD_GRAD_OP"}}, 2),
        ({"distributed_type": "FSDP", "fsdp_config": {"fsdp_sharding_strategy": "NO_SHARD"}}, 0),
        ({"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 1}}, 1),
        ({"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": "3"}}, 3),
    ],
)
def test_what_a_launch_config_shards_is_read_in_all_its_spellings(sft, launch, sharded):
    plan = plan_of(sft, num_gpus=8, accelerate_config=launch_config(sft.parent, **launch))
    whole, parts = plan_of(sft, num_gpus=8)["memory"]["training step"], plan["memory"]["training step"]
    assert (parts["weights"] < whole["weights"]) == (sharded == 3)
    assert parts["optimizer"] == pytest.approx(whole["optimizer"] / (8 if sharded else 1))
    assert ("DDP buckets" in parts) == (not sharded)


@pytest.mark.parametrize(
    ("launch", "says"),
    [
        ({"learning_rate": 1}, "distributed_type: None is not known"),
        ({"distributed_type": "MEGATRON_LM"}, "MEGATRON_LM is not known"),
        (
            {"distributed_type": "FSDP", "fsdp_config": {"fsdp_sharding_strategy": "HYBRID_SHARD"}},
            "'HYBRID_SHARD' is not known",
        ),
        ({"distributed_type": "DEEPSPEED", "deepspeed_config": {"deepspeed_config_file": "no.json"}}, "no.json: no zero"),
    ],
)
def test_a_launch_config_that_is_not_understood_is_one_line(sft, launch, says):
    with pytest.raises(InputError, match=says):
        plan_of(sft, num_gpus=8, accelerate_config=launch_config(sft.parent, **launch))


def test_a_launch_of_other_processes_than_planned_is_named(sft):
    launch = launch_config(sft.parent, distributed_type="MULTI_GPU")
    assert any("starts 8 processes, planned are 1" in text for text in plan_of(sft, accelerate_config=launch)["unknown"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_key_value_heads": "x"}, "num_key_value_heads: 'x' is not a whole number"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3 does not divide 8"),
        ({"num_attention_heads": 7, "num_key_value_heads": 7}, "num_attention_heads: 7 does not divide 512"),
        ({"intermediate_size": -7}, "intermediate_size: -7 is not a whole number"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [0]}, "layers with and without experts"),
        (
            {"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 5},
            "num_experts_per_tok: 5 is more than the 2 experts",
        ),
        ({"model_type": ["llama"]}, r"\['llama'\] is not one"),
        ({"model_type": "gpt2", "n_inner": "x"}, "n_inner: 'x' is not a whole number"),
        ({"model_type": "gemma3_text", "sliding_window": "x"}, "sliding_window: 'x' is not a whole number"),
    ],
)
def test_sizes_that_no_model_can_have_are_one_line(changes, says):
    with pytest.raises(InputError, match=says):
        read_architecture(LLAMA | changes, "m")


def test_a_model_that_starts_from_itself_is_one_line(tmp_path, sft):
    base = tmp_path / "adapter" / "adapter_config.json"
    base.parent.mkdir()
    for value, says in ((str(base.parent), "starts from itself"), (None, "names no base model")):
        base.write_text(json.dumps({"base_model_name_or_path": value}))
        with pytest.raises(InputError, match=says):
            plan_of(sft, {"model_name_or_path": base.parent})
    with pytest.raises(InputError, match="starts from itself"):
        plan_of(of_stage(sft, "dpo", model_name_or_path="outputs/loop", output_dir="outputs/loop"))


def test_what_is_not_known_is_named(sft):
    plan = plan_of(sft, {"datasets": "some/where", "optim": "apollo_adamw"})
    assert plan["steps"] is None and "hours" not in plan
    assert any("give --train_rows" in text for text in plan["unknown"]) and any("apollo" in text for text in plan["unknown"])
    assert plan_of(sft, {"datasets": "some/where"}, train_rows=640)["steps"] == 160


def test_sharding_divides_what_the_launch_config_shards(sft):
    whole, by_stage = plan_of(sft, num_gpus=8), {}
    for name in ("zero2", "zero3", "fsdp2"):
        config = str(ROOT / "configs" / "accelerate" / f"{name}.yaml")
        by_stage[name] = plan_of(sft, num_gpus=8, accelerate_config=config)["memory"]["training step"]
    parts = whole["memory"]["training step"]
    assert by_stage["zero2"]["weights"] == parts["weights"]
    assert by_stage["zero3"]["weights"] < 0.4 * parts["weights"]
    for stage in by_stage.values():
        assert stage["optimizer"] == pytest.approx(parts["optimizer"] / 8) and "DDP buckets" not in stage


@pytest.mark.parametrize(
    ("launch", "sharding"), [("ddp", "none"), ("zero2", "ZeRO-2"), ("zero3", "ZeRO-3"), ("fsdp2", "FSDP")]
)
def test_a_run_that_has_finished_has_the_plan_of_its_yaml(sft, launch, sharding):
    config = str(ROOT / "configs" / "accelerate" / f"{launch}.yaml")
    before = plan_of(sft, num_gpus=8, accelerate_config=config)
    manifest = {"given": yaml.safe_load(sft.read_text()), "launch": {"processes": 8, "sharding": sharding}}
    after = plan_of_run(manifest, ROOT / "recipes" / "sft.py")
    assert after["peak_gib"] == pytest.approx(before["peak"] / 2**30, rel=1e-3) and after["flops"] == before["flops"]
    assert sum(after["memory_gib"].values()) == pytest.approx(after["peak_gib"], rel=1e-3)
    manifest["given"]["model_name_or_path"] = "nobody/knows-this"
    assert plan_of_run(manifest, ROOT / "recipes" / "sft.py") is None, "not guessed"
    assert plan_of_run(manifest, ROOT / "recipes" / "rank.py") is None


def test_a_plan_that_fails_does_not_end_a_run_that_has_finished(sft, capfd):
    manifest = {"given": yaml.safe_load(sft.read_text()), "launch": {"processes": 1, "sharding": "none"}}
    with mock.patch("llmrecipes.plan.of_run.phases", side_effect=TypeError("no")):
        assert plan_of_run(manifest, ROOT / "recipes" / "sft.py") is None
    assert "plan: cannot be made for this run (TypeError: no)" in capfd.readouterr().err


def test_a_chain_is_planned_before_its_first_stage_ran():
    for stage in ("pretrain", "sft", "reward", "dpo", "kto", "grpo", "ppo"):
        plan = plan_of(ROOT / "configs" / "quickstart" / f"{stage}.yaml")
        assert plan["fits"] and 1e6 < plan["parameters"]["all"] < 1.2e6 * (1 + (stage == "ppo")), stage


def command(capfd, config, *words):
    """(exit code, stdout, stderr) of the recipe's command line."""
    argv = ["recipes/plan.py", "--config", str(config), *map(str, words)]
    with mock.patch.object(sys, "argv", argv):
        try:
            runpy.run_path(str(ROOT / argv[0]), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code
    return code, *capfd.readouterr()


def test_command_prints_the_table_and_writes_json(tmp_path, sft, capfd):
    options = "--gpu l4 --num_gpus 1 --price 1 --max_length 512 --json"
    code, printed, _ = command(capfd, sft, *options.split(), tmp_path / "p.json")
    assert code == 0 and "fits                  NO" in printed and "would fit with" in printed
    found = json.loads((tmp_path / "p.json").read_text())
    assert found["tokens"] == found["steps"] * 8 * 512 and found["gpu"]["source"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--gpu", "h1000"], "gpu: h1000 is not one of h100"),
        (["--model_name_or_path", "no/such-model"], "no config of no/such-model is in reach"),
        (["--mfu", "40"], "`mfu` is 40; it must lie from above 0 to 1"),
        (["--price", "-1"], "`price` is -1"),
        (["--train_rows", "0"], "`train_rows` is 0"),
        (["--json", ""], "`json` is empty"),
        (["--json", "/nowhere/plan.json"], "json: /nowhere/plan.json cannot be written"),
        (["--model_name_or_path", "meta-llama/Llama-3.1-8b"], "did you mean `meta-llama/Llama-3.1-8B`"),
        (["--max_seq_length", "5"], "use `max_length`"),
        (
            ["--stage", "pretrain", "--model_config", '{"model_type": "llama", "num_hidden_layer": 4, "vocab_size": 9}'],
            "model_config: llama has no key `num_hidden_layer`, did you mean `num_hidden_layers`?",
        ),
        (["--stage", "tokenizer"], "unknown key"),
        (["--stage", "nothing"], "nothing is not a recipe"),
        (["--max_steps", "5", "--train_rows", "9"], "train_rows: has no effect beside `max_steps: 5`"),
        (
            ["--stage", "pretrain", "--model_config", '{"model_type": "gpt2", "vocab_size": 9}', "--max_length", "2048"],
            "max_length: 2048 is beyond the model's context of 1024",
        ),
        (["--prompt_tokens", "9"], "prompt_tokens: has no effect on a stage that samples nothing"),
    ],
)
def test_a_mistake_is_one_line(sft, words, says, capfd):
    code, _, errors = command(capfd, sft, *words)
    assert code == 2 and all(line.startswith(("error: ", "warning: ")) for line in errors.splitlines()) and says in errors


def test_the_text_model_of_a_composite_config_is_planned_and_its_other_parts_are_named(tmp_path, sft):
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    config = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 1152}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    plan = plan_of(sft)
    assert plan["parameters"]["all"] == 3_880_263_168  # of google/gemma-3-4b-pt's text model, by transformers
    assert any("vision_config" in text for text in plan["unknown"])
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    plan = plan_of(sft)  # transformers makes a vision tower all the same
    assert any("text_config: the model's other parts" in text for text in plan["unknown"])
    (tmp_path / "model" / "config.json").write_text(json.dumps(text))
    assert not any("_config: " in text for text in plan_of(sft)["unknown"])


@pytest.mark.parametrize("kind", ["mamba", "bert", "t5"])
def test_an_architecture_that_is_not_known_is_named(kind):
    with pytest.raises(InputError, match=f"'{kind}' is not one"):
        read_architecture({"model_type": kind}, "m")


def test_a_gpu_that_is_not_known_is_named():
    with pytest.raises(InputError, match="not one of h100"):
        read_gpu("k80")


def test_nothing_heavy_is_imported():
    code = (
        "import sys, runpy; sys.argv = ['recipes/plan.py', '--config', 'configs/quickstart/ppo.yaml'];"
        "runpy.run_path(sys.argv[0], run_name='__main__');"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules), 'heavy'"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=True, capture_output=True)
