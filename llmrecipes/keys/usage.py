"""--help and --print_config, read from the dataclasses' sources so that they answer at once."""

import os
import re
import shutil
import textwrap
from dataclasses import fields, is_dataclass
from pathlib import Path

import yaml

from llmrecipes.config import InputError, nearest
from llmrecipes.keys import UNKNOWN, Key, keys_of, recipe_keys
from llmrecipes.keys.renamed import hint
from llmrecipes.keys.values import SOURCES, range_of, shown
from llmrecipes.secrets import known_secrets, scrub_secrets

# Group -> the dataclasses whose keys it shows; our own first, those of libraries last.
GROUPS = {
    "Run card": ("RunArguments",),
    "Data": ("DataArguments",),
    "Model": ("ModelArguments", "ModelConfig"),
    "Training": ("TrainingArguments", "_BaseConfig"),
}
COMMON = (  # the commonly set ones among TrainingArguments' hundred keys
    "output_dir max_steps num_train_epochs per_device_train_batch_size gradient_accumulation_steps learning_rate "
    "lr_scheduler_type lr_scheduler_kwargs warmup_steps weight_decay optim max_grad_norm bf16 fp16 activation_checkpointing "
    "per_device_eval_batch_size eval_strategy eval_steps save_strategy save_steps save_total_limit load_best_model_at_end "
    "metric_for_best_model logging_steps report_to run_name project push_to_hub hub_model_id seed data_seed"
).split()


PAGE = {  # of docs/keys.md
    "Run card": "llmrecipes.config:RunArguments",
    "Data": "llmrecipes.config:DataArguments",
    "A source in `datasets` and `eval_datasets`": "llmrecipes.config:DatasetSource",
    "Model (with TRL's `ModelConfig`)": "llmrecipes.config:ModelArguments",
    "Rewards of PPO and GRPO": "llmrecipes.reward_models.arguments:RewardArguments",
    "Tokens of a corpus": "llmrecipes.tokens.arguments:TokenArguments",
    "PPO": "llmrecipes.ppo.config:PPOConfig",
    "Samples and scores while it trains": "llmrecipes.evaluation.watch:WatchArguments",
    "Health of a reward model": "llmrecipes.reward_models.health:HealthArguments",
    "A judge model (of evaluation, ranking and `watch_questions`)": "llmrecipes.judging.arguments:JudgeArguments",
    "Evaluation": "llmrecipes.evaluation.arguments:EvaluateArguments",
    "Ranking": "llmrecipes.ranking.arguments:RankArguments",
    "Comparison": "llmrecipes.comparison:CompareArguments",
    "Chain": "llmrecipes.pipeline:PipelineArguments",
    "Corpus": "llmrecipes.corpus.arguments:CorpusArguments",
    "Corpus: steps": "llmrecipes.corpus.arguments:StepArguments",
    "Corpus: a source in `sources`": "llmrecipes.corpus.arguments:CorpusSource",
}
USAGE = """\
Options: --config FILE.yaml [--key value ...] [--print_config] [--help KEY]
A YAML file holds `key: value` lines; the command line overrides them. --help KEY says all about a key, --print_config
shows every value and where it was given."""


def describe(keys: dict[str, Key], names: list[str], about: str = "") -> str:
    """All `keys` in groups, each with its default and one line of help, below what the recipe is `about`; or everything
    about the keys `names`.

    Raises:
        InputError: one of `names` is not a key.
    """
    if names:
        return "\n\n".join(_whole(name.lstrip("-").replace("-", "_"), keys) for name in names)
    lines = [f"{about.strip()}\n\n{USAGE}".strip()]
    for title, found in _grouped(keys).items():
        lines.append(f"\n{title}")
        for name, key in found.items():
            lines.append(_line(f"--{name}", key))
            if name in ("datasets", "sources"):
                nested = keys_of(SOURCES[re.search(r"list\[(\w+)\]", key.annotation)[1]])
                lines += [_line(f"  {inner}:", of) for inner, of in nested.items()]
    return "\n".join(lines)


