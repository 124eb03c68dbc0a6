"""PPOTrainer against that of trl 1.12.0, the last release that had one: samples/s by phase, peak memory, learning.

    python benchmarks/ppo.py [--updates 6] [--rounds 3] [--workloads fixed,variable,vocabulary] [--bandit] [--json FILE]

trl 1.12.0 gets an environment of its own, made on the first call in benchmarks/.trl (venv and pip). Both sides run in
turns, one process each, on the same models, prompts and number of tokens: random models that emit EOS with the same
probability, fp32, num_mini_batches 1, pad != eos, no sample generations; warm-up and last update dropped. CPU time of one
thread is measured, which other work on the machine disturbs least. "separate" is like for like, "shared" (one trunk for
policy and value) is another algorithm and stands apart.
"""

import argparse
import collections
import contextlib
import io
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENVIRONMENT = Path(__file__).parent / ".trl"
WORKLOADS = {
    "fixed": {"vocab": 4096, "low": 32, "high": 32, "eos": 0.0, "epochs": 4},
    "variable": {"vocab": 4096, "low": 16, "high": 64, "eos": 0.04, "epochs": 4},
    "vocabulary": {"vocab": 32768, "low": 16, "high": 64, "eos": 0.04, "epochs": 1},
    "bandit": {"vocab": 64, "low": 2, "high": 8, "eos": 0.0, "epochs": 4},
}
SIDES = ("trl", "separate", "shared")
ROWS, MICRO_BATCH, RESPONSE = 64, 16, 64
BANDIT_TOKEN, BANDIT_RESPONSE = 7, 16


# ---- One side, in a process of its own ----


