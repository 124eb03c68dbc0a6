"""A chain whose stages sample, rank, reward and ppo run several times, each round from the newest policy."""

from pathlib import Path

from llmrecipes.config import InputError
from llmrecipes.manifest import strings
from llmrecipes.parsing import load_yaml


def add_rounds(stages: list[str], rounds: int, loop: list[str], config_path: str) -> list[str]:
    """The stages with sample-round2, rank-round2, ... after the loop's last for each further round."""
    if rounds < 1 or rounds > 1 and not (loop and set(loop) <= set(stages)):
        raise InputError(
            f"{config_path}: rounds: {rounds} must be at least 1, and above it needs the stages {', '.join(loop)}"
        )
    after = stages.index(loop[-1]) + 1 if rounds > 1 else len(stages)
    return [*stages[:after], *(f"{name}-round{r}" for r in range(2, rounds + 1) for name in loop), *stages[after:]]


def for_round(values: dict, base: str, round_: int, pipeline, configs: Path) -> dict:
    """`values`, the YAML of stage `base`, for a further round: it reads and writes that round's folders and starts from the
    newest policy. pipeline: the chain's PipelineArguments."""
    loop = pipeline.loop
    folder = lambda stage, r: str(Path(pipeline.output_dir) / (stage if r == 1 else f"{stage}-round{r}"))
    if base not in loop:
        if folder(loop[-1], 1) in strings(values.get("models")):  # models to compare: those of all rounds
            more = {f"{loop[-1]}_round{r}": folder(loop[-1], r) for r in range(2, pipeline.rounds + 1)}
            return values | {"models": values["models"] | more}
        return values
    if round_ == 1:
        return values
    read_before = list(values.get("datasets", []))
    values = _renamed(values, {folder(stage, 1): folder(stage, round_) for stage in loop})
    values.pop("expected", None)  # measured for the first round
    if base in (loop[0], loop[-1]):
        values["model_name_or_path"] = folder(loop[-1], round_ - 1)
    if "annotator" in values:  # one database holds the judgements of all rounds
        values |= {"round": round_, "database": values.get("database") or f"{folder(base, 1)}.sqlite"}
    for stage in loop:
        annotator = load_yaml(configs / f"{stage}.yaml").get("annotator")
        if annotator and annotator not in ("page", "llm"):  # rankings without a database get a folder per round
            earlier = [s for s in read_before if isinstance(s, dict) and s.get("path") == folder(stage, 1)]
            if earlier:
                values["datasets"] += [s | {"path": folder(stage, r)} for s in earlier for r in range(1, round_)]
    return values


def _renamed(value, names: dict[str, str]):
    if isinstance(value, dict):
        return {key: _renamed(v, names) for key, v in value.items()}
    if isinstance(value, list):
        return [_renamed(v, names) for v in value]
    return names.get(value, value) if isinstance(value, str) else value
