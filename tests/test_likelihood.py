"""Perplexity, bits per byte and KL divergence of texts, whatever the batch and the padding."""

import copy
import math

import pytest
import torch
from evaluation_toys import TEXTS, build, log_likelihood

from llmrecipes.evaluation.behaviours import kl_from
from llmrecipes.evaluation.likelihood import kl_divergences, score_texts, summarise_texts
from llmrecipes.tokenizers import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 5, vocab_size=320, max_length=64)


@pytest.fixture(scope="module")
def model(tokenizer):
    return build(tokenizer)


# --- likelihood -------------------------------------------------------------------------------------------------------


def test_likelihood_of_texts_does_not_depend_on_batch_and_padding(model, tokenizer):
    for text, (nll, tokens, num_bytes) in zip(TEXTS, score_texts(model, tokenizer, TEXTS, batch_size=3), strict=True):
        ids = tokenizer(text)["input_ids"]
        assert nll == pytest.approx(-log_likelihood(model, [tokenizer.eos_token_id], ids), rel=1e-5)
        assert (tokens, num_bytes) == (len(ids), len(text.encode()))


def test_long_text_is_scored_in_windows_each_token_once(model, tokenizer):
    text = " ".join(TEXTS)
    ids = tokenizer(text)["input_ids"]
    [(nll, tokens, _)] = score_texts(model, tokenizer, [text], max_length=8)
    chain = [tokenizer.eos_token_id, *ids]
    direct = sum(log_likelihood(model, chain[i : i + 1], chain[i + 1 : i + 8]) for i in range(0, len(ids), 7))
    assert nll == pytest.approx(-direct, rel=1e-5) and tokens == len(ids) > 16


def test_perplexity_and_bits_are_those_of_all_texts_together(model, tokenizer):
    scores = score_texts(model, tokenizer, TEXTS)
    nll, tokens, num_bytes = (sum(column) for column in zip(*scores, strict=True))
    summary = summarise_texts(scores)
    assert summary["perplexity"].value == pytest.approx(torch.tensor(nll / tokens).exp().item(), rel=1e-5)
    assert summary["bits_per_byte"].value == pytest.approx(nll / num_bytes / 0.6931471805599453, rel=1e-9)
    assert summary["perplexity"].low < summary["perplexity"].value < summary["perplexity"].high


def test_kl_equals_the_sum_over_the_vocabulary_at_each_position(model, tokenizer):
    other = build(tokenizer, seed=1)
    prompts, responses = [[5, 6, 7], [8]], [[9, 10], [11, 12, 13, 14]]
    for prompt, response, kl in zip(
        prompts, responses, kl_divergences(model, other, prompts, responses, tokenizer.pad_token_id), strict=True
    ):
        direct = 0.0
        for t in range(len(response)):
            with torch.no_grad():
                p, q = (m(torch.tensor([prompt + response[:t]])).logits[0, -1].softmax(-1) for m in (model, other))
            direct += (p * (p / q).log()).sum().item()
        assert kl == pytest.approx(direct, rel=1e-4)


def test_kl_from_itself_is_zero_and_from_another_model_positive(model, tokenizer):
    settings = {"max_new_tokens": 4, "batch_size": 4, "seed": 0}
    prompts = [{"role": "user", "content": "cat"}]
    assert kl_from(model, model, tokenizer, [prompts] * 3, **settings).value == pytest.approx(0, abs=1e-6)
    assert kl_from(model, build(tokenizer, 1), tokenizer, [prompts] * 3, **settings).low > 0


def test_kl_between_vocabularies_padded_to_different_sizes(model, tokenizer):
    wider = copy.deepcopy(model)
    wider.resize_token_embeddings(len(tokenizer) + 64, mean_resizing=False)
    prompts, responses = [[5, 6], [7]], [[8, 9], [10]]
    same, padded = (kl_divergences(model, other, prompts, responses, tokenizer.pad_token_id) for other in (model, wider))
    assert padded == pytest.approx(same, abs=1e-5)


def test_perplexity_of_a_uniform_guess_is_the_vocabulary():
    assert summarise_texts([(10 * math.log(2048), 10, 7)])["perplexity"].value == pytest.approx(2048)


def test_a_model_that_gives_each_byte_one_half_needs_one_bit_per_byte():
    assert summarise_texts([(7 * math.log(2), 3, 7)])["bits_per_byte"].value == pytest.approx(1.0)
