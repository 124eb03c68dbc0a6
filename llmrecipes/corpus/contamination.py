"""Decontamination: which documents of the corpus hold an item of an evaluation set, or nearly equal one.

An item is the text shown to the model together with the right answer. Any n-gram of `contamination_ngram` words shared with
an item is a hit (Brown et al. 2020, arXiv 2005.14165, appendix C), unless many documents have it and this one not all of its
item's; a shorter item, down to 8 words, must occur in full.
Items below 8 words would match by chance and are found only if they are a document by themselves. An item is looked for as
it stands and as the steps rewrite it (repaired, scrubbed), since that is how it reads in a cleaned document.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy

from llmrecipes.config import DataArguments, DatasetSource, InputError
from llmrecipes.corpus.arguments import CorpusArguments
from llmrecipes.corpus.hashing import as_seen, different, ngrams, split_words, word_hashes, words_of
from llmrecipes.corpus.steps import rewriting
from llmrecipes.durable import read_json, write_json

SHORTEST = 8  # words (Brown et al.)
BEFORE = 8  # words of a sample before what it shares with an item
AROUND = re.compile(r"(?<![^\W_])_+|_+(?![^\W_])")


@dataclass
class Items:
    """n-grams of all evaluation items. tables: n -> sorted uint64 hashes; owners: n -> index in `items` of an item with
    it."""

    tables: dict[int, numpy.ndarray]
    owners: dict[int, numpy.ndarray]
    first: dict[int, int]  # n -> number of the first n-gram of that length, among all n-grams

    def hits(self, words: numpy.ndarray) -> numpy.ndarray:
        """Numbers of the n-grams found in a document with these `word_hashes`, each once."""
        found = []
        for n, table in self.tables.items():
            grams = ngrams(words, n)
            if len(grams) and len(table):
                at = numpy.minimum(numpy.searchsorted(table, grams), len(table) - 1)
                found.append(different(at[table[at] == grams]) + self.first[n])
        return numpy.concatenate(found) if found else numpy.zeros(0, numpy.int64)

    def whole(self, hits: numpy.ndarray) -> numpy.ndarray:
        """For each of `hits` (pairs of document and n-gram) whether all n-grams of its item are in its document; an n-gram
        of several items counts for the first."""
        owner = numpy.concatenate([numpy.zeros(0, numpy.int64), *(self.owners[n] for n in sorted(self.first))])
        item, size = owner[hits[:, 1]], numpy.bincount(owner, minlength=1)
        _, where, found = numpy.unique(hits[:, 0] * len(size) + item, return_inverse=True, return_counts=True)
        return found[where] == size[item]

    def place(self, number: int) -> tuple[int, int]:
        """(n, index in the table of that length) of n-gram `number`."""
        n = max((n for n in self.first if self.first[n] <= number), key=self.first.get)
        return n, number - self.first[n]

    def owner(self, number: int) -> int:
        """An item that contains n-gram `number`."""
        n, at = self.place(number)
        return int(self.owners[n][at])


def item_words(text: str) -> numpy.ndarray:
    """`word_hashes` to which "_" around words is a mark too."""
    return word_hashes(spaced(text))


def spaced(text: str) -> str:
    """The text, as long as before, with spaces for "_" around words, as in _emphasis_ and ___ to be filled in."""
    return AROUND.sub(lambda found: " " * len(found[0]), text) if "_" in text else text


def build_items(texts: list[str], ngram: int) -> tuple[Items, int]:
    """(n-grams of `texts`, number of texts too short to have any)."""
    grams: dict[int, list] = {}
    short = 0
    for index, text in enumerate(texts):
        words = item_words(text)
        n = min(ngram, len(words))
        if n < min(SHORTEST, ngram):
            short += 1
            continue
        own = ngrams(words, n)
        grams.setdefault(n, []).append((own, numpy.full(len(own), index)))
    tables, owners, first, count = {}, {}, {}, 0
    for n in sorted(grams):
        values, indices = (numpy.concatenate(column) for column in zip(*grams[n], strict=True))
        tables[n], at = numpy.unique(values, return_index=True)
        owners[n], first[n] = indices[at], count
        count += len(tables[n])
    return Items(tables, owners, first), short


def save_items(folder: Path, sets: dict[str, list[str]], args: CorpusArguments) -> None:
    """Writes the items of the evaluation sets into `folder`, for all tasks."""
    ways = [rewriting(steps) for steps in {str(steps): steps for steps in map(args.steps_of, args.sources)}.values()]
    given = [(name, text) for name, texts in sets.items() for text in texts]
    rewritten = dict.fromkeys((name, way(text)) for way in ways for name, text in given)
    known = set(given)
    names, texts = zip(*given, *(entry for entry in rewritten if entry not in known and entry[1].strip()), strict=True)
    items, _ = build_items(texts, args.contamination_ngram)
    arrays = {
        f"{what}{n}": array for what, of in (("table", items.tables), ("owner", items.owners)) for n, array in of.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    numpy.savez(folder / "items.npz", **arrays)
    counts = {name: len(own) for name, own in sets.items()}
    short = sum(len(words_of(spaced(text))) < min(SHORTEST, args.contamination_ngram) for _, text in given)
    write_json(folder / "items.json", {"sets": counts, "short": short, "names": names, "texts": texts})


def load_items(folder: Path) -> Items:
    """The items that `save_items` wrote."""
    with numpy.load(folder / "items.npz") as arrays:
        sizes = sorted(int(name[5:]) for name in arrays if name.startswith("table"))
        tables, owners = ({n: arrays[f"{what}{n}"] for n in sizes} for what in ("table", "owner"))
    starts = numpy.cumsum([0, *(len(table) for table in tables.values())]).tolist()
    return Items(tables, owners, dict(zip(tables, starts, strict=False)))


def load_about(folder: Path) -> dict:
    """{"sets": name -> number of items, "short": number of short items, "names": set of each item, "texts": text of each};
    empty without evaluation sets."""
    return read_json(folder / "items.json")


def shared_passage(text: str, item: str, ngram: int) -> str:
    """`text` from shortly before the first run of `ngram` words (or all, of a shorter item) that is also in `item`; all of
    it if there is none."""
    text = as_seen(text)
    words, lowered = words_of(spaced(item)), spaced(text.lower())
    size, places = min(ngram, len(words)), [found.span() for found in split_words(lowered)]
    runs = {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}
    own = [lowered[begin:end] for begin, end in places]
    first = next((i for i in range(len(own) - size + 1) if tuple(own[i : i + size]) in runs), 0)
    begin = places[max(first - BEFORE, 0)][0] if places else 0
    return ("... " if begin else "") + text[begin:]


def evaluation_texts(files: list[str]) -> dict[str, list[str]]:
    """Items of each set that the evaluate.yaml files name: prompts, held-out texts, tasks, BLiMP.

    Raises:
        InputError: a file is not an evaluate.yaml, or a set cannot be reached.
    """
    from llmrecipes.keys.strict_yaml import load_yaml

    found: dict[str, list[str]] = {}
    for file in files:
        values = load_yaml(file)
        data = DataArguments(**{key: _listed(values.get(key)) for key in ("datasets", "eval_datasets")})
        before = len(found)
        for key, sources in (("prompts", data.datasets), ("held out", data.eval_datasets)):
            for source in sources:
                name = f"{key}: {source.name or source.path}"
                found.setdefault(name, []).extend(_source_texts(replace(source, max_rows=None), key == "prompts"))
        if values.get("tasks") or values.get("blimp_path"):
            for name, texts in _task_texts(values):
                found.setdefault(f"task: {name}", []).extend(texts)
        if len(found) == before:
            raise InputError(f"decontaminate: {file} names no evaluation set (datasets, eval_datasets, tasks)")
    found = {name: list(dict.fromkeys(text for text in texts if text.strip())) for name, texts in found.items()}
    if empty := [name for name, texts in found.items() if not texts]:
        raise InputError(f"decontaminate: {empty[0]}: has no item with a text, so nothing would be searched for")
    return found


def _listed(value) -> list:
    return value if isinstance(value, list) else [value] if value else []


def _source_texts(source: DatasetSource, is_prompt: bool) -> Iterator[str]:
    """The items of a set, read as recipes/evaluate.py reads them."""
    from llmrecipes.data.sources import read_source
    from llmrecipes.data.tables import load_table

    if not is_prompt:
        yield from load_table(source, 0, ("text",))[0]["text"]
        return
    raw = read_source(source, seed=0)
    for i, row in enumerate(raw):
        try:
            yield _asked_and_answered(row, raw.place(i))
        except InputError:
            if not source.drop_bad_rows:
                raise


def _asked_and_answered(row: dict, place: str) -> str:
    """The question of a row of any shape, with its answer if it has one."""
    from llmrecipes.rows import to_standard

    asked = to_standard(row, place, ("prompt",))["prompt"]
    try:
        whole = to_standard(row, place, ("messages", "prompt-completion", "preference"))
    except InputError:  # no answer
        whole = {}
    parts = [whole["messages"]] if "messages" in whole else [asked, whole.get("completion"), whole.get("chosen")]
    turns = [[{"content": part}] if isinstance(part, str) else part for part in parts if part]
    return "\n".join(str(turn["content"]) for part in turns for turn in part)


def _task_texts(values: dict) -> Iterator[tuple[str, list[str]]]:
    """(name, items) of lm-eval tasks: context and right answer."""
    from llmrecipes.evaluation.abilities import load_tasks

    options = {key: values[key] for key in ("hub_tasks", "blimp_path", "allow_code_execution") if key in values}
    loaded = load_tasks(_listed(values.get("tasks")), values.get("tasks_path", "configs/tasks"), **options)
    for name, task in loaded["tasks"].items():
        yield name, [_item_text(task, item) for item in task.eval_docs]


def _item_text(task, item: dict) -> str:
    context, target = task.doc_to_text(item), task.doc_to_target(item)
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = task.doc_to_choice(item)
        if isinstance(context, int):  # the choice is in the middle of the text
            context = choices[context]
        elif isinstance(target, int):
            target = choices[target]
    return f"{context} {target if isinstance(target, str) else ' '.join(map(str, [target]))}"
