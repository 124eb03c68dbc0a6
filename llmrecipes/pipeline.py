"""A chain of stages: which are up to date, run the others one after the other, report at the end.

A stage is up to date when its folder holds a finished run made from the same YAML, the same code and the same inputs.
Imports nothing heavy: looking at an unchanged chain takes a second.
"""

import ast
import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from llmrecipes.config import InputError
from llmrecipes.parsing import load_yaml

ROOT = Path(__file__).parent.parent
UNHEALTHY = 3  # exit code
KEYS = "pipeline_keys.json"  # stage -> key of its last start
TRAINING_STAGES = ("pretrain", "sft", "reward", "dpo", "ppo")  # those that several processes can share
LOOP = ("sample", "rank", "reward", "ppo")  # what a further round goes through


@dataclass
class PipelineArguments:
    """The chain: its stages, where it lies, which part of it runs."""

    stages: list[str] = field(
        default_factory=list, metadata={"help": "STAGE or STAGE-VARIANT each; its YAML lies beside this one."}
    )
    rounds: int = field(
        default=1,
        metadata={"help": "Times to sample, rank, reward, ppo, each with the newest policy, keeping all judgements."},
    )
    output_dir: str | None = field(default=None, metadata={"help": "Folder of the chain; another one moves it all."})
    seed: int | None = field(default=None, metadata={"help": "Seed of every stage; default: what their YAMLs say."})
    accelerate_config: str | None = field(
        default=None, metadata={"help": "Launch the training stages by accelerate with this topology."}
    )
    from_stage: str | None = field(default=None, metadata={"help": "--from STAGE: first stage to look at."})
    to_stage: str | None = field(default=None, metadata={"help": "--to STAGE: last stage to look at."})
    only: list[str] = field(default_factory=list, metadata={"help": "Look at these stages alone."})
    dry_run: bool = field(default=False, metadata={"help": "Say what would run, and why; run nothing."})


@dataclass
class Stage:
    """One stage of a chain. `reason` says why it runs or is skipped; `key` names config, code and inputs."""

    name: str
    recipe: Path
    config: Path
    output_dir: Path
    input_dirs: list[Path]
    values: dict
    selected: bool = True
    key: str = ""
    reason: str = ""

    @property
    def runs(self) -> bool:
        return not self.reason.startswith("skip")


def plan_stages(pipeline, config_path: str, force: bool) -> list[Stage]:
    """Every stage with the reason why it will run or be skipped, in order.

    Raises:
        InputError: no such recipe or YAML, `--from`/`--to`/`--only` name no stage, or an input is made by none.
    """
    if not pipeline.stages:
        raise InputError(f"{config_path}: `stages` is missing; list the stages to run, e.g. [sft, reward, ppo]")
    pipeline.stages = add_rounds(pipeline.stages, pipeline.rounds, config_path)
    if not pipeline.output_dir:
        raise InputError(f"{config_path}: `output_dir` is missing; give the chain's folder, e.g. outputs/quickstart")
    for name in [pipeline.from_stage, pipeline.to_stage, *pipeline.only]:
        if name and name not in pipeline.stages:
            raise InputError(f"command line: {name} is no stage of {config_path}; it has {', '.join(pipeline.stages)}")
    stages = [_stage(name, pipeline, Path(config_path)) for name in pipeline.stages]
    names = pipeline.stages
    first = names.index(pipeline.from_stage) if pipeline.from_stage else 0
    last = names.index(pipeline.to_stage) if pipeline.to_stage else len(names) - 1
    will_change: set[Path] = set()
    keys = read_json(Path(pipeline.output_dir) / KEYS)
    for i, stage in enumerate(stages):
        stage.selected = first <= i <= last and (not pipeline.only or stage.name in pipeline.only)
        _settle(stage, keys.get(stage.name), force, will_change)
        if stage.runs:
            will_change.add(stage.output_dir)
    return stages


def add_rounds(stages: list[str], rounds: int, config_path: str) -> list[str]:
    """The stages with sample-round2, rank-round2, ... after ppo for each further round."""
    if rounds < 1 or rounds > 1 and not set(LOOP) <= set(stages):
        raise InputError(
            f"{config_path}: rounds: {rounds} must be at least 1, and above it needs the stages {', '.join(LOOP)}"
        )
    after = stages.index("ppo") + 1 if rounds > 1 else len(stages)
    return [*stages[:after], *(f"{name}-round{r}" for r in range(2, rounds + 1) for name in LOOP), *stages[after:]]


