"""PPO's experience: responses sampled from the policy, scored and turned into advantages (steps 1 to 5 of the algorithm).

Each function takes the PPOTrainer, whose models, arguments and counters it uses.
"""

import inspect
import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial

import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from llmrecipes.config import InputError
from llmrecipes.generation import NotFiniteError, answer_texts
from llmrecipes.ppo.compilation import uncompiled
from llmrecipes.ppo.completions import completion_table, write_completions
from llmrecipes.ppo.losses import (
    adapt_kl_coef,
    adjust_scores,
    apply_missing_eos_penalty,
    generalized_advantage_estimate,
    importance_sampling_ratio,
    kl_estimate,
    shape_rewards,
    whiten,
)
from llmrecipes.ppo.policy_value import causal_lm
from llmrecipes.ppo.rollout import Rollout, explained_variance, forward_rollout, mismatch_statistics, row_statistics
from llmrecipes.ppo.sharding import FrozenModel, run_within, whole_weights

SAMPLE, SPLIT, EVALUATE = range(3)  # what a random generator is for


@torch.no_grad()
def make_rollout(trainer, rows: dict[str, list]) -> Rollout:
    """Samples responses to the prompts, R on this process, and turns their scores into advantages and returns (R, T)."""
    args = trainer.args
    trainer.model.eval()
    # 1. Sample and score.
    number = trainer.state.global_step // args.steps_per_rollout
    generator = trainer.generator(SAMPLE, number, device=args.device)
    columns: dict[str, list] = {}
    rollout, raw_scores, finished, token_ids = sample_and_score(trainer, rows, generator, trainer._record, columns)
    total = trainer.rewards.total(raw_scores)
    scores = adjust_scores(total, args.normalize_scores, args.score_clip, trainer.all_reduce)
    scores = apply_missing_eos_penalty(scores, finished, args.missing_eos_penalty, args.missing_eos_mode)

    # 2. Log-probabilities under the policy (unless the sampler's are used) and the reference, and values; in the same
    # micro-batches as the first epoch, so that the first probability ratio is exactly 1 (rounding depends on padding).
    started = time.perf_counter()
    micro_batches = [part for minibatch in trainer.split(rollout, 0) for part in minibatch]
    ref_logprobs, entropy = forward_models(trainer, rollout, micro_batches)
    trainer._record("time/rollout_forward", time.perf_counter() - started, 1)
    written = rollout.mask()
    correct_sampler_mismatch(trainer, rollout, written)

    # 3. Rewards: the KL penalty on each token (unless it is in the loss), the environment's rewards, the score on the last.
    penalty = trainer.kl_coef if args.kl_in == "reward" else 0.0
    k1 = kl_estimate(rollout.logprobs, ref_logprobs, "k1")
    rewards = shape_rewards(scores, k1, rollout.response_lengths, penalty, rollout.token_mask, rollout.token_rewards)
    if args.mask_truncated_completions:
        rollout.token_mask = written & finished[:, None]
    mask = rollout.mask()  # the tokens trained on
    if args.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False, all_reduce=trainer.all_reduce)

    # 4. Advantages and returns.
    rollout.advantages, rollout.returns = generalized_advantage_estimate(rewards, rollout.values, mask, args.gamma, args.lam)
    explained = explained_variance(rollout.values, rollout.returns, mask) if mask.any() else 0.0
    trainer._record("explained_variance", explained, bool(mask.any()))
    if args.whiten_advantages:
        rollout.advantages = whiten(rollout.advantages, mask, all_reduce=trainer.all_reduce)
    trainer.check_finite(rollout.advantages, "an advantage")

    # 5. Report; adapt the KL coefficient.
    kl = kl_estimate(rollout.logprobs, ref_logprobs, args.kl_estimator) * written
    record_rollout(trainer, rollout, raw_scores, finished, kl, entropy * written)
    keep_some(trainer, rows, token_ids, total, kl, columns)
    if args.kl_target is not None:
        mean_kl = (trainer.all_reduce(kl.sum()) / args.rollout_batch_size).item()
        size, horizon = args.rollout_batch_size, args.kl_horizon
        trainer.kl_coef = adapt_kl_coef(trainer.kl_coef, mean_kl, args.kl_target, size, horizon)
    return rollout


