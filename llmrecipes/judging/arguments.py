"""Keys of a judge model behind an OpenAI-compatible endpoint, the same wherever one is used."""

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class JudgeArguments:
    """Which model judges, where, and what it costs."""

    judge_url: str | None = field(default=None, metadata={"help": "OpenAI-compatible endpoint, ends in /v1."})
    judge_model: str | None = field(default=None, metadata={"help": "The judge model's name there."})
    judge_key_variable: str = field(default="OPENAI_API_KEY", metadata={"help": "Environment variable with its key."})
    judge_concurrency: int = field(default=4, metadata={"help": "Questions asked at once."})
    judge_price: list[float] = field(
        default_factory=list, metadata={"help": "Dollars per million prompt and per million completion tokens."}
    )
