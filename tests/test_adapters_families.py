"""LoRA on families of which PEFT knows little: mixtures of experts, models without a classifier."""

import pytest
import torch
from adapter_toys import TEXTS, add_adapter, assert_close, load, logits
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    FalconH1Config,
    GptOssConfig,
    GraniteConfig,
    MixtralConfig,
    Olmo2Config,
    Qwen3MoeConfig,
)

from llmrecipes.adapters import lora_config
from llmrecipes.config import InputError, ModelArguments
from llmrecipes.models import load_reward_model
from llmrecipes.tokenizers import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300, 64)


SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


MIXTURES = [
    MixtralConfig(**SMALL, num_local_experts=4),
    Qwen3MoeConfig(**SMALL, num_experts=4, moe_intermediate_size=16, num_experts_per_tok=2, head_dim=16),
    DeepseekV3Config(
        **SMALL,
        n_routed_experts=4,
        moe_intermediate_size=16,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
    ),
]


def test_a_family_without_a_classifier_is_one_line_as_reward_model(tokenizer, tmp_path):
    GraniteConfig(**SMALL).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has no AutoModelForSequenceClassification for a GraniteConfig; use a model of"):
        load_reward_model(ModelArguments(model_name_or_path=str(tmp_path)), tokenizer)


def test_models_of_which_peft_knows_little_are_one_line_that_names_their_modules():
    lora = lambda config, **keys: lora_config(
        ModelArguments(use_peft=True, **keys), AutoModelForCausalLM.from_config(config)
    )
    with pytest.raises(InputError, match=r"PEFT has no default for a olmo2; name some of .*q_proj.*, or all-linear$"):
        lora(Olmo2Config(**SMALL, pad_token_id=0))
    mamba = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
    with pytest.raises(InputError, match=r"conv1d, out_proj of a falcon_h1 .*; name some of .*o_proj, q_proj, .*, v_proj$"):
        lora(FalconH1Config(**SMALL, **mamba, head_dim=16), lora_target_modules=["all-linear"])


@pytest.mark.parametrize("config", MIXTURES, ids=lambda config: config.model_type)
def test_lora_on_a_mixture_of_experts_works_or_is_one_line(config, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    everywhere = ModelArguments(use_peft=True, lora_target_modules=["all-linear"], lora_dropout=0.05)
    with pytest.raises(InputError, match="lora_dropout: 0.05 is not possible on the experts of a mixture"):
        lora_config(everywhere, model)
    with pytest.raises(InputError, match=f"no default for a {config.model_type}; name some of .* or all-linear"):
        lora_config(ModelArguments(use_peft=True), model)
    assert lora_config(ModelArguments(use_peft=True, lora_target_modules=["o_proj"], lora_dropout=0.05), model)
    model.save_pretrained(tmp_path / "base")
    everywhere.lora_dropout = 0.0
    settings = lora_config(everywhere, model).to_dict() | {"lora_dropout": 0.0, "target_modules": "all-linear"}
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    trained = add_adapter(start, tmp_path / "sft", **{key: settings[key] for key in ("target_modules", "lora_dropout")})
    assert_close(logits(load(tmp_path / "sft")), logits(trained))


def test_experts_that_all_linear_leaves_out_are_named_and_can_be_trained(tmp_path, capsys):
    config = GptOssConfig(
        **SMALL, head_dim=16, num_local_experts=4, num_experts_per_tok=2, layer_types=["full_attention"] * 2
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    lora_config(ModelArguments(use_peft=True, lora_target_modules=["all-linear"], lora_dropout=0.05), model)
    names = "mlp.experts.down_proj, mlp.experts.gate_up_proj"
    assert f"leaves the experts of this mixture as they are; to train them too: lora_target_parameters: [{names}]" in (
        capsys.readouterr().out
    )
    given = {"lora_target_parameters": names.split(", "), "lora_dropout": 0.0}
    found = lora_config(ModelArguments(use_peft=True, lora_target_modules=["all-linear"], **given), model)
    assert not capsys.readouterr().out
    model.save_pretrained(tmp_path / "base")
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    before = logits(start)
    changes = {"target_modules": "all-linear", "target_parameters": found.target_parameters, "lora_dropout": 0.0}
    trained = add_adapter(start, tmp_path / "sft", **changes)
    assert any("experts" in name and "lora_" in name for name, _ in trained.named_parameters())
    assert not torch.allclose(logits(trained), before)
    assert_close(logits(load(tmp_path / "sft")), logits(trained))
