"""Finished runs as columns of a comparison: what identifies each, what it measured and what decided these figures."""

from dataclasses import dataclass
from pathlib import Path, PurePath

from llmrecipes.cards.asked import PER_TOKEN, SEEDS, asked_by, chain_of, tokenizers_of
from llmrecipes.cards.names import repo_name
from llmrecipes.config import InputError
from llmrecipes.durable import read_json
from llmrecipes.manifest import MANIFEST_FILE, is_part_of_a_run, move_paths, read_manifest
from llmrecipes.measures import NAMED, TRAINING
from llmrecipes.metrics import Estimate

TEXTS = ("perplexity", "bits_per_byte")  # measures of held-out text
TIMES = ("runtime", "_per_second", "total_flos")

Decided = tuple[Estimate | float, str]  # a value and what decided it, see `_decider`


@dataclass
class Column:
    """Runs of a stage that differ only in their seed; measures hold one value per run, curves are the first run's."""

    stage: str
    folders: list[Path]
    config: dict
    measures: dict[str, list[Estimate | float]]
    curves: dict[str, list[tuple[float, float]]]
    seeds: list[tuple]  # of each run


def read_columns(folders: list[str]) -> list[Column]:
    """The runs in `folders`, in their order, grouped into columns of runs that differ only in their seed. A repetition with
    the same seed becomes a column of its own, since it says nothing about the spread over seeds.

    Raises:
        InputError: there are fewer than two folders, one holds no finished run, or their stages differ.
    """
    each = list({Path(folder).resolve(): Path(folder) for folder in reversed(folders)}.values())[::-1]
    if len(each) < 2:
        raise InputError("`runs` needs two folders or more: python recipes/compare.py FOLDER FOLDER ...")
    found = [(folder, _manifest(folder)) for folder in each]
    stages = {manifest["stage"]: folder for folder, manifest in found}
    if len(stages) > 1:
        told = ", ".join(f"{folder} is of {stage}" for stage, folder in stages.items())
        raise InputError(f"runs: only runs of one stage can be compared, but {told}")
    columns: list[Column] = []
    shared = set.intersection(*({*_evaluations(folder, manifest)} for folder, manifest in found))
    tokenizers = tokenizers_of(found)
    measured = _kept_apart([_measures(*run, shared, tokenizer) for run, tokenizer in zip(found, tokenizers, strict=True)])
    for (folder, manifest), measures, tokenizer in zip(found, measured, tokenizers, strict=True):
        config = _settings(manifest, folder)
        without = without_seeds(config)
        seeds = tuple(config.get(key) for key in SEEDS)
        alike = [c for c in columns if without == without_seeds(c.config)]
        same = next((c for c in alike if seeds not in c.seeds), None)
        if same is None:
            single = {name: [value] for name, value in measures.items()}
            columns.append(Column(manifest["stage"], [folder], config, single, _curves(folder, tokenizer), [seeds]))
            continue
        same.folders.append(folder)
        same.seeds.append(seeds)
        for name, value in measures.items():
            same.measures.setdefault(name, []).append(value)
    return columns


def _manifest(folder: Path) -> dict:
    manifest = read_manifest(folder)
    if manifest is None:
        inside = sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST_FILE}"))
        more = f"; it is a chain, name one of its stages: {', '.join(inside)}" if inside else ""
        raise InputError(f"runs: {folder} holds no run (no {MANIFEST_FILE} that can be read){more}")
    if manifest.get("status") != "finished":
        raise InputError(f"runs: {folder} is {manifest.get('status')}; finish it first, the same command continues")
    for key, kind in (("stage", str), ("config", dict), ("metrics", dict)):
        if not isinstance(manifest.get(key), kind):
            raise InputError(f"runs: {folder}/{MANIFEST_FILE} is damaged: no {key} in it")
    return manifest


