"""Finding a model's config without its weights: in a folder, the chain's own configs, the Hub, or models.yaml."""

import json
import os
from functools import cache
from http.client import HTTPException
from pathlib import Path
from urllib.parse import quote
from urllib.request import Request, urlopen

import yaml

from llmrecipes.config import InputError, nearest
from llmrecipes.keys.strict_yaml import load_yaml
from llmrecipes.preflight.machine import is_hub_id

KNOWN = Path(__file__).parent / "models.yaml"


def find_config(
    path: str, key: str, revision: str | None = None, beside: Path | None = None, seen: tuple[str, ...] = ()
) -> tuple[dict, str]:
    """(config of the model at `path`, where it was found). For a stage's folder that does not exist yet, uses the YAML in
    the folder `beside` whose `output_dir` names it. `seen` are the models that led here.

    Raises:
        InputError: no config is within reach; `key` is the config key that names the model.
    """
    if path in seen:
        raise InputError(
            f"{key}: {path} starts from itself ({' -> '.join([*seen, path])}); name the model that it comes from"
        )
    seen = (*seen, path)
    for file in (Path(path) / "config.json", Path(path) / "adapter_config.json"):
        if file.is_file():
            found = _read(file)
            if file.name == "config.json":
                return found, str(file)
            if not isinstance(base := found.get("base_model_name_or_path"), str):
                raise InputError(f"{file}: names no base model; set base_model_name_or_path there")
            return find_config(base, key, found.get("revision"), beside, seen)
    if beside and (stage := _stage_that_writes(path, beside)):
        return _config_of_stage(*stage, key, beside, seen)
    looked = [f"{path}/config.json"]
    if is_hub_id(path) and not path.startswith("outputs/"):
        if found := _from_hub(path, revision):
            return dict(found), f"{path} (Hub)"
        looked.append("the Hub or its cache")
    if path in (known := _known_models()):
        return dict(known[path]), "llmrecipes/plan/models.yaml, as the Hub was not asked or not reached"
    raise InputError(f"{key}: no config of {path} is in reach ({', '.join(looked)}){nearest(path, known)}; fetch its "
                     "config.json into a folder")  # fmt: skip


def find_vocabulary(path: str, beside: Path | None = None) -> int | None:
    """Vocabulary size of the tokenizer at `path`; None if it is out of reach."""
    file = Path(path) / "tokenizer.json"
    if not file.is_file() and beside and (stage := _stage_that_writes(path, beside)):
        return stage[1].get("vocab_size")
    tokens = _read(file) if file.is_file() else None
    if tokens is None and is_hub_id(path) and not path.startswith("outputs/"):
        tokens = _from_hub(path, None, "tokenizer.json")
    if tokens:
        try:
            vocabulary = tokens["model"]["vocab"]  # token -> id; of Unigram a list, whose places are the ids
            ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
            return max([*ids, *(token["id"] for token in tokens.get("added_tokens", []))]) + 1
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: its tokenizer.json is damaged ({type(error).__name__}: {error})") from None
    return _known_models().get(path, {}).get("vocab_size")


def _config_of_stage(file: Path, values: dict, key: str, beside: Path, seen: tuple[str, ...]) -> tuple[dict, str]:
    if values.get("model_config"):
        config = dict(values["model_config"])
        if "vocab_size" not in config and (size := find_vocabulary(values.get("tokenizer_name_or_path", ""), beside)):
            config["vocab_size"] = size
        return config, str(file)
    start = values.get("model_name_or_path")
    if not start:
        raise InputError(f"{key}: {file} names no model that its result could have the sizes of")
    return find_config(start, key, values.get("model_revision"), beside, seen)


def _stage_that_writes(path: str, beside: Path) -> tuple[Path, dict] | None:
    for file in sorted(beside.glob("*.yaml")):
        try:
            values = load_yaml(str(file))
        except InputError:
            continue
        written = str(values.get("output_dir", "")).rstrip("/")
        if written and written == path.rstrip("/") and "stages" not in values:
            return file, values
    return None


@cache  # a plan reads the job again for what it offers
def _from_hub(path: str, revision: str | None, name: str = "config.json") -> dict | None:
    """The JSON file of a model from the Hub's cache, otherwise from the Hub; None if neither has it."""
    content = hub_file(path, revision, name)
    try:
        found = json.loads(content) if content else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def hub_file(path: str, revision: str | None, name: str, kind: str = "model", seconds: float = 1.5) -> bytes | None:
    """A file of a repository, `kind` model or dataset, from the Hub's cache, otherwise from the Hub, which is asked once and
    given so many `seconds` (0: not asked); None if neither has it."""
    from huggingface_hub import get_token, try_to_load_from_cache
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    cached = try_to_load_from_cache(path, name, revision=revision, repo_type=kind)
    if isinstance(cached, str):
        return Path(cached).read_bytes()
    offline = HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    if offline or seconds <= 0:
        return None
    token = get_token()
    repository = f"datasets/{path}" if kind == "dataset" else path
    request = Request(f"{ENDPOINT}/{repository}/resolve/{quote(revision or 'main', safe='')}/{name}")
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urlopen(request, timeout=seconds) as answer:  # nosec B310
            return answer.read()
    except (OSError, ValueError, HTTPException):  # no network, no such repository, a gated one, half an answer
        return None


@cache
def _known_models() -> dict:
    return yaml.safe_load(KNOWN.read_text(encoding="utf-8"))


def _read(file: Path) -> dict:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read: {str(error)[:200]}") from None
    if not isinstance(found, dict):
        raise InputError(f"{file}: is not a mapping")
    return found
