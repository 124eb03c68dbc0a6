"""What PPO minimises in a micro-batch (step 6 of the algorithm), the check of its first ratio, and early stopping.

Each function takes the PPOTrainer, whose models, arguments and counters it uses.
"""

import torch

from llmrecipes.config import InputError
from llmrecipes.ppo.losses import kl_loss, policy_loss, value_loss
from llmrecipes.ppo.rollout import MODEL_INPUTS, learned_mask


def loss_sum(trainer, model, inputs: dict) -> tuple[torch.Tensor, dict]:
    """Clipped policy loss + vf_coef × clipped value loss (+ kl_coef × KL), summed over the tokens trained on; and the
    model's outputs. inputs["part"]: "policy" or "value" computes only that model's terms."""
    args, part = trainer.args, inputs.get("part")
    if part == "value":
        model = trainer.model  # unwrapped: DDP allows one forward call a step, and the policy's was it
    logprobs, _, values = model(**{name: inputs[name] for name in MODEL_INPUTS}, temperature=args.temperature, part=part)
    mask = learned_mask(inputs["response_lengths"], inputs.get("token_mask"), inputs["advantages"].shape[1])
    total, sums = 0.0, {}
    if logprobs is not None:
        total, sums = policy_terms(trainer, logprobs, inputs, mask)
    if values is not None:
        value, stats = value_loss(values, inputs["values"], inputs["returns"], mask, args.cliprange_value)
        total = total + args.vf_coef * value  # not in place: `sums` holds the policy's loss
        sums |= {"value_loss": value.detach(), **stats}
    trainer.check_finite(total, "the loss")
    for name, figure in sums.items():
        trainer._record(name, figure, mask.sum())
    return total, {"logprobs": logprobs, "values": values}


def policy_terms(trainer, logprobs: torch.Tensor, inputs: dict, mask: torch.Tensor) -> tuple[torch.Tensor, dict]:
    """The policy's terms of the loss (a sum over tokens), and sums to log."""
    args = trainer.args
    check_first_ratio(trainer, logprobs, inputs["logprobs"], mask)
    total, stats = policy_loss(
        logprobs, inputs["logprobs"], inputs["advantages"], mask, args.cliprange, inputs.get("importance_sampling_ratio")
    )
    sums = {"policy_loss": total.detach(), **stats}
    if args.kl_in == "loss":
        kl = kl_loss(logprobs, inputs["logprobs"], inputs["ref_logprobs"], mask, args.kl_estimator)
        total = total + trainer.kl_coef * kl
        sums["kl_loss"] = kl.detach()
    if args.early_stop_kl is not None:
        trainer.step_kl.append(torch.stack([stats["approx_kl"], mask.sum()]).detach())
    return (0.0 * total if trainer.value_warms_up else total), sums


def check_first_ratio(trainer, logprobs: torch.Tensor, old_logprobs: torch.Tensor, mask: torch.Tensor) -> None:
    """Raises InputError unless a rollout's first probability ratios are 1 up to rounding: before its first update, only
    randomness in the policy's training mode (such as dropout) can make them differ.

    Tolerance: mean |Δ log π| of 0.01 nats per token in float32, 0.1 in 16-bit or with the sampler's log-probabilities."""
    args = trainer.args
    if trainer.state.global_step % args.steps_per_rollout or not args.disable_dropout:
        return
    difference = ((logprobs.detach() - old_logprobs) * mask).abs().sum() / mask.sum().clamp(min=1)
    rounded = trainer.accelerator.mixed_precision != "no" or trainer.model.policy.dtype != torch.float32
    if difference > (0.1 if rounded or args.old_logprobs == "sampler" else 0.01):
        raise InputError(
            f"PPO step {trainer.state.global_step}: the policy's log-probabilities of its own responses differ by "
            f"{difference:.3g} between sampling and training, before any update; something in it is random in "
            "training mode (custom dropout code?). Remove it, or set disable_dropout: false to train with it"
        )


def stop_early(trainer) -> None:
    """After the last micro-batch of an optimizer step: skips the rollout's remaining steps once approx_kl to the policy that
    sampled exceeds early_stop_kl, as OpenAI Spinning Up's PPO does."""
    trainer._record("early_stopped", 0, 1)
    if trainer.accelerator.sync_gradients:
        total, count = trainer.all_reduce(torch.stack(trainer.step_kl).sum(0)).tolist()
        trainer.step_kl.clear()
        if total / max(count, 1) > trainer.args.early_stop_kl:
            trainer._rollout.early_stopped = torch.tensor(True)


def set_learning_rate(optimizer: torch.optim.Optimizer, weights: list[torch.Tensor], learning_rate: float) -> None:
    """Moves `weights` into parameter groups of their own, after the existing ones, with `learning_rate`."""
    theirs, groups = {id(weight) for weight in weights}, []
    for rate in (None, learning_rate):
        for group in optimizer.param_groups:
            own = [weight for weight in group["params"] if (id(weight) in theirs) == (rate is not None)]
            groups.append({**group, "params": own} | ({} if rate is None else {"lr": rate}))
    optimizer.param_groups[:] = [group for group in groups if group["params"]]
