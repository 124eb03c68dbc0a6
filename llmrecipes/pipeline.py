"""A chain of stages: finds those that are not up to date, runs them one after the other, and reports at the end.

A stage is up to date when its folder holds the finished run of the same config and inputs, as defined by `manifest` for
recipes and pipeline alike. Nothing is removed here: a recipe refuses to overwrite another run unless the user passes
--force. Imports nothing heavy: checking an unchanged chain takes a second.
"""

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path, PurePath

import yaml

from llmrecipes.code_files import code_digest
from llmrecipes.config import InputError
from llmrecipes.corpus.arguments import with_named_sets
from llmrecipes.durable import read_json, write_text
from llmrecipes.keys import recipe_keys
from llmrecipes.manifest import (
    MANIFEST_FILE,
    ROOT,
    altered_outputs,
    difference,
    global_batch,
    inputs_of,
    move_paths,
    run_fingerprint,
    standing,
    strings,
)
from llmrecipes.parsing import config_problems, load_yaml
from llmrecipes.rounds import add_rounds, for_round
from llmrecipes.secrets import known_secrets, scrub_secrets
from llmrecipes.signals import IN_A_CHAIN, die_with_parent, handle_signals, received
from llmrecipes.sweep import sweep
from llmrecipes.threads import without_settled

UNHEALTHY = 3  # exit code
NEW = "not run yet"
TIME_TO_SAVE = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "110"}  # seconds after a signal, for processes of a launch; torch gives 30
PER_STEP = "gradient_accumulation_steps"  # a key of every stage that trains


