"""Translates a config of alignment-handbook, older TRL, LlamaFactory or axolotl into one of ours.

    python -m llmrecipes.migrate OLD.yaml [--stage dpo] [--template TEMPLATE.jinja] > NEW.yaml

The result always parses; what could not be translated is listed at its top, with what to do, and printed too.
"""

import sys
from pathlib import Path
from typing import Any

import yaml

from llmrecipes.config import InputError
from llmrecipes.keys import Key, recipe_keys
from llmrecipes.keys.settings import Settings
from llmrecipes.keys.strict_yaml import load_yaml
from llmrecipes.keys.values import check_value, shown
from llmrecipes.migrate.draft import Draft
from llmrecipes.migrate.translations import translate
from llmrecipes.options import OptionParser
from llmrecipes.parsing import leave
from llmrecipes.preflight.contradictions import CONTRADICTIONS

RECIPES = Path(__file__).parents[2] / "recipes"
STAGES = ("sft", "dpo", "kto", "reward", "ppo", "grpo", "pretrain")
LLAMAFACTORY = {
    "cutoff_len",
    "finetuning_type",
    "template",
    "dataset_dir",
    "preprocessing_num_workers",
    "pref_beta",
    "stage",
}
AXOLOTL = {"base_model", "micro_batch_size", "sequence_len", "val_set_size", "adapter", "num_epochs", "sample_packing"}
OLD_STAGES = {"pt": "pretrain", "rm": "reward", "sft": "sft", "dpo": "dpo", "ppo": "ppo", "ipo": "dpo"}
OLD_STAGES |= {"kto": "kto", "grpo": "grpo"}
OTHER_METHODS = ("orpo", "simpo", "cpo", "gkd", "bco", "kto_pair")


def migrate(old: dict[str, Any], name: str, stage: str | None = None) -> Draft:
    """The `old` config, read from file `name`, as one of ours for `stage` (by default the stage that it looks like)."""
    tool = find_tool(old)
    found, remark = find_stage(old, name)
    stage = stage or found
    keys = recipe_keys(RECIPES / f"{stage}.py")
    draft = Draft(old, tool, stage, set(keys))
    if remark:
        draft.lost["method"] = remark
    for key, value in old.items():
        try:
            translate(draft, key, value)
        except (AttributeError, TypeError, ValueError, KeyError):
            draft.lost[key] = "has another form than that tool reads"
    _settle(draft, keys)
    return draft


def find_tool(old: dict[str, Any]) -> str:
    """The tool a config is from, recognised by keys that only one tool has."""
    if len(AXOLOTL & old.keys()) > 1:
        return "axolotl"
    return "LlamaFactory" if len(LLAMAFACTORY & old.keys()) > 1 else "alignment-handbook or TRL"


def find_stage(old: dict[str, Any], name: str) -> tuple[str, str]:
    """(stage, remark), recognised by `stage` or `rl`, by the file's folder, or by keys of a single method."""
    parts = [part.lower() for part in Path(name).parts] + Path(name).stem.lower().replace("-", "_").split("_")
    method = str(old.get("stage") or old.get("rl") or next((p for p in parts if p in {*OLD_STAGES, *OTHER_METHODS}), ""))
    if method in OLD_STAGES:
        return OLD_STAGES[method], ""
    if method in OTHER_METHODS:
        return "dpo", f"{method.upper()} has no recipe here; written for recipes/dpo.py, which is another method"
    if old.keys() & {"center_rewards_coefficient"}:
        return "reward", ""
    if old.keys() & {"kl_coef", "init_kl_coef", "cliprange", "num_ppo_epochs", "ppo_epochs", "reward_model_path"}:
        return "ppo", ""
    if old.keys() & {"beta", "pref_beta", "dpo_beta", "max_prompt_length", "rpo_alpha"}:
        return "dpo", ""
    return "sft", ""