def models_and_prompts(work: dict, updates: int):
    """(tokenizer, policy, reference, reward model, value model, prompts): the same for every side."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

    vocab, bandit = work["vocab"], work["vocab"] == 64
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(vocab - 4))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
    )
    sizes = (32, 64, 2) if bandit else (256, 704, 4)
    config = dict(
        vocab_size=vocab, hidden_size=sizes[0], intermediate_size=sizes[1], num_hidden_layers=sizes[2],
        num_attention_heads=4, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    policy, reference = (LlamaForCausalLM(LlamaConfig(**config)) for _ in range(2))
    reference.load_state_dict(policy.state_dict())
    reward, value = (LlamaForSequenceClassification(LlamaConfig(**config, num_labels=1)) for _ in range(2))
    value.load_state_dict(reward.state_dict())
    if work["eos"]:
        bias = torch.zeros(vocab)
        bias[2] = math.log(work["eos"] / (1 - work["eos"]) * (vocab - 1))
        for model in (policy, reference):
            model.lm_head.register_forward_hook(lambda module, inputs, output: output + bias)
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(work["low"], work["high"] + 1, (ROWS * updates,), generator=generator).tolist()
    rows = [torch.randint(4, vocab, (length,), generator=generator).tolist() for length in lengths]
    name = "input_ids" if "trl" in sys.argv else "prompt"
    return tokenizer, policy, reference, reward, value, Dataset.from_list([{name: row} for row in rows])


class Stopwatch:
    """Exclusive CPU time by phase: what is nested counts only for itself."""

    def __init__(self):
        self.phases, self.tokens, self.nested = collections.Counter(), 0, []

    @contextlib.contextmanager
    def phase(self, name):
        started = time.process_time()
        self.nested.append(0.0)
        yield
        seconds = time.process_time() - started
        self.phases[name] += seconds - self.nested.pop()
        if self.nested:
            self.nested[-1] += seconds

    def wrap(self, owner, attribute, name):
        function = getattr(owner, attribute)

        def timed(*args, **kwargs):
            with self.phase(name):
                return function(*args, **kwargs)

        setattr(owner, attribute, timed)


def common_arguments(work: dict, updates: int) -> dict:
    bandit = work["vocab"] == 64
    return dict(
        output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, save_strategy="no",
        per_device_train_batch_size=ROWS // 2 if bandit else MICRO_BATCH, num_mini_batches=1,
        gradient_accumulation_steps=2 if bandit else ROWS // MICRO_BATCH, num_ppo_epochs=work["epochs"],
        total_episodes=ROWS * updates, learning_rate=1e-3 if bandit else 1e-5, temperature=1.0, seed=1,
        missing_eos_penalty=None if bandit else 1.0, kl_coef=0.01 if bandit else 0.05, lr_scheduler_type="constant",
        adam_epsilon=1e-5,
    )  # fmt: skip


def run_trl(work, updates, watch, finished_update, scores):
    import torch
    import trl.experimental.ppo.ppo_trainer as module
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer, policy, reference, reward, value, prompts = models_and_prompts(work, updates)
    bandit = work["vocab"] == 64
    watch.wrap(module, "batch_generation", "sample")
    original, get_reward = module.forward, module.get_reward

    def forward(model, *rest):
        with watch.phase("rollout_forward" if model is reference else "update"):
            return original(model, *rest)

    def reward_or_value(model, responses, pad, context):
        if model is not reward:
            with watch.phase("rollout_forward"):
                return get_reward(model, responses, pad, context)
        watch.tokens += int((responses[:, context:] != pad).sum())
        with watch.phase("score"):
            if not bandit:
                return get_reward(model, responses, pad, context)
            shares = (responses[:, context:] == BANDIT_TOKEN).float().sum(1) / BANDIT_RESPONSE
            scores.append(shares.mean().item())
            return torch.zeros(len(responses), responses.shape[1]), shares, None

    module.forward, module.get_reward = forward, reward_or_value
    arguments = PPOConfig(
        **common_arguments(work, updates), response_length=BANDIT_RESPONSE if bandit else RESPONSE, stop_token="eos",
        local_rollout_forward_batch_size=ROWS, num_sample_generations=0, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = PPOTrainer(
        args=arguments, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=reward,
        value_model=value, train_dataset=prompts,
    )  # fmt: skip
    watch.wrap(trainer.accelerator, "backward", "update")
    watch.wrap(trainer.optimizer.optimizer, "step", "update")
    trainer.log = lambda *_, **__: finished_update()
    trainer.train()


def run_ours(side, work, updates, watch, finished_update, scores):
    from transformers import TrainerCallback

    from llmrecipes.generation import sample_responses
    from llmrecipes.ppo.config import PPOConfig
    from llmrecipes.ppo.trainer import PPOTrainer

    tokenizer, policy, reference, reward, value, prompts = models_and_prompts(work, updates)
    bandit = work["vocab"] == 64

    def bandit_reward(completion_ids):
        shares = [row.count(BANDIT_TOKEN) / BANDIT_RESPONSE for row in completion_ids]
        scores.append(sum(shares) / len(shares))
        return shares

    class Updates(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step % args.steps_per_rollout == 0:
                watch.tokens += int(trainer._rollout.response_lengths.sum())
                finished_update()

    arguments = PPOConfig(
        **common_arguments(work, updates), max_completion_length=BANDIT_RESPONSE if bandit else RESPONSE,
        logging_steps=1, value_model=side,
    )  # fmt: skip
    trainer = PPOTrainer(
        model=policy, args=arguments, train_dataset=prompts, processing_class=tokenizer, ref_model=reference,
        reward_funcs=bandit_reward if bandit else reward, sampler=sample_responses, callbacks=[Updates()],
        value_model=value if side == "separate" else None,
    )  # fmt: skip
    watch.wrap(trainer, "sampler", "sample")
    watch.wrap(trainer.rewards, "score", "score")
    watch.wrap(trainer, "_forward_rollout", "rollout_forward")
    watch.wrap(trainer, "compute_loss", "update")
    watch.wrap(trainer.accelerator, "backward", "update")
    trainer.create_optimizer()
    watch.wrap(trainer.optimizer, "step", "update")
    trainer.train()


def measure(side: str, workload: str, updates: int) -> dict:
    """Samples/s, CPU seconds by phase, response tokens per update, peak memory (MB) of one run in this process."""
    import torch

    torch.set_num_threads(1)
    watch, marks, scores = Stopwatch(), [], []

    def finished_update():
        marks.append((time.process_time(), watch.tokens, collections.Counter(watch.phases)))

    with contextlib.redirect_stdout(io.StringIO()):
        arguments = WORKLOADS[workload], updates, watch, finished_update, scores
        run_trl(*arguments) if side == "trl" else run_ours(side, *arguments)
    kept = range(1, len(marks) - 1)  # the first warms up; TRL steps after every micro-batch in its last
    seconds = statistics.median(marks[i][0] - marks[i - 1][0] for i in kept)
    phases = {name: (marks[-2][2][name] - marks[0][2][name]) / len(kept) for name in marks[-1][2]}
    whole = (marks[-2][0] - marks[0][0]) / len(kept)
    return {
        "samples_per_s": ROWS / seconds,
        "tokens_per_update": (marks[-2][1] - marks[0][1]) / len(kept),
        "seconds": {**phases, "other": whole - sum(phases.values())},
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "scores": scores,
    }


# ---- All sides in turns ----


def trl_python() -> Path:
    """The interpreter of the environment that holds trl 1.12.0; made when it is missing."""
    python = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / "ready").exists():
        print(f"making {ENVIRONMENT.relative_to(ROOT)} with trl 1.12.0 ...", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        pins = [
            line.strip()
            for line in (ROOT / "requirements.txt").read_text().splitlines()
            if line.startswith(("torch==", "transformers==", "accelerate==", "datasets==", "tokenizers==", "numpy=="))
        ]
        subprocess.run([str(python), "-m", "pip", "install", "-q", *pins, "trl==1.12.0"], check=True)
        (ENVIRONMENT / "ready").touch()
    return python


def in_process(side: str, workload: str, updates: int) -> dict:
    python = trl_python() if side == "trl" else sys.executable
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [str(python), __file__, "--side", side, "--workloads", workload, "--updates", str(updates)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{side}, {workload} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def report(workload: str, runs: dict[str, list[dict]]) -> dict:
    """Prints the medians of each side and its ratios to TRL."""
    middle = {
        side: {key: statistics.median(run[key] for run in each) for key in ("samples_per_s", "peak_mb", "tokens_per_update")}
        for side, each in runs.items()
    }

    def tokens(figures: dict) -> float:
        """Response tokens/s: sampled lengths differ by chance, and in a short run that moves samples/s."""
        return figures["samples_per_s"] * figures["tokens_per_update"] / ROWS

    print(f"\n{workload}: {WORKLOADS[workload]}")
    for side, each in runs.items():
        figures = middle[side]
        speed = figures["samples_per_s"] / middle["trl"]["samples_per_s"]
        memory = figures["peak_mb"] / middle["trl"]["peak_mb"]
        print(
            f"  {side:9} {figures['samples_per_s']:7.2f} samples/s ({speed:.2f}x)  {figures['peak_mb']:6.0f} MB "
            f"({memory:.2f}x)  {figures['tokens_per_update']:.0f} tokens/update, {tokens(figures):.0f} tokens/s "
            f"({tokens(figures) / tokens(middle['trl']):.2f}x)"
        )
        print("            s/update: " + "  ".join(f"{k} {v:.2f}" for k, v in sorted(each[-1]["seconds"].items())))
    return middle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=6, help="rollouts in a run, the first and last not counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workloads", default="fixed,variable,vocabulary")
    parser.add_argument("--bandit", action="store_true", help="the token bandit's learning curves, 60 updates")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.updates < 3:
        sys.exit("error: --updates must be at least 3")
    if args.side:
        print(json.dumps(measure(args.side, args.workloads, args.updates)))
        return
    results = {}
    for workload in filter(None, args.workloads.split(",")):
        runs = {side: [] for side in SIDES}
        for _ in range(args.rounds):
            for side in SIDES:
                runs[side].append(in_process(side, workload, args.updates))
        results[workload] = {"medians": report(workload, runs), "runs": runs}
    if args.bandit:
        curves = {side: in_process(side, "bandit", 60)["scores"] for side in ("trl", "separate")}
        print("\ntoken bandit, mean score by update")
        for side, curve in curves.items():
            print(
                f"  {side:9} " + "  ".join(f"{i}: {curve[i]:.3f}" for i in range(0, len(curve), 10)), f"end: {curve[-1]:.3f}"
            )
        results["bandit"] = curves
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
