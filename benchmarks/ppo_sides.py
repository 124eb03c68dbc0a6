"""One side of benchmarks/ppo.py and gpu.py in its own process:

    python benchmarks/ppo_sides.py SIDE WORKLOAD UPDATES [SEED POLICY]

SIDE: trl (trl 1.12.0, by the interpreter that has it), separate, shared, compiled or static (ours, the last two with a
separate value model and torch_compile or cache_implementation: static) or, for digits, grpo. POLICY: the model that digits
start from. Prints its figures as one line of JSON.
On a GPU this measures wall time, synchronising with the device, and both sides train under bf16 autocast; on a CPU, the CPU
time of one thread.
"""

import collections
import contextlib
import io
import json
import os
import resource
import sys
import tempfile
import time

from ppo_digits import DIGITS, EOS, PAD, build_digits, build_digits_model, complete, run_grpo

ROWS, MICRO_BATCH, RESPONSE = 64, 16, 64
SIZES = (256, 704, 4, 4)  # width, intermediate width, layers, heads
# low, high: tokens of a prompt. eos: probability per token that a response ends; lengths are drawn before the run.
WORKLOADS = {
    "fixed": {"vocab": 4096, "low": 32, "high": 32, "eos": 0.0, "epochs": 4},
    "variable": {"vocab": 4096, "low": 16, "high": 64, "eos": 0.04, "epochs": 4},
    "vocabulary": {"vocab": 32768, "low": 16, "high": 64, "eos": 0.04, "epochs": 1},
    # For a GPU: the shape of Pythia-410M, responses (53 tokens) and epochs of arXiv 2403.17031; a quarter of its rollout.
    "pythia-410m": {
        "vocab": 50304,
        "low": 256,
        "high": 512,
        "eos": 0.02,
        "epochs": 4,
        "rows": 128,
        "micro": 32,
        "response": 53,
        "sizes": (1024, 4096, 24, 16),
    },
    "smoke": {
        "vocab": 128,
        "low": 4,
        "high": 8,
        "eos": 0.1,
        "epochs": 2,
        "rows": 96,  # decoded in two batches
        "micro": 16,
        "response": 8,
        "sizes": (32, 64, 2, 4),
    },
}
TOY = {"vocab": 64, "low": 2, "high": 8, "epochs": 4}
TOY_RESPONSE, TOY_TOKEN = 16, 7
FLOORS = ("floor", "kernels")  # functions of ppo_floor.py
TOYS = ("bandit", "stop", "stop_pad_is_eos")


class Finished(Exception):
    """Enough updates were measured."""


def build_tokenizer(vocab: int, pad_is_eos: bool):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(vocab - 4))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=words[EOS if pad_is_eos else PAD], bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", padding_side="left",
    )  # fmt: skip


def build_models(work: dict) -> tuple:
    """(policy, reference, reward model, value model) with random weights. Except in the toys, policy and reference never
    emit EOS or padding, so that only the schedule determines response lengths."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    toy = work is TOY or "warm_up" in work
    sizes = (32, 64, 2, 4) if work is TOY else work.get("sizes", SIZES)
    config = dict(
        vocab_size=work["vocab"], hidden_size=sizes[0], intermediate_size=sizes[1], num_hidden_layers=sizes[2],
        num_attention_heads=sizes[3], max_position_embeddings=1024, pad_token_id=PAD, bos_token_id=1, eos_token_id=EOS,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        policy, reference = (LlamaForCausalLM(LlamaConfig(**config)) for _ in range(2))
        reward, value = (LlamaForSequenceClassification(LlamaConfig(**config, num_labels=1)) for _ in range(2))
    reference.load_state_dict(policy.state_dict())
    value.load_state_dict(reward.state_dict())
    if not toy:
        bias = torch.zeros(work["vocab"], device=policy.device)
        bias[[PAD, EOS]] = -1e4
        for model in (policy, reference):
            model.lm_head.bias = torch.nn.Parameter(bias, requires_grad=False)
    return policy, reference, reward, value


def build_prompts(work: dict, updates: int) -> list[list[int]]:
    import torch

    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(work["low"], work["high"] + 1, (work.get("rows", ROWS) * updates,), generator=generator).tolist()
    return [torch.randint(4, work["vocab"], (length,), generator=generator).tolist() for length in lengths]


class Schedule:
    """Response lengths by prompt, and a criterion for either side's decoding that ends responses there."""

    def __init__(self, prompts: list[list[int]], eos: float, response: int):
        import torch

        generator = torch.Generator().manual_seed(2)
        ends = torch.rand(len(prompts), response, generator=generator) < eos
        ends[:, -1] = True
        lengths = (ends.int().argmax(1) + 1).tolist()
        self.lengths = {tuple(prompt): length for prompt, length in zip(prompts, lengths, strict=True)}

    def criterion(self, prompts: list[list[int]], context: int = 0, batch_size: int | None = None):
        """For `prompts` that are decoded together or in batches, from which finished ones are dropped."""
        import torch

        waiting, lengths = [self.lengths[tuple(prompt)] for prompt in prompts], None

        def ended(tokens, scores, **_):
            nonlocal waiting, lengths
            if tokens.shape[1] - context == 1:
                lengths, waiting = torch.tensor(waiting[:batch_size], device=tokens.device), waiting[batch_size or None :]
            over = lengths <= tokens.shape[1] - context
            if batch_size:
                lengths = lengths[~over]
            return over

        return ended


