"""Measures from a model's probabilities: perplexity and bits per byte of held-out text, KL from another model."""

import math
from collections.abc import Iterator

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrecipes import metrics
from llmrecipes.models import context_length


@torch.no_grad()
def score_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    max_length: int = 1024,
    batch_size: int = 16,
) -> list[tuple[float, int, int]]:
    """(summed negative log-likelihood in nats, number of tokens scored, UTF-8 bytes) of each text.

    A text is scored from its first token on, given BOS (or EOS, which precedes a document in packed training); its final
    EOS is not scored. A text longer than max_length or the model's context is split into windows, each beginning with the
    last token of the one before, so that every token is scored exactly once.
    """
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    length = min(context_length(model) or max_length, max_length)
    windows = []  # (number of the text, token ids)
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]  # as pretraining learns it
    for number, ids in enumerate(encoded):
        ids = [start, *ids]
        windows += [(number, ids[i : i + length]) for i in range(0, max(1, len(ids) - 1), length - 1)]
    totals = [0.0] * len(texts)
    for rows in tqdm(list(_batches(windows, batch_size)), desc="held-out text", leave=False, disable=None):
        input_ids, mask = _pad([ids for _, ids in rows], tokenizer.pad_token_id, model.device)
        logits = model(input_ids=input_ids, attention_mask=mask).logits[:, :-1].float()
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), input_ids[:, 1:], reduction="none")
        nll = (nll * mask[:, 1:]).double().sum(-1).tolist()
        for (number, _), value in zip(rows, nll, strict=True):
            totals[number] += value
    return [(nll, len(ids), len(text.encode())) for nll, ids, text in zip(totals, encoded, texts, strict=True)]


def summarise_texts(scores: list[tuple[float, int, int]]) -> dict[str, metrics.Estimate]:
    """Over all texts together, with bootstrap intervals that resample texts: `perplexity`, exp(nll / tokens) (Jelinek et al.
    1977), comparable only between models with the same tokenizer; `bits_per_byte`, nll / (bytes ln 2), comparable between
    any two (Gao et al. 2020, section 3)."""
    scores = [score for score in scores if score[1]]
    nll, tokens, num_bytes = zip(*scores, strict=True)
    per_token, per_byte = metrics.ratio(nll, tokens), metrics.ratio(nll, num_bytes)
    return {
        "perplexity": metrics.Estimate(*map(math.exp, per_token[:3]), len(scores)),
        "bits_per_byte": metrics.Estimate(*(value / math.log(2) for value in per_byte[:3]), len(scores)),
    }


@torch.no_grad()
def kl_divergences(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    prompts: list[list[int]],
    responses: list[list[int]],
    pad_token_id: int,
    batch_size: int = 32,
) -> list[float]:
    """KL(policy || reference) in nats for each response, summed over its tokens.

    By the chain rule KL = E_y[Σ_t KL_t(y_<t)], with KL_t = Σ_v p(v | prompt, y_<t) (log p(v | ...) - log q(v | ...)). The
    sum over the vocabulary is exact; only the expectation over responses y, which must be samples of `policy` at temperature
    1, is Monte Carlo. This has less variance than the log ratio of the sampled tokens alone (k1).
    """
    rows = list(enumerate([prompt + response for prompt, response in zip(prompts, responses, strict=True)]))
    result = [0.0] * len(rows)
    for batch in tqdm(list(_batches(rows, batch_size)), desc="KL", leave=False, disable=None):
        input_ids, mask = _pad([ids for _, ids in batch], pad_token_id, policy.device)
        logits = [m(input_ids=input_ids, attention_mask=mask).logits[:, :-1] for m in (policy, reference)]
        # Models with the same tokenizer may pad their vocabularies to different sizes; ids beyond the smaller have no
        # meaning.
        width = min(part.shape[-1] for part in logits)
        log_p, log_q = (part[..., :width].float().log_softmax(-1) for part in logits)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        for row, (number, ids) in enumerate(batch):
            # Logits at position t predict token t + 1; the first position used predicts the response's first token.
            result[number] = kl[row, len(prompts[number]) - 1 : len(ids) - 1].double().sum().item()
    return result


def _batches(rows: list, batch_size: int) -> Iterator[list]:
    """Batches of rows of similar length, so that there is little padding."""
    rows = sorted(rows, key=lambda row: -len(row[1]))
    yield from (rows[i : i + batch_size] for i in range(0, len(rows), batch_size))


def _pad(rows: list[list[int]], pad_token_id: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids (B, T) and mask (B, T)."""
    tensors = [torch.tensor(ids) for ids in rows]
    input_ids = pad_sequence(tensors, batch_first=True, padding_value=pad_token_id)
    mask = pad_sequence([torch.ones_like(ids) for ids in tensors], batch_first=True)
    return input_ids.to(device), mask.to(device)
