"""Sampling of responses from a causal language model: one batched decode loop for `sample` and `ppo`.

Why not `model.generate`: finished rows leave the batch at once (and cost nothing in later steps), no logits are kept,
every sampling setting is an argument (a model's own generation config, such as a repetition penalty, never applies), and
the draws come from a generator that the caller owns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrecipes.config import InputError
from llmrecipes.decoding import GrowingDecoder, StaticDecoder, check_static
from llmrecipes.templates import ANSWER, QUESTION, render

DRAW_BLOCK = 1 << 17  # numbers drawn at a time: 1 MiB, which a core's cache holds


class NotFiniteError(InputError):
    """The model's logits are NaN or infinite, so no token can be drawn."""


@dataclass
class Response:
    """One sampled response.

    token_ids: the new tokens, including the end-of-sequence token if the model emitted one.
    finish_reason: "stop" if the model ended the response itself (by EOS or a stop string), "length" if `max_new_tokens`
    cut it.
    logprobs: each token's log-probability at the temperature, before top_k and top_p; only with `return_logprobs`.
    token_mask, token_rewards: for PPO, one entry per token, set only by custom samplers: False on a token that the policy
    did not write (a tool's or a user's turn), and the environment's reward on the token.
    """

    token_ids: list[int]
    finish_reason: str
    logprobs: list[float] | None = None
    token_mask: list[bool] | None = None
    token_rewards: list[float] | None = None


def sample_responses(
    model: PreTrainedModel,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    eos_token_ids: list[int],
    pad_token_id: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
    stopping_criteria: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    progress: Callable[[int], object] | None = None,
    return_logprobs: bool = False,
    cache_implementation: str | None = None,
) -> list[Response]:
    """Samples one response for each prompt (repeat a prompt to get several), in the order of the prompts.

    temperature 0 is greedy decoding; top_k 0 and top_p 1.0 switch those filters off. `generator` must be on the model's
    device; the same generator state, prompts and batch size give the same responses. `pad_token_id` is only padding: it may
    be an end-of-sequence id, and prompts may contain it. `stopping_criteria` can end further rows: called with the new
    tokens (B, T) of the rows still decoding and their last logits (B, V), it returns a boolean (B,), as transformers'
    `StopStringCriteria` does; the tokens that complete a stop string stay in the response. `progress` is called with the
    number of newly finished responses (such as `tqdm.update`). cache_implementation: None or "static", which records
    the steps as CUDA graphs (`decoding.StaticDecoder`).

    Raises InputError for an empty prompt, a prompt that leaves no room for the response, or impossible settings, and its
    subclass NotFiniteError if a model's logits are NaN or infinite.
    """
    _check_request(model, prompts, max_new_tokens, temperature, top_k, top_p, batch_size)
    if cache_implementation is not None:
        check_static(model)
    responses: list[Response | None] = [None] * len(prompts)
    # Longest first: similar lengths need little padding, and the batch most likely to exhaust memory comes first.
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = _decode_batch(
                model, [prompts[row] for row in rows], max_new_tokens, eos_token_ids, pad_token_id,
                temperature, top_k, top_p, generator, stopping_criteria, progress, return_logprobs, cache_implementation,
            )  # fmt: skip
            for row, response in zip(rows, batch, strict=True):
                responses[row] = response
    finally:
        model.train(training)
    return responses


def _check_request(model, prompts, max_new_tokens, temperature, top_k, top_p, batch_size) -> None:
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens: {max_new_tokens} leaves no room for a response; give at least 1")
    if batch_size < 1:
        raise InputError(f"batch_size: {batch_size} must be at least 1")
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise InputError(
            f"sampling: temperature {temperature}, top_k {top_k}, top_p {top_p}; expected temperature >= 0, "
            "top_k >= 0 (0 = off) and 0 < top_p <= 1 (1 = off)"
        )
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise InputError(f"prompt {row}: is empty; a prompt needs at least one token")
        if context is not None and len(prompt) + max_new_tokens > context:
            raise InputError(
                f"prompt {row}: {len(prompt)} tokens + {max_new_tokens} new ones exceed the model's context of "
                f"{context}; shorten or drop the prompt, or allow fewer new tokens"
            )


@torch.no_grad()
def _decode_batch(
    model, prompts, max_new_tokens, eos_token_ids, pad_token_id, temperature, top_k, top_p, generator, stopping_criteria,
    progress, return_logprobs, cache_implementation,
) -> list[Response]:  # fmt: skip
    device = model.device
    input_ids, mask = (rows.to(device) for rows in _pad_left(prompts, pad_token_id))
    position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
    eos = torch.tensor(eos_token_ids, device=device)
    decoder = StaticDecoder(model, max_new_tokens) if cache_implementation else GrowingDecoder(model)

    tokens = torch.full((len(prompts), max_new_tokens), pad_token_id, device=device)
    logprobs = torch.zeros(tokens.shape, device=device) if return_logprobs else None
    lengths = torch.full((len(prompts),), max_new_tokens, device=device)
    stopped = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    alive = torch.arange(len(prompts), device=device)  # batch rows still decoding
    logits = decoder.start(input_ids, mask, position_ids)
    if any(hasattr(layer, "recurrent_states") for layer in decoder.cache.layers):
        _check_padding(model, input_ids, mask, logits)
    for step in range(max_new_tokens):
        chosen = sample_tokens(logits, temperature, top_k, top_p, generator)
        tokens[alive, step] = chosen
        if return_logprobs:
            logprobs[alive, step] = _chosen_logprobs(logits, chosen, temperature or 1.0)
        ended = torch.isin(chosen, eos)
        if stopping_criteria is not None:
            ended |= stopping_criteria(tokens[alive, : step + 1], logits)
        if ended.any():
            lengths[alive[ended]] = step + 1
            stopped[alive[ended]] = True
            keep = (~ended).nonzero().squeeze(-1)
            if progress is not None:
                progress(len(alive) - len(keep))
            alive = alive[keep]
            if len(alive) == 0:
                break
            decoder.keep(keep)
            chosen = chosen[keep]
        if step + 1 < max_new_tokens:
            logits = decoder.step(chosen)
    if progress is not None and len(alive):
        progress(len(alive))
    told = logprobs.tolist() if return_logprobs else [None] * len(prompts)
    return [
        Response(row[:length], "stop" if stop else "length", values and values[:length])
        for row, length, stop, values in zip(tokens.tolist(), lengths.tolist(), stopped.tolist(), told, strict=True)
    ]