class Stopwatch:
    """Exclusive time by phase, [CPU, wall] seconds: a nested phase does not count for the outer one."""

    def __init__(self):
        self.phases, self.nested = collections.defaultdict(lambda: [0.0, 0.0]), []

    @staticmethod
    def now() -> list[float]:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
            return [time.perf_counter()] * 2
        return [time.process_time(), time.perf_counter()]

    @contextlib.contextmanager
    def phase(self, name):
        started = self.now()
        self.nested.append([0.0, 0.0])
        yield
        seconds = [end - start for end, start in zip(self.now(), started, strict=True)]
        inner = self.nested.pop()
        for i in range(2):
            self.phases[name][i] += seconds[i] - inner[i]
            if self.nested:
                self.nested[-1][i] += seconds[i]

    def wrap(self, owner, attribute, name):
        function = getattr(owner, attribute)

        def timed(*args, **kwargs):
            with self.phase(name):
                return function(*args, **kwargs)

        setattr(owner, attribute, timed)


class Run:
    """What a side needs (workload, prompts, the toys' reward) and what it records."""

    def __init__(self, workload: str, updates: int, seed: int = 1, policy: str | None = None):
        self.workload, self.updates, self.seed, self.policy = workload, updates, seed, policy
        self.digits = workload in DIGITS
        self.toy = workload in TOYS or self.digits
        self.work = DIGITS[workload] if self.digits else TOY if self.toy else WORKLOADS[workload]
        # One update more: see `finished_update`.
        self.prompts = build_digits(self.work, updates + 1, seed) if self.digits else build_prompts(self.work, updates + 1)
        self.response = self.work.get("response", TOY_RESPONSE if self.toy else RESPONSE)
        self.rows, self.micro_batch = self.work.get("rows", ROWS), self.work.get("micro", MICRO_BATCH)
        if self.toy:
            self.micro_batch = self.rows // 2
        self.schedule = None if self.toy else Schedule(self.prompts, self.work["eos"], self.response)
        self.watch, self.marks, self.tokens, self.scores = Stopwatch(), [], 0, []

    def models(self) -> tuple:
        """`build_models`; digits start from `policy`."""
        policy, reference, reward, value = build_models(self.work)
        if self.digits:
            policy, reference = (build_digits_model(self.work, self.policy).to(policy.device) for _ in range(2))
        return policy, reference, reward, value

    def reward(self, prompts: list[list[int]], rows: list[list[int]]) -> list[float]:
        """The toys' reward of responses (token ids): share of one token, brevity, or 1 for the right digits. Records it, or
        for brevity whether the response ends in EOS."""
        if self.digits:
            rewards = [float(row == complete(prompt) + [EOS]) for prompt, row in zip(prompts, rows, strict=True)]
        elif self.workload == "bandit":
            rewards = [row.count(TOY_TOKEN) / TOY_RESPONSE for row in rows]
        else:
            rewards = [1 - len(row) / TOY_RESPONSE for row in rows]
        self.scores += [row[-1] == EOS for row in rows] if self.workload.startswith("stop") else rewards
        return rewards

    def curve(self) -> list[float]:
        """The mean of what `reward` recorded, by update."""
        return [sum(self.scores[i : i + self.rows]) / self.rows for i in range(0, len(self.scores), self.rows)]

    def finished_update(self) -> None:
        """Called after each update. The run ends before its last one, in which TRL steps after every micro-batch."""
        phases = {name: list(times) for name, times in self.watch.phases.items()}
        self.marks.append((self.watch.now(), self.tokens, phases))
        if len(self.marks) == self.updates:
            raise Finished

    def floor(self, name: str) -> dict:
        """Least seconds of an update by phase: `ppo_floor.floor` or `kernels` of the updates after the first."""
        import ppo_floor

        measured = self.prompts[self.rows : self.rows * self.updates]
        lengths = [(len(prompt), self.schedule.lengths[tuple(prompt)]) for prompt in measured]
        found = getattr(ppo_floor, name)(
            self.work.get("sizes", SIZES), self.work["vocab"], lengths, self.micro_batch, self.work["epochs"],
            batch=ROWS, clock=lambda: self.watch.now()[0],
        )  # fmt: skip
        return {name: seconds / (self.updates - 1) for name, seconds in found.items()}

    def common_arguments(self) -> dict:
        import torch

        cuda = torch.cuda.is_available()
        return dict(
            output_dir=tempfile.mkdtemp(), use_cpu=not cuda, bf16=cuda, report_to="none", disable_tqdm=True,
            save_strategy="no", per_device_train_batch_size=self.micro_batch, num_mini_batches=1,
            gradient_accumulation_steps=self.rows // self.micro_batch, num_ppo_epochs=self.work["epochs"],
            total_episodes=len(self.prompts), temperature=1.0, seed=self.seed,
            learning_rate=self.work["rate"] if self.digits else 1e-3 if self.toy else 1e-5,
            missing_eos_penalty=1.0 if self.workload.startswith("stop") else None, kl_coef=0.01 if self.toy else 0.05,
            lr_scheduler_type="constant", adam_epsilon=1e-5,
        )  # fmt: skip


