"""Speed and memory of pretrain, sft and reward against a bare PyTorch loop on the same model and the same batches.

Both sides alternate in one process, so that other load slows them alike; the first turn also checks that they end with the
same weights. Peak memory is measured in a separate process for each side. The overhead is between the fastest fifth of each
side's turns: other load, or a core shared with another machine, only ever slows a turn. From one process to the next it
differs by several percent, so it is the median of a few processes, shown with its range. The target is at most 2 % for each
stage.

    python benchmarks/training.py [--steps 10] [--rounds 15] [--processes 3] [--stages pretrain,sft,reward] [--json FILE]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import trl
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from llmrecipes.config import ModelArguments
from llmrecipes.data.tinytown import load_tinytown
from llmrecipes.logs import quiet_logs, use_readable_log
from llmrecipes.models import build_policy, count_parameters, load_policy, load_reward_model
from llmrecipes.options import OptionParser, names_of, result_file
from llmrecipes.pacing import keep_gpu_busy, stop_where_not_finite
from llmrecipes.pretraining import PretrainTrainer
from llmrecipes.sft import SFTTrainer
from llmrecipes.tokenizers import train_tokenizer
from llmrecipes.tokens.blocks import collate_blocks
from llmrecipes.tokens.corpus import build_blocks

ROWS, LENGTH = 16, 128
STAGES = ("pretrain", "sft", "reward")
MODEL = {  # 3.0M parameters
    "model_type": "llama",
    "vocab_size": 2048,
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "intermediate_size": 512,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}


class Clock(TrainerCallback):
    """Wall and CPU seconds at the end of each step. Synchronises with the device only at the first and the last step:
    otherwise it would idle while the next step is prepared, unlike in a real run."""

    def __init__(self):
        self.times = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.times = []

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(now(state.global_step in (1, state.max_steps)))


def now(wait: bool = True) -> tuple[float, float]:
    if wait and torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def pace(times: list[tuple[float, float]]) -> tuple[float, float]:
    """Wall and CPU seconds per step, without the first step."""
    return tuple((last - first) / (len(times) - 1) for first, last in zip(times[0], times[-1], strict=True))


def fastest(turns: list[tuple[float, float]], clock: int) -> float:
    """Mean seconds per step of the fastest fifth of the turns; clock: 0 for wall, 1 for CPU seconds."""
    return statistics.mean(sorted(turn[clock] for turn in turns)[: max(1, len(turns) // 5)])


def build_trainer(stage: str, folder: Path, steps: int) -> Trainer:
    """The stage's trainer as built by its recipe, on 16 rows of 128 tokens per step."""
    torch.manual_seed(0)
    texts = load_tinytown("c4", seed=0, num_rows=1000)
    tokenizer = train_tokenizer(texts["text"], MODEL["vocab_size"], 256)
    build_policy(MODEL, tokenizer).save_pretrained(folder)
    source = ModelArguments(model_name_or_path=str(folder))
    has_accelerator = torch.accelerator.is_available()
    values = {
        "output_dir": str(folder / "out"),
        "max_steps": steps,
        "per_device_train_batch_size": ROWS,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": not has_accelerator,
        "bf16": has_accelerator or torch.cpu.get_capabilities().get("amx_bf16", False),
    }
    if stage == "pretrain":
        blocks = build_blocks(texts, tokenizer, LENGTH, ROWS)
        args = TrainingArguments(**values)
        return PretrainTrainer(model=load_policy(source), args=args, train_dataset=blocks, data_collator=collate_blocks)
    # SFT truncates longer answers to LENGTH; the reward trainer would drop pairs that are too long.
    blocks = build_blocks(texts, tokenizer, LENGTH if stage == "sft" else 96, ROWS)
    answers = [tokenizer.decode(block["input_ids"]) for block in blocks]
    asked = [{"role": "user", "content": "Tell me a story."}]
    said = [[{"role": "assistant", "content": answer}] for answer in answers]
    values |= {"max_length": LENGTH, "activation_checkpointing": False}
    if stage == "sft":
        rows = Dataset.from_list([{"messages": asked + answer} for answer in said])
        args = trl.SFTConfig(**values, assistant_only_loss=True)
        return SFTTrainer(model=load_policy(source), args=args, train_dataset=rows, processing_class=tokenizer)
    rows = Dataset.from_list(
        [{"prompt": asked, "chosen": a, "rejected": b} for a, b in zip(said, said[1:] + said[:1], strict=True)]
    )
    args = trl.RewardConfig(**values | {"per_device_train_batch_size": ROWS // 2})  # a pair is two rows
    model = load_reward_model(source, tokenizer)
    return trl.RewardTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)


def bare_loss(stage: str, model: torch.nn.Module, batch: dict) -> torch.Tensor:
    if stage != "reward":
        return model(**batch, use_cache=False).loss
    chosen, rejected = model(**batch, use_cache=False).logits.squeeze(-1).chunk(2)
    return -torch.nn.functional.logsigmoid(chosen - rejected).mean()


def bare_loop(stage: str, model: torch.nn.Module, optimizer, batches: list[dict], args) -> list[tuple[float, float]]:
    """A hand-written loop; returns the times at which its steps ended."""
    times, schedule = [], torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    model.train()
    for step, batch in enumerate(batches, 1):
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
            loss = bare_loss(stage, model, {name: value.to(args.device) for name, value in batch.items()})
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        times.append(now(step in (1, len(batches))))  # as Clock does
    return times


class Contest:
    """One stage's trainer and the bare loop, ready to alternate."""

    def __init__(self, stage: str, folder: Path, steps: int):
        self.stage, self.clock = stage, Clock()
        self.trainer = use_readable_log(build_trainer(stage, folder, steps))
        self.trainer.add_callback(self.clock)
        stop_where_not_finite(self.trainer)  # what a recipe's run adds to each step
        keep_gpu_busy(self.trainer, given={})
        source = ModelArguments(model_name_or_path=str(folder))
        self.trainer_start = {name: value.clone() for name, value in self.trainer.model.state_dict().items()}
        self.model = load_policy(source) if stage != "reward" else load_reward_model(source, self.trainer.processing_class)
        self.model.load_state_dict(self.trainer_start)
        self.model.to(self.trainer.args.device)
        kind, options = Trainer.get_optimizer_cls_and_kwargs(self.trainer.args)
        self.optimizer = kind(self.model.parameters(), **options)
        self.batches = list(self.trainer.get_train_dataloader())[:steps]
        assert len(self.batches) == steps, "more steps than one pass over the rows: Trainer would shuffle them anew"

    def turn(self, side: str) -> tuple[float, float]:
        if side == "bare":
            return pace(bare_loop(self.stage, self.model, self.optimizer, self.batches, self.trainer.args))
        self.trainer.train()
        return pace(self.clock.times)

    def difference(self) -> float:
        """Norm of the difference between the two sides' weights over that of the change since the start."""
        theirs = {name: value.cpu() for name, value in self.trainer.model.state_dict().items()}
        apart = [(theirs[name] - value.cpu()).norm() for name, value in self.model.state_dict().items()]
        changed = [(theirs[name] - value.cpu()).norm() for name, value in self.trainer_start.items()]
        return (torch.stack(apart).norm() / torch.stack(changed).norm()).item()


def compare(stage: str, steps: int, rounds: int) -> dict:
    """Steps per second of both sides and the trainer's overhead, each over the fastest of `rounds` turns."""
    with tempfile.TemporaryDirectory() as folder:
        contest = Contest(stage, Path(folder), steps)
        seconds = {"recipe": [], "bare": []}
        for i in range(rounds + 1):
            for side in ("recipe", "bare") if i % 2 else ("bare", "recipe"):
                seconds[side].append(contest.turn(side))
            if i == 0:  # a turn to warm up, and to check that both learn the same thing
                difference = contest.difference()
                # In bfloat16 a gradient that is next to nothing may have either sign, and Adam makes a whole step of it.
                assert difference < (0.5 if contest.trainer.args.bf16 else 0.05), (
                    f"{stage}: the two sides learn different things ({difference:.3f})"
                )
                seconds = {"recipe": [], "bare": []}
        batch = contest.batches[0]["input_ids"].shape
        ratios = [fastest(seconds["recipe"], clock) / fastest(seconds["bare"], clock) for clock in (0, 1)]
        return {
            "stage": stage,
            "parameters": count_parameters(contest.model),
            "batch": list(batch),
            "steps_per_second": 1 / fastest(seconds["recipe"], 0),
            "bare_steps_per_second": 1 / fastest(seconds["bare"], 0),
            "overhead": ratios[0] - 1,
            "overhead_cpu_time": ratios[1] - 1,
            "weight_difference": difference,
        }


def in_process(*arguments: str) -> dict | float:
    """What this script prints with `arguments`, in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_memory(stage: str, side: str, steps: int) -> float:
    """MiB that training adds at its peak; called in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        contest = Contest(stage, Path(folder), steps)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            contest.turn(side)
            return torch.cuda.max_memory_allocated() / 2**20
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak counts from here, not from the set-up
        before = resident("VmRSS")
        contest.turn(side)
        return (resident("VmHWM") - before) / 2**10


def resident(field: str) -> int:
    """KiB of this process: VmRSS is the current value, VmHWM the peak."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0])


def main():
    parser = OptionParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="steps in a turn")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each side")
    parser.add_argument("--processes", type=int, default=3, help="processes that measure a stage, one after the other")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--json", type=result_file, metavar="FILE")
    parser.add_argument("--speed_of", help=argparse.SUPPRESS)  # a stage: what the child processes measure
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)  # stage,side
    args = parser.parse_args()
    try:
        stages = names_of(args.stages, STAGES)
    except ValueError as error:
        parser.error(f"--stages: {error}")
    if args.steps < 2 or args.rounds < 1 or args.processes < 1:
        parser.error("--steps must be at least 2, for the first is not counted, --rounds and --processes at least 1")
    quiet_logs()
    if args.memory_of:
        print(peak_memory(*args.memory_of.split(","), args.steps))
        return
    if args.speed_of:
        print(json.dumps(compare(args.speed_of, args.steps, args.rounds)))
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(f"{ROWS} rows of {LENGTH} tokens on {device}; {args.rounds} turns of {args.steps} steps each")
    results = []
    for stage in stages:
        same = ("--steps", str(args.steps), "--rounds", str(args.rounds), "--speed_of", stage)
        runs = [in_process(*same) for _ in range(args.processes)]
        middle = sorted(runs, key=lambda run: run["overhead"])[len(runs) // 2]
        middle |= {f"{key}_by_process": sorted(run[key] for run in runs) for key in ("overhead", "overhead_cpu_time")}
        for side in ("recipe", "bare"):
            middle[f"{side}_peak_mib"] = in_process("--steps", "5", "--memory_of", f"{stage},{side}")
        results.append(middle)
        print(f"{stage}: {middle['overhead']:.1%}", file=sys.stderr, flush=True)
    print(f"\n{'stage':<10}{'steps/s':>9}{'bare':>9}{'overhead':>10}{'':16}{'CPU time':>10}{'peak MiB':>10}{'bare':>9}")
    for r in results:
        low, *_, high = r["overhead_by_process"] * 2  # twice: one process has both
        print(
            f"{r['stage']:<10}{r['steps_per_second']:>9.2f}{r['bare_steps_per_second']:>9.2f}{r['overhead']:>10.1%}"
            f"{f'[{low:.1%}, {high:.1%}]':>16}{r['overhead_cpu_time']:>10.1%}{r['recipe_peak_mib']:>10.0f}"
            f"{r['bare_peak_mib']:>9.0f}"
        )
    if args.json:
        args.json.write_text(json.dumps({"device": device, "steps": args.steps, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
