"""Finds what cannot work before anything is loaded: settings that contradict each other, and what this machine lacks.

Looks at files but imports nothing heavy, so everything takes a fraction of a second.
"""

import os
import re

from llmrecipes.keys.settings import COMMAND_LINE, Problems, Settings
from llmrecipes.preflight import disk, machine, model_folders, named, places
from llmrecipes.preflight.contradictions import CONTRADICTIONS
from llmrecipes.preflight.dependent import given
from llmrecipes.preflight.rollouts import idle_in_rollouts


def contradictions(settings: Settings) -> list[str]:
    """What is wrong with a config on any machine."""
    return settings.lines(problem for check in CONTRADICTIONS for problem in check(settings))


def check_machine(settings: Settings, as_written: dict) -> list[str]:
    """What is missing for a run on this machine: required keys, inputs, tokens, packages, disk space, the Hub; and an output
    folder that holds something other than the run of the config `as_written` by the user."""
    checks = (_missing, _groups, places.sources, *machine.CHECKS, model_folders.models, *named.CHECKS)
    return [
        *settings.lines(problem for check in checks for problem in check(settings)),
        *settings.lines(places.occupied(settings, as_written)),
    ]


def _missing(s: Settings) -> Problems:
    """Required keys of a stage; skipped if there are unknown keys, since a misspelt key would be reported twice."""
    if s.has_unknown_keys or "force" not in s.keys:
        return
    compares, fresh = "models" in s.keys, s["model_config"]
    if "output_dir" in s.keys and "stages" not in s.keys and not s["output_dir"]:
        yield "output_dir", "is missing; say where the result goes, e.g. outputs/<experiment>/<stage>"
    if "datasets" in s.keys and not compares and not s["datasets"]:
        yield "datasets", "is missing; give at least one {path: ...}"
    if "model_name_or_path" in s.keys and not compares and not s["model_name_or_path"] and not fresh:
        yield "model_name_or_path", "is missing; give a Hugging Face id or a stage's folder"
    if fresh and not s["tokenizer_name_or_path"]:
        yield "tokenizer_name_or_path", "is missing; a fresh model takes its vocabulary from there"
    if compares and not s["models"]:
        yield "models", "is missing; give {name: folder or Hub id, ...}"
    if "reward_functions" in s.keys and not s["reward_functions"] and not s["reward_model_name_or_path"]:
        yield "reward_model_name_or_path", "is missing; give a reward model, or `reward_functions`"
    for key, needs in (("judge", ("judge_url", "judge_model")), ("annotator", ("judge_url", "judge_model"))):
        for other in needs if s[key] == "llm" else ():
            if not s[other]:
                yield other, f"is missing, which `{key}: llm` needs"
    needed = {"simulated": "rule", "file": "rankings_file"}.get(s["annotator"])
    if needed and not s[needed]:
        yield needed, f"is missing, which `annotator: {s['annotator']}` needs"
    if s["order"] == "uncertain" and not s["reward_model_name_or_path"]:
        yield "reward_model_name_or_path", "is missing, whose uncertainty `order: uncertain` follows"


def _groups(s: Settings) -> Problems:
    """Batches of GRPO's evaluation that cut a prompt's responses apart: it would stop at them, after the training."""
    if "num_generations_eval" not in s.keys or not (s["eval_datasets"] or s["test_split_size"]):
        return
    group, processes = s["num_generations_eval"] or s["num_generations"], int(os.environ.get("WORLD_SIZE", 1))
    if s["per_device_eval_batch_size"] * processes % group:
        text = f"× {processes} processes is no multiple of {group} responses to a prompt"
        yield "per_device_eval_batch_size", f"{s['per_device_eval_batch_size']} {text}; change it or `num_generations_eval`"


def remarks(s: Settings) -> list[str]:
    """What runs, but perhaps not as intended: printed as warnings."""
    checks = (ineffective, _warmup, _batch, places.unread, places.doubled, disk.room_for_all)
    return s.lines(problem for check in checks for problem in check(s))


