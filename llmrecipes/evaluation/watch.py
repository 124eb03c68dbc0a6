"""What a model says and can do while it learns: a Trainer callback that asks fixed prompts and scores small tasks.

Off unless `watch_steps` is set. Its answers are greedy and its tasks draw nothing, so that training takes the same course
with and without it; its cost is capped at `watch_share` of the wall time.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback

from llmrecipes.evaluation.abilities import load_tasks, score_tasks
from llmrecipes.evaluation.behaviours import answer

FILE = "watch.jsonl"


@dataclass
class WatchArguments:
    watch_steps: int = field(default=0, metadata={"help": "Look every so many optimizer steps; 0: never."})
    watch_prompts: list[str] = field(default_factory=list, metadata={"help": "What the model is asked each time."})
    watch_tasks: list[str] = field(default_factory=list, metadata={"help": "lm-eval tasks that are scored each time."})
    watch_tasks_path: str = field(default="configs/tasks", metadata={"help": "Folder of the tasks' YAML files."})
    watch_items: int = field(default=50, metadata={"help": "Items of each task, the first ones."})
    watch_max_new_tokens: int = field(default=32, metadata={"help": "Longest answer."})
    watch_share: float = field(
        default=0.05, metadata={"help": "Largest share of the wall time; looks beyond it are left out."}
    )


class Watch(TrainerCallback):
    """Writes output_dir/watch.jsonl, a row a look: step, answers ({prompt: answer}), scores ({task: Estimate}), seconds.

    Scores also go into the trainer's history (watch/TASK), from which the report draws its curves. Models that are
    sharded over processes are not looked at: generation by one process alone would hang the others.
    """

    def __init__(self, args: WatchArguments, tokenizer: PreTrainedTokenizerBase, output_dir: str | Path):
        self.args, self.tokenizer, self.file = args, tokenizer, Path(output_dir) / FILE
        self.tasks = load_tasks(args.watch_tasks, args.watch_tasks_path) if args.watch_tasks else None
        self.spent = self.last = 0.0
        self.left_out = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = time.monotonic()
        rows = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        if rows and state.is_world_process_zero:  # a resumed run looks again at what came after its checkpoint
            kept = [row for row in rows if json.loads(row)["step"] <= state.global_step]
            self.file.write_text("".join(row + "\n" for row in kept), encoding="utf-8")

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.args.watch_steps == 0:
            self._look(args, state, model)

    def on_train_end(self, args, state, control, **kwargs):
        if self.left_out and state.is_world_process_zero:
            print(f"watch: {self.left_out} looks left out, they would have taken more than watch_share of the time")

    def _look(self, args, state, model) -> None:
        if not state.is_world_process_zero or getattr(args, "fsdp", None) or getattr(args, "deepspeed", None):
            return
        if self.last and self.spent + self.last > self.args.watch_share * (time.monotonic() - self.started):
            self.left_out += 1
            return
        started = time.monotonic()
        model = getattr(model, "module", model)
        model = getattr(model, "policy", model)  # PPO trains a policy and a value model as one module
        was_training = model.training
        model.eval()
        use_cache = model.config.use_cache
        row = {"step": state.global_step, "answers": {}, "scores": {}}
        if self.args.watch_prompts:
            chat = bool(self.tokenizer.chat_template)
            prompts = [[{"role": "user", "content": p}] if chat else p for p in self.args.watch_prompts]
            options = {"max_new_tokens": self.args.watch_max_new_tokens, "batch_size": len(prompts)}
            texts = answer(model, self.tokenizer, prompts, **options)[2]
            row["answers"] = dict(zip(self.args.watch_prompts, texts, strict=True))
            print(f"step {state.global_step}: {self.args.watch_prompts[0]!r} -> {texts[0]!r}", flush=True)
        if self.tasks:
            scores = score_tasks(model, self.tokenizer, self.tasks, limit=self.args.watch_items)
            row["scores"] = {name: score._asdict() for name, score in scores.items()}
            state.log_history.append({"step": state.global_step} | {f"watch/{n}": s.value for n, s in scores.items()})
        model.config.use_cache = use_cache
        model.train(was_training)
        row["seconds"] = self.last = round(time.monotonic() - started, 3)
        self.spent += self.last
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def watch(trainer: Trainer, args: WatchArguments, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add a Watch to the trainer, unless `watch_steps` is 0."""
    if args.watch_steps:
        trainer.add_callback(Watch(args, tokenizer, trainer.args.output_dir))
