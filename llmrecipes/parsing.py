"""The only reader of argv and YAML.

Built on TRL's `TrlParser`: flat YAML keys named after dataclass fields, any of them overridable as `--key value`.
Precedence: dataclass < YAML < command line. On top of it every key and value is checked *before* torch or
transformers is imported, by reading the dataclasses' source instead of importing them, so that a mistake costs a
second: unknown, renamed and duplicate keys, wrong types, values outside the documented choices or ranges.
"""

import ast
import errno
import importlib
import itertools
import os
import re
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from trl import TrlParser  # imports without torch

from llmrecipes.config import InputError, nearest
from llmrecipes.keys import Key, keys_of

# Keys that users bring along from older releases -> what to write today.
RENAMED = {
    "torch_dtype": "use `dtype`",
    "max_seq_length": "use `max_length`",
    "warmup_ratio": "use `warmup_steps` (a number below 1 is a share of all steps)",
    "overwrite_output_dir": "use `force` (or delete the folder)",
    "evaluation_strategy": "use `eval_strategy`",
    "dataset_mixer": "use `datasets: [{path: ..., weight: ...}]`",
    "dataset_name": "use `datasets: [{path: ...}]`",
    "dataset_splits": "use `datasets: [{path: ..., split: ...}]`",
    "use_flash_attention_2": "use `attn_implementation: flash_attention_2`",
    "max_prompt_length": "use `max_length` (prompt and answer together)",
    "no_cuda": "use `use_cpu`",
    "tokenizer": "use `tokenizer_name_or_path`",
    "per_gpu_train_batch_size": "use `per_device_train_batch_size`",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR under `env:`",
    "push_to_hub_model_id": "use `hub_model_id`",
    "vllm_importance_sampling_cap": "use `vllm_importance_sampling_clip_max`",
}
# Keys that hold paths which a stage reads.
INPUTS = ("model_name_or_path", "tokenizer_name_or_path", "reward_model_name_or_path", "rankings_file", "datasets")
INPUTS += ("eval_datasets", "watch_reward_model")
AT_LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_length": 1,
    "num_gpus": 1,
    "global_batch_size": 1,
    "learning_rate": 0,
    "num_train_epochs": 0,
    "weight_decay": 0,
    "warmup_steps": 0,
    "max_grad_norm": 0,
}


def launch(main, *config_types, argv: list[str] | None = None) -> None:
    """Parse argv and YAML into `config_types`, call `main(*configs)`; a user's mistake prints one line and exits 2."""
    if not sys.stderr.isatty():  # a log: libraries' progress bars, which read this when imported, write seldom
        os.environ.setdefault("TQDM_MININTERVAL", "10")
    configs = ()
    try:
        configs = parse(*config_types, argv=argv, inputs_exist=True)
        main(*configs)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except (OSError, RuntimeError, SystemError) as error:
        output_dir = next((c.output_dir for c in configs if getattr(c, "output_dir", None)), ".")
        if not _disk_is_full(error, output_dir):
            raise
        print(
            f"error: {output_dir}: the disk is full; free some space and give the same command again, it continues from "
            "the last complete checkpoint",
            file=sys.stderr,
        )
        sys.exit(2)


def _disk_is_full(error: BaseException, output_dir: str) -> bool:
    # torch's writer does not say why it failed, so the disk is asked too.
    existing = next(p for p in [Path(output_dir).absolute(), *Path(output_dir).absolute().parents] if p.exists())
    return getattr(error, "errno", None) == errno.ENOSPC or (
        "write" in str(error) and shutil.disk_usage(existing).free < 1 << 20
    )


