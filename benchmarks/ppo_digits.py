"""The completion of digits, on which benchmarks/gpu.py compares PPO and GRPO: prompts, the model, its start, GRPO's side.

Not shown yet: that the model of 10.6M parameters starts from about 0.40; models 64 and 128 wide began at 0.05 to 0.10.
"""

import random

PAD, EOS = 0, 2
# Prompts count up modulo 10 (tokens 4 to 13); a completion is right if it counts on for four digits and then ends.
DIGITS = {
    "digits": {"low": 3, "high": 6, "sizes": (384, 1024, 6, 6), "rows": 128, "warm_up": 600},  # 10.6M parameters
    "digits-smoke": {"low": 3, "high": 4, "sizes": (32, 64, 2, 2), "rows": 16, "warm_up": 10},
}
DIGITS = {name: {"vocab": 16, "epochs": 4, "response": 5, **work} for name, work in DIGITS.items()}


def build_digits_model(work: dict, policy: str | None = None):
    """The policy of DIGITS, new or from the folder `policy`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if policy:
        return LlamaForCausalLM.from_pretrained(policy)
    width, inner, layers, heads = work["sizes"]
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=work["vocab"], hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=1024, pad_token_id=PAD, bos_token_id=1, eos_token_id=EOS,
    ))  # fmt: skip


def build_digits(work: dict, updates: int, seed: int) -> list[list[int]]:
    choose = random.Random(seed)
    prompts = []
    for _ in range(work["rows"] * updates):
        start, length = choose.randrange(10), choose.randint(work["low"], work["high"])
        prompts.append([4 + (start + i) % 10 for i in range(length)])
    return prompts


def complete(prompt: list[int]) -> list[int]:
    """The four digits after `prompt`."""
    return [4 + (prompt[-1] - 4 + i) % 10 for i in range(1, 5)]


def warm_up(folder: str, workload: str, seed: int) -> None:
    """Saves a model trained on prompts of which 40 in 100 are completed rightly and the others by random digits: sampled at
    temperature 1, a model that has learned them is right
    about as often."""
    import torch

    work = DIGITS[workload]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    choose = random.Random(seed)
    model = build_digits_model(work).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, work["warm_up"])
    for _ in range(work["warm_up"]):
        rows, labels = [], []
        for prompt in build_digits({**work, "rows": 256}, 1, choose.randrange(2**32)):
            right = choose.random() < 0.4
            answer = (complete(prompt) if right else [choose.randint(4, 13) for _ in range(4)]) + [EOS]
            gap = [PAD] * (work["high"] - len(prompt))
            rows.append(torch.tensor(prompt + answer + gap))
            labels.append(torch.tensor([-100] * len(prompt) + answer + [-100] * len(gap)))
        loss = model(input_ids=torch.stack(rows).to(device), labels=torch.stack(labels).to(device), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


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
            **common, max_completion_length=run.response, num_generations=generations, num_iterations=run.work["epochs"],
            max_steps=run.updates * run.work["epochs"], shuffle_dataset=False, beta=0.0, logging_steps=10,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list([{"prompt": row} for row in run.prompts[: run.rows * run.updates // generations]]),
        processing_class=tokenizer, reward_funcs=[toy_reward],
    )  # fmt: skip
    trainer.train()
