"""How the tokens of a corpus are stored, mixed and attended to."""

from dataclasses import dataclass, field

from llmrecipes.config import InputError


@dataclass
class TokenArguments:
    """How a corpus becomes tokens, and in which order these are read."""

    max_epochs: float | None = field(
        default=None, metadata={"help": "How many times a source may be read; its share beyond that goes to the others."}
    )
    phases: list[float] = field(
        default_factory=list,
        metadata={"help": "Shares of the steps, [0.9, 0.1]; each source then has a weight for each: weight: [67, 20]."},
    )
    reset_attention: bool = field(
        default=False, metadata={"help": "Tokens attend only to their own document, not to all before them in the block."}
    )
    split_special_tokens: bool = field(
        default=True, metadata={"help": "A text that spells out <|im_end|> is learned as text; false: as that token."}
    )
    tokens_dir: str | None = field(
        default=None, metadata={"help": "Folder of token shards; default: tokens in $LLMRECIPES_CACHE."}
    )
    verify_tokens: bool = field(default=False, metadata={"help": "Read every token shard in full and compare its SHA-256."})

    @property
    def reading(self) -> dict[str, bool]:
        """How `build_blocks` makes held-out blocks like those of training."""
        return {"reset_attention": self.reset_attention, "split_special": self.split_special_tokens}

    def __post_init__(self):
        if self.phases and (min(self.phases) <= 0 or abs(sum(self.phases) - 1) > 1e-6):
            raise InputError(f"phases: {self.phases} are not parts of the steps; give numbers above 0 that add up to 1")