def run_stages(stages: list[Stage], pipeline, config_path: str, force: bool = False) -> None:
    """Run what is not up to date, then print what came out; a failing stage ends the chain with its exit code, a
    reward model that is unhealthy ends it before what would train against it (exit code 3), unless `force`."""
    started = time.time()
    running = [stage for stage in stages if stage.runs]
    for number, stage in enumerate(running, 1):
        left = f" ({number} of {len(running)}, {time.time() - started:.0f} s so far)" if len(running) > 1 else ""
        print(f"\n##### {stage.name}: {stage.reason}{left}", flush=True)
        if not force and (unhealthy := find_unhealthy(stage)):
            print(f"\npipeline: {stage.name} not run, {unhealthy}; --force --from {stage.name} runs it all the same",
                  file=sys.stderr)  # fmt: skip
            sys.exit(UNHEALTHY)
        # An earlier stage has just been made anew, so the key is known only now. It is written before the stage runs:
        # interrupted work is continued only by the same config, code and inputs.
        stage.key = _key(stage)
        resumes = stage.reason.endswith("continues")
        _write_key(pipeline, stage)
        code = _run(stage, pipeline, resumes)
        if code:
            hint = "interrupted" if code in (130, -2) else f"failed with exit code {code}, its reason stands above"
            print(f"\npipeline: {stage.name} {hint}; the same command continues from here", file=sys.stderr)
            sys.exit(code if code > 0 else 130)
    print("\n" + summarise_chain(stages, config_path, time.time() - started), flush=True)


def find_unhealthy(stage: Stage) -> str:
    """Why a reward model that the stage reads is unhealthy, as its health.json says; empty if none is."""
    models = stage.values.get("reward_model_name_or_path") or []
    for folder in [models] if isinstance(models, str) else models:
        health = read_json(Path(folder) / "health.json")
        if health.get("verdict") == "unhealthy":
            more = f" (and {len(health['reasons']) - 1} more)" if len(health["reasons"]) > 1 else ""
            return f"{folder} is unhealthy: {health['reasons'][0]}{more}, read {Path(folder) / 'health.md'}"
    return ""


def summarise_chain(stages: list[Stage], config_path: str, seconds: float) -> str:
    """For each stage: what it made, how long it took, how good it is against what was expected; as Markdown."""
    lines = [f"# {config_path}", "", "| stage | made | seconds | expected against got | lies in |", "|---|---|---|---|---|"]
    total = 0.0
    for stage in stages:
        manifest = read_json(stage.output_dir / "manifest.json")
        if manifest.get("status") != "finished":
            lines.append(f"| {stage.name} | not run | | | |")
            continue
        total += manifest["wall_seconds"]
        verdicts = [
            f"{name} {v['expected']:g} ± {v['tolerance']:g}: {'' if v['got'] is None else format(v['got'], '.4g') + ', '}"
            + v["verdict"]
            for name, v in manifest["expected"].items()
        ]
        lines.append(
            f"| {stage.name} | {manifest['made']} | {manifest['wall_seconds']:.0f} | {'; '.join(verdicts) or '-'} "
            f"| {stage.output_dir} |"
        )
    lines += ["", f"All stages together: {total:.0f} s of work, {seconds:.0f} s in this call.", ""]
    for stage in stages:
        table = stage.output_dir / "table.txt"
        if table.exists():
            lines += [f"## {stage.name}", "", "```", table.read_text(encoding="utf-8").rstrip(), "```", ""]
    return "\n".join(lines)