def _settle(draft: Draft, keys: dict[str, Key]) -> None:
    """Removes what our checks refuse, and records it: the result must parse."""
    values = draft.values
    if not values.get("eval_datasets") and not values.get("test_split_size"):
        for key in ("eval_strategy", "eval_steps", "per_device_eval_batch_size", "load_best_model_at_end"):
            if values.get(key) not in (None, "no", False) and values.pop(key) and key != "per_device_eval_batch_size":
                draft.lost[key] = "no held-out rows are named; give `eval_datasets` or `test_split_size`"
    if not values.get("use_peft"):
        for key in [key for key in values if key.startswith("lora_") or key in ("use_dora", "use_rslora")]:
            values.pop(key)
            draft.needless.append(key)
    if values.get("lr_scheduler_type") == "constant" and values.get("warmup_steps"):
        values["lr_scheduler_type"] = "constant_with_warmup"
    for key in [key for key in values if key != "env"]:
        if key not in keys:
            draft.lost[key] = f"recipes/{draft.stage}.py has no such key"
            del values[key]
            continue
        try:
            values[key] = check_value(key, values[key], keys[key], "migrate")
        except InputError as error:
            draft.lost[key] = str(error).removeprefix("migrate: ")
            del values[key]
    for _ in range(len(values)):
        settings = Settings({key: v for key, v in values.items() if key != "env"}, {}, keys)
        problem = next((problem for check in CONTRADICTIONS for problem in check(settings)), None)
        if problem is None or problem[0] not in values:
            break
        draft.lost[problem[0]] = problem[1]
        del values[problem[0]]


def render(draft: Draft, name: str, template: str | None) -> str:
    """The new YAML, with comments on top about what was not translated."""
    lines = [
        f"# From {name} ({draft.tool}), translated by `python -m llmrecipes.migrate`.",
        f"# Launch: accelerate launch recipes/{draft.stage}.py --config NEW.yaml",
    ]
    if draft.lost:
        lines += ["#", "# Not translated:"]
        lines += [_comment(f"{key}{_value(draft, key)}: {why}") for key, why in draft.lost.items()]
    if draft.needless:
        lines += [
            "#",
            _comment(f"Left out, as the default: {', '.join(dict.fromkeys(draft.needless))}").replace("#   ", "# "),
        ]
    for key, value in draft.values.items():
        lines.append(yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, width=120).rstrip())
    if template:
        lines.append(f"chat_template_path: {template}")
    return "\n".join(lines) + "\n"


def _value(draft: Draft, key: str) -> str:
    return f" ({shown(draft.old[key])})" if key in draft.old and "token" not in key else ""


def _comment(text: str) -> str:
    return "#   " + " ".join("".join(c if c.isprintable() else " " for c in text).split())


def main(argv: list[str] | None = None) -> None:
    """The command line: reads OLD.yaml, writes NEW.yaml to standard output and what was not translated to standard error."""
    parser = OptionParser(prog="python -m llmrecipes.migrate", description=__doc__.split("\n")[0])
    parser.add_argument("old", metavar="OLD.yaml")
    parser.add_argument("--stage", choices=STAGES, help="default: what the config looks like")
    parser.add_argument("--template", metavar="FILE.jinja", help="where a chat template in the config is written to")
    options = parser.parse_args(argv)
    try:
        draft = migrate(load_yaml(options.old), options.old, options.stage)
        if not draft.values:
            raise InputError(f"{options.old}: nothing in it could be translated ({', '.join(draft.lost) or 'no keys'})")
    except InputError as error:
        leave(*error.args)
    if draft.template and options.template:
        Path(options.template).write_text(draft.template, encoding="utf-8")
    elif draft.template:
        draft.lost["chat_template"] = "is text; --template FILE.jinja writes it there and sets `chat_template_path`"
    print(render(draft, options.old, draft.template and options.template), end="")
    print(
        f"{options.old}: for recipes/{draft.stage}.py; {len(draft.values)} keys written, {len(draft.lost)} not translated"
        + (f": {', '.join(draft.lost)}" if draft.lost else ""),
        file=sys.stderr,
    )