# Keys that only a launch of several processes reads.
OF_SEVERAL = "ddp_ log_on_each_node log_level_replica save_on_each_node average_tokens_across_devices"

OF_A_STAGE = "license num_gpus global_batch_size expected published"  # of the run card


def ineffective(s: Settings) -> Problems:
    """Keys without effect that are only warned about, and code from a model's repository."""
    trackers = set(s["report_to"] if isinstance(s["report_to"], list) else [s["report_to"]]) - {None, "none"}
    for key, needs, off in (
        ("eval_steps", "eval_strategy", s["eval_strategy"] != "steps"),
        ("eval_delay", "eval_strategy", s["eval_strategy"] in (None, "no")),
        ("save_steps", "save_strategy", s["save_strategy"] != "steps"),
        ("packing_strategy", "packing", not s["packing"] and not s["eval_packing"]),
        *((key, "watch_steps", not s["watch_steps"]) for key in s.values if key.startswith("watch_")),
        ("watch_items", "watch_tasks", s["watch_steps"] and not s["watch_tasks"]),
        ("watch_tasks_path", "watch_tasks", s["watch_steps"] and not s["watch_tasks"]),
        ("watch_temperature", "watch_questions", s["watch_steps"] and not s["watch_questions"]),
        ("loop", "rounds", s["rounds"] == 1),
        ("judge_url", "watch_steps", not s["watch_steps"]),
        ("judge_model", "watch_steps", not s["watch_steps"] and s["judge_url"]),
        ("run_name", "report_to", not trackers),
        ("project", "report_to", not trackers),
    ):
        if off and s.given(key) and needs in s.keys and not s.given(needs):
            yield key, f"has no effect without `{needs}`"
    if s.given("save_total_limit") and s["save_strategy"] == "no":
        yield "save_total_limit", "counts only checkpoints that interruptions leave, with `save_strategy: no`"
    yield from _harmless(s, trackers)
    yield from idle_in_rollouts(s)
    if s["trust_remote_code"]:
        model, revision = s["model_name_or_path"] or "the model's repository", s["model_revision"]
        pinned = not revision or os.path.isdir(model) or re.fullmatch("[0-9a-f]{40}", revision)
        which = f"{model} in revision {revision}" if revision and not os.path.isdir(model) else model
        advice = "" if pinned else "; pin a commit (`model_revision`), or tomorrow it may be other code"
        yield "trust_remote_code", f"code of {which} will run on this machine with your rights{advice}"


