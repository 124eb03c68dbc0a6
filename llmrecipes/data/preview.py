"""What a training stage is actually trained on: counts of its rows for every run's log, and with `--preview N` the rows."""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import datasets
import numpy

from llmrecipes.config import InputError
from llmrecipes.data.tables import say
from llmrecipes.formats import prompt_id

BATCH = 1000  # rows counted at once
WARN_ABOVE = 0.05  # share of rows


@dataclass
class RowCounts:
    """Counts of rows on their way into the batches.

    lengths: tokens of each row before truncation, as far as known. cut: longer than `max_length` and used without their end
    (or beginning). dropped: not used at all. lost: rows, used or not, of whose answer no token is left. tokens, loss_tokens:
    of the rows that are used, after truncation; no loss_tokens if no token carries loss, or all do. alike: used pairs whose
    answers differ only behind the limit. key: the config key of the limit.
    """

    what: str
    rows: int
    lengths: numpy.ndarray
    max_length: int | None = None
    key: str = "max_length"
    cut: int = 0
    dropped: int = 0
    lost: int = 0
    tokens: int = 0
    loss_tokens: int | None = None
    alike: int = 0

    @property
    def used(self) -> int:
        return self.rows - self.dropped

    def __str__(self) -> str:
        limit = f" at {self.key} {self.max_length}" if self.max_length else ""
        parts = [f"{self.used:,} of {self.rows:,} {self.what} used", f"{self.cut:,} cut{limit}", f"{self.dropped:,} dropped"]
        if self.loss_tokens is not None:
            parts.append(f"{self.lost:,} whose answer is lost whole")
        if self.alike:
            parts.append(f"{self.alike:,} whose two answers are alike up to there, which teach nothing")
        if len(self.lengths):
            quantiles = [int(numpy.quantile(self.lengths, q, method="nearest")) for q in (0.1, 0.5, 0.9, 1)]
            parts.append("tokens {} / {} / {} / {} (10 %, half, 90 %, all)".format(*quantiles))
        if self.loss_tokens is not None and self.tokens:
            parts.append(f"{100 * self.loss_tokens / self.tokens:.1f} % of the tokens carry loss")
        return ", ".join(parts)


def count_answers(
    rows: datasets.Dataset,
    max_length: int | None,
    keep_end: bool = False,
    packing: bool = False,
    of: Sequence[int] | None = None,
) -> RowCounts:
    """Counts of tokenised demonstrations, `input_ids` and `labels` (-100: no loss), before truncation.

    of: the demonstration that each row comes from, if the template makes several rows of one. It is counted once: as dropped
    or lost if all its rows are, as cut if any is, with the length of the longest.
    """
    of = numpy.array(range(len(rows)) if of is None else of, int)
    counts = RowCounts("demonstrations", len(set(of)), numpy.zeros(0, int), max_length, loss_tokens=0)
    limit = max_length or sys.maxsize
    lengths, used, lost, cut = (numpy.zeros(of.max(initial=-1) + 1, kind) for kind in (int, bool, bool, bool))
    lost[of] = True
    arrays = rows.with_format("numpy", ["labels"])
    for start in range(0, len(rows), BATCH):
        labels = [row != -100 for row in arrays[start : start + BATCH]["labels"]]
        for i, row in zip(of[start : start + BATCH], labels, strict=True):
            kept = row[-limit:] if keep_end else row[:limit]
            is_used = kept.any() or packing or max_length is None
            lengths[i] = max(lengths[i], len(row))
            used[i] |= is_used
            lost[i] &= not kept.any()
            cut[i] |= len(row) > limit
            counts.tokens += len(kept) if is_used else 0
            counts.loss_tokens += int(kept.sum())
    given = numpy.unique(of)
    counts.lengths, counts.lost = lengths[given], int(lost.sum())
    counts.dropped, counts.cut = int((~used[given]).sum()), int((cut & used).sum())
    return counts