# ---- The sides ----


def run_trl(run: Run) -> None:
    if run.common_arguments()["bf16"]:
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"  # it ignores the precision in its own arguments
    import torch
    import trl.experimental.ppo.ppo_trainer as module
    from datasets import Dataset
    from torch.utils.data import RandomSampler
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    watch, tokenizer = run.watch, build_tokenizer(run.work["vocab"], run.workload == "stop_pad_is_eos")
    policy, reference, reward, value = run.models()
    RandomSampler.__iter__ = lambda self: iter(range(len(self.data_source)))  # both sides take the prompts in order
    if run.schedule:
        generate = policy.generate

        def scheduled(input_ids, attention_mask, **kwargs):
            rows = [row[mask.bool()].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)]
            ended = run.schedule.criterion(rows, context=input_ids.shape[1])
            return generate(input_ids=input_ids, attention_mask=attention_mask, stopping_criteria=[ended], **kwargs)

        policy.generate = scheduled
    watch.wrap(module, "batch_generation", "sample")
    original, get_reward = module.forward, module.get_reward

    def forward(model, *rest):
        with watch.phase("rollout_forward" if model is reference else "update"):
            return original(model, *rest)

    def reward_or_value(model, responses, pad, context):
        if model is not reward:
            with watch.phase("rollout_forward"):
                return get_reward(model, responses, pad, context)
        with watch.phase("score"):
            rows = [row[row != pad].tolist() for row in responses[:, context:]]
            if pad == EOS:  # what was cut off as padding
                rows = [row + [EOS] * (len(row) < run.response) for row in rows]
            run.tokens += sum(map(len, rows))
            if not run.toy:
                return get_reward(model, responses, pad, context)
            prompts = [row[row != pad].tolist() for row in responses[:, :context]]
            rewards = torch.zeros(responses.shape, device=responses.device)
            return rewards, torch.tensor(run.reward(prompts, rows), device=rewards.device), None

    module.forward, module.get_reward = forward, reward_or_value
    trainer = PPOTrainer(
        args=PPOConfig(
            **run.common_arguments(), response_length=run.response, stop_token="eos",
            local_rollout_forward_batch_size=min(run.rows, ROWS), num_sample_generations=0, gradient_checkpointing=False,
        ),
        processing_class=tokenizer, model=policy, ref_model=reference, reward_model=reward, value_model=value,
        train_dataset=Dataset.from_list([{"input_ids": row} for row in run.prompts]),
    )  # fmt: skip
    watch.wrap(trainer.accelerator, "backward", "update")
    watch.wrap(trainer.optimizer.optimizer, "step", "update")
    trainer.log = lambda *_, **__: run.finished_update()
    trainer.train()