@dataclass
class PipelineArguments:
    """The chain: its stages, its folder, which part of it runs."""

    stages: list[str] = field(
        default_factory=list, metadata={"help": "STAGE or STAGE-VARIANT each, with a YAML next to this one."}
    )
    rounds: int = field(
        default=1,
        metadata={"help": "Times to run the stages of `loop`, each with the newest policy, keeping all judgements."},
    )
    loop: list[str] = field(
        default_factory=lambda: ["sample", "rank", "reward", "ppo"],
        metadata={"help": "Stages of a round: the first reads the policy, the last trains it further."},
    )
    output_dir: str | None = field(default=None, metadata={"help": "Folder of the chain; it moves all stages' folders."})
    seed: int | None = field(default=None, metadata={"help": "Seed of every stage; default: what their YAMLs say."})
    accelerate_config: str | None = field(
        default=None, metadata={"help": "Launch the training stages with accelerate and this config file."}
    )
    from_stage: str | None = field(default=None, metadata={"help": "--from STAGE: start at this stage."})
    to_stage: str | None = field(default=None, metadata={"help": "--to STAGE: stop after this stage."})
    only: list[str] = field(default_factory=list, metadata={"help": "Only these stages."})
    sweep: str | None = field(
        default=None, metadata={"help": "STAGE.KEY=VALUE,VALUE: a folder per value; stages independent of it run once."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Say what would run, and why; run nothing."})


@dataclass
class Stage:
    """One stage of a chain. `reason` says why it runs or is skipped."""

    name: str
    recipe: Path
    config: Path  # written when the stage runs, unless it is the user's own file
    source: Path  # the user's own file
    output_dir: Path
    values: dict  # of its YAML
    seed: int | None = None
    accelerate_config: str | None = None  # for a stage that trains
    selected: bool = True
    reason: str = ""
    variant: str = ""  # KEY=VALUE of a sweep

    @property
    def title(self) -> str:
        return f"{self.name} {self.variant}".strip()

    @property
    def runs(self) -> bool:
        return not self.reason.startswith("skip")

    @property
    def given(self) -> dict:
        """What identifies the run that the recipe will start: its YAML and its command line."""
        given = self.values if self.seed is None else self.values | {"seed": self.seed}
        given = with_named_sets(given) if self.recipe.stem == "corpus" else given
        return scrub_secrets(given, known_secrets(os.environ))

    def reads(self, folder: Path) -> bool:
        return any(PurePath(text).is_relative_to(folder) for text in strings(self.values) if text != str(self.output_dir))


def plan_stages(pipeline: PipelineArguments, config_path: str, force: bool) -> list[Stage]:
    """Every stage, in order, with the reason why it will run or be skipped; writes nothing.

    Raises:
        InputError: a recipe or YAML does not exist, or `--from`/`--to`/`--only` name no stage.
    """
    if not pipeline.stages:
        where = config_path or "command line"
        raise InputError(f"{where}: `stages` is missing; give --config FILE.yaml that lists those to run, e.g. [sft, dpo]")
    pipeline.stages = add_rounds(pipeline.stages, pipeline.rounds, pipeline.loop, config_path)
    if not pipeline.output_dir:
        raise InputError(f"{config_path}: `output_dir` is missing; give the chain's folder, e.g. outputs/quickstart")
    for name in [pipeline.from_stage, pipeline.to_stage, *pipeline.only]:
        if name and name not in pipeline.stages:
            raise InputError(f"command line: {name} is not a stage of {config_path}; it has {', '.join(pipeline.stages)}")
    _check_configs(pipeline.stages, Path(config_path))
    stages = [_stage(name, pipeline, Path(config_path)) for name in pipeline.stages]
    _check_order(stages, config_path)
    names = pipeline.stages
    first = names.index(pipeline.from_stage) if pipeline.from_stage else 0
    last = names.index(pipeline.to_stage) if pipeline.to_stage else len(names) - 1
    if pipeline.sweep is not None:
        stages = sweep(stages, pipeline.sweep, pipeline.output_dir, pipeline.only)
    will_change: list[Stage] = []
    for stage in stages:
        stage.selected = first <= names.index(stage.name) <= last and (not pipeline.only or stage.name in pipeline.only)
        stage.reason = _reason(stage, force, will_change)
        if stage.runs:
            will_change.append(stage)
    if pipeline.sweep is not None and not any(stage.variant and stage.selected for stage in stages):
        changed = ", ".join(dict.fromkeys(stage.name for stage in stages if stage.variant))
        raise InputError(f"command line: sweep: changes {changed}, of which --from, --to and --only leave none to run")
    if not any(stage.selected for stage in stages):
        raise InputError(f"command line: --from, --to and --only leave none of {', '.join(names)} to run; correct them")
    return stages


def run_stages(stages: list[Stage], pipeline: PipelineArguments, config_path: str, force: bool = False) -> None:
    """Runs the stages that are not up to date, then prints the results. A failing stage ends the chain with its exit code;
    an unhealthy reward model ends it before a stage that would train against it (exit code 3), unless `force`."""
    started = time.monotonic()
    running = [stage for stage in stages if stage.runs]
    for number, stage in enumerate(running, 1):
        stage.reason = _reason(stage, force, [])  # known only now, as the stages before it have run
        place = f"{number} of {len(running)}, {_clock(time.monotonic() - started)} so far" if len(running) > 1 else ""
        why = stage.reason.removeprefix("run: ").replace(NEW, "")
        about = "; ".join(filter(None, [place, why]))
        print(f"\n##### {stage.title}" + (f" ({about})" if about else ""), flush=True)
        if not stage.runs:
            continue
        if not force and (unhealthy := find_unhealthy(stage)):
            print(
                f"\npipeline: {stage.title} not run, {unhealthy}; --force --from {stage.name} runs it anyway",
                file=sys.stderr,
            )
            sys.exit(UNHEALTHY)
        code = _run(stage, force)
        if code:
            print(f"\npipeline: {stage.title} {_hint(stage, code, force)}", file=sys.stderr)
            sys.exit(code if code > 0 else 128 - code)
    print("\n" + summarise_chain(stages, config_path, time.monotonic() - started), flush=True)


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.0f} min"


def _hint(stage: Stage, code: int, force: bool) -> str:
    if standing(stage.output_dir, _fingerprint(stage)) in ("another", "finished") and not force:
        return f"not run, see the reason above; --force --from {stage.name} runs it and everything after it again"
    interrupted = read_json(stage.output_dir / MANIFEST_FILE).get("status") == "interrupted" or code in (129, 130, 143)
    how = "interrupted" if interrupted or code < 0 else f"failed with exit code {code}, see the reason above"
    return f"{how}; the same command{' without --force' if force else ''} continues from here"


def find_unhealthy(stage: Stage) -> str:
    """Why a reward model that the stage reads is unhealthy, according to its health.json; empty if none is."""
    models = stage.values.get("reward_model_name_or_path") or []
    for folder in [models] if isinstance(models, str) else models:
        health = read_json(Path(folder) / "health.json")
        if health.get("verdict") == "unhealthy":
            more = f" (and {len(health['reasons']) - 1} more)" if len(health["reasons"]) > 1 else ""
            return f"{folder} is unhealthy: {health['reasons'][0]}{more}, read {Path(folder) / 'health.md'}"
    return ""


def summarise_chain(stages: list[Stage], config_path: str, seconds: float) -> str:
    """For each stage: what it made, how long it took, and its metrics against the expected ones; as Markdown."""
    lines = [f"# {config_path}", "", "| stage | made | seconds | expected against got | folder |", "|---|---|---|---|---|"]
    total = 0.0
    for stage in stages:
        manifest = read_json(stage.output_dir / MANIFEST_FILE)
        if manifest.get("status") != "finished":
            lines.append(f"| {stage.title} | not run | | | |")
            continue
        try:
            lines.append(_outcome(stage, manifest))
            total += manifest["wall_seconds"]
        except (KeyError, TypeError, ValueError, AttributeError):
            lines.append(f"| {stage.title} | cannot be told: {MANIFEST_FILE} is damaged | | | {stage.output_dir} |")
    lines += ["", f"All stages together: {total:.0f} s of work, {seconds:.0f} s in this call.", ""]
    for stage in stages:
        table = stage.output_dir / "table.txt"
        if table.exists():
            lines += [f"## {stage.title}", "", "```", table.read_text(encoding="utf-8").rstrip(), "```", ""]
    return "\n".join(lines)


def _outcome(stage: Stage, manifest: dict) -> str:
    verdicts = [
        f"{name} {v['expected']:g} ± {v['tolerance']:g}: {'' if v['got'] is None else format(v['got'], '.4g') + ', '}"
        + v["verdict"]
        for name, v in manifest["expected"].items()
    ]
    made, seconds = manifest["made"], manifest["wall_seconds"]
    return f"| {stage.title} | {made} | {seconds:.0f} | {'; '.join(verdicts) or '-'} | {stage.output_dir} |"


def _check_configs(names: list[str], config_path: Path) -> None:
    """InputError with everything wrong in the stages' YAMLs: a mistake in the last is reported before the first one runs."""
    problems = []
    for base in dict.fromkeys(name.partition("-round")[0] for name in names):
        if not re.fullmatch(r"[\w-]+", base):
            problems.append(f"{config_path}: `stages`: {base[:60]!r} is not STAGE or STAGE-VARIANT")
            continue
        if base.split("-")[0] == "pipeline":
            problems.append(f"{config_path}: `stages`: {base} is a chain, which cannot be a stage of one; name its stages")
            continue
        recipe, config = recipe_of(base), config_path.parent / f"{base}.yaml"
        if recipe.exists() and config.exists():
            problems += config_problems(config, recipe)
    if problems:
        raise InputError(*problems)


def _check_order(stages: list[Stage], config_path: str) -> None:
    """InputError for stages that are named twice, write into one another's folders, or read what only a later one writes:
    they would fail after hours, or read what an earlier chain left there."""
    problems = []
    for i, later in enumerate(stages):
        for first in stages[:i]:
            folders = [Path(os.path.abspath(stage.output_dir)) for stage in (first, later)]
            if first.name == later.name:
                problems.append(f"{config_path}: `stages` names {later.name} twice; name each once")
            elif folders[0].is_relative_to(folders[1]) or folders[1].is_relative_to(folders[0]):
                what = f"{later.output_dir} is not apart from {first.name}'s, {first.output_dir}"
                problems.append(f"{later.source}: output_dir: {what}; give each stage a folder of its own")
            elif first.reads(later.output_dir):
                what = f"{first.name} reads {later.output_dir}, which {later.name} writes after it"
                problems.append(f"{config_path}: `stages`: {what}; put {later.name} before {first.name}")
    if problems:
        raise InputError(*dict.fromkeys(problems))


def recipe_of(stage: str) -> Path:
    """The script of STAGE or STAGE-VARIANT."""
    return ROOT / "recipes" / f"{stage.split('-')[0]}.py"


def _stage(name: str, pipeline: PipelineArguments, config_path: Path) -> Stage:
    base, _, round_ = name.partition("-round")
    base, round_ = (base, int(round_)) if round_.isdigit() and base in pipeline.loop else (name, 1)
    recipe = recipe_of(base)
    config = config_path.parent / f"{base}.yaml"
    if not recipe.exists():
        raise InputError(f"{config_path}: stage {name} has no recipe {recipe.relative_to(ROOT)}")
    if not config.exists():
        raise InputError(f"{config_path}: stage {name} has no {config}; write it or take {name} off `stages`")
    source, own = config, load_yaml(config)
    home = load_yaml(config_path).get("output_dir") or pipeline.output_dir
    values = move_paths(own, {PurePath(home): PurePath(pipeline.output_dir)})
    if pipeline.rounds > 1:
        values = for_round(values, base, round_, pipeline, config_path.parent)
    if not values.get("output_dir"):
        raise InputError(f"{config}: `output_dir` is missing")
    if values != own:
        config = Path(pipeline.output_dir) / "configs" / f"{name}.yaml"
    launcher = pipeline.accelerate_config if trains(recipe) else None
    return Stage(name, recipe, config, source, Path(values["output_dir"]), values, pipeline.seed, launcher)


@cache
def trains(recipe: Path) -> bool:
    """Whether the recipe takes the keys of training."""
    return PER_STEP in recipe_keys(recipe)


def _reason(stage: Stage, force: bool, will_change: list[Stage]) -> str:
    if not stage.selected:
        return "skip: not selected"
    if force:
        return "run: --force"
    found = read_json(stage.output_dir / MANIFEST_FILE)
    held = standing(stage.output_dir, _fingerprint(stage))
    before = next((s for s in will_change if stage.reads(s.output_dir)), None)
    if before and held != "nothing":
        return f"run: {before.title} runs before it"
    if held == "finished":
        gone, altered = altered_outputs(stage.output_dir, found)
        if gone:
            return f"run: finished, but without {gone}; only --force overwrites it"
        if altered:
            return f"skip: finished ({altered} changed since; --force reruns)"
        changed = found.get("code") != code_digest(stage.recipe, stage.given)
        return "skip: finished, nothing changed" + (" (code changed since; --force reruns)" if changed else "")
    if held == "unfinished":
        return "run: was interrupted, continues"
    if held == "another":
        now = {"stage": stage.recipe.stem, "given": stage.given, "inputs": inputs_of(stage.given), "batch": _batch(stage)}
        how = difference(found, now)
        return f"run: {how}, which only --force overwrites"
    return f"run: {NEW}"


def _fingerprint(stage: Stage) -> str:
    """The fingerprint of the run that the stage's recipe would start now."""
    return run_fingerprint(stage.recipe.stem, stage.given, _batch(stage))


def _batch(stage: Stage) -> int | None:
    return global_batch(stage.given, _processes(stage)) if trains(stage.recipe) else None


def _processes(stage: Stage) -> int:
    return int(load_yaml(stage.accelerate_config).get("num_processes") or 1) if stage.accelerate_config else 1


def _run(stage: Stage, force: bool) -> int:
    if not stage.config.exists() or load_yaml(stage.config) != stage.values:
        stage.config.parent.mkdir(parents=True, exist_ok=True)
        write_text(stage.config, yaml.safe_dump(stage.values, sort_keys=False, allow_unicode=True))
    launcher = [sys.executable]
    if stage.accelerate_config:
        launcher += ["-m", "accelerate.commands.launch", "--config_file", stage.accelerate_config]
    command = [*launcher, str(stage.recipe), "--config", str(stage.config)]
    if stage.seed is not None:
        command += ["--seed", str(stage.seed)]
    if force:
        command.append("--force")
    process = subprocess.Popen(
        command,
        env=TIME_TO_SAVE | without_settled() | {"TOKENIZERS_PARALLELISM": "true", IN_A_CHAIN: "1"},
        preexec_fn=partial(die_with_parent, os.getpid()),
    )
    handle_signals(process.send_signal)  # the stage saves, and ends by itself
    code = process.wait()
    handle_signals()
    return 128 + received[0] if received else code
