"""Evaluation: several models side by side on held-out text, abilities and behaviour, each figure with its interval.

Papers: lm-eval (Gao et al. 2021), InstructGPT (arXiv 2203.02155) for win rates.
Launch: python recipes/evaluate.py --config configs/quickstart/evaluate.yaml
Writes: output_dir/metrics.json (`models`: value, low, high, n of each measure; `p_values`: each model against the baseline,
McNemar's exact test), answers.jsonl (every answer, judged; not without questions), table.txt.
"""

from dataclasses import dataclass, field

from llmrecipes.config import DataArguments, InputError, ModelArguments, RunArguments, launch


@dataclass
class EvaluateArguments:
    output_dir: str = field(default="", metadata={"help": "Where metrics.json and answers.jsonl go."})
    models: dict = field(default_factory=dict, metadata={"help": "{name: folder or Hub id}, in the table's order."})
    baseline: str = field(default="sft", metadata={"help": "Name of the model that win rate and KL compare with."})
    tasks: list[str] = field(default_factory=list, metadata={"help": "lm-eval tasks or groups; none to skip."})
    tasks_path: str = field(default="configs/tasks", metadata={"help": "Folder of the tasks' YAML files."})
    hub_tasks: bool = field(default=False, metadata={"help": "Know lm-eval's own tasks too (they need the Hub)."})
    allow_code_execution: bool = field(
        default=False,
        metadata={"help": "Take tasks that run code which the model writes, on this machine (humaneval, mbpp)."},
    )
    blimp_path: str | None = field(default=None, metadata={"help": "Folder of BLiMP's JSONL files, scored as published."})
    task_limit: int | None = field(default=None, metadata={"help": "Items a task, the first ones; all by default."})
    judge: str | None = field(default=None, metadata={"help": "module:function (row, answer) -> named parts, or `llm`."})
    judge_url: str | None = field(default=None, metadata={"help": "Of `llm`: OpenAI-compatible endpoint, ends in /v1."})
    judge_model: str | None = field(default=None, metadata={"help": "Its name there."})
    judge_key_variable: str = field(default="OPENAI_API_KEY", metadata={"help": "Environment variable with its key."})
    judge_concurrency: int = field(default=4, metadata={"help": "Questions asked at once."})
    judge_price: list[float] = field(
        default_factory=list, metadata={"help": "Dollars for a million prompt tokens and for a million answered ones."}
    )
    judge_pairs: bool = field(
        default=True, metadata={"help": "Of `llm`: ask too whose answer is better, the model's or the baseline's."}
    )
    judge_guidelines: str | None = field(default=None, metadata={"help": "Of judge_pairs: Markdown; default: ours."})
    reward_model_name_or_path: str | None = field(default=None, metadata={"help": "Scores answers beside the judge."})
    rule: str | None = field(default=None, metadata={"help": "module:function (row, answer) -> gold score."})
    max_new_tokens: int = field(default=64, metadata={"help": "Longest answer."})
    sample_temperature: float = field(
        default=1.0, metadata={"help": "Of further answers to each question, for the sampled_ measures; 0: none."}
    )
    num_samples: int = field(
        default=1, metadata={"help": "How many; all of them and the greedy one are compared for self_consistency."}
    )
    max_length: int = field(default=1024, metadata={"help": "Window of held-out text in tokens."})
    kl_prompts: int = field(default=100, metadata={"help": "Prompts that KL is measured on; 0 to skip."})
    show_answers: int = field(default=6, metadata={"help": "Questions shown side by side at the end."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Rows a forward pass."})
    seed: int = 42

    def __post_init__(self):
        if self.task_limit is not None and self.task_limit < 1:
            raise InputError(f"task_limit: {self.task_limit} must be at least 1; leave it out to take all items")


def main(run, data, evaluate, model):
    from llmrecipes.cards import write_model_card
    from llmrecipes.evaluation import evaluate_models, load_parts, write_results
    from llmrecipes.evaluation.judges import VERDICTS_FILE
    from llmrecipes.evaluation.sharing import processes
    from llmrecipes.ranking.card import write_card
    from llmrecipes.run import check_run, finish_run, start_run

    processes()  # those of a launch join before the first one writes
    inputs = [*evaluate.models.values(), *(s.path for s in data.datasets + data.eval_datasets)]
    state = check_run("evaluate", run, evaluate, (run, data, evaluate, model), inputs, keep=(VERDICTS_FILE,))

    parts = load_parts(data, evaluate)
    start_run(state)
    scores, rows, answers = evaluate_models(model, evaluate, parts)
    flat = {}
    if state.is_main:
        flat = write_results(state.output_dir, scores, rows, answers, parts, evaluate.show_answers, evaluate.judge_price)
        for name, folder in evaluate.models.items():  # each model's card tells how it did
            write_model_card(folder, {m: e._asdict() for m, e in scores[name].items()}, state.output_dir)
        if rows:
            table = (state.output_dir / "table.txt").read_text(encoding="utf-8")
            body = f"Held-out questions as each model answered them. `metrics.json` holds the figures.\n\n```\n{table}```"
            write_card(state.output_dir, "Answers, judged", {"default": {"test": "answers.jsonl"}}, body, state)

    finish_run(state, flat, made=f"{len(scores)} models compared", next_steps="read answers.jsonl" if rows else "")


if __name__ == "__main__":
    # `datasets` are the questions (prompt, kind, ...), `eval_datasets` the held-out text.
    launch(main, RunArguments, DataArguments, EvaluateArguments, ModelArguments)