def run_ours(run: Run, side: str) -> None:
    from datasets import Dataset
    from transformers import TrainerCallback

    from llmrecipes.cpu import tune_cpu
    from llmrecipes.generation import sample_responses
    from llmrecipes.ppo import experience
    from llmrecipes.ppo.config import PPOConfig
    from llmrecipes.ppo.trainer import PPOTrainer

    tune_cpu("ppo")  # as recipes/ppo.py does
    watch, tokenizer = run.watch, build_tokenizer(run.work["vocab"], run.workload == "stop_pad_is_eos")
    policy, reference, reward, value = run.models()
    value_model = "shared" if side == "shared" else "separate"

    def sampler(model, prompts, **kwargs):
        if run.schedule:
            decoded = sorted(prompts, key=len, reverse=True)  # the order in which sample_responses decodes them
            kwargs["stopping_criteria"] = run.schedule.criterion(decoded, batch_size=kwargs["batch_size"])
        responses = sample_responses(model, prompts, **kwargs)
        run.tokens += sum(len(response.token_ids) for response in responses)
        return responses

    def toy_reward(prompts, completion_ids):
        return run.reward(prompts, completion_ids)

    class Updates(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step % args.steps_per_rollout == 0:
                run.finished_update()

    trainer = PPOTrainer(
        model=policy,
        args=PPOConfig(
            **run.common_arguments(), max_completion_length=run.response, logging_steps=1, value_model=value_model,
            shuffle_dataset=False, old_logprobs="sampler", num_rollout_completions=0, torch_compile=side == "compiled",
            cache_implementation="static" if side == "static" else None,
        ),
        train_dataset=Dataset.from_list([{"prompt": row} for row in run.prompts]), processing_class=tokenizer,
        ref_model=reference, reward_funcs=toy_reward if run.toy else reward, sampler=sampler, callbacks=[Updates()],
        value_model=value if value_model == "separate" else None,
    )  # fmt: skip
    watch.wrap(trainer, "sampler", "sample")
    watch.wrap(trainer.rewards, "score", "score")
    watch.wrap(experience, "forward_models", "rollout_forward")
    watch.wrap(trainer, "compute_loss", "update")
    watch.wrap(trainer.accelerator, "backward", "update")
    trainer.create_optimizer()
    watch.wrap(trainer.optimizer, "step", "update")
    trainer.train()


def measure(side: str, workload: str, updates: int, *given) -> dict:
    """Samples/s, seconds per update by phase (CPU; "other" is the trainer's own overhead), that overhead's share of wall
    time, wall seconds of the first update (not counted: it warms up and compiles), response tokens of each update, peak
    memory (MiB); for toys, the score of each update."""
    import torch

    torch.set_num_threads(1)
    cuda = torch.cuda.is_available()
    run = Run(workload, updates, *given)
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Finished):
        if side == "grpo":
            run_grpo(run, build_tokenizer(run.work["vocab"], False))
        else:
            run_trl(run) if side == "trl" else run_ours(run, side)
    if run.digits:  # for what it learns, not for its phases
        return {"rows": run.rows, "scores": run.curve()}
    (first, _, before), (last, _, after) = run.marks[0], run.marks[-1]  # the first update warms up
    counted = updates - 1
    cpu, wall = ((end - start) / counted for end, start in zip(last, first, strict=True))
    phases = {name: [(after[name][i] - before[name][i]) / counted for i in range(2)] for name in after}
    tokens = [mark[1] for mark in run.marks]
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "samples_per_s": run.rows / cpu,
        "tokens": [end - start for start, end in zip([0, *tokens], tokens, strict=False)],
        "seconds": {name: times[0] for name, times in phases.items()}
        | {"other": cpu - sum(times[0] for times in phases.values())},
        "first_update_s": run.marks[0][0][1] - started,
        "overhead": 1 - sum(times[1] for times in phases.values()) / wall,
        "peak_mb": peak,
        # After the peak was read.
        **{name: run.floor(name) if side in ("separate", "compiled") and not run.toy else None for name in FLOORS},
        "scores": run.curve(),
    }


if __name__ == "__main__":
    side, workload, updates, *given = sys.argv[1:]
    print(json.dumps(measure(side, workload, int(updates), *([int(given[0]), given[1]] if given else []))))
