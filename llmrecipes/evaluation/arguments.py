"""Keys of recipes/evaluate.py."""

from dataclasses import dataclass, field

from llmrecipes.judging.arguments import JudgeArguments


@dataclass
class EvaluateArguments(JudgeArguments):
    """Which models are compared, on what, and who judges."""

    output_dir: str = field(default="", metadata={"help": "Folder for metrics.json and answers.jsonl."})
    models: dict = field(default_factory=dict, metadata={"help": "{name: folder or Hub id}, in the table's order."})
    baseline: str = field(default="sft", metadata={"help": "Name of the model that others are compared with."})
    tasks: list[str] = field(default_factory=list, metadata={"help": "lm-eval tasks or groups; empty to skip."})
    tasks_path: str = field(default="configs/tasks", metadata={"help": "Folder of the tasks' YAML files."})
    hub_tasks: bool = field(default=False, metadata={"help": "Allow lm-eval's own tasks as well (they need the Hub)."})
    allow_code_execution: bool = field(
        default=False,
        metadata={"help": "Allow tasks that run code written by the model on this machine (humaneval, mbpp)."},
    )
    blimp_path: str | None = field(
        default=None, metadata={"help": "Folder of BLiMP's JSONL files, scored as lm-eval does and as published."}
    )
    task_limit: int | None = field(default=None, metadata={"help": "First items of each task; default: all."})
    judge: str | None = field(default=None, metadata={"help": "module:function (row, answer) -> named parts, or `llm`."})
    judge_pairs: bool = field(
        default=True, metadata={"help": "With `llm`: also ask whose answer is better, the model's or the baseline's."}
    )
    judge_guidelines: str | None = field(
        default=None, metadata={"help": "Guidelines of judge_pairs, Markdown; default: ours."}
    )
    reward_model_name_or_path: str | None = field(default=None, metadata={"help": "Also scores answers, whoever judges."})
    rule: str | None = field(default=None, metadata={"help": "module:function (row, answer) -> gold score."})
    max_new_tokens: int = field(default=64, metadata={"help": "Longest answer."})
    sample_temperature: float = field(
        default=1.0, metadata={"help": "Temperature of the answers behind the sampled_ measures; 0: none."}
    )
    num_samples: int = field(
        default=1, metadata={"help": "Sampled answers per question; with the greedy one they give self_consistency."}
    )
    max_length: int = field(default=1024, metadata={"help": "Window of held-out text in tokens."})
    kl_prompts: int = field(default=100, metadata={"help": "Prompts used to measure KL; 0 to skip."})
    show_answers: int = field(default=6, metadata={"help": "Questions shown side by side at the end."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Rows per forward pass."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code from the models' repositories."})
    seed: int = 42
