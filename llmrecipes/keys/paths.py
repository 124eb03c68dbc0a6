"""`~/` at the start of a path, as a shell reads it: shells leave it alone in `--key=~/x`, in quotes and in a YAML."""

import os
from typing import Any

# Keys whose values are paths, and all that end so: `model_name_or_path`, `output_dir`, `rankings_file`, ...
PATHS = set(
    "path data_files database datasets eval_datasets watch_questions sources models runs compare_tokenizers guidelines "
    "judge_guidelines blocked_words decontaminate deepspeed fsdp_config accelerate_config watch_reward_model json".split()
)
ENDINGS = ("_path", "_dir", "_file")


def is_path(key: str) -> bool:
    """Whether `key` is given paths."""
    return key in PATHS or key.endswith(ENDINGS)


def expand_home(value: Any, key: str = "") -> Any:
    """`value` of `key`, or a whole config, with the home folder for `~` or `~user` at the start of each path. What names a
    user who is not there stays, and is refused by `preflight`."""
    if isinstance(value, dict):  # of `models`, every value is a path
        return {name: expand_home(part, key if key == "models" else str(name)) for name, part in value.items()}
    if isinstance(value, list):
        return [expand_home(part, key) for part in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") and is_path(key) else value