def _pad_left(prompts: list[list[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, T) of the prompts, which all end at the last column, and their mask (B, T)."""
    width = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), width), pad_token_id)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return input_ids, mask


def _check_padding(model: PreTrainedModel, input_ids: torch.Tensor, mask: torch.Tensor, logits: torch.Tensor) -> None:
    """Raises InputError if the logits of the row with the most padding differ from those of the row alone: some recurrent
    architectures let padding into their state (seen in RecurrentGemma)."""
    row = int(mask.sum(1).argmin())
    length = int(mask[row].sum())
    if length == input_ids.shape[1]:
        return
    alone = model(input_ids=input_ids[row : row + 1, -length:], use_cache=False).logits[0, -1]
    if (alone - logits[row]).abs().mean() > 0.1 * alone.std():
        raise InputError(
            f"model: a {type(model).__name__} lets padding into its state, so prompts of different length cannot be sampled "
            "together; set the batch size of generation to 1"
        )


def _at_temperature(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    logits = logits.float()
    return logits if temperature == 1 else logits / temperature  # dividing by 1 copies a vocabulary for every row


def _chosen_logprobs(logits: torch.Tensor, chosen: torch.Tensor, temperature: float) -> torch.Tensor:
    """Logits (B, V), token ids (B,) -> the tokens' log-probabilities (B,)."""
    logits = _at_temperature(logits, temperature)
    return logits.gather(-1, chosen[:, None]).squeeze(-1) - logits.logsumexp(-1)


def sample_tokens(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator | None
) -> torch.Tensor:
    """Draws one token id per row of `logits` (B, V) -> (B,). In the order of Hugging Face's `generate`: temperature, top-k,
    then the smallest set of tokens whose total probability reaches top_p (nucleus sampling, arXiv 1904.09751)."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = _at_temperature(logits, temperature)
    if 0 < top_k < logits.shape[-1]:
        kth_best = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth_best, -torch.inf)
    if top_p < 1:
        ascending, order = logits.sort(dim=-1)
        # Drop the tail whose total probability is within 1 - top_p; the most likely token always stays.
        drop = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        drop[:, -1] = False
        logits = logits.masked_fill(torch.zeros_like(drop).scatter(1, order, drop), -torch.inf)
    probabilities = logits.softmax(-1)
    # One NaN makes a whole row NaN. multinomial would raise, and on a GPU trip an assertion that kills the CUDA context.
    if probabilities[:, 0].isnan().any():
        raise NotFiniteError("sampling: the model's logits are NaN or infinite; its weights are damaged, use earlier ones")
    return _draw(probabilities, generator)


def _draw(probabilities: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """(B, V) -> (B,): `torch.multinomial(probabilities, 1)`, the same tokens for the same generator.

    multinomial takes the token with the largest p / q, q ~ Exp(1), and on a CPU computes q = -log(1 - u) from a uniform u
    in double precision, one number after the other: nine tenths of its time. Here the logarithm is vectorised.
    """
    if probabilities.device.type != "cpu":
        return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)
    tokens = []
    for part in probabilities.split(max(1, DRAW_BLOCK // probabilities.shape[1])):
        uniform = torch.rand(part.shape, dtype=torch.float64, generator=generator)
        tokens.append((part / uniform.neg_().log1p_().float()).argmin(-1))  # argmin: p / -q
    return torch.cat(tokens)


def answer_texts(tokenizer: PreTrainedTokenizerBase, responses: Sequence[Sequence[int]]) -> list[str]:
    """The text of each response's token ids, as it would stand in a turn. Where the chat template leads into an answer with
    words between special tokens (gpt-oss: <|channel|>final<|message|>), what comes before the answer is left out: its words
    would run into it without the tokens."""
    lead = _lead_into_answer(tokenizer, str(tokenizer.chat_template or ""))  # Cohere's has several, by name
    if lead:
        size = len(lead)
        starts = [[i + size for i in range(len(ids)) if list(ids[i : i + size]) == lead] or [0] for ids in responses]
        responses = [ids[found[-1] :] for ids, found in zip(responses, starts, strict=True)]
    return tokenizer.batch_decode(responses, skip_special_tokens=True)


@lru_cache(maxsize=8)
def _lead_into_answer(tokenizer: PreTrainedTokenizerBase, template: str) -> list[int]:
    """The tokens that the template writes between the generation prompt and an answer, if they are words beside special
    tokens; else nothing."""
    asked, answer = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}
    try:
        before = render(tokenizer, [asked], "", add_generation_prompt=True) if template else ""
        whole = render(tokenizer, [asked, answer], "") if template else ""
    except InputError:  # the template refuses the test conversation
        return []
    if not template or not whole.startswith(before) or ANSWER not in whole:
        return []
    ids = tokenizer(whole[len(before) :].partition(ANSWER)[0], add_special_tokens=False)["input_ids"]
    words = tokenizer.decode(ids, skip_special_tokens=True)
    return ids if words.strip() and words != tokenizer.decode(ids) else []
