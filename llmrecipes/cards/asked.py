"""What a run measured its models on, so that figures on other questions are not taken for comparable ones."""

from pathlib import Path, PurePath

from llmrecipes.durable import read_json
from llmrecipes.manifest import digest, is_part_of_a_run, move_paths, read_manifest

SEEDS = ("seed", "data_seed")
# Figures that are means over tokens, of stages that have one of these keys: those that learn to predict text.
PER_TOKEN, PREDICTS = ("loss", "train_loss", "perplexity", "entropy", "mean_token_accuracy"), ("phases", "packing")


def asked_by(manifest: dict, folder: Path) -> dict[str, str]:
    """What decided the figures of a run: part -> a few words, which are others where its contents are.

    Parts: "questions", "texts", "tasks", "judge", "baseline" and "reward_model" of an evaluation, "held out" of a training;
    only those that the run has. What its own chain made, which may depend on the seed, is known by the configs that it was
    made with. No path is in the words: they are published.

    manifest: of the run in `folder`.
    """
    config = manifest.get("config") if isinstance(manifest.get("config"), dict) else {}
    found = {"held out": _sources("eval_datasets", manifest, folder)}
    if isinstance(models := config.get("models"), dict):
        limit, guidelines, baseline = (config.get(key) for key in ("task_limit", "judge_guidelines", "baseline"))
        reward = config.get("reward_model_name_or_path")
        found = {"texts": found["held out"], "questions": _sources("datasets", manifest, folder)}
        found |= {
            "tasks": f"first {limit} items" if limit else "",
            "judge": f"with {_name(guidelines)}" if guidelines else "",
        }
        named = {"baseline": (baseline, models.get(baseline)), "reward_model": (_name(reward), reward)}
        for part, (name, path) in named.items():
            if isinstance(path, str):
                found[part] = f"{name} {digest(_origin(path, manifest, folder))[:6]}"
    elif not found["held out"] and (size := config.get("test_split_size")):
        found["held out"] = f"{size} of {_sources('datasets', manifest, folder)}"
    return {part: words for part, words in found.items() if words}


def _sources(key: str, manifest: dict, folder: Path) -> str:
    """The names of the sources under `key` and a digest of all that decides their rows; "" if there are none."""
    facts, names = [], []
    for source in (manifest.get("config") or {}).get(key) or []:
        if isinstance(source, dict) and isinstance(path := source.get("path"), str):
            own = {name: value for name, value in source.items() if name not in ("path", "weight")}
            facts.append([_origin(path, manifest, folder), own])
            names.append(str(source.get("name") or _name(path)))
    return f"{', '.join(dict.fromkeys(names))} {digest(facts)[:6]}" if facts else ""


def _origin(path: str, manifest: dict, folder: Path) -> list | str:
    """What decided the contents of an input: if its run's own chain made it, name, config but for seeds, and origins of what
    it was made from; otherwise the fingerprint of its contents, or a Hub id."""
    chain = chain_of(manifest, folder)
    if made := _maker(path, manifest, folder):
        maker, home = made
        given = {key: value for key, value in maker["given"].items() if _decides(key)}
        made_from = [_origin(name, maker, home) for name in sorted(maker.get("inputs") or {})]
        return [PurePath(path).name, move_paths(given, {chain: PurePath("CHAIN")}), made_from]
    return (manifest.get("inputs") or {}).get(path, path)


def chain_of(manifest: dict, folder: Path) -> PurePath:
    """The folder of the run's chain, as its config names it; `.` if it has none."""
    return PurePath(manifest["config"].get("output_dir") or folder).parent


def _maker(path: str, manifest: dict, folder: Path) -> tuple[dict, Path] | None:
    """(manifest, folder) of the run of the same chain that wrote `path`."""
    chain = chain_of(manifest, folder)
    if chain.parts and PurePath(path).is_relative_to(chain):
        place = Path(folder).parent / PurePath(path).relative_to(chain)
        home = next((home for home in (place, place.parent) if read_manifest(home)), place)
        maker = read_manifest(home) or {}
        if home.resolve() != Path(folder).resolve() and {"given", "config"} <= {*maker}:
            return maker, home
    return None


def tokenizers_of(runs: list[tuple[Path, dict]]) -> list[str]:
    """For each of `runs` (folder, manifest) words for its tokenizer, whose tokens its figures per token are means over; all
    empty where that is one tokenizer. Two are one if they are equal, or if each run's own chain made it, from equal configs
    but for seeds."""
    known: list[list] = []  # of each run: words, tokens, origin
    for folder, manifest in runs:
        predicts = any(key in manifest["config"] for key in PREDICTS)
        tokens = {key: read_json(folder / "tokenizer.json").get(key) for key in ("normalizer", "pre_tokenizer", "model")}
        ways = [tokens if any(tokens.values()) else None, _tokenizer_origin(manifest, folder)] if predicts else [None, None]
        alike = (words for words, *others in known if any(a is not None and a == b for a, b in zip(ways, others)))
        words = next(alike, f"tokenizer {digest(ways)[:6]}" if any(way is not None for way in ways) else "")
        known.append([words, *ways])
    found = [words for words, *_ in known]
    return found if len({*found}) > 1 else [""] * len(found)


def _tokenizer_origin(manifest: dict, folder: Path) -> list | str | None:
    path = manifest["config"].get("tokenizer_name_or_path") or manifest["config"].get("model_name_or_path")
    made = _maker(path, manifest, folder) if isinstance(path, str) else None
    return made and (_tokenizer_origin(*made) or _origin(path, manifest, folder))


def _decides(key: str) -> bool:
    return is_part_of_a_run(key) and key not in (*SEEDS, "project")


def _name(path: str | None) -> str:
    return PurePath(path).name if path else ""
