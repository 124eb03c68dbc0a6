"""Keys of recipes/rank.py."""

from dataclasses import dataclass, field

from llmrecipes.judging.arguments import JudgeArguments


@dataclass
class RankArguments(JudgeArguments):
    """Who ranks the responses, how, and how rankings become pairs."""

    output_dir: str = field(default="", metadata={"help": "Folder for rankings and pairs."})
    annotator: str = field(
        default="file",
        metadata={
            "help": "Who ranks: a file's rankings, a rule with noise, people on a page, a model.",
            "choices": ["file", "simulated", "page", "llm"],
        },
    )
    rankings_file: str | None = field(default=None, metadata={"help": "JSONL or CSV: prompt_id, ranking, annotator."})
    rule: str | None = field(default=None, metadata={"help": "module:function (row, response) -> score."})
    rater_noise: list[float] = field(
        default_factory=lambda: [0.03, 0.05, 0.08], metadata={"help": "Noise of each simulated rater's scores."}
    )
    rater_tie_width: list[float] = field(
        default_factory=lambda: [0.07, 0.12, 0.18], metadata={"help": "Score difference below which a rater sees a tie."}
    )
    overlap: float = field(default=0.2, metadata={"help": "Share of prompts that several annotators rank."})
    gold_tie_width: float = field(
        default=0.04, metadata={"help": "Score difference below which the rule without noise sees a tie."}
    )
    test_share: float = field(default=0.1, metadata={"help": "Share of prompts whose pairs are held out."})
    database: str | None = field(default=None, metadata={"help": "Judgements of people; default: output_dir + .sqlite."})
    round: int = field(
        default=1,
        metadata={"help": "Number of this round: answers of a newer policy are another round in the same database."},
    )
    overlap_annotators: int = field(default=3, metadata={"help": "People who rank each prompt of the overlap."})
    repeat_share: float = field(default=0.05, metadata={"help": "Share of items asked again, for self-consistency."})
    order: str = field(
        default="random", metadata={"help": "Order in which people see the items.", "choices": ["random", "uncertain"]}
    )
    reward_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Reward model of `order: uncertain`, which asks first what it is least certain of."}
    )
    min_agreement: float = field(
        default=0.0, metadata={"help": "Leave out items on which annotators agree about a smaller share of pairs."}
    )
    guidelines: str | None = field(default=None, metadata={"help": "Markdown shown next to the task; default: ours."})
    serve: bool = field(default=True, metadata={"help": "false: build pairs from the judgements so far, without the page."})
    host: str = field(default="127.0.0.1", metadata={"help": "Address of the page; any other needs users_file."})
    port: int = field(default=7860, metadata={"help": "Port of the page; if in use, the next free one."})
    allowed_hosts: list[str] = field(default_factory=list, metadata={"help": "Host names the page answers to."})
    trusted_proxies: list[str] = field(
        default_factory=list,
        metadata={"help": "Proxies before the page whose X-Forwarded-For is trusted, such as 127.0.0.1."},
    )
    users_file: str | None = field(default=None, metadata={"help": "Names and password hashes; see docs/ranking.md."})
    pair_format: str = field(
        default="explicit",
        metadata={
            "help": "explicit: prompt, chosen, rejected; implicit: the prompt is part of both.",
            "choices": ["explicit", "implicit"],
        },
    )
    seed: int = 42