def read_json(path: Path) -> dict:
    """The JSON object in `path`; empty where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}


def _stage(name: str, pipeline, config_path: Path) -> Stage:
    base, _, round_ = name.partition("-round")
    base, round_ = (base, int(round_)) if round_.isdigit() and base in LOOP else (name, 1)
    recipe = ROOT / "recipes" / f"{base.split('-')[0]}.py"
    config = config_path.parent / f"{base}.yaml"
    if not recipe.exists():
        raise InputError(f"{config_path}: stage {name} has no recipe {recipe.relative_to(ROOT)}")
    if not config.exists():
        raise InputError(f"{config_path}: stage {name} has no {config}; write it or take {name} off `stages`")
    home, own = str(load_yaml(config_path)["output_dir"]), Path(pipeline.output_dir) / "configs"
    if home != pipeline.output_dir:  # the whole chain moves
        text = config.read_text(encoding="utf-8").replace(home, pipeline.output_dir)
        config = own / config.name
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(text, encoding="utf-8")
    values = load_yaml(config)
    if round_ > 1 or base == "evaluate" and pipeline.rounds > 1:
        values = _for_round(values, base, round_, pipeline, config_path.parent / "rank.yaml")
        config = own / f"{name}.yaml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
    if not values.get("output_dir"):
        raise InputError(f"{config}: `output_dir` is missing")
    output_dir = Path(values["output_dir"])
    inputs = sorted({Path(v) for v in _strings(values) if v.startswith(pipeline.output_dir)} - {output_dir})
    return Stage(name, recipe, config, output_dir, inputs, values | {"--seed": pipeline.seed})


def _for_round(values: dict, base: str, round_: int, pipeline, rank_config: Path) -> dict:
    """The stage's YAML for a further round: it reads and writes that round's folders and starts from the newest policy."""
    home = pipeline.output_dir
    folder = lambda stage, r: f"{home}/{stage}" if r == 1 else f"{home}/{stage}-round{r}"
    if base == "evaluate":
        policies = {f"ppo_round{r}": folder("ppo", r) for r in range(2, pipeline.rounds + 1)}
        return values | {"models": values.get("models", {}) | policies}
    ranked_before = [s for s in values.get("datasets", []) if isinstance(s, dict) and s.get("path") == folder("rank", 1)]
    values = _renamed(values, {folder(stage, 1): folder(stage, round_) for stage in LOOP})
    values.pop("expected", None)  # measured for the first round
    if base in ("sample", "ppo"):
        values["model_name_or_path"] = folder("ppo", round_ - 1)
    elif base == "rank":
        values |= {"round": round_, "database": values.get("database") or f"{folder('rank', 1)}.sqlite"}
    elif load_yaml(rank_config).get("annotator") not in ("page", "llm"):
        # A database keeps the judgements of all rounds; other rankings lie in a folder for each round.
        values["datasets"] += [s | {"path": folder("rank", r)} for s in ranked_before for r in range(1, round_)]
    return values


def _renamed(value, names: dict[str, str]):
    if isinstance(value, dict):
        return {key: _renamed(v, names) for key, v in value.items()}
    if isinstance(value, list):
        return [_renamed(v, names) for v in value]
    return names.get(value, value) if isinstance(value, str) else value


def _write_key(pipeline, stage: Stage) -> None:
    path = Path(pipeline.output_dir) / KEYS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(read_json(path) | {stage.name: stage.key}, indent=2) + "\n", encoding="utf-8")


def _settle(stage: Stage, recorded: str | None, force: bool, will_change: set[Path]) -> None:
    manifest = read_json(stage.output_dir / "manifest.json")
    changed_inputs = [p for p in will_change if any(p == i or p in i.parents for i in stage.input_dirs)]
    stage.key = _key(stage)
    if not stage.selected:
        stage.reason = "skip: not selected"
    elif force:
        stage.reason = "run: --force"
    elif not manifest:
        stage.reason = "run: was never run"
    elif changed_inputs:
        stage.reason = f"run: {changed_inputs[0].name} runs before it"
    elif recorded != stage.key:
        stage.reason = "run: its config, inputs or code changed"
    elif manifest.get("status") != "finished":
        stage.reason = "run: was interrupted, continues"
    else:
        stage.reason = "skip: finished, nothing changed"


def _key(stage: Stage) -> str:
    """Of the config, of all code that the recipe imports or the YAML names (`rule: llmrecipes...:f`), of the inputs."""
    digest = hashlib.sha256(json.dumps(stage.values, sort_keys=True, default=str).encode())
    named = [_module_file(v.partition(":")[0]) for v in _strings(stage.values) if v.startswith("llmrecipes.")]
    for file in sorted(set().union(*(code_files(script) for script in [stage.recipe, *filter(None, named)]))):
        digest.update(file.read_bytes())
    for folder in stage.input_dirs:
        digest.update(str(read_json(folder / "manifest.json").get("output_fingerprint")).encode())
    return digest.hexdigest()[:16]


def code_files(script: Path) -> set[Path]:
    """`script` and every file of this project that it imports, directly or not."""
    found, todo = set(), [script]
    while todo:
        file = todo.pop()
        if file in found:
            continue
        found.add(file)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            todo += filter(None, (_module_file(module) for module in modules if module.split(".")[0] == "llmrecipes"))
    return found


def _module_file(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.exists()), None)


def _strings(value) -> list[str]:
    if isinstance(value, dict):
        return [s for v in value.values() for s in _strings(v)]
    if isinstance(value, list):
        return [s for v in value for s in _strings(v)]
    return [value] if isinstance(value, str) else []


def _run(stage: Stage, pipeline, resumes: bool) -> int:
    launcher = [sys.executable]
    if pipeline.accelerate_config and stage.recipe.stem in TRAINING_STAGES:
        launcher += ["-m", "accelerate.commands.launch", "--config_file", pipeline.accelerate_config]
    command = [*launcher, str(stage.recipe), "--config", str(stage.config)]
    if pipeline.seed is not None:
        command += ["--seed", str(pipeline.seed)]
    if not resumes and stage.output_dir.exists():
        command.append("--force")
    process = subprocess.Popen(command, env=os.environ | {"TOKENIZERS_PARALLELISM": "true"})
    try:
        return process.wait()
    except KeyboardInterrupt:
        # The stage got the same signal; let it end by itself.
        process.wait()
        return 130
