"""QLoRA: PPO on a base model in 4 bits, in which the adapter and a value head on it are all that is trained."""

import importlib
import json
import math
from pathlib import Path

import ppo_toys as toys
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.quantizers import quantizer_bnb_4bit

from llmrecipes.config import DataArguments, InputError, ModelArguments, PreviewArguments, RunArguments
from llmrecipes.generation import sample_responses
from llmrecipes.models import load_policy
from llmrecipes.parsing import parse
from llmrecipes.ppo.policy_value import response_logprobs
from llmrecipes.ppo.rollout import Rollout
from llmrecipes.reward_models.arguments import RewardArguments

ROOT = Path(__file__).parent.parent
BITSANDBYTES = "QLoRA needs bitsandbytes (requirements-dev.txt)"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("base")
    toys.policy(hidden_size=64, intermediate_size=128).save_pretrained(folder)
    toys.tokenizer().save_pretrained(folder)
    return str(folder)


def lora(**changes) -> LoraConfig:
    return LoraConfig(r=4, target_modules="all-linear", **changes)


def four_bit(base: str):
    pytest.importorskip("bitsandbytes", reason=BITSANDBYTES)
    return load_policy(ModelArguments(model_name_or_path=base, load_in_4bit=True))


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: part.detach().clone() for name, part in trainer.model.named_parameters()}


def test_gradient_equals_that_of_the_same_weights_in_floats_also_after_sampling(base, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason=BITSANDBYTES)
    quantised, floats = four_bit(base), toys.policy(hidden_size=64, intermediate_size=128)
    for name, module in quantised.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            dequantised = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            floats.get_submodule(name).weight.data.copy_(dequantised)
    trainer = toys.trainer(tmp_path, model=quantised, trainer_arguments={"peft_config": lora(init_lora_weights=False)})
    trainer.train()  # samples in evaluation mode, and trains
    quantised, floats = trainer.model.policy, get_peft_model(floats, lora())
    adapter = {name: part for name, part in quantised.state_dict().items() if "lora" in name}
    floats.load_state_dict(adapter, strict=False)
    batch = Rollout.from_responses([[5, 6], [7]], [[8, 9, 2], [10, 11, 12, 13]], 0, "cpu").micro_batch([0, 1])
    for policy in (quantised, floats):
        policy.zero_grad()
        response_logprobs(policy.train(), **batch)[0].sum().backward()
    gradients = dict(quantised.named_parameters())
    compared = [
        torch.testing.assert_close(gradients[name].grad, part.grad, atol=1e-5, rtol=1e-3)
        for name, part in floats.named_parameters()
        if part.requires_grad
    ]
    assert len(compared) == len(adapter) > 20


def test_an_evaluation_does_not_change_the_gradient_of_a_loaded_model(base):
    policy, ids = four_bit(base), torch.arange(4, 20)[None]
    embeddings, gradients = policy.get_input_embeddings().requires_grad_(True).weight, []
    for _ in range(2):
        embeddings.grad = None
        policy.train()(input_ids=ids).logits.log_softmax(-1)[0, :, 5].sum().backward()
        gradients.append(embeddings.grad.clone())
        with torch.no_grad():
            policy.eval()(input_ids=ids)
    assert gradients[0].norm() > 0 and torch.equal(*gradients)


@pytest.mark.parametrize("value_model", ["shared", pytest.param("separate", marks=pytest.mark.long)])
def test_a_policy_in_four_bits_is_trained_saved_resumed_and_reloaded(base, tmp_path, value_model):
    def trainer():
        return toys.trainer(
            tmp_path,
            model=four_bit(base),
            reward=toys.reward_model(),
            value_model=value_model,
            save_strategy="steps",
            save_steps=3,
            max_steps=6,
            trainer_arguments={"peft_config": lora(lora_dropout=0.1)},
        )

    whole = trainer()
    start = weights(whole)
    whole.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    after = weights(whole)
    assert all(torch.equal(after[name], part) for name, part in weights(resumed).items())
    trained = {name for name in start if not torch.equal(start[name], after[name])}
    assert trained and all("lora" in name or name.startswith("value_model") for name in trained)
    kl = [entry["kl"] for entry in whole.state.log_history if "kl" in entry]
    assert kl[0] == 0 and kl[-1] != 0

    whole.save_model()
    assert not (tmp_path / "model.safetensors").exists()
    reloaded = four_bit(str(tmp_path)).eval()
    batch = Rollout.from_responses([[5, 6]], [[8, 9, 2]], 0, "cpu").micro_batch([0])
    torch.testing.assert_close(response_logprobs(reloaded, **batch)[0], response_logprobs(whole.model.policy, **batch)[0])
    (response,) = sample_responses(reloaded, [[5, 6, 7]], max_new_tokens=4, eos_token_ids=[2], pad_token_id=0)
    assert 1 <= len(response.token_ids) <= 4


def test_the_recipe_takes_a_base_in_four_bits(base, tmp_path, monkeypatch):
    four_bit(base)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"w{i} w{i + 1}"}) + "\n" for i in range(20)))
    config = tmp_path / "ppo.yaml"
    config.write_text(
        f"model_name_or_path: {base}\nload_in_4bit: true\nuse_peft: true\nlora_r: 4\nlora_target_modules: [all-linear]\n"
        f"datasets: [{{path: {prompts}}}]\ntest_split_size: 4\nreward_functions: ['ppo_toys:even_share']\n"
        f"output_dir: {tmp_path}/ppo\nmax_completion_length: 8\nmax_steps: 4\nper_device_train_batch_size: 4\n"
        "gradient_accumulation_steps: 1\n"
        "num_ppo_epochs: 2\nlearning_rate: 1.0e-3\nuse_cpu: true\nbf16: false\nreport_to: none\nlogging_steps: 1\n"
    )
    monkeypatch.syspath_prepend(ROOT / "recipes")
    recipe = importlib.import_module("ppo")
    watch = "llmrecipes.evaluation.watch:WatchArguments"
    shared = RunArguments, DataArguments, PreviewArguments
    types = "llmrecipes.ppo.config:PPOConfig", ModelArguments, RewardArguments, recipe.ValueArguments, watch
    recipe.main(*parse(*shared, *types, argv=["--config", str(config)]))
    metrics = json.loads((tmp_path / "ppo" / "manifest.json").read_text())["metrics"]
    assert math.isfinite(metrics["train_loss"]) and metrics["kl"] != 0 and metrics["eval_kl"] != 0
    assert (tmp_path / "ppo" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "ppo" / "value_head.safetensors").is_file()


def test_what_cannot_work_is_one_line(base, tmp_path, monkeypatch):
    quantised = four_bit(base)
    with pytest.raises(InputError, match="value_model: separate has nothing to start from, because the policy is quantised"):
        toys.trainer(tmp_path, model=quantised, value_model="separate", trainer_arguments={"peft_config": lora()})
    monkeypatch.setattr(quantizer_bnb_4bit, "is_bitsandbytes_available", lambda *_, **__: False)
    with pytest.raises(InputError, match="requires bitsandbytes: `pip install"):
        four_bit(base)