def _harmless(s: Settings, trackers: set[str]) -> Problems:
    """Keys that this launch, these `trackers` or another key leave without effect."""
    for what in ("eval", "save", "logging"):
        strategy = s[f"{what}_strategy"]
        is_read = what == "logging" and s["eval_strategy"] == "steps" and not s["eval_steps"]  # by the evaluation
        if s.given(f"{what}_steps") and s.given(f"{what}_strategy") and strategy in ("epoch", "best") and not is_read:
            yield f"{what}_steps", f"has no effect with `{what}_strategy: {strategy}`"
    others = ", ".join(sorted(trackers))
    measures_nothing = s.trains and not s["eval_datasets"] and not s["test_split_size"]
    real = s["annotator"] in ("file", "page", "llm") and s.where.get("annotator") != COMMAND_LINE
    for names, off, text in (
        (OF_SEVERAL, int(os.environ.get("WORLD_SIZE", 1)) == 1, "has no effect in a single process"),
        (
            "per_device_eval_batch_size eval_packing",
            measures_nothing,
            "has no effect without held-out rows (`eval_datasets` or `test_split_size`)",
        ),
        ("rater_noise rater_tie_width", real, f"has no effect with `annotator: {s['annotator']}`, only with simulated"),
        (
            "average_tokens_across_devices",
            s.trains and int(os.environ.get("WORLD_SIZE", 1)) > 1 and not {"packing", "model_config"} & s.keys.keys(),
            "has no effect: this stage's loss is no mean over the tokens of all processes",
        ),
        (OF_A_STAGE, "stages" in s.keys, "has no effect on a chain; give it in the stages' YAMLs"),
        ("local_rank", True, "has no effect: the launcher tells each process its number; leave it out"),
        ("seed", "datasets" not in s.keys and "stages" not in s.keys, "has no effect: nothing is drawn at random here"),
        ("attn_implementation", "datasets" not in s.keys, "has no effect: nothing is computed with the model here"),
        ("disable_tqdm", s.trains, "has no effect: a training prints lines, no bars"),
        ("remove_unused_columns", "reward_functions" not in s.keys, "has no effect: further columns are read by nobody"),
        ("run_name", trackers == {"tensorboard"}, "has no effect with `report_to: tensorboard`"),
        (
            "project",
            trackers and not trackers & {"trackio", "all"},
            f"has no effect with `report_to: {others}`, only with trackio (wandb reads `env: {{WANDB_PROJECT: ...}}`)",
        ),
        (
            "data_seed",
            s["train_sampling_strategy"] == "sequential",
            "has no effect with `train_sampling_strategy: sequential`",
        ),
        (
            "pad_to_multiple_of",
            s["padding_free"] or s["packing"] and s["packing_strategy"] != "wrapped",
            "has no effect on rows without padding (`packing`, `padding_free`)",
        ),
        (
            "lora_dropout",
            s["use_peft"] and s["disable_dropout"] and s["lora_dropout"],
            "has no effect with `disable_dropout: true`, this stage's default, which turns the adapter's off too",
        ),
    ):
        for key in given(s, names) if off else ():
            if s[key] != s.keys[key].default:
                yield key, text


def _warmup(s: Settings) -> Problems:
    """A warmup that takes the whole run. Where epochs give its length, `resume` says so when the length is known."""
    if s["warmup_steps"] and 0 < s["max_steps"] <= s["warmup_steps"]:
        text = f"is {s['warmup_steps']:g}, but max_steps is {s['max_steps']}: `learning_rate` is never reached; set it lower"
        yield "warmup_steps", f"{text}, or as a share of all steps, e.g. 0.1"


def keys_of_batch(rows: int, per_device: int, processes: int) -> str:
    """The keys with which `processes` take `rows` a step: `per_device` of them at a time, or the largest number below it
    that divides a process's share; empty if there are fewer rows than processes, or no equal shares."""
    share, rest = divmod(rows, processes)
    if rest or not share:
        return ""
    micro = next(size for size in range(min(per_device, share), 0, -1) if share % size == 0)
    keys = f"gradient_accumulation_steps: {share // micro}"
    return keys if micro == per_device else f"per_device_train_batch_size: {micro}, {keys}"


def _batch(s: Settings) -> Problems:
    """Warnings if this launch does not have the processes and global batch of the run card."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if "force" not in s.keys or "stages" in s.keys:  # a plan, a chain: no launch
        return
    if s["num_gpus"] and s["num_gpus"] != processes and not (s.trains and s["global_batch_size"]):
        yield "num_gpus", f"the run card is for {s['num_gpus']} processes, this launch has {processes}"
    if s.given("global_batch_size") and not s.trains:
        yield "global_batch_size", "has no effect: nothing is trained here"
    if not s.trains or not s["global_batch_size"]:
        return
    per_device, accumulated = s["per_device_train_batch_size"], s["gradient_accumulation_steps"]
    rows = per_device * accumulated * processes
    if rows != s["global_batch_size"]:
        keys = keys_of_batch(s["global_batch_size"], per_device, processes)
        advice = f"; `{keys}` makes it so" if keys else ""
        text = (
            f"the run card says {s['global_batch_size']}, this launch has {rows} (per_device_train_batch_size "
            f"{per_device} × gradient_accumulation_steps {accumulated} × {processes} processes){advice}"
        )
        yield "global_batch_size", text