def parse(*config_types, argv: list[str] | None = None, inputs_exist: bool = False) -> tuple:
    """Strictly parse `argv` (and the YAML behind `--config`) into instances of `config_types`.

    Args:
        config_types: dataclasses, or "module:Class" for one whose module is heavy; it is imported only after every key
            and value has been checked against its source.
        inputs_exist: also check, before any heavy import, that local models and data are there.

    Raises:
        InputError: unknown, renamed, duplicate or mistyped key; value outside choices or range; missing or empty input.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    config_path, argv = _take_config_option(argv)
    keys = {}
    for config_type in config_types:
        keys.update(keys_of(config_type))
    values, lines = _read_yaml(config_path) if config_path else ({}, {})
    environment = values.pop("env", {})
    if not isinstance(environment, dict):
        raise InputError(f"{config_path}:{lines['env']}: `env` must be a mapping of variable: value")
    if not {"-h", "--help"} & set(argv):
        for key, value in values.items():
            values[key] = _check(key, value, keys, f"{config_path}:{lines[key]}")
        argv = _take_mappings(_check_argv(argv, keys), values, keys)
    if inputs_exist:
        _require_inputs(values, argv)
    # Before transformers is imported: it reads HF_* once, at import.
    os.environ.update({key: str(value) for key, value in environment.items()})
    parser = _Parser([_resolve(t) for t in config_types], allow_abbrev=False)
    _settle_precision(values, argv, keys)
    parser.set_defaults_with_config(**values)
    try:
        return parser.parse_args_into_dataclasses(args=argv, look_for_args_file=False)
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(f"{config_path or 'command line'}: {error}") from error


class _Parser(TrlParser):
    def error(self, message):
        raise InputError(f"command line: {message}")


def _take_config_option(argv: list[str]) -> tuple[str | None, list[str]]:
    path, rest, i = None, [], 0
    while i < len(argv):
        if argv[i] == "--config":
            if i + 1 == len(argv):
                raise InputError("command line: --config needs a file; write --config FILE.yaml")
            path, i = argv[i + 1], i + 1
        elif argv[i].startswith("--config="):
            path = argv[i].split("=", 1)[1]
        else:
            rest.append(argv[i])
        i += 1
    return path, rest


def load_yaml(path: str | os.PathLike) -> dict:
    """Read a YAML mapping; duplicate keys and broken syntax are `InputError`s with file and line."""
    return _read_yaml(path)[0]


def _read_yaml(path) -> tuple[dict, dict[str, int]]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error.__class__.__name__}); check --config") from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(root, yaml.MappingNode):
        raise InputError(f"{path}: must hold `key: value` lines, but is {'empty' if root is None else 'a list'}")
    _reject_duplicates(root, path)
    return values, {key.value: key.start_mark.line + 1 for key, _ in root.value}


def _reject_duplicates(node, path) -> None:
    if isinstance(node, yaml.MappingNode):
        seen = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise InputError(f"{path}:{line}: key `{key.value}` stands already in line {seen[key.value]}")
            seen[key.value] = line
            _reject_duplicates(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _reject_duplicates(value, path)


def _check(key: str, value: Any, keys: dict[str, Key], where: str) -> Any:
    if key in RENAMED and key not in keys:
        raise InputError(f"{where}: `{key}` is gone; {RENAMED[key]}")
    if key not in keys:
        raise InputError(f"{where}: unknown key `{key}`{nearest(key, keys) or '; see --help for the valid ones'}")
    annotation, choices = keys[key].annotation, keys[key].choices
    if (key in ("bf16", "use_cpu") and value == "auto") or (key == "fsdp" and value is True):
        return value  # fsdp is annotated as text, which its older values are
    kinds, literals = _accepted(annotation)
    if isinstance(value, str) and "str" not in kinds and {"int", "float"} & kinds:
        # YAML 1.1 reads 1e-4 (no dot) as text.
        if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", value):
            value = float(value) if "float" in kinds else int(value) if value.lstrip("+-").isdigit() else value
    choices = choices or literals
    if (
        choices
        and value is not None
        and not set(map(str, value if isinstance(value, list) else [value])) <= set(map(str, choices))
    ):
        raise InputError(f"{where}: `{key}` is {value!r}; choose from {', '.join(map(str, choices))}")
    if kinds and not choices and _kind(value) not in kinds and not (_kind(value) == "int" and "float" in kinds):
        raise InputError(f"{where}: `{key}` is {value!r} ({_kind(value)}); it must be {annotation}")
    if key in AT_LEAST and type(value) in (int, float) and value < AT_LEAST[key]:
        raise InputError(f"{where}: `{key}` is {value}; it must be at least {AT_LEAST[key]}")
    return value


def _kind(value) -> str:
    return "None" if value is None else type(value).__name__


@cache
def _accepted(annotation: str) -> tuple[frozenset[str], tuple]:
    """Python type names that `annotation` admits (empty: anything) and its Literal values."""
    kinds, literals = set(), []

    def visit(node):
        if isinstance(node, ast.BinOp):  # X | Y
            visit(node.left)
            visit(node.right)
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Literal"):
            literals.extend(ast.literal_eval(node.slice) if isinstance(node.slice, ast.Tuple) else [node.slice.value])
        elif isinstance(node, ast.Subscript):
            if ast.unparse(node.value) in ("Optional", "Union"):
                kinds.add("None")
                for inner in node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]:
                    visit(inner)
            else:
                kinds.add(ast.unparse(node.value))
        elif isinstance(node, ast.Constant):
            kinds.add("None")
        else:
            name = ast.unparse(node)
            # Enums of transformers (SchedulerType, IntervalStrategy, ...) are written as text.
            kinds.add(name if name in ("int", "float", "bool", "str", "dict", "list") else "str")

    visit(ast.parse(annotation, mode="eval").body)
    return frozenset(kinds), tuple(literals)


def _check_argv(argv: list[str], keys: dict[str, Key]) -> list[str]:
    checked, i = [], 0
    while i < len(argv):
        option = argv[i]
        if not option.startswith("--"):
            raise InputError(f"command line: `{option}` stands alone; write --key value")
        key, has_value, value = option[2:].partition("=")
        key = key.replace("-", "_")
        given = [value] if has_value else []
        while not has_value and i + 1 < len(argv) and not re.match(r"--[a-zA-Z]", argv[i + 1]):
            given.append(argv[i + 1])
            i += 1
        if key.startswith("no_") and key not in keys and key[3:] in keys and not given:
            key, given = key[3:], ["false"]
        _check_argument(key, given, keys)
        checked += [f"--{key}", *given]
        i += 1
    return checked


def _check_argument(key: str, given: list[str], keys: dict[str, Key]) -> None:
    kinds = _accepted(keys[key].annotation)[0] if key in keys else frozenset()
    if not given and "bool" not in kinds and key in keys:
        raise InputError(f"command line: --{key} needs a value; it must be {keys[key].annotation}")
    for value in given or [True]:
        typed = value
        if key in keys and "list" not in kinds and not ("str" in kinds and "dict" not in kinds):
            typed = _from_yaml(key, value) if isinstance(value, str) else value
        _check(key, [value] if "list" in kinds else typed, keys, "command line")


def _from_yaml(key: str, text: str):
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"command line: --{key} is not valid YAML: {text}") from error


def _take_mappings(argv: list[str], values: dict, keys: dict[str, Key]) -> list[str]:
    """Move options written as YAML or JSON, `--datasets '[{path: x}]'`, from `argv` to `values`: argparse reads none."""
    rest, i = [], 0
    while i < len(argv):
        key, accepted = argv[i][2:], _accepted(keys[argv[i][2:]].annotation)[0] & {"dict", "list"}
        if accepted and i + 1 < len(argv) and argv[i + 1].startswith(("{", "[")):
            values[key] = _check(key, _from_yaml(key, argv[i + 1]), keys, "command line")
            i += 2
            continue
        rest.append(argv[i])
        i += 1
        while i < len(argv) and not re.match(r"--[a-zA-Z]", argv[i]):
            rest.append(argv[i])
            i += 1
    return rest


def _require_inputs(values: dict, argv: list[str]) -> None:
    """InputError for a local model folder or data file that is missing or empty; Hub ids are left to their loaders."""
    given = dict(values)
    for i, word in enumerate(argv):
        if word.startswith("--"):
            given[word[2:]] = list(itertools.takewhile(lambda later: not later.startswith("--"), argv[i + 1 :]))
    for key in INPUTS:
        for entry in given[key] if isinstance(given.get(key), list) else [given.get(key)]:
            path = entry.get("path") if isinstance(entry, dict) else entry
            if not isinstance(path, str) or not path.startswith(("/", ".", "outputs/")):
                continue
            if not os.path.exists(path):
                raise InputError(f"{key}: {path} does not exist; run the stage that writes it first, or correct the path")
            if os.path.isfile(path) and os.path.getsize(path) == 0:
                raise InputError(f"{key}: {path} is empty")


def _settle_precision(values: dict, argv: list[str], keys: dict[str, Key]) -> None:
    """Replace `bf16: auto`; TRL's default (bf16 on) holds only where the hardware has it."""
    if "bf16" not in keys:
        return
    for i, word in enumerate(argv[:-1]):
        if word == "--bf16" and argv[i + 1] == "auto":
            values["bf16"] = "auto"
            del argv[i : i + 2]
            break
    wanted = values.get("bf16")
    if wanted is not None and wanted != "auto" or "--bf16" in argv or "--fp16" in argv or values.get("fp16"):
        return
    import torch

    has_accelerator = torch.accelerator.is_available()
    if not has_accelerator:
        values.setdefault("use_cpu", True)
        # Without AMX, bf16 matmuls are emulated and slower than float32 ones.
        values["bf16"] = wanted == "auto" and bool(torch.cpu.get_capabilities().get("amx_bf16", False))
    elif wanted == "auto":
        values["bf16"] = not torch.cuda.is_available() or torch.cuda.is_bf16_supported()


def _resolve(config_type):
    if not isinstance(config_type, str):
        return config_type
    module, name = config_type.split(":")
    return getattr(importlib.import_module(module), name)
