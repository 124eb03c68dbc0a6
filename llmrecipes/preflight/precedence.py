"""The command line overrides the YAML, also where the two give different keys of which only one can take effect.

Within the YAML, or within the command line, such keys remain an error (`contradictions`).
"""

from collections.abc import Iterator

from llmrecipes.keys.settings import COMMAND_LINE, Settings
from llmrecipes.preflight.contradictions import CONTRADICTIONS

# Only one of each group can take effect.
ALTERNATIVES = (
    ("max_steps", "num_train_epochs"),
    ("max_steps", "total_episodes"),
    ("eval_datasets", "test_split_size"),
    ("model_config", "model_name_or_path"),
    ("load_in_4bit", "load_in_8bit"),
    ("fp16", "bf16"),
    ("assistant_only_loss", "completion_only_loss"),
    ("watch_rule", "watch_reward_model", "judge_url"),
)
OLDER_NAMES = (
    ("gradient_checkpointing", "activation_checkpointing"),
    ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
)
# What `contradictions` says of keys that can be left out without changing anything else.
IDLE = ("has no effect", "has nothing to evaluate on", "is unknown to lr_scheduler_type")


def let_command_line_win(s: Settings) -> list[str]:
    """Drops what the YAML gives and the command line makes void; returns a line for each such key."""
    lines = []
    while dropped := next(_void(s), None):
        key, why = dropped
        lines.append(f"{s.where.pop(key)}: {key}: left out because of the command line: {why}")
        del s.values[key]
        s.dropped.add(key)
    return lines


def use_newer_names(s: Settings) -> None:
    """Gives defaults that TRL sets under a key's older name under the newer one: transformers warns of the older, which the
    user did not write."""
    for old, new in OLDER_NAMES:
        if {old, new} <= s.keys.keys() and not s.given(old) and not s.given(new) and s[old] is not None:
            s.values[new] = s[old]


def _void(s: Settings) -> Iterator[tuple[str, str]]:
    """(key, why) of the settings from the YAML that the command line makes void."""
    for names, counts in [*((names, _is_on) for names in ALTERNATIVES), *((names, Settings.given) for names in OLDER_NAMES)]:
        if chosen := next((key for key in names if s.where.get(key) == COMMAND_LINE and counts(s, key)), None):
            for key in names:
                if s.where.get(key, COMMAND_LINE) != COMMAND_LINE and counts(s, key):
                    yield key, f"`{chosen}` is given there"
    if COMMAND_LINE in s.where.values():
        in_yaml = {key for key, _ in _idle(Settings(s.in_yaml, s.where, s.keys))}
        for key, why in _idle(s):
            if s.where.get(key, COMMAND_LINE) != COMMAND_LINE and key not in in_yaml:
                yield key, why


def _idle(s: Settings) -> Iterator[tuple[str, str]]:
    return ((key, why) for check in CONTRADICTIONS for key, why in check(s) if any(text in why for text in IDLE))


def _is_on(s: Settings, key: str) -> bool:
    return bool(s[key]) and s[key] != -1  # `max_steps: -1` stands for epochs