def _settings(manifest: dict, folder: Path) -> dict:
    """The config keys that identify a run, those of the runs that made its inputs as INPUT.KEY, and the contents of other
    inputs; paths of such runs and inside its own chain become CHAIN/..., wherever the chain is stored."""
    made_by, contents = _inputs(manifest, folder)
    chain = chain_of(manifest, folder)
    names = {PurePath(path): PurePath("CHAIN") / place.name for path, (place, _) in made_by.items()}
    names |= {chain: PurePath("CHAIN")} if chain.parts else {}
    given = {key: value for key, value in manifest["config"].items() if is_part_of_a_run(key) and key != "project"}
    if isinstance(rows := manifest.get("batch"), int):  # which keys and launch say together
        given["rows in a step"] = rows
    found = move_paths(given, names) | {f"contents of {move_paths(path, names)}": value for path, value in contents.items()}
    for place, before in made_by.values():
        settings = _settings(before, place)
        told = {key for key in settings if key in before["given"] or key in SEEDS or not key.isidentifier()}
        found |= {key if key.startswith("contents") or "." in key else f"{place.name}.{key}": settings[key] for key in told}
    return found


def _inputs(manifest: dict, folder: Path) -> tuple[dict[str, tuple[Path, dict]], dict[str, str]]:
    """(path of an input -> folder and manifest of the run that made it, as it was read; path of any other input that is
    here -> fingerprint of its contents)."""
    chain, made_by, others = chain_of(manifest, folder), {}, {}
    for path, contents in sure(manifest.get("inputs"), dict).items():
        place = Path(move_paths(path, {chain: PurePath(folder).parent} if chain.parts else {}))
        before = read_manifest(place) or {}
        if before.get("output_fingerprint") == contents and {"config", "given", "inputs"} <= {*before}:
            made_by[path] = place, before
        elif contents != f"hub:{path}":
            others[path] = contents
    return made_by, others


def without_seeds(config: dict) -> dict:
    """The keys of `config` but for seeds, also those of the runs that made its inputs."""
    return {key: value for key, value in config.items() if key.rpartition(".")[2] not in SEEDS}


def _evaluations(folder: Path, manifest: dict) -> dict[str, dict]:
    """Name of an evaluation -> what it found about the run's model as it is."""
    stored = _stored(folder / "evaluation.json")
    is_of_this = stored.get("fingerprint") == manifest.get("output_fingerprint")
    return sure(stored.get("evaluations"), dict) if is_of_this else {}


def _kept_apart(runs: list[dict[str, Decided]]) -> list[dict[str, Estimate | float]]:
    """Name -> value for each run. What decides a measure becomes part of its name where that is not the same in all runs,
    so that only figures of one kind stand side by side."""
    deciders: dict[str, set[str]] = {}
    for name, (_, by) in (item for run in runs for item in run.items()):
        deciders.setdefault(name, set()).add(by)
    return [
        {name if len(deciders[name]) == 1 else f"{name} ({by or 'by unknown'})": value for name, (value, by) in run.items()}
        for run in runs
    ]


def _measures(folder: Path, manifest: dict, shared: set[str], tokenizer: str) -> dict[str, Decided]:
    """A run's measures: from its manifest, from evaluations of its model, and of the models that it evaluated.

    shared: the evaluations that measured all runs. If there is one, its measures go without its name, otherwise those of
    each chain's `evaluate` do; other evaluations may have asked other questions, so their measures carry their names.
    """
    found: dict[str, Decided] = {
        name: (value, "")
        for name, value in manifest["metrics"].items()
        if isinstance(value, (int, float)) and not any(part in name for part in TIMES)
    }
    chain = chain_of(manifest, folder)
    asked = asked_by(manifest, folder)
    found |= {name: (value, by) for name, (value, _) in found.items() if (by := _measured_on(name, asked, tokenizer))}
    about = {"baseline": manifest["config"].get("baseline"), "asked": asked} | _stored(folder / "metrics.json")
    for model, measures in sure(about.get("models"), dict).items():
        found |= {f"{model}/{name}": e for name, e in _estimates(measures, about, chain, folder / "metrics.json").items()}
        trained = sure(sure(manifest["config"].get("models"), dict).get(model), str)
        found |= {f"{model}/{name}": value for name, value in _cost(read_manifest(trained) or {}).items()}
    chains = {repo_name(place / "evaluate") for place in (chain, folder.resolve().parent)}
    for name, evaluation in _evaluations(folder, manifest).items():
        about = sure(evaluation, dict)
        scores = _estimates(about.get("scores"), about, chain, folder / "evaluation.json")
        label = "" if name in (shared if len(shared) == 1 else chains - shared) else f"{name}/"
        found |= {f"{label}{measure}": estimate for measure, estimate in scores.items()}
    return _between_tokenizers(found) | _cost(manifest)


