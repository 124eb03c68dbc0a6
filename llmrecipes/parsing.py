"""The only reader of argv and YAML.

As in TRL: flat YAML keys named after dataclass fields, any of them overridable as `--key value`. Precedence: dataclass <
YAML < command line. Every key and value is checked *before* torch or transformers is imported, by reading the
dataclasses' source instead of importing them, so that a mistake costs a second; all mistakes are reported together.
"""

import atexit
import importlib
import logging
import os
import re
import signal
import sys
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from llmrecipes.config import InputError, RunArguments, nearest, one_line
from llmrecipes.durable import trouble_with_files
from llmrecipes.keys import Key, keys_of, recipe_keys
from llmrecipes.keys.argv import Options, read_argv
from llmrecipes.keys.paths import expand_home
from llmrecipes.keys.renamed import TRANSLATES, hint
from llmrecipes.keys.settings import COMMAND_LINE, Settings
from llmrecipes.keys.strict_yaml import load_yaml, parse_yaml, read_yaml  # noqa: F401 (load_yaml: for those who read configs)
from llmrecipes.keys.usage import describe, list_values
from llmrecipes.keys.values import accepted, as_fraction, check_value, shown
from llmrecipes.memory import no_garbage_collection, out_of_memory
from llmrecipes.preflight import check_machine, contradictions, ineffective, remarks
from llmrecipes.preflight.precedence import let_command_line_win, use_newer_names
from llmrecipes.secrets import known_secrets, scrub_secrets
from llmrecipes.signals import follow_launcher, guard_outputs, is_left_alone, tell_launcher
from llmrecipes.threads import settle_threads
from llmrecipes.tracking import place_trackers

CONTINUOUS = ("use_transformers_continuous_batching", "use_transformers_paged")
NEEDED = {
    "fp16": "needs a GPU; use `bf16: auto` to run here too",
    "bf16": "needs a GPU; use `bf16: auto` to run here too, or `use_cpu: true` to compute in it on the CPU",
    "tf32": "needs an NVIDIA GPU of Ampere's generation or a newer one; leave it out",
}
GPU_ONLY = ("activation_offloading", *CONTINUOUS)
OFFLOADS = ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")  # by their `offload`, through pinned memory


def launch(main, *config_types, argv: list[str] | None = None, alone: bool = False) -> None:
    """Parses argv and YAML into `config_types` and calls `main(*configs)`; a user's mistake prints one line and exits with
    2. A recipe that runs `alone` shares no work, so a launch of several processes is refused: each would do all of it,
    in the same folder (launch/start.sh starts such a recipe without a launcher)."""
    code, processes = [1], int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1 and alone:
        recipe = Path(sys.argv[0]).stem
        leave(f"{recipe} runs in one process, and this launch has {processes}; start it as python recipes/{recipe}.py")
    if processes > 1:
        atexit.register(_leave_for_good, code, os.getpid())  # registered first, so called last
    try:
        _launch(main, config_types, argv)
        code[0] = 0
    except SystemExit as end:
        code[0] = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise


def _leave_for_good(code: list[int], process: int) -> None:
    """Ends one of several processes with exit code `code[0]` when everything is done and written. Otherwise gloo's threads
    may release a collective while Python is shutting down, which aborts a process that has finished (pytorch#190489)."""
    dist = sys.modules.get("torch.distributed")
    if os.getpid() == process and dist is not None and dist.is_available() and dist.is_initialized():
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code[0])


