"""A chain with one key at several values: a folder per value; stages that do not depend on the key run once."""

import copy
import os
from itertools import combinations, product
from pathlib import Path, PurePath

from llmrecipes.config import InputError, nearest
from llmrecipes.keys import recipe_keys
from llmrecipes.keys.strict_yaml import parse_yaml
from llmrecipes.keys.values import check_value
from llmrecipes.manifest import digest, is_part_of_a_run, move_paths, strings
from llmrecipes.parsing import config_problems, without_effect

WHERE = "command line"
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")  # their product is part of a run
LONGEST_NAME = 255  # bytes, of a folder on the usual file systems


def sweep(stages: list, given: str, output_dir: str, only: list[str]) -> list:
    """`stages`, with those that depend on the key repeated for each value, in OUTPUT_DIR/KEY=VALUE/STAGE, after the others;
    in OUTPUT_DIR/STAGE.KEY=VALUE/STAGE if several stages of the chain have the key, so that a sweep of each has its folders.

    given: STAGE.KEY=VALUE,VALUE, or KEY=VALUE,VALUE if exactly one of the stages (of `only`, if given) has the key. Commas
    inside [...], {...} or quotes belong to a value. In a chain with rounds the stage's later rounds have the value too.

    Raises:
        InputError: no stage or key of that name, several stages with the key, a key that changes nothing in what the stage
            makes, or an invalid value for it, also one that the stage's other settings forbid.
    """
    name, _, values = given.partition("=")
    words = _words(values)
    if not name or name.startswith(".") or not all(words) or len(set(words)) < 2 or len(set(words)) < len(words):
        raise InputError(f"{WHERE}: sweep: {given[:60]!r} is not KEY=VALUE,VALUE with two values or more, each once")
    stage, key = _find(stages, name, only)
    if key == "output_dir" or (key == "seed" and stage.seed is not None):
        why = "each value has a folder of its own" if key == "output_dir" else "--seed sets it for every stage"
        raise InputError(f"{WHERE}: sweep: `{key}` cannot be swept, {why}; leave it out")
    if not is_part_of_a_run(key) and key not in BATCH:
        why = "as it changes nothing in what a stage makes, only how it is done or described"
        raise InputError(f"{WHERE}: sweep: `{key}` cannot be swept, {why}; leave it out")
    about = recipe_keys(stage.recipe)[key]
    chosen = {word: check_value(key, parse_yaml(word, WHERE), about, f"{WHERE}: sweep") for word in words}
    is_of_one = len({other.source for other in stages if key in recipe_keys(other.recipe)}) == 1
    labels = {word: _name(key if is_of_one else f"{stage.name}.{key}", word.replace("/", "-")) for word in words}
    for first, second in combinations(words, 2):
        if chosen[first] == chosen[second] and isinstance(chosen[first], bool) is isinstance(chosen[second], bool):
            raise InputError(f"{WHERE}: sweep: {first} and {second} are the same value; give each once")
        if labels[first] == labels[second]:
            raise InputError(f"{WHERE}: sweep: {first} and {second} would share the folder {labels[first]}; rename one")
    problems = [p for word in words for p in config_problems(stage.source, stage.recipe, {key: [word]})]
    if problems := problems or [p for word in words for p in without_effect(stage.source, stage.recipe, {key: [word]})]:
        raise InputError(*dict.fromkeys(problems))
    changed = [stage]
    for later in stages[stages.index(stage) + 1 :]:
        if any(later.reads(before.output_dir) for before in changed):
            changed.append(later)
    _require_plain_paths(stages, changed)
    variants = []
    for word, value in chosen.items():
        label = labels[word]
        folder = Path(output_dir) / label
        moved = {before.output_dir: folder / before.output_dir.name for before in changed}
        changes = {one.name: {key: value} for one in changed if one.source == stage.source}
        variants += [_variant(before, moved, folder, label, changes.get(before.name, {})) for before in changed]
    return [*(shared for shared in stages if shared not in changed), *variants]


def _require_plain_paths(stages: list, changed: list) -> None:
    """InputError where a stage names the folder of a `changed` one in another way than the chain does, such as by its full
    path: it would read what was made without the sweep."""
    for stage in stages:
        for text, before in product(strings(stage.values), changed):
            inside = Path(os.path.abspath(os.path.expanduser(text))).is_relative_to(os.path.abspath(before.output_dir))
            if inside and not PurePath(text).is_relative_to(before.output_dir):
                raise InputError(
                    f"{stage.source}: {text[:200]} is below {before.output_dir}; name it so, for a sweep moves it"
                )


def _words(values: str) -> list[str]:
    """The values between commas, without the spaces around them. A quote opens a text only where YAML has one begin."""
    words, inside = [""], ""  # the brackets and quotes that are open
    for letter in values:
        before = words[-1].rstrip()[-1:]
        if letter == "," and not inside:
            words.append("")
            continue
        if inside[-1:] in ("'", '"'):
            inside = inside.removesuffix(letter)
        elif letter in "[{" or letter in "'\"" and (before in "[{,:" if inside else not before):
            inside += letter
        elif inside and letter == {"[": "]", "{": "}"}[inside[-1]]:
            inside = inside[:-1]
        words[-1] += letter
    return [word.strip() for word in words]


def comparison_folder(stages: list, output_dir: str) -> Path:
    """OUTPUT_DIR/KEY=VALUE,VALUE for a chain with a sweep: one over another key or other values has another folder."""
    labels = list(dict.fromkeys(stage.variant for stage in stages if stage.variant))
    key, values = labels[0].partition("=")[0], [label.partition("=")[2] for label in labels]
    return Path(output_dir) / _name(key, ",".join(values))


def _name(key: str, value: str) -> str:
    name = f"{key}={value}"
    return name if len(name.encode()) <= LONGEST_NAME else f"{key}={digest(value)}"


def _find(stages: list, name: str, only: list[str]) -> tuple:
    of, _, key = name.rpartition(".")
    if of and of not in [stage.name for stage in stages]:
        raise InputError(f"{WHERE}: sweep: {of[:60]} is not a stage of the chain: {', '.join(s.name for s in stages)}")
    having = [s for s in stages if s.name in ([of] if of else only or [s.name]) and key in recipe_keys(s.recipe)]
    having = [s for i, s in enumerate(having) if s.source not in [before.source for before in having[:i]]]  # not its rounds
    if not having:
        known = {key: None for stage in stages for key in recipe_keys(stage.recipe) if stage.name == (of or stage.name)}
        who = f"{of} has no" if of else "no stage of the chain has a"
        raise InputError(f"{WHERE}: sweep: {who} key `{key[:60]}`{nearest(key, known) or ''}")
    if len(having) > 1:
        told = ", ".join(stage.name for stage in having)
        raise InputError(f"{WHERE}: sweep: {told} have a key `{key}`; say which, e.g. {having[-1].name}.{key}=...")
    return having[0], key


def _variant(stage, moved: dict, folder: Path, label: str, changes: dict):
    made = copy.copy(stage)
    made.values = {key: value for key, value in move_paths(stage.values, moved).items() if key != "expected"} | changes
    made.output_dir, made.variant = moved[stage.output_dir], label
    made.config = folder / "configs" / f"{stage.name}.yaml"
    return made
