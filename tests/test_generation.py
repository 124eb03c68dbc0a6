"""The decode loop equals Hugging Face generate, stays reproducible, and is untouched by a model's generation
config."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicLayer

from llmrecipes import decoding, generation
from llmrecipes.config import InputError
from llmrecipes.generation import answer_texts, sample_responses, sample_tokens
from llmrecipes.reward_models.scoring import sampled_response_tokens
from llmrecipes.tokenizers import train_tokenizer

VOCABULARY, EOS, OTHER_EOS, PAD = 48, 1, 7, 0


def tiny_model(architecture: str = "llama"):
    torch.manual_seed(0)
    if architecture == "gpt2":
        config = GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=4)
        return GPT2LMHeadModel(config).eval()
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def prompts(count: int = 12) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 9, (count,), generator=generator).tolist()
    return [torch.randint(2, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def sample(model, rows, **changes):
    settings = {"max_new_tokens": 16, "eos_token_ids": [EOS, OTHER_EOS], "pad_token_id": PAD, "batch_size": 5}
    return sample_responses(model, rows, **{**settings, **changes})


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_greedy_equals_hugging_face_generate(architecture):
    model = tiny_model(architecture)
    responses = sample(model, prompts(), temperature=0.0)
    for prompt, response in zip(prompts(), responses, strict=True):
        expected = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=16,
            eos_token_id=[EOS, OTHER_EOS],
            pad_token_id=PAD,
        )[0, len(prompt) :].tolist()
        assert response.token_ids == expected
        assert response.finish_reason == ("stop" if expected[-1] in (EOS, OTHER_EOS) else "length")
    assert {response.finish_reason for response in sample(model, prompts(40), max_new_tokens=40)} == {"stop", "length"}


def test_a_model_with_an_adapter_is_sampled_as_its_merged_weights_are():
    torch.manual_seed(3)
    wrapped = get_peft_model(tiny_model(), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False))
    wrapped.eval()
    answers = sample(wrapped, prompts(), temperature=0.0)
    assert answers == sample(wrapped.merge_and_unload(), prompts(), temperature=0.0)


def test_pad_equal_to_eos_changes_nothing():
    model = tiny_model()
    seeded = [torch.Generator().manual_seed(5) for _ in range(2)]
    rows = [[EOS, *prompt] for prompt in prompts()]  # prompts may contain EOS
    assert sample(model, rows, generator=seeded[0]) == sample(model, rows, pad_token_id=EOS, generator=seeded[1])


def test_same_generator_state_same_responses():
    model = tiny_model()
    first, second, other = (sample(model, prompts(), generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first == second != other


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_cache_with_room_changes_no_bit(monkeypatch, architecture):
    model, told = tiny_model(architecture), []
    for layer in (decoding.RoomyLayer, DynamicLayer):
        monkeypatch.setattr(decoding, "RoomyLayer", layer)
        settings = {"max_new_tokens": 40, "generator": torch.Generator().manual_seed(1), "return_logprobs": True}
        told.append(sample(model, prompts(40), batch_size=20, **settings))
    lengths = [len(response.token_ids) for response in told[0]]
    assert told[0] == told[1] and min(lengths) < 5 < 35 < max(lengths)  # rows left the batch, and the room was renewed


def test_a_draw_is_that_of_torch_multinomial():
    logits = torch.randn(400, 500, generator=torch.Generator().manual_seed(0))
    logits[:, ::3] = -torch.inf
    assert generation.DRAW_BLOCK < logits.numel()  # more than one block
    own, theirs = (torch.Generator().manual_seed(3) for _ in range(2))
    drawn = sample_tokens(logits, 1.0, 0, 1.0, own)
    assert torch.equal(drawn, torch.multinomial(logits.softmax(-1), 1, generator=theirs).squeeze(-1))
    assert torch.equal(own.get_state(), theirs.get_state())


def test_logprobs_are_the_models_at_the_temperature_and_before_the_filters():
    model = tiny_model()
    settings = {"temperature": 0.7, "top_k": 5}
    plain, told = (
        sample(model, prompts(), generator=torch.Generator().manual_seed(1), return_logprobs=told, **settings)
        for told in (False, True)
    )
    assert [r.token_ids for r in told] == [r.token_ids for r in plain] and {r.logprobs for r in plain} == {None}
    for prompt, response in zip(prompts(), told, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response.token_ids])).logits[0, len(prompt) - 1 : -1]
        expected = (logits / 0.7).log_softmax(-1)[range(len(response.token_ids)), response.token_ids]
        assert response.logprobs == pytest.approx(expected.tolist(), abs=1e-5)


def test_generation_config_does_not_leak():
    model = tiny_model()
    clean = sample(model, prompts(), generator=torch.Generator().manual_seed(1))
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.temperature = 0.1
    model.generation_config.max_new_tokens = 2
    assert sample(model, prompts(), generator=torch.Generator().manual_seed(1)) == clean


def test_samples_follow_the_model_distribution():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    draws = sample_tokens(logits.expand(40_000, -1), 2.0, 0, 1.0, torch.Generator().manual_seed(0))
    shares = torch.bincount(draws, minlength=4) / len(draws)
    torch.testing.assert_close(shares, (logits[0] / 2).softmax(-1), atol=0.01, rtol=0)


@pytest.mark.parametrize(("top_k", "top_p", "allowed"), [(2, 1.0, {0, 1}), (0, 0.6, {0}), (0, 0.8, {0, 1}), (1, 0.9, {0})])
def test_filters_keep_only_the_best_tokens(top_k, top_p, allowed):
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(500, -1)  # probabilities .64 .24 .09 .03
    assert set(sample_tokens(logits, 1.0, top_k, top_p, torch.Generator().manual_seed(0)).tolist()) == allowed


def test_progress_counts_every_response_once():
    counts = []
    sample(tiny_model(), prompts(), progress=counts.append)
    assert sum(counts) == len(prompts())


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([[2], []], {}, "prompt 1: is empty"),
        ([[2], [3] * 60], {}, "prompt 1: 60 tokens"),
        ([[2]], {"max_new_tokens": 0}, "max_new_tokens: 0"),
        ([[2]], {"top_p": 0.0}, "top_p 0.0"),
    ],
)
def test_bad_requests_are_refused(rows, changes, message):
    with pytest.raises(InputError, match=message):
        sample(tiny_model(), rows, **changes)


# As gpt-oss's: an answer is the last of several messages, each led into by the name of its channel.
CHANNELS = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>"
    "{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)


def test_an_answers_text_has_no_words_of_the_template():
    tokenizer = train_tokenizer(["final analysis assistant Paris. Easy."] * 5, vocab_size=320, max_length=64)
    names = ["start", "channel", "message", "end"]
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{name}|>" for name in names]})
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    final = ids("<|channel|>final<|message|>Paris.<|end|>")
    thought = ids("<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant")
    ours = tokenizer.chat_template
    named = {"default": CHANNELS, "tool_use": ours}
    for template, said in ((CHANNELS, "Paris."), (named, "Paris."), (ours, "finalParis."), (None, "finalParis.")):
        tokenizer.chat_template = template
        assert answer_texts(tokenizer, [final, ids("Paris."), []]) == [said, "Paris.", ""]
    tokenizer.chat_template = CHANNELS
    assert answer_texts(tokenizer, [[*thought, *final]]) == ["Paris."]
    question = [{"role": "user", "content": "Easy."}]
    read = sampled_response_tokens(tokenizer, tokenizer, question, [], [*thought, *final], True)
    whole = [*question, {"role": "assistant", "content": "Paris."}]
    assert read == tokenizer.apply_chat_template(whole, return_dict=True)["input_ids"]