def _launch(main, config_types, argv: list[str] | None) -> None:
    guard_outputs()
    if not sys.stderr.isatty():  # a log file: makes libraries' progress bars, which read this when imported, update rarely
        os.environ.setdefault("TQDM_MININTERVAL", "10")
    # DeepSpeed's warnings when it is imported on a machine without a GPU.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.filename != "real_accelerator.py")
    configs = ()
    follow_launcher()
    try:
        with no_garbage_collection():
            configs = parse(*config_types, argv=argv, inputs_exist=True)
        for config in configs:
            if getattr(config, "report_to", None) and config.output_dir:
                place_trackers(Path(config.output_dir))
        main(*configs)
        sys.stdout.flush()  # a log on a full disk would otherwise fail at Python's end, with a traceback
    except InputError as error:
        leave(*error.args)
    except KeyboardInterrupt as error:
        print("interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(128 + getattr(error, "signum", signal.SIGINT))
    except Exception as error:
        output_dir = next((c.output_dir for c in configs if getattr(c, "output_dir", None)), ".")
        if is_left_alone(error):
            note = "ended, as another process of this launch did; its own line says why"
            tell_launcher(note, after=1)
            print(f"process {os.environ.get('RANK')}: {note}", file=sys.stderr)
            sys.exit(1)
        if advice := out_of_memory(error, configs):
            leave(advice)
        if trouble := trouble_with_files(error, output_dir):
            leave(trouble)
        raise


def leave(*problems) -> None:
    """Prints a line per problem and exits with code 2."""
    lines = [f"error: {one_line(problem)}" for problem in problems]
    print("\n".join(lines), file=sys.stderr)
    tell_launcher("\n".join(lines))
    sys.exit(2)


def parse(*config_types, argv: list[str] | None = None, inputs_exist: bool = False) -> tuple:
    """Strictly parses `argv` (and the YAML given by `--config`) into instances of `config_types`.

    Args:
        config_types: dataclasses, or "module:Class" for one whose module is heavy; it is imported only after every key
            and value has been checked against its source.
        inputs_exist: also checks, before any heavy import, what the run needs on this machine: inputs, disk space,
        installed packages, the Hub (`preflight`).

    Raises:
        InputError: everything that is wrong with keys, values and machine, one text each in `args`.
        SystemExit: after --help or --print_config.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    options = read_argv(argv)
    keys = {}
    for config_type in config_types:
        keys.update(keys_of(config_type))
    if options.help is not None:
        show(describe(keys, options.help, sys.modules["__main__"].__doc__ or ""))
    settings, environment, problems = collect(options, keys)
    overridden = let_command_line_win(settings)
    problems += contradictions(settings)
    inputs_exist = inputs_exist and not options.print_config
    as_written = {key: value for key, value in read_given(options).items() if key not in settings.dropped}
    if inputs_exist:
        problems += check_machine(settings, scrub_secrets(as_written, known_secrets(os.environ)))
    if problems:
        raise InputError(*problems)
    if inputs_exist and int(os.environ.get("RANK", 0)) == 0:
        for remark in [*overridden, *remarks(settings)]:
            print(f"warning: {one_line(remark)}", file=sys.stderr)
    # Before transformers is imported: it reads HF_* once, at import.
    os.environ.update(environment)
    if inputs_exist:
        settle_threads()
    given = dict(settings.values)
    # Light classes first: their errors come before torch is imported.
    build([config_type for config_type in config_types if not isinstance(config_type, str)], settings)
    settle_precision(settings, inputs_exist)
    if inputs_exist:
        require_gpu(settings)
    use_newer_names(settings)
    configs = build(config_types, settings)
    for config in configs:
        if isinstance(config, RunArguments):
            config.given, config.config_path = as_written, options.config or ""
    if options.print_config:
        show(list_values(configs, given, settings.where))
    return configs


def show(text: str) -> None:
    """Prints and exits with code 0, even if the reader (`| head`) has closed the pipe."""
    with suppress(SystemExit):  # of signals.Pipe
        print(text, flush=True)
    sys.exit(0)


def read_given(options: Options) -> dict:
    """The user's settings from YAML and command line together, before defaults and checks: these identify a run."""
    values = load_yaml(options.config) if options.config else {}
    for key, words in options.given.items():
        if not words:
            values[key.removeprefix("no_")] = not key.startswith("no_")
        else:
            read = [_or_text(word) for word in words] if len(words) > 1 else _or_text(words[0])
            values[key] = expand_home(read, key)
    return values


def _or_text(word: str):
    try:
        return parse_yaml(word, COMMAND_LINE)
    except InputError:
        return word


def collect(options: Options, keys: dict[str, Key]) -> tuple[Settings, dict[str, str], list[str]]:
    """Checked values of YAML and command line, the variables under `env:`, and the problems found in them."""
    values, lines = read_yaml(options.config) if options.config else ({}, {})
    settings, problems, renamed = Settings({}, {}, keys), [], 0
    environment = values.pop("env", None) or {}
    problems += _environment_problems(environment, f"{options.config}:{lines.get('env')}")
    entries = [(key, value, f"{options.config}:{lines[key]}") for key, value in values.items()]
    for key, words in options.given.items():
        try:
            key, value = _typed(key, words, keys)
            entries.append((key, expand_home(value, key), COMMAND_LINE))
        except InputError as error:
            _remember(key, settings)
            problems.append(str(error))
    for key, value, where in entries:
        try:
            _require_known(key, keys, where)
            settings.values[key], settings.where[key] = check_value(key, value, keys[key], where), where
            if where != COMMAND_LINE:
                settings.in_yaml[key] = settings.values[key]
        except InputError as error:
            _remember(key, settings)
            renamed += key not in keys and hint(key, keys) is not None
            problems.append(str(error))
    if renamed > 1 and options.config:
        problems.append(f"{options.config}: {TRANSLATES}")
    environment = {key: str(value) for key, value in environment.items()} if not problems else {}
    return settings, environment, problems


def config_problems(path: str | os.PathLike, recipe: Path, given: dict[str, list[str]] | None = None) -> list[str]:
    """What is wrong with a recipe's YAML, and the words `given` for some keys on the command line, on any machine, found
    without importing anything. For chains: mistakes in the last stage are reported before the first one runs."""
    settings, _, problems = collect(Options(given or {}, config=str(path)), recipe_keys(recipe))
    return problems + contradictions(settings)


def without_effect(path: str | os.PathLike, recipe: Path, given: dict[str, list[str]]) -> list[str]:
    """Which of the keys `given` on the command line have no effect in a recipe's YAML, although a run would only warn."""
    settings, _, _ = collect(Options(given, config=str(path)), recipe_keys(recipe))
    return settings.lines((key, text) for key, text in ineffective(settings) if key in given)


def _remember(key: str, settings: Settings) -> None:
    settings.has_unknown_keys |= key not in settings.keys
    settings.refused.add(key)


def _environment_problems(environment: Any, where: str) -> list[str]:
    if not isinstance(environment, dict):
        return [f"{where}: `env` must be a mapping of variable: value"]
    return [
        f"{where}: `env`: {shown(key)} is not a variable whose value is text or a number"
        for key, value in environment.items()
        if not re.fullmatch(r"\w+", key) or not isinstance(value, (str, int, float)) or not _is_clean(str(value))
    ]


def _is_clean(text: str) -> bool:
    return "\0" not in text and text.isprintable()


def _require_known(key: str, keys: dict[str, Key], where: str) -> None:
    if key in keys:
        return
    if advice := hint(key, keys):
        raise InputError(f"{where}: there is no key `{key}`; {advice}")
    short = key if len(key) <= 60 else f"{key[:56]} ..."
    raise InputError(f"{where}: unknown key `{short}`{nearest(key[:60], keys) or '; see --help for the valid ones'}")


def _typed(key: str, words: list[str], keys: dict[str, Key]) -> tuple[str, Any]:
    """The key and value of an option; words are parsed as YAML would parse them for the key's type."""
    if key.startswith("no_") and key not in keys and key[3:] in keys and not words:
        return key[3:], False
    _require_known(key, keys, COMMAND_LINE)
    kinds = accepted(keys[key].annotation)[0]
    where = f"{COMMAND_LINE}: --{key}"
    if not words:
        if "bool" not in kinds:
            raise InputError(f"{where} needs a value; it must be {keys[key].annotation}")
        return key, True
    if len(words) > 1 and "list" not in kinds:
        got = " ".join(shown(word, key) for word in words)
        raise InputError(f"{where} takes one value, got {got}; write --key value, and put a value with spaces in quotes")
    if words == [""] and "str" not in kinds:
        raise InputError(f"{where} needs a value; it must be {keys[key].annotation}")
    typed = [_typed_word(word, kinds, where) for word in words]
    return key, typed[0] if len(typed) == 1 else typed


def _typed_word(word: str, kinds: frozenset[str], where: str) -> Any:
    if word == "null" and kinds & {"None", "list"}:
        return None
    if word in ("true", "false") and "bool" in kinds:
        return word == "true"
    if kinds & {"dict", "list"} and word.startswith(("{", "[")):
        return parse_yaml(word, f"{where} {shown(word)}")
    if "str" in kinds or "list" in kinds:
        # `int | str`, list[float]: a word is a number if the type allows numbers, otherwise literal text
        number = parse_yaml(word, where) if re.fullmatch(r"[-+.\deE_]+", word) and kinds & {"int", "float"} else word
        return number if isinstance(number, (int, float)) else word
    return parse_yaml(word, f"{where} {shown(word)}")


def build(config_types, settings: Settings) -> tuple:
    """The dataclasses, instantiated; InputError with everything that they refuse."""
    configs, problems = [], []
    for config_type in config_types:
        try:
            found = _resolve(config_type)
            names = {field.name for field in fields(found) if field.init}
            values = {key: value for key, value in settings.values.items() if key in names}
            if "per_device_train_batch_size" in names:  # a trainer's, whose library takes it more strictly than ours do
                values = {key: as_fraction(key, value, settings.keys[key]) for key, value in values.items()}
            configs.append(found(**values))
        except InputError as error:
            problems += error.args
        except Exception as error:  # library classes raise many types, all caused by the user's values
            where = next(iter(settings.where.values()), COMMAND_LINE).rpartition(":")[0] or COMMAND_LINE
            problems.append(f"{where}: {error or type(error).__name__}")
    if problems:
        raise InputError(*problems)
    return tuple(configs)


def require_gpu(settings: Settings) -> None:
    """Raises InputError for keys that do not work on a CPU (transformers' continuous batching waits there for ever), or not
    with this precision: TRL casts the model that it trains for that."""
    asked = {key: key for key in GPU_ONLY if settings.values.get(key)}
    for key in OFFLOADS:
        if isinstance(settings.values.get(key), dict) and settings.values[key].get("offload"):
            asked[key] = f"{key}.offload"
    if not asked:
        return
    import torch

    if settings.values.get("use_cpu") or not torch.accelerator.is_available():
        raise InputError(*(f"{settings.where[key]}: `{name}` needs a GPU; leave it out" for key, name in asked.items()))
    computes = "fp16" if settings["fp16"] else "bf16" if settings["bf16"] is not False else ""  # on by default
    key = next((key for key in CONTINUOUS if key in asked), None)
    if computes and key and settings["dtype"] not in ("bfloat16", "float16"):
        text = f"`{key}` rounds the weights that are trained to 16 bits, as `{computes}` is on; set `{computes}: false`"
        raise InputError(f"{settings.where[key]}: {text}, or use `use_vllm`")


def settle_precision(settings: Settings, check_hardware: bool) -> None:
    """Replaces `bf16: auto`, and TRL's default (bf16 on), by what the hardware supports. InputError for a precision that it
    lacks."""
    if "bf16" not in settings.keys:
        return
    wanted, fp16, tf32 = (settings.values.get(key) for key in ("bf16", "fp16", "tf32"))
    if (wanted is False and not fp16 and not tf32) or (settings.given("fp16") and not check_hardware):
        return
    import torch

    has_accelerator, slow = torch.accelerator.is_available(), ""
    use_cpu = settings.values.get("use_cpu")
    lacking = [("fp16", fp16 and not has_accelerator), ("bf16", wanted is True and not use_cpu and not has_accelerator)]
    lacking.append(("tf32", tf32 and (use_cpu or not _has_tf32())))
    if problems := [f"{settings.where[key]}: `{key}` {NEEDED[key]}" for key, is_lacking in lacking if is_lacking]:
        raise InputError(*problems)
    if fp16 or wanted is False:
        return
    if not has_accelerator:
        # Without AMX, bf16 matmuls are emulated and slower than float32 ones.
        has_it = bool(torch.cpu.get_capabilities().get("amx_bf16", False))
        settings.values.setdefault("use_cpu", True)
        settings.values["bf16"] = wanted is True or wanted == "auto" and has_it
        slow = "" if has_it or wanted is not True else "CPU emulates it, which is slow: `bf16: auto` takes float32 here"
    elif wanted is not True:
        has_it = not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
        if not has_it and settings["bf16"] in (None, "auto"):
            slow = "GPU would emulate it, which is slow: float32 is used (`fp16: true` is faster)"
        settings.values |= {"bf16": has_it} if wanted == "auto" or not has_it else {}
    if slow and os.environ.get("RANK", "0") == "0":
        print(f"bf16: this {slow}", flush=True)


def _has_tf32() -> bool:
    from transformers.utils import is_torch_tf32_available

    return is_torch_tf32_available()


def _resolve(config_type):
    if not isinstance(config_type, str):
        return config_type
    module, name = config_type.split(":")
    return getattr(importlib.import_module(module), name)
