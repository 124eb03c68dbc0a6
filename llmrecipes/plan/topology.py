"""What accelerate's launch config shards, and over how many processes."""

import json
from pathlib import Path

from llmrecipes.config import InputError
from llmrecipes.keys.settings import Settings
from llmrecipes.keys.strict_yaml import load_yaml

# FSDP's strategy, in either version -> the stage of ZeRO that shards the same.
FSDP = {"TRUE": 3, "FALSE": 2, "FULL_SHARD": 3, "1": 3, "SHARD_GRAD_OP": 2, "2": 2, "NO_SHARD": 0, "3": 0}
WHOLE = ("NO", "MULTI_GPU", "MULTI_CPU", "MULTI_XPU")


def num_processes(accelerate_config: str | None) -> int | None:
    """The number of processes that the launch config starts on all machines, if it says so."""
    number = load_yaml(accelerate_config).get("num_processes") if accelerate_config else None
    return number if type(number) is int and number > 0 else None


def sharding(s: Settings, accelerate_config: str | None, unknown: list[str]) -> int:
    """ZeRO's stage by the launch config or `fsdp: true`: 1 shards optimizer states, 2 gradients too, 3 weights too, 0 none.

    Raises:
        InputError: it is not a launch config, or one that shards in an unknown way.
    """
    if s["deepspeed"]:
        unknown.append("deepspeed: its file is not read and nothing is counted as sharded; give --accelerate_config")
    if not accelerate_config:
        return 3 if s["fsdp"] else 0
    launch, where = load_yaml(accelerate_config), f"accelerate_config: {accelerate_config}"
    kind = launch.get("distributed_type")
    kind = "NO" if kind is False else kind  # as YAML reads a plain NO
    if kind in WHOLE:
        return 0
    if kind == "FSDP":
        options = _mapping(launch, "fsdp_config", where)
        strategy = options.get("fsdp_reshard_after_forward", options.get("fsdp_sharding_strategy", True))
        if str(strategy).upper() not in FSDP:
            raise InputError(f"{where}: FSDP's strategy {strategy!r} is not known here ({', '.join(FSDP)})")
        _name_offloads(options, unknown)
        return FSDP[str(strategy).upper()]
    if kind == "DEEPSPEED":
        options = _mapping(launch, "deepspeed_config", where)
        stage = str(options.get("zero_stage", _stage_of_file(options.get("deepspeed_config_file"), where)))
        if stage not in ("0", "1", "2", "3"):
            raise InputError(f"{where}: zero_stage: {stage} is not one of 0, 1, 2, 3")
        _name_offloads(options, unknown)
        return int(stage)
    known = ", ".join((*WHOLE, "FSDP", "DEEPSPEED"))
    raise InputError(f"{where}: distributed_type: {kind} is not known here ({known})")


def _mapping(launch: dict, key: str, where: str) -> dict:
    found = launch.get(key) or {}
    if not isinstance(found, dict):
        raise InputError(f"{where}: {key}: is not a mapping")
    return found


def _stage_of_file(file: str | None, where: str) -> int | str:
    if file is None:
        return 0
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))["zero_optimization"]["stage"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{where}: deepspeed_config_file: {file}: no zero_optimization.stage in it ({error})") from None


def _name_offloads(options: dict, unknown: list[str]) -> None:
    for key, value in options.items():
        if "offload" in key and value not in (None, False, "none", "false"):
            unknown.append(f"{key}: {value}: what moves off the GPU is counted as if it stayed")
