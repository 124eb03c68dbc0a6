"""Progress during training: a Trainer callback that samples answers and scores small tasks.

Off unless `watch_steps` is set. Answers are greedy or drawn from a separate generator, and tasks draw no random numbers, so
training is identical with and without it; its cost is capped at `watch_share` of the wall time.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import datasets
from accelerate import DistributedType
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback

from llmrecipes.config import DataArguments, InputError, ModelArguments, load_function
from llmrecipes.data import load_rows
from llmrecipes.durable import cut_back
from llmrecipes.evaluation.abilities import load_tasks, score_items, summarise_items
from llmrecipes.evaluation.behaviours import answer, finished_answers
from llmrecipes.evaluation.watch_win_rate import JudgeComparison, RewardComparison, RuleComparison
from llmrecipes.judging.arguments import JudgeArguments
from llmrecipes.judging.endpoint import Endpoint, check_judge, open_endpoint
from llmrecipes.judging.pairwise import check_guidelines
from llmrecipes.models import load_tokenizer
from llmrecipes.reward_models.scoring import check_reward_path, tell_unread, with_reader

FILE = "watch.jsonl"


@dataclass
class WatchArguments(JudgeArguments):
    """What is sampled and scored while a model trains, and how often."""

    watch_steps: int = field(
        default=0, metadata={"help": "Sample and score every N optimizer steps, and before the first; 0: never."}
    )
    watch_prompts: list[str] = field(default_factory=list, metadata={"help": "Prompts that the model answers each time."})
    watch_tasks: list[str] = field(default_factory=list, metadata={"help": "lm-eval tasks scored each time."})
    watch_tasks_path: str = field(default="configs/tasks", metadata={"help": "Folder of the tasks' YAML files."})
    watch_questions: dict | None = field(
        default=None,
        metadata={"help": "A source {path, split, max_rows, ...} of questions, for the win rate over step 0."},
    )
    watch_rule: str | None = field(
        default=None, metadata={"help": "What decides which answer is better: module:function (row, answer) -> score."}
    )
    watch_reward_model: str | None = field(
        default=None,
        metadata={"help": "In place of watch_rule: folder or Hub id of a reward model; or give judge_url and judge_model."},
    )
    judge_guidelines: str | None = field(default=None, metadata={"help": "The judge's guidelines, Markdown; default: ours."})
    watch_temperature: float = field(
        default=1.0, metadata={"help": "Temperature of answers to watch_questions, with the same seed each time; 0: greedy."}
    )
    watch_items: int = field(default=50, metadata={"help": "Number of items of each task, from its start."})
    watch_max_new_tokens: int = field(default=32, metadata={"help": "Longest answer."})
    watch_share: float = field(
        default=0.05,
        metadata={"help": "Largest share of the wall time, not counting step 0; what exceeds it is skipped; 1: no limit."},
    )

    def __post_init__(self):
        if not self.watch_steps:
            return
        if not (self.watch_prompts or self.watch_tasks or self.watch_questions):
            raise InputError("watch_steps: there is nothing to watch; give watch_prompts, watch_tasks or watch_questions")
        if bool(self.judge_url) != bool(self.judge_model):
            raise InputError("judge_url and judge_model go together: an endpoint and a model's name there")
        given = [key for key in ("watch_rule", "watch_reward_model", "judge_url") if getattr(self, key)]
        if len(given) != bool(self.watch_questions):
            raise InputError(
                "watch_questions goes together with one of watch_rule, watch_reward_model and judge_url, which decides "
                f"which answers are better; given: {', '.join(given) or 'none'} (null unsets a key)"
            )


@dataclass
class Watched:
    """What `load_watch` loaded: lm-eval tasks, questions, and the comparison of their answers."""

    args: WatchArguments
    tasks: dict | None = None
    questions: list[dict] = field(default_factory=list)
    rule: object = None
    endpoint: Endpoint | None = None

    def load_comparison(self) -> RuleComparison | RewardComparison | JudgeComparison | None:
        """The comparison of answers to the questions; loads the reward model, if there is one."""
        if self.args.watch_reward_model:
            return RewardComparison(self.args.watch_reward_model)
        if self.endpoint:
            return JudgeComparison(self.endpoint, self.args.judge_guidelines)
        return RuleComparison(self.rule) if self.rule else None


def load_watch(args: WatchArguments, check: Callable[[Mapping, str], None] | None = None) -> Watched | None:
    """Loads what `args` request, before any model is loaded; None if `watch_steps` is 0.

    check: `templates.row_check` of a model that is asked in conversations.

    Raises:
        InputError: a task, function, source or reward model does not exist, the endpoint does not answer, or the model's
            chat template, or the reward model's, refuses what is asked.
    """
    if not args.watch_steps:
        return None
    datasets.disable_progress_bars()
    watched = Watched(args)
    if args.watch_tasks:
        watched.tasks = load_tasks(args.watch_tasks, args.watch_tasks_path)
    if args.watch_rule:
        watched.rule = load_function(args.watch_rule, "watch_rule")
    if args.watch_reward_model:
        check_reward_path(args.watch_reward_model, "watch_reward_model")
    for number, prompt in enumerate(args.watch_prompts if check else ()):
        check({"prompt": [{"role": "user", "content": prompt}]}, f"watch_prompts[{number}]")
    if args.watch_questions:
        source = DataArguments(datasets=[args.watch_questions]).datasets[0]
        if args.watch_reward_model:
            check = with_reader(check, load_tokenizer(ModelArguments(model_name_or_path=args.watch_reward_model)))
        watched.questions = list(load_rows(source, 0, ("prompt",), check))
        if args.watch_reward_model:
            tell_unread(watched.questions)
    if args.judge_url:
        check_judge(args, "`watch_questions`")
        check_guidelines(args.judge_guidelines, "judge_guidelines")
        watched.endpoint = open_endpoint(args)
        watched.endpoint.check()
    return watched


class Watch(TrainerCallback):
    """Writes output_dir/watch.jsonl, a row each time: step, answers ({prompt: answer}), scores ({task: Estimate}), seconds.

    With questions the scores include `win_rate`, the share of questions answered better than at step 0, ties half; it is
    computed from `golds` (of a rule), `rewards` (of a reward model) or `texts` (for a judge model). Scores also go into the
    trainer's history and trackers (watch/TASK). Step 0, from which the cost of a row is estimated, is always taken and not
    counted against the cap.

    chat: prompts are sent as a user's turn; otherwise they are text to be continued, as for a base model.
    """

    def __init__(self, watched: Watched, trainer: Trainer, tokenizer: PreTrainedTokenizerBase, chat: bool):
        self.watched, self.args, self.trainer, self.tokenizer = watched, watched.args, trainer, tokenizer
        self.file = Path(trainer.args.output_dir) / FILE
        self.chat = chat and bool(tokenizer.chat_template)
        self.spent, self.last = 0.0, None
        self.left_out = 0
        self.comparison = watched.load_comparison() if trainer.is_world_process_zero() else None
        self.first: list = []  # the results kept from step 0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.started = time.monotonic()
        if state.is_world_process_zero:  # a resumed run repeats what came after its checkpoint
            kept = cut_back(self.file, state.global_step)
            if self.comparison:
                known = [row.get(self.comparison.name, []) for row in kept]
                self.first = next((first for first in known if len(first) == len(self.watched.questions)), [])
                if state.global_step and not self.first:
                    print("watch: no answers of step 0 are left; win rates are over those of the next step", flush=True)
        if state.global_step == 0:
            self._take(args, state, control, model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.args.watch_steps == 0:
            self._take(args, state, control, model)

    def on_train_end(self, args, state, control, **kwargs):
        if self.left_out and state.is_world_process_zero:
            print(f"watch: skipped {self.left_out} times, as it would have taken more than watch_share of the time")
        if self.watched.endpoint and state.is_world_process_zero:
            numbers = self.watched.endpoint.numbers(self.args.judge_price)
            print("watch: judge " + ", ".join(f"{key[6:]} {value:,}" for key, value in numbers.items()), flush=True)

    def _take(self, args, state, control, model) -> None:
        # On a GPU the gradient of this step has not been looked at yet; in each process, or the others would wait for one.
        getattr(self.trainer, "require_finite", lambda: None)()
        if not state.is_world_process_zero:
            return
        allowed = self.args.watch_share * (time.monotonic() - self.started)
        if self.last is not None and self.args.watch_share < 1 and self.spent + self.last > allowed:
            self.left_out += 1
            return
        started = time.monotonic()
        model = getattr(model, "module", model)
        model = getattr(model, "policy", model)  # PPO trains a policy and a value model as one module
        config = model.config.get_text_config()  # of a vision model, the text part's
        was_training, use_cache = model.training, config.use_cache
        model.eval()
        row = {"step": state.global_step, "answers": self._ask(model), "scores": self._score(model)}
        if self.comparison:
            row |= self._compare(model, row["scores"], state.global_step)
        config.use_cache = use_cache
        model.train(was_training)
        if row["scores"]:
            self._log(args, state, control, {f"watch/{name}": score["value"] for name, score in row["scores"].items()})
        row["seconds"] = round(time.monotonic() - started, 3)
        self.spent += row["seconds"] if self.last is not None else 0.0
        self.last = row["seconds"]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        for prompt, text in list(row["answers"].items())[:1]:
            print(f"step {state.global_step}: {prompt!r} -> {text!r}", flush=True)

    def _ask(self, model) -> dict[str, str]:
        prompts = self.args.watch_prompts
        if not prompts:
            return {}
        asked = [[{"role": "user", "content": p}] if self.chat else p for p in prompts]
        return dict(zip(prompts, self._answer(model, asked)[0], strict=True))

    def _compare(self, model, scores: dict, step: int) -> dict[str, list]:
        """The results to keep from this step; adds `win_rate` to the scores."""
        rows, temperature = self.watched.questions, self.args.watch_temperature
        texts, ids = self._answer(model, [row["prompt"] for row in rows], temperature)
        whole = ids and finished_answers(model, self.tokenizer, ids)
        try:
            now = self.comparison.keep(rows, texts, whole, model.device)
            self.first = self.first or now
            scores["win_rate"] = self.comparison.win_rate(rows, now, self.first)._asdict()
        except InputError as error:
            if step == 0:
                raise
            # A failure, such as an unreachable endpoint, must not end hours of training.
            print(f"watch: no win rate at step {step}: {error}", flush=True)
            return {}
        return {self.comparison.name: now}

    def _answer(self, model, prompts: list, temperature: float = 0.0) -> tuple[list[str], list[list[int]]]:
        options = {"max_new_tokens": self.args.watch_max_new_tokens, "batch_size": 64, "temperature": temperature}
        _, ids, texts = answer(model, self.tokenizer, prompts, **options)
        return texts, ids

    def _score(self, model) -> dict[str, dict]:
        if not self.watched.tasks:
            return {}
        scores = score_items(model, self.tokenizer, self.watched.tasks, limit=self.args.watch_items)
        return {name: score._asdict() for name, score in summarise_items(scores).items()}

    def _log(self, args, state, control, scores: dict[str, float]) -> None:
        """Logs like Trainer.log, which cannot be called: subclasses add the averages since their last line to it."""
        state.log_history.append({"step": state.global_step} | scores)
        should_log = control.should_log  # on_log resets it, and this step may still have its own line to write
        self.trainer.callback_handler.on_log(args, state, control, scores)
        control.should_log = should_log


def add_watch(trainer: Trainer, watched: Watched | None, tokenizer: PreTrainedTokenizerBase, chat: bool = True) -> None:
    """Adds a Watch to the trainer, unless there is nothing to watch or the weights are sharded over processes."""
    if not watched:
        return
    if how := _sharded(trainer):
        if trainer.is_world_process_zero():
            print(f"watch: turned off under {how}, where a single process cannot generate; evaluate the finished model")
        return
    trainer.add_callback(Watch(watched, trainer, tokenizer, chat))


def _sharded(trainer: Trainer) -> str:
    """FSDP, DEEPSPEED, ... as set up by accelerate (whose YAML may not show in the trainer's arguments), or ""."""
    sharding = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
    if trainer.accelerator.distributed_type in sharding:
        return trainer.accelerator.distributed_type.value
    flags = {"FSDP": "is_fsdp_enabled", "DeepSpeed": "is_deepspeed_enabled", "tensor parallelism": "is_tp_enabled"}
    return next((name for name, flag in flags.items() if getattr(trainer, flag, False)), "")