def sample_and_score(
    trainer, rows: dict[str, list], generator: torch.Generator, record: Callable, columns: dict[str, list]
) -> tuple[Rollout, torch.Tensor, torch.Tensor, list[list[int]]]:
    """Samples and scores: (rollout without log-probabilities, raw scores (R, functions), finished (R,), the responses' token
    ids). record: called as (name, sum, count) with timings in seconds and with what reward functions log. columns: is given
    what they log about each response, name -> R values."""
    args, started = trainer.args, time.perf_counter()
    if args.use_vllm:
        trainer.sampler.sync_weights(trainer.state.global_step)
    with trainer.accelerator.autocast():
        responses = sample(trainer, rows["prompt_ids"], generator)
        sampled = time.perf_counter()
        token_ids = [response.token_ids for response in responses]
        finished = [response.finish_reason == "stop" for response in responses]
        with on_device(trainer, *trainer.rewards.models):
            offered = {
                "trainer_state": trainer.state,
                "log_metric": lambda name, value: record(name, float(value), 1),
                "log_extra": lambda column, values: columns.setdefault(column, []).extend(values),
            }
            size = args.per_device_train_batch_size
            scores = trainer.rewards.score(rows, token_ids, finished, size, args.device, offered)
    for column, values in columns.items():
        if len(values) != len(token_ids):
            raise InputError(f"log_extra: column {column} has {len(values)} values for {len(token_ids)} responses")
    record("time/sample", sampled - started, 1)
    record("time/score", time.perf_counter() - sampled, 1)
    rollout = Rollout.from_responses(rows["prompt_ids"], token_ids, trainer.pad_token_id, args.device)
    rollout.take_from_sampler(responses)
    if args.old_logprobs == "sampler":
        if rollout.sampling_logprobs is None:
            raise InputError("old_logprobs: sampler needs log-probabilities, which this one does not return; use recompute")
        rollout.logprobs, rollout.sampling_logprobs = rollout.sampling_logprobs.nan_to_num(0.0), None
    return rollout, scores, torch.tensor(finished, device=args.device), token_ids


def sampling_options(trainer, generator: torch.Generator | None) -> dict:
    """What the sampler is given by name."""
    args = trainer.args
    return {
        "max_new_tokens": args.max_completion_length,
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "eos_token_ids": trainer.eos_token_ids,
        "pad_token_id": trainer.pad_token_id,
        "batch_size": args.per_device_generation_batch_size,
        "generator": generator,
        "stopping_criteria": trainer.stopping_criteria,
        # Only what is needed: custom samplers may not know these.
        **({"return_logprobs": True} if args.old_logprobs == "sampler" else {}),
        **({"cache_implementation": "static"} if args.cache_implementation else {}),
    }


def check_sampler(trainer) -> None:
    """Raises InputError for a sampler that does not take what it is given."""
    try:
        signature = inspect.signature(trainer.sampler)
    except (TypeError, ValueError):  # a built-in function does not say
        return
    try:
        signature.bind(trainer.model, [], **sampling_options(trainer, None))
    except TypeError as error:
        name = getattr(trainer.sampler, "__name__", type(trainer.sampler).__name__)
        raise InputError(
            f"sampler: {name} does not fit ({error}); give it the arguments of llmrecipes.generation.sample_responses, or "
            "leave out the key that asks for more"
        ) from None


def sample(trainer, prompts: list[list[int]], generator: torch.Generator) -> list:
    """The sampler's responses to `prompts` (token ids)."""
    args, policy = trainer.args, trainer.model.policy
    ask = partial(trainer.sampler, causal_lm(policy), prompts, **sampling_options(trainer, generator))
    if args.use_vllm:  # the engine has its own copy of the weights
        return ask()

    def with_whole_weights():
        with whole_weights(policy, trainer.model_wrapped, trainer.accelerator), uncompiled(args):
            return ask()

    try:
        return run_within(trainer.model, with_whole_weights)
    except NotFiniteError:
        raise trainer.not_finite("a logit of the policy") from None


@contextmanager
def on_device(trainer, *frozen: FrozenModel | None):
    """Keeps frozen models on the device inside the block; with `offload_frozen_models` they are in CPU memory outside it."""
    moving = [part for part in frozen if part is not None] if trainer.args.offload_frozen_models else []
    for part in moving:
        part.to(trainer.args.device)
    try:
        yield
    finally:
        for part in moving:
            part.to("cpu")


