"""The forward pass on response tokens equals the naive one, whatever stands in the padding."""

import ppo_toys as toys
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from llmrecipes.ppo.policy_value import (
    PolicyAndValue,
    build_value_head,
    build_value_model,
    response_logprobs,
    response_values,
)
from llmrecipes.ppo.rollout import Rollout, forward_rollout, split_rollout
from llmrecipes.ppo.sharding import FrozenModel


def rollout(pad_token_id: int = toys.PAD, rows: int = 6) -> Rollout:
    generator = torch.Generator().manual_seed(0)

    def some(low, high):
        length = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(4, toys.VOCABULARY, (length,), generator=generator).tolist()

    prompts = [[toys.EOS, *some(1, 7)] for _ in range(rows)]  # prompts may contain EOS
    responses = [some(1, 9) + [toys.EOS] * (row % 2) for row in range(rows)]
    return Rollout.from_responses(prompts, responses, pad_token_id, "cpu")


def gemma2():
    torch.manual_seed(0)
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=toys.VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            final_logit_softcapping=5.0,
        )
    )


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=toys.VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=4))


@pytest.mark.parametrize("build", [toys.policy, gpt2, gemma2])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_and_entropy_equal_those_of_each_row_alone(build, temperature):
    policy = build().eval()
    batch = rollout().micro_batch([3, 0, 5, 1])
    logprobs, entropy = response_logprobs(policy, **batch, temperature=temperature, return_entropy=True)
    for row in range(4):
        prompt, response = int(batch["prompt_lengths"][row]), int(batch["response_lengths"][row])
        ids = batch["input_ids"][row : row + 1, : prompt + response]
        naive = (policy(ids).logits[0].float() / temperature).log_softmax(-1)[prompt - 1 : -1]
        expected = naive.gather(1, ids[0, prompt:, None]).squeeze(1)
        torch.testing.assert_close(logprobs[row, :response], expected, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(entropy[row, :response], -(naive.exp() * naive).sum(1), atol=2e-5, rtol=1e-4)
        assert not logprobs[row, response:].any() and not entropy[row, response:].any()


def test_values_are_those_of_the_state_before_each_token():
    model = toys.reward_model().eval()
    batch = rollout().micro_batch([2, 4])
    values = response_values(model, **batch)
    for row in range(2):
        prompt, response = int(batch["prompt_lengths"][row]), int(batch["response_lengths"][row])
        hidden = model.model(batch["input_ids"][row : row + 1, : prompt + response]).last_hidden_state
        torch.testing.assert_close(values[row, :response], model.score(hidden)[0, prompt - 1 : -1, 0])


def test_pad_equal_to_eos_gives_identical_outputs_and_loss_on_eos():
    model = PolicyAndValue(toys.policy(), toys.reward_model()).eval()
    outputs = []
    for pad in (toys.PAD, toys.EOS):
        batch = rollout(pad).micro_batch(list(range(6)))
        outputs.append(model(**batch))
        ends = batch["prompt_lengths"] + batch["response_lengths"] - 1
        last = outputs[-1][0][torch.arange(6), batch["response_lengths"] - 1]
        finished = batch["input_ids"][torch.arange(6), ends] == toys.EOS
        assert finished.sum() == 3 and (last[finished] < 0).all()
    for padded, other in zip(*outputs, strict=True):
        assert padded is other is None or torch.equal(padded, other)


def test_value_model_starts_from_the_reward_model_or_at_zero():
    policy, reward = toys.policy(), toys.reward_model()
    copied = build_value_model(policy, reward.requires_grad_(False))
    assert all(torch.equal(a, b) for a, b in zip(copied.parameters(), reward.parameters(), strict=True))
    assert all(p.requires_grad for p in copied.parameters())
    assert copied.score.weight.data_ptr() != reward.score.weight.data_ptr()
    fresh = build_value_model(policy, None)
    batch = rollout().micro_batch([0, 1, 2])
    assert not response_values(fresh, **batch).any()
    assert torch.equal(fresh.model.layers[0].mlp.up_proj.weight, policy.model.layers[0].mlp.up_proj.weight)


def test_splits_cover_every_row_once_and_rows_of_a_micro_batch_are_alike():
    lengths = torch.randint(1, 100, (24,), generator=torch.Generator().manual_seed(0))
    split = split_rollout(lengths, 3, 4, torch.Generator().manual_seed(0))
    assert sorted(row for minibatch in split for part in minibatch for row in part) == list(range(24))
    assert [len(part) for minibatch in split for part in minibatch] == [4] * 6
    for minibatch in split:
        flat = lengths[[row for part in minibatch for row in part]]
        assert torch.equal(flat, flat.sort().values)
    assert split != split_rollout(lengths, 3, 4, torch.Generator().manual_seed(1))


def test_reference_equal_to_the_policy_gives_zero_kl_in_any_micro_batches():
    model = PolicyAndValue(toys.policy(), toys.reward_model()).eval()
    batch = rollout()
    with torch.no_grad():
        reference, _ = forward_rollout(model, FrozenModel(toys.policy()), batch, [[0, 1, 2], [3, 4, 5]], 1.0)
        first = batch.logprobs.clone()
        forward_rollout(model, FrozenModel(toys.policy()), batch, [[5], [0, 4], [1, 2, 3]], 1.0)
    assert torch.equal(first, reference)
    torch.testing.assert_close(batch.logprobs, first, atol=2e-5, rtol=0)


@pytest.mark.parametrize("build", [toys.policy, gpt2, gemma2])
def test_chunks_change_neither_logprobs_nor_gradients_nor_make_larger_logits(build):
    batch = rollout().micro_batch(list(range(6)))
    results, shapes = [], []
    for chunk_size in (None, 5, 1):
        policy = build()
        policy.get_output_embeddings().register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
        shapes.clear()
        logprobs, entropy = response_logprobs(policy, **batch, temperature=0.7, return_entropy=True, chunk_size=chunk_size)
        (logprobs.exp() * torch.arange(1, 1 + logprobs.shape[1])).sum().backward()
        results.append((logprobs, entropy, *(p.grad for p in policy.parameters())))
        assert chunk_size is None or max(shape.numel() // shape[-1] for shape in shapes) <= chunk_size
    for chunked in results[1:]:
        for got, expected in zip(chunked, results[0], strict=True):
            torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-4)


class VocabularyRows(TorchDispatchMode):
    """The most rows of any tensor (..., V) that is made, be it logits, probabilities or a gradient."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.vocabulary, self.most = vocabulary, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for part in tree_leaves(output):
            if isinstance(part, torch.Tensor) and part.shape[-1:] == (self.vocabulary,):
                self.most = max(self.most, part.numel() // self.vocabulary)
        return output


@pytest.mark.parametrize("arguments", [{}, {"value_model": "shared", "kl_in": "loss", "temperature": 0.7, "top_k": 100}])
def test_no_tensor_over_the_vocabulary_is_larger_than_a_chunk_or_a_decode_step(tmp_path, arguments):
    vocabulary, chunk = 512, 40  # a weight (V, H) transposed has 32 rows, a decode step 16, a micro-batch's responses 64
    trainer = toys.trainer(
        tmp_path,
        model=toys.policy(vocabulary=vocabulary),
        tok=toys.tokenizer(vocabulary=vocabulary),
        max_steps=1,
        per_device_train_batch_size=8,
        logprob_chunk_size=chunk,
        trainer_arguments={"eval_dataset": toys.prompts(8)},
        **arguments,
    )
    with VocabularyRows(vocabulary) as rows:
        trainer.train()
        trainer.evaluate()
    lengths = trainer._rollout.response_lengths
    assert lengths.sum() > 2 * chunk and rows.most == chunk


def test_disabled_adapter_equals_a_frozen_copy():
    frozen, batch = toys.policy().eval(), rollout().micro_batch([0, 1, 2])
    policy = get_peft_model(toys.policy(), LoraConfig(target_modules="all-linear", init_lora_weights=False)).eval()
    model = PolicyAndValue(policy, build_value_head(frozen))
    with torch.no_grad():
        reference = model.reference_logprobs(None, batch, 1.0)
        assert torch.equal(reference, response_logprobs(frozen, **batch)[0])
        assert (model(**batch)[0] - reference).abs().max() > 1e-3


def test_shared_trunk_reads_values_from_the_policys_hidden_states_and_trains_it():
    policy, batch = toys.policy(), rollout().micro_batch([0, 1])
    model = PolicyAndValue(policy, build_value_head(policy))
    assert not model(**batch)[2].any()
    torch.nn.init.ones_(model.value_model.weight)
    values = model(**batch)[2]
    for row in range(2):
        prompt, response = int(batch["prompt_lengths"][row]), int(batch["response_lengths"][row])
        hidden = policy.model(batch["input_ids"][row : row + 1, : prompt + response]).last_hidden_state
        torch.testing.assert_close(values[row, :response], hidden.sum(-1)[0, prompt - 1 : -1], atol=1e-5, rtol=1e-4)
    values.sum().backward()
    assert policy.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0 and policy.lm_head.weight.grad is None