def _grouped(keys: dict[str, Key]) -> dict[str, dict[str, Key]]:
    titles = {owner: title for title, owners in GROUPS.items() for owner in owners}
    order = ("Run card", "Data", "Model", "LoRA and quantisation", "Method", "Training", "Watching", "Other training keys")
    groups = {title: {} for title in order}
    for name, key in keys.items():
        title = titles.get(key.owner, "Method")
        if title == "Model" and name.startswith(("lora_", "use_", "load_", "bnb_")):
            title = "LoRA and quantisation"
        elif name.startswith("watch_"):
            title = "Watching"
        elif name in COMMON:
            title = "Training"
        elif title == "Training":
            title = "Other training keys"
        groups[title][name] = key
    return {title: found for title, found in groups.items() if found}


def _line(name: str, key: Key) -> str:
    width = max(60, shutil.get_terminal_size((120, 0)).columns)
    default = "" if key.default in (UNKNOWN, None, "", [], {}) else f" [{key.default}]"
    text = f"  {name:<36} {_first_sentence(key.help)}{default}"
    return text if len(text) <= width else f"{text[: width - 4]} ..."


def _first_sentence(text: str) -> str:
    return " ".join(text.split()).partition(". ")[0].rstrip(".")


def _whole(name: str, keys: dict[str, Key]) -> str:
    if name not in keys:
        advice = hint(name, keys)
        more = f"; {advice}" if advice else nearest(name, keys) or "; --help lists all"
        raise InputError(f"command line: --help: there is no key `{name[:60]}`{more}")
    key = keys[name]
    lines = [name, f"  type     {key.annotation}"]
    if key.default is not UNKNOWN:
        lines.append(f"  default  {shown(key.default)}")
    if key.choices:
        lines.append(f"  choices  {', '.join(map(str, key.choices))}")
    if bounds := range_of(name, key.owner):
        lines.append(f"  range    {bounds}")
    lines.append(f"  of       {key.owner}")
    return "\n".join([*lines, "", textwrap.indent(textwrap.fill(key.help or "(no description)", 100), "  ")])


def list_values(configs, given: dict, where: dict[str, str]) -> str:
    """Every resolved value as YAML: given values with their file and line, then defaults."""
    values = {field.name: getattr(config, field.name) for config in configs for field in fields(config) if field.init}
    lines = []
    for title, is_given in (("given", True), ("by default", False)):
        lines.append(f"# {title}")
        for name in (name for name in values if (name in given) == is_given):
            lines.append(f"{name}: {_as_yaml(name, values[name])}" + (f"  # {where[name]}" if name in where else ""))
    return "\n".join(lines)


def _as_yaml(name: str, value) -> str:
    """`value` of the key `name`, without secrets."""
    given = lambda v: {f.name: getattr(v, f.name) for f in fields(v) if getattr(v, f.name) is not None}
    plain = lambda v: given(v) if is_dataclass(v) else getattr(v, "value", v)  # .value: for enums
    value = [plain(entry) for entry in value] if isinstance(value, list) else plain(value)
    value = scrub_secrets({name: value}, known_secrets(os.environ))[name]
    try:
        return yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).removesuffix("...\n").strip()
    except yaml.YAMLError:
        return str(value)


def keys_as_markdown() -> str:
    """docs/keys.md: all keys of our own dataclasses, one table each."""
    lines = [
        "# Our own keys",
        "",
        "Written by `python -m llmrecipes.keys.usage > docs/keys.md`. A recipe's `--help` shows",
        "these and those of TRL and transformers; `--help KEY` says all about one.",
        "",
    ]
    tables = {title: (keys_of(config_type), {config_type.split(":")[1]}) for title, config_type in PAGE.items()}
    for recipe in sorted((Path(__file__).parents[2] / "recipes").glob("*.py")):
        own = set(re.findall(r"^class (\w+):", recipe.read_text(encoding="utf-8"), re.M))
        tables |= {f"recipes/{recipe.name}": (recipe_keys(recipe), own)} if own else {}
    for title, (keys, owners) in tables.items():
        lines += [f"## {title}", "", "| key | default | meaning |", "|---|---|---|"]
        for name, key in keys.items():
            if key.owner in owners:
                default = "" if key.default in (UNKNOWN, None, "", [], {}) else f"`{key.default}`"
                text = " ".join(key.help.split()).replace("|", "\\|")
                lines.append(f"| `{name}` | {default} | {text}{_limits(name, key)} |")
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"


def _limits(name: str, key: Key) -> str:
    choices = f" One of {', '.join(f'`{choice}`' for choice in key.choices)}." if key.choices else ""
    bounds = range_of(name, key.owner)
    return choices + (f" Range: {bounds}." if bounds else "")


if __name__ == "__main__":
    print(keys_as_markdown(), end="")