def forward_models(trainer, rollout: Rollout, micro_batches: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Fills in the rollout's log-probabilities and values; returns (reference log-probabilities, entropy), each (R, T)."""
    with trainer.accelerator.autocast(), on_device(trainer, trainer.ref_model):
        ref_logprobs, entropy = forward_rollout(
            trainer.model, trainer.ref_model, rollout, micro_batches, trainer.args.temperature
        )
    if trainer.args.kl_in == "loss":
        rollout.ref_logprobs = ref_logprobs
    return ref_logprobs, entropy


def correct_sampler_mismatch(trainer, rollout: Rollout, mask: torch.Tensor) -> None:
    """Sets the importance weights that correct for the sampler's log-probabilities differing from the policy's, if the
    sampler returned any."""
    if rollout.sampling_logprobs is None:
        return
    args, mode = trainer.args, trainer.args.vllm_importance_sampling_mode
    rollout.importance_sampling_ratio = importance_sampling_ratio(
        rollout.logprobs,
        rollout.sampling_logprobs,
        mask,
        mode,
        args.vllm_importance_sampling_clip_min,
        args.vllm_importance_sampling_clip_max,
    )
    for name, entry in mismatch_statistics(rollout, mask, mode, trainer.accelerator.gather).items():
        trainer._record(name, *entry)
    rollout.sampling_logprobs = None


def record_rollout(trainer, rollout: Rollout, raw_scores, finished, kl, entropy) -> None:
    """Records the rollout's figures for the next log line."""
    scores = trainer.rewards.total(raw_scores)
    for name, column in row_statistics(rollout, scores, finished, kl, entropy).items():
        trainer._record(name, column.sum(), len(column))
    for i, name in enumerate(trainer.rewards.names):
        judged = ~raw_scores[:, i].isnan()
        trainer._record(f"scores/{name}", raw_scores[judged, i].sum(), judged.sum())
    if rollout.token_rewards is None:
        trainer.rewards.tell_if_constant(raw_scores)
    else:
        trainer._record("token_rewards", rollout.token_rewards.sum(), len(rollout))
    trainer._record("score_std", trainer.accelerator.gather(scores).std(correction=0), 1)
    trainer._record("kl_coef", trainer.kl_coef, 1)


def keep_some(trainer, rows: dict[str, list], token_ids, scores: torch.Tensor, kl: torch.Tensor, columns: dict) -> None:
    """Keeps the first responses of a rollout for the next log line."""
    count = min(trainer.args.num_rollout_completions, len(token_ids))
    if not count:  # batch_decode([]) returns one row
        return
    texts = answer_texts(trainer.processing_class, token_ids[:count])
    figures = torch.stack([scores[:count], kl[:count].sum(1)], dim=1)
    trainer.rollout_completions = completion_table(rows["prompt"][:count], texts, ["score", "kl"], figures, columns)


@torch.no_grad()
def evaluate_policy(trainer, dataloader: DataLoader, prefix: str) -> EvalLoopOutput:
    """Samples a response to each evaluation prompt; reports mean score, KL, entropy, length and share ending in EOS."""
    args = trainer.args
    # The same seed in every evaluation, so that two evaluations differ only by the policy.
    generator = trainer.generator(EVALUATE, device=args.device)
    table, names, completions, logged = [], [], [], {}
    for examples in dataloader:
        rows = {name: [example[name] for example in examples] for name in examples[0]}
        told: dict[str, list] = {}
        record = lambda name, value, count: logged.setdefault(name, []).append(value)
        rollout, raw_scores, finished, token_ids = sample_and_score(trainer, rows, generator, record, told)
        order = (rollout.prompt_lengths + rollout.response_lengths).argsort().tolist()
        size = args.per_device_eval_batch_size
        ref_logprobs, entropy = forward_models(trainer, rollout, [order[i : i + size] for i in range(0, len(order), size)])
        kl, written = kl_estimate(rollout.logprobs, ref_logprobs, args.kl_estimator), rollout.mask()
        scores = trainer.rewards.total(raw_scores)
        columns = row_statistics(rollout, scores, finished, kl * written, entropy * written)
        columns |= {f"scores/{name}": raw_scores[:, i] for i, name in enumerate(trainer.rewards.names)}
        names = list(columns)
        figures = torch.stack(list(columns.values()), dim=1)
        table.append(trainer.accelerator.gather_for_metrics(figures).cpu())
        if args.log_completions:
            texts = answer_texts(trainer.processing_class, token_ids)
            part = completion_table(rows["prompt"], texts, names, figures, told)
            completions += trainer.accelerator.gather_for_metrics(part, use_gather_object=True)
        trainer.control = trainer.callback_handler.on_prediction_step(args, trainer.state, trainer.control)
    table = torch.cat(table)
    metrics = dict(zip(names, table.nanmean(0).tolist(), strict=True))  # NaN: the function gave no score
    metrics["score_std"] = table[:, names.index("score")].std(correction=0).item()
    metrics |= mean_of_logged(trainer, logged)
    metrics = {f"{prefix}_{name}": value for name, value in metrics.items()}
    if completions and trainer.is_world_process_zero():
        write_completions(completions, args, trainer.state.global_step, prefix)
        trainer.unsent_completions.append((completions, args, trainer.state.global_step, prefix))
    return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(table))


def mean_of_logged(trainer, logged: dict[str, list[float]]) -> dict[str, float]:
    """The mean of each figure that reward functions have logged, over all batches and processes."""
    logged = {name: values for name, values in logged.items() if not name.startswith("time/")}
    means = {}
    for name in dict.fromkeys(gather_object(list(logged))):  # a name may be known to some processes alone
        values = logged.get(name, [])
        total, count = trainer.all_reduce(torch.tensor([sum(values), len(values)], device=trainer.args.device)).tolist()
        means[name] = total / count
    return means
