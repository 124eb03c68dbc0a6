"""The completion of digits, on which benchmarks/gpu.py compares PPO and GRPO: prompts, the model, its start, GRPO's side."""

import random

PAD, EOS, END = 0, 2, 14
# Prompts count up modulo 10 (tokens 4 to 13), then END, without which nobody could tell where the answer has to stop; a
# completion is right if it counts on for four digits and then ends.
START = 0.4
DIGITS = {
    "digits": {"sizes": (384, 1024, 6, 6), "warm_rate": 5e-5, "rate": 3e-5},  # 10.6M parameters
    "digits-smoke": {"sizes": (64, 192, 2, 2), "warm_rate": 5e-4, "rate": 3e-4},
}
# warm_up: the most steps of supervised training; warm_rate, rate: the learning rates there, and of PPO and GRPO. At three
# times this rate the small model forgets all in the first update, in PPO, GRPO and TRL's PPO alike;
# the large one's rate is smaller in proportion to its width and has not been tried.
SAME = {"vocab": 16, "low": 3, "high": 6, "epochs": 4, "response": 5, "rows": 128, "warm_up": 2000}
DIGITS = {name: {**SAME, **work} for name, work in DIGITS.items()}


def build_digits_model(work: dict, policy: str | None = None):
    """The policy of DIGITS, new or from the folder `policy`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if policy:
        return LlamaForCausalLM.from_pretrained(policy)
    width, inner, layers, heads = work["sizes"]
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=work["vocab"],
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=1024,
            pad_token_id=PAD,
            bos_token_id=1,
            eos_token_id=EOS,
        )
    )


def build_digits(work: dict, updates: int, seed: int) -> list[list[int]]:
    choose = random.Random(seed)
    prompts = []
    for _ in range(work["rows"] * updates):
        start, length = choose.randrange(10), choose.randint(work["low"], work["high"])
        prompts.append(build_prompt(start, length))
    return prompts


def build_prompt(start: int, length: int) -> list[int]:
    return [*(4 + (start + i) % 10 for i in range(length)), END]


def complete(prompt: list[int]) -> list[int]:
    """The four digits after `prompt`."""
    return [4 + (prompt[-2] - 4 + i) % 10 for i in range(1, 5)]


def warm_up(folder: str, workload: str, seed: int) -> tuple[float, int]:
    """Saves a model trained on the right answers just until a sampled answer is right with a probability of START; returns
    that probability, the mean over all prompts that there are, and the steps taken.

    The probability is the product of the answer's token probabilities (sampling at temperature 1), so it is exact, costs no
    pass of its own and is the same in each call with a seed.
    """
    import torch

    work = DIGITS[workload]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    model = build_digits_model(work).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=work["warm_rate"], weight_decay=0.0)
    prompts = [build_prompt(start, length) for start in range(10) for length in range(work["low"], work["high"] + 1)]
    rows, targets = [], []
    for prompt in prompts:
        answer, gap = [*complete(prompt), EOS], work["high"] + 1 - len(prompt)
        rows.append(prompt + answer + [PAD] * gap)
        targets.append([-100] * len(prompt) + answer + [-100] * gap)
    rows, targets = (torch.tensor(values, device=device) for values in (rows, targets))
    for step in range(work["warm_up"]):
        logits = model(input_ids=rows, use_cache=False).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets[:, 1:], reduction="none")
        right = (-losses.sum(1)).exp().mean().item()
        if right >= START:
            model.save_pretrained(folder)
            return right, step
        optimizer.zero_grad()
        losses.sum().div(len(rows) * work["response"]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    raise RuntimeError(f"{right:.3f} right after {work['warm_up']} steps of warm-up, not {START}")


def run_grpo(run, tokenizer) -> None:
    """TRL's GRPO with our reward functions: eight responses to a prompt, as many samples and optimizer steps as PPO."""
    from datasets import Dataset
    from trl import GRPOConfig

    from llmrecipes.grpo import GRPOTrainer

    policy, *_ = run.models()
    common, generations = run.common_arguments(), min(8, run.micro_batch)
    for name in ("num_mini_batches", "num_ppo_epochs", "total_episodes", "missing_eos_penalty", "kl_coef"):
        del common[name]

    def toy_reward(prompts, completion_ids):
        return run.reward(prompts, completion_ids)

    trainer = GRPOTrainer(
        model=policy,
        args=GRPOConfig(
            **common,
            max_completion_length=run.response,
            num_generations=generations,
            num_iterations=run.work["epochs"],
            max_steps=run.updates * run.work["epochs"],
            shuffle_dataset=False,
            beta=0.0,
            logging_steps=10,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list([{"prompt": row} for row in run.prompts[: run.rows * run.updates // generations]]),
        processing_class=tokenizer,
        reward_funcs=[toy_reward],
    )
    trainer.train()