def count_pairs(rows: datasets.Dataset, max_length: int | None, keep_end: bool = False) -> RowCounts:
    """Counts of tokenised pairs, `prompt_ids`, `chosen_ids` and `rejected_ids`, in which both answers carry loss."""
    sizes = {name: list(map(len, rows[name])) for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
    prompt, chosen, rejected = (numpy.array(sizes[name], int) for name in sizes)
    limit = max_length or sys.maxsize
    lengths = prompt + numpy.maximum(chosen, rejected)
    dropped = (prompt >= limit) & (not keep_end)
    counts = RowCounts(
        "pairs", len(rows), lengths, max_length, dropped=int(dropped.sum()), lost=int(dropped.sum()), loss_tokens=0
    )
    cut = (lengths > limit) & ~dropped
    counts.cut = int(cut.sum())
    for i in map(int, cut.nonzero()[0]):
        row, room = rows[i], limit - prompt[i]
        kept = [row[side][-limit:] if keep_end else row[side][:room] for side in ("chosen_ids", "rejected_ids")]
        counts.alike += kept[0] == kept[1]
    for answer in (chosen, rejected):
        whole = numpy.minimum(prompt + answer, limit)
        loss = numpy.minimum(answer, whole) if keep_end else whole - prompt
        counts.tokens += int(whole[~dropped].sum())
        counts.loss_tokens += int(loss[~dropped].sum())
    return counts


def count_scored(rows: datasets.Dataset, max_length: int | None) -> RowCounts:
    """Counts of tokenised pairs, `chosen_ids` and `rejected_ids`, which are left out if an answer is too long."""
    lengths = numpy.array([max(map(len, pair)) for pair in zip(rows["chosen_ids"], rows["rejected_ids"], strict=True)], int)
    return RowCounts("pairs", len(rows), lengths, max_length, dropped=int((lengths > (max_length or sys.maxsize)).sum()))


def count_labelled(rows: datasets.Dataset, num_given: int, max_length: int | None) -> RowCounts:
    """Counts of the tokenized answers labelled good or bad, `prompt_ids` and `completion_ids`, left of those given."""
    prompt, answer = (numpy.array(list(map(len, rows[name])), int) for name in ("prompt_ids", "completion_ids"))
    whole = numpy.minimum(prompt + answer, max_length or sys.maxsize)
    dropped = num_given - len(rows)
    counts = RowCounts("labelled answers", num_given, prompt + answer, max_length, dropped=dropped, lost=dropped)
    counts.cut = int((prompt + answer > whole).sum())
    counts.tokens, counts.loss_tokens = int(whole.sum()), int((whole - prompt).sum())
    return counts


def count_prompts(rows: datasets.Dataset, num_given: int, key: str = "max_prompt_length") -> RowCounts:
    """Counts of the prompts, `prompt_ids`, that are left of those given; `key` left the others no room."""
    lengths = numpy.array(list(map(len, rows["prompt_ids"])), int)
    return RowCounts("prompts", num_given, lengths, key=key, dropped=num_given - len(rows))


def count_documents(corpus) -> RowCounts:
    """Counts of the documents of a `tokens.Corpus`; their lengths are those of the first ones of each source."""
    return RowCounts("documents", corpus.num_documents, corpus.document_lengths())


def require_rows(counts: RowCounts, name: str) -> None:
    """InputError if no row is left to train on."""
    if counts.rows and (not counts.used or counts.loss_tokens == 0):
        where = "datasets" if name == "train" else f"eval_datasets ({name})"
        shortest = f", the shortest of {counts.lengths.min()} tokens" if counts.max_length and len(counts.lengths) else ""
        raise InputError(
            f"{where}: nothing is left to learn from: none of {counts.rows} {counts.what} has a token of its "
            f"answer within {counts.key} {counts.max_length}{shortest}; raise it"
        )


def report_rows(
    counts: dict[str, RowCounts], tokenizer, train: datasets.Dataset, held_out, ready: datasets.Dataset, num_preview: int
) -> int:
    """Prints what a stage is trained on, one line in every run's log; with num_preview, first prints that many rows, then
    exits.

    Args:
        counts: by name of the data set, `train` first.
        train, held_out: the rows in their standard shape, or a `tokens.Corpus`; held_out may be None, or several sets by
            name.
        ready: the training rows as the trainer takes them.

    Returns: number of training rows that are used.

    Raises:
        SystemExit(0): after a preview.
    """
    main = counts["train"]
    if num_preview:
        for number, parts in enumerate(_parts(ready, main.max_length), start=1):
            if number > num_preview:
                break
            say(f"--- row {number}")
            for label, ids, mask in parts:
                say(label + mark(tokenizer, ids, mask))
        say(f"--- {'green' if sys.stdout.isatty() else '[[ ]]'}: tokens that carry loss")
    sets = held_out if isinstance(held_out, dict) else {"held out": held_out} if held_out else {}
    twice = {name: count_duplicates(train, rows) for name, rows in sets.items()}
    told = "".join(f", {count:,} of {len(sets[name]):,} rows of {name} are also among them" for name, count in twice.items())
    say(f"rows: {main}{told}")
    _warn(counts)
    for name, count in twice.items():
        if count > WARN_ABOVE * len(sets[name]):
            say(
                f"warning: {100 * count / len(sets[name]):.0f} % of the rows of {name} are also trained on, so that what "
                "is measured on them says little"
            )
    if num_preview:
        say("preview: nothing was trained and nothing written")
        sys.exit(0)
    return main.used


def _warn(counts: dict[str, RowCounts]) -> None:
    for name, some in counts.items():
        affected = some.cut + some.dropped
        if affected > WARN_ABOVE * some.rows:
            of = "" if name == "train" else f" of {name}"
            say(
                f"warning: {100 * affected / some.rows:.0f} % of the rows{of} are cut or dropped ({some.cut:,} cut, "
                f"{some.dropped:,} dropped, {some.lost:,} without a token of their answer); raise {some.key}"
            )


def count_duplicates(train: datasets.Dataset, held_out: datasets.Dataset) -> int:
    """The number of rows of `held_out` that have the same question (prompts, pairs) or content (others) as a `train` row."""
    if not isinstance(train, datasets.Dataset):
        return train.count_known(held_out["text"])
    known = set(_keys(held_out))
    found = {key for key in _keys(train) if key in known}
    return sum(key in found for key in _keys(held_out))


def _keys(rows: datasets.Dataset) -> Iterator[str]:
    """What identifies a row: the question for prompts and pairs, the whole row for others."""
    names = [name for name in ("prompt", "completion", "messages", "text") if name in rows.column_names] or ["input_ids"]
    if "chosen" in rows.column_names:  # pairs of one prompt must not be in both splits
        names = ["prompt"]
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        for values in zip(*(batch[name] for name in names), strict=True):
            yield prompt_id(values[0]) if names == ["prompt"] else _digest(values)


def _digest(values: tuple) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def mark(tokenizer, ids: list[int], carries_loss: list[bool]) -> str:
    """The text of `ids`, including special tokens, with tokens that carry loss in green, or in [[ ]] without a terminal."""
    begin, end = ("\x1b[32m", "\x1b[0m") if sys.stdout.isatty() else ("[[", "]]")
    text, start = "", 0
    for i in range(1, len(ids) + 1):
        if i == len(ids) or carries_loss[i] != carries_loss[start]:
            part = tokenizer.decode(ids[start:i], skip_special_tokens=False)
            text += f"{begin}{part}{end}" if carries_loss[start] else part
            start = i
    return text


def _parts(ready: datasets.Dataset, max_length: int | None) -> Iterator[list[tuple[str, list[int], list[bool]]]]:
    """(label, token ids, whether each carries loss) of each row, or of each answer of a row."""
    for row in ready:
        columns = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in row.items()}
        if "labels" in columns:
            yield [("", columns["input_ids"], [label != -100 for label in columns["labels"]])]
        elif "chosen_ids" in columns:
            prompt, parts = columns.get("prompt_ids"), []
            for side in ("chosen", "rejected"):
                answer = columns[f"{side}_ids"]
                if prompt is None:  # a reward model: the score at the last token
                    parts.append((f"{side}: ", answer, [False] * (len(answer) - 1) + [True]))
                else:
                    ids = (prompt + answer)[:max_length]
                    parts.append((f"{side}: ", ids, [i >= len(prompt) for i in range(len(ids))]))
            yield parts
        elif "completion_ids" in columns:
            label, prompt = "good: " if columns["label"] else "bad: ", columns["prompt_ids"]
            ids = (prompt + columns["completion_ids"])[:max_length]
            yield [(label, ids, [i >= len(prompt) for i in range(len(ids))])]
        elif "prompt_ids" in columns:  # the answer is sampled later, and carries the loss
            yield [("", columns["prompt_ids"], [False] * len(columns["prompt_ids"]))]
        else:  # blocks of documents
            yield [("", columns["input_ids"], [True] * len(columns["input_ids"]))]