def _measured_on(measure: str, asked: dict[str, str], tokenizer: str) -> str:
    is_held_out = (measure.startswith("eval_") or measure in TEXTS) and "held out" in asked
    of = [f"on {asked['held out']}"] if is_held_out else []
    return ", ".join(of + [f"per token of {tokenizer}"] * _is_per_token(measure, tokenizer))


def _is_per_token(measure: str, tokenizer: str) -> bool:
    return bool(tokenizer) and measure.removeprefix("eval_") in PER_TOKEN


def _estimates(scores: dict, about: dict, chain: PurePath, file: Path) -> dict[str, Decided]:
    try:
        found = {name: Estimate(**estimate) for name, estimate in scores.items()}
        is_whole = all(isinstance(number, (int, float)) for estimate in found.values() for number in estimate)
    except (AttributeError, TypeError):
        is_whole = False
    if not is_whole:
        raise InputError(f"runs: {file} is damaged: a measure is not a value with its interval; evaluate again")
    return {name: (estimate, _decider(name, about, chain)) for name, estimate in found.items()}


def _between_tokenizers(found: dict[str, Decided]) -> dict[str, Decided]:
    """`found` without each perplexity that has bits per byte beside it: it is per token, so models with other tokenizers
    would stand in one row with figures that cannot be compared."""
    beside = lambda name: f"{name.removesuffix('perplexity')}bits_per_byte"
    return {name: value for name, value in found.items() if not (name.endswith("perplexity") and beside(name) in found)}


def _decider(measure: str, about: dict, chain: PurePath) -> str:
    """What an evaluation's measure says beside the model: "over BASELINE, by JUDGE, on QUESTIONS", as far as it has them.

    about: `baseline`, `judged_by`, `tasks` and `asked` of the evaluation; a reward model of the run's own `chain` is
    CHAIN/...
    """
    asked = sure(about.get("asked"), dict)
    if measure not in NAMED or measure in sure(about.get("tasks"), list):
        return asked.get("tasks", "")
    over = asked.get("baseline", about.get("baseline")) if NAMED[measure].compares else None
    who = NAMED[measure].decided_by
    names = {place: PurePath("CHAIN") for place in (chain, PurePath(chain.name)) if place.parts}
    by = asked.get(who if who == "reward_model" else "") or move_paths(sure(about.get("judged_by"), dict).get(who), names)
    judge = f"by {by} {asked.get('judge', '') if who == 'judge' and NAMED[measure].compares else ''}".strip()
    what = asked.get("texts" if measure in TEXTS else "questions")
    return ", ".join([f"over {over}"] * bool(over) + [judge] * bool(by) + [f"on {what}"] * bool(what))


def _cost(manifest: dict) -> dict[str, Decided]:
    names = {"seconds": "wall_seconds", "peak_memory_gib": "peak_memory_gib"}
    return {name: (manifest[key], "") for name, key in names.items() if isinstance(manifest.get(key), (int, float))}


def _curves(folder: Path, tokenizer: str) -> dict[str, list[tuple[float, float]]]:
    curves: dict = {}
    for logs in sure(_stored(folder / "trainer_state.json").get("log_history"), list):
        entry = sure(logs, dict)
        step = entry.get("step")
        for name, value in entry.items():
            if name not in TRAINING and name.removeprefix("eval_") not in TRAINING:
                continue
            if not (isinstance(step, (int, float)) and isinstance(value, (int, float))):
                raise InputError(f"runs: {folder}/trainer_state.json is damaged: `{name}` in it has no number or no step")
            title = f"{name} (per token of {tokenizer})" if _is_per_token(name, tokenizer) else name
            curves.setdefault(title, []).append((step, value))
    return curves


def _stored(file: Path) -> dict:
    """What the file says; nothing if it is not there. InputError if it cannot be read: its figures would be missed."""
    found = read_json(file)
    if not found and file.exists():
        raise InputError(f"runs: {file} is damaged, it is no JSON; put it back, or remove it to compare without its figures")
    return found


def sure(value, kind: type):
    """`value` if it is of the expected `kind`, otherwise an empty `kind`: a file may hold anything."""
    return value if isinstance(value, kind) else kind()
