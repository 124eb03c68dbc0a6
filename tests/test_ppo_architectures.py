"""Every family of architectures through sampling, log-probabilities, values, one update of PPO, saving and loading."""

import ppo_toys as toys
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from llmrecipes.config import InputError
from llmrecipes.generation import sample_responses
from llmrecipes.ppo.policy_value import build_value_model, response_logprobs, response_values
from llmrecipes.ppo.rollout import MODEL_INPUTS, Rollout

SPECIAL = {"pad_token_id": toys.PAD, "bos_token_id": 1, "eos_token_id": toys.EOS}
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    **SPECIAL,
}
GPT2 = {"vocab_size": 64, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, **SPECIAL}
SLIDING = {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
LINEAR = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
EXPERTS = {"num_experts_per_tok": 2, "output_router_logits": True}
QWEN_EXPERTS = {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, **EXPERTS}
SSM = {"mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 8}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
# Model type (or a name of its own) -> its config. Dropout is on in the families that have it by default.
FAMILIES = {
    "llama": SIZES,
    "qwen3": SIZES | {"head_dim": 8},
    "gemma2": SIZES | SLIDING,
    "gemma3_text": SIZES | SLIDING,
    "gemma3": {
        "text_config": SIZES | SLIDING,
        "vision_config": VISION,
        "mm_tokens_per_image": 4,
        "boi_token_index": 60,
        "eoi_token_index": 61,
        "image_token_index": 62,
    },
    "gemma4_text": SIZES
    | SLIDING
    | {
        "global_head_dim": 8,
        "num_global_key_value_heads": 2,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 64,
    },
    "llama4_text": SIZES | {"head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 64, "attention_chunk_size": 8},
    "phi": SIZES | {"resid_pdrop": 0.1},
    "phi3": SIZES | {"resid_pdrop": 0.1, "sliding_window": 8},
    "cohere2": SIZES | SLIDING,
    "deepseek_v3": SIZES
    | {
        "num_key_value_heads": 4,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 16,
    },
    "granite": SIZES,
    "gpt2": GPT2,
    "gpt_bigcode": GPT2,
    "gpt_neox": SIZES | {"hidden_dropout": 0.1},
    "biogpt": SIZES,
    "opt": {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "xglm": {
        "vocab_size": 64,
        "d_model": 32,
        "ffn_dim": 64,
        "num_layers": 2,
        "attention_heads": 4,
        "max_position_embeddings": 64,
        **SPECIAL,
    },
    "starcoder2": SIZES | {"residual_dropout": 0.1, "embedding_dropout": 0.1, "attention_dropout": 0.1},
    "bloom": {
        "vocab_size": 64,
        "hidden_size": 32,
        "n_layer": 2,
        "n_head": 4,
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
        **SPECIAL,
    },
    "falcon": {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
        **SPECIAL,
    },
    "mixtral": SIZES | EXPERTS | {"num_local_experts": 4, "router_jitter_noise": 0.1},
    "qwen3_moe": SIZES | QWEN_EXPERTS | {"head_dim": 8},
    "olmoe": SIZES | EXPERTS | {"num_experts": 4},
    "gpt_oss": SIZES | SLIDING | EXPERTS | {"num_local_experts": 4},
    "qwen3_5_text": SIZES | LINEAR,
    "qwen3_next": SIZES | LINEAR | QWEN_EXPERTS,
    "lfm2": SIZES | {"layer_types": ["conv", "full_attention"]},
    "mamba": {"vocab_size": 64, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2, **SPECIAL},
    "mamba2": {
        "vocab_size": 64,
        "hidden_size": 32,
        "state_size": 8,
        "num_hidden_layers": 2,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 1,
        "chunk_size": 8,
        **SPECIAL,
    },
    "jamba": SIZES
    | EXPERTS
    | {
        "num_experts": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 4,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "falcon_h1": SIZES | SSM | {"mamba_d_ssm": 32, "mamba_n_heads": 4},
    "granitemoehybrid": SIZES
    | SSM
    | {
        "mamba_n_heads": 8,
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "shared_intermediate_size": 32,
    },
}
NO_CLASSIFIER = {"gemma4_text", "xglm", "olmoe", "lfm2", "mamba", "mamba2", "falcon_h1", "granitemoehybrid"}
NO_CLASSIFIER |= {"llama4_text", "cohere2", "granite"}
# Three of them end early, and lengths differ, so that rows leave the batch and padding would be seen.
PROMPTS = [[5, 9, 30], [40, 41, 42, 43, 44, 45, 46], [7, 8], [20, 21, 22, 23]]


def build(model_type: str, settings: dict):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
    for weight in model.parameters():  # so that a token's place and history move its successor's probability
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return model


def naive_logprobs(model, prompt: list[int], response: list[int]) -> torch.Tensor:
    logprobs = model(torch.tensor([prompt + response]), use_cache=False).logits[0].float().log_softmax(-1)
    return logprobs[len(prompt) - 1 : -1].gather(1, torch.tensor(response)[:, None]).squeeze(1)


# One of each kind: rotary, learned positions, ALiBi, text of one with images, experts, state space, hybrid, no classifier.
SHORT = ("llama", "gpt2", "bloom", "gemma3", "mixtral", "mamba", "qwen3_next", "xglm")


@pytest.mark.parametrize(
    "model_type", [pytest.param(name, marks=[] if name in SHORT else [pytest.mark.long]) for name in FAMILIES]
)
def test_family_samples_scores_learns_and_is_saved(tmp_path, model_type):
    model = build(model_type, FAMILIES[model_type]).eval()
    with torch.no_grad():
        responses = sample_responses(
            model,
            PROMPTS,
            max_new_tokens=8,
            eos_token_ids=list(range(2, 20)),
            pad_token_id=toys.PAD,
            generator=torch.Generator().manual_seed(2),
            return_logprobs=True,
        )
        ids = [response.token_ids for response in responses]
        assert len({len(row) for row in ids}) > 1
        batch = Rollout.from_responses(PROMPTS, ids, toys.PAD, "cpu").micro_batch([0, 1, 2, 3])
        batch = {name: batch[name] for name in MODEL_INPUTS}
        logprobs = response_logprobs(model, **batch)[0]
        for row, (prompt, response) in enumerate(zip(PROMPTS, responses, strict=True)):
            expected = naive_logprobs(model, prompt, response.token_ids)
            torch.testing.assert_close(torch.tensor(response.logprobs), expected, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(logprobs[row, : len(expected)], expected, atol=1e-4, rtol=1e-4)

    if model_type in NO_CLASSIFIER:
        with pytest.raises(InputError, match="has no sequence-classification form; set value_model: shared"):
            build_value_model(model, None)
    else:
        check_values(build_value_model(model, None), batch)

    kind = "shared" if model_type in NO_CLASSIFIER else "separate"
    trainer = toys.trainer(tmp_path, model=model, value_model=kind, max_steps=1, num_ppo_epochs=1, learning_rate=1e-2)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer.train()
    assert trainer.state.log_history[0]["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert trainer.state.log_history[0]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert any(not torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    trainer.save_model()
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = naive_logprobs(model.eval(), PROMPTS[0], ids[0])
        torch.testing.assert_close(naive_logprobs(again, PROMPTS[0], ids[0]), expected, atol=1e-5, rtol=1e-5)
        if kind == "separate":
            value_model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "value_model").eval()
            trained = response_values(trainer.model.value_model.eval(), **batch)
            torch.testing.assert_close(response_values(value_model, **batch), trained, atol=1e-5, rtol=1e-5)


def check_values(value_model, batch: dict) -> None:
    """Each row's values are those of the row alone."""
    torch.nn.init.normal_(value_model.score.weight)
    with torch.no_grad():
        values = response_values(value_model.eval(), **batch)
        for row in range(len(values)):
            prompt, length = int(batch["prompt_lengths"][row]), int(batch["response_lengths"][row])
            alone = {"input_ids": batch["input_ids"][row : row + 1, : prompt + length]}
            alone |= {name: batch[name][row : row + 1] for name in ("prompt_lengths", "response_lengths")}
            torch.testing.assert_close(values[row, :length], response_values(value_model, **alone)[0], atol=1e-4, rtol=1e-4)


def test_trunks_and_heads_under_other_names():
    """Llama 4's trunk is not called as its base_model_prefix says; CTRL's classifier has another head."""
    model = build("llama4_text", FAMILIES["llama4_text"]).eval()
    batch = {"input_ids": torch.tensor([PROMPTS[1]]), "prompt_lengths": torch.tensor([3])}
    batch["response_lengths"] = torch.tensor([4])
    expected = naive_logprobs(model, PROMPTS[1][:3], PROMPTS[1][3:])
    torch.testing.assert_close(response_logprobs(model, **batch)[0][0], expected, atol=1e-5, rtol=1e-5)
    sizes = {"vocab_size": 64, "n_embd": 32, "dff": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    with pytest.raises(InputError, match="CTRLLMHeadModel has no sequence-classification form; set value_model: shared"):
        build_value_model(build("ctrl", sizes), None)


@pytest.mark.parametrize(
    ("model_type", "settings", "message"),
    [
        (
            "rwkv",
            {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2},
            "a RwkvForCausalLM has no cache that transformers supports",
        ),
        (
            "minimax",
            SIZES | {"head_dim": 8, "num_local_experts": 2},
            "a MiniMaxForCausalLM has no cache that transformers supports",
        ),
        (
            "recurrent_gemma",
            SIZES | {"head_dim": 8, "lru_width": 32, "attention_window_size": 16, "block_types": ["recurrent", "attention"]},
            "a RecurrentGemmaForCausalLM lets padding into its state, .*batch size of generation to 1",
        ),
    ],
)
def test_families_that_would_sample_garbage_are_one_line(model_type, settings, message):
    model = build(model_type, settings).eval()
    with pytest.raises(InputError, match=message):
        sample_responses(model, PROMPTS, max_new_tokens=2, eos_token_ids=[toys.EOS], pad_token_id=toys.PAD)
