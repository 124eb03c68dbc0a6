"""Which tokens of a conversation carry loss: the assistant's answers, each up to the token at which generation stops.

If the chat template has {% generation %} marks (or TRL has a training version of it that does), these decide. Otherwise an
answer's start is inferred from the template: the conversation before the answer, rendered with the generation prompt, is
the model's input when it is to answer; what follows, up to the end of the turn, is the answer.

A template may render earlier turns differently once others follow (Qwen3 drops earlier reasoning). Then each answer becomes
a row of its own, after the input that the model gets at that point: it is trained exactly as it will be generated.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from llmrecipes.config import InputError
from llmrecipes.manifest import digest, fingerprint
from llmrecipes.templates import TEMPLATE_ERRORS, apply, end_of_turn, options_of, render, thoughts_of
from llmrecipes.tokens.building import tokenizer_fingerprint
from llmrecipes.turns import special_finder

CODE = [Path(__file__).parent / name for name in ("answer_masks.py", "templates.py", "reward_models/scoring.py")]


@dataclass
class Piece:
    """One row to train on. notes: what about it differs from the plain case (see NOTES)."""

    ids: list[int]
    labels: list[int]
    notes: set[str] = field(default_factory=set)

    def add(self, ids: Sequence[int], learned: bool) -> None:
        self.ids += ids
        self.labels += ids if learned else [-100] * len(ids)


NOTES = {
    "split": "{} rows hold one answer of a longer conversation, whose turns the chat template renders otherwise once others "
    "follow",
    "ended": "{} rows hold an answer after which the chat template writes no token that ends it; {eos} was appended",
    "inside": "{} rows hold a token inside an answer at which generation stops: what follows it will never be generated",
    "spelled": "{} rows spell out a special token, such as {eos}, in what somebody says, which is read as that token",
    "opened": "{} rows are trained without the end of the generation prompt, which the chat template leaves out once the "
    "answer is there",
}


def tokenize_answers(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, stops: set[int], name: str, num_proc: int | None = None
) -> tuple[Dataset, dict[str, int], set[int]]:
    """Tokenised rows {"input_ids", "labels"} (T,), label -100 meaning no loss, from conversations (`messages`, or `prompt`
    and `completion`); the column `row` says which conversation each comes from.

    stops: tokens at which generation stops.

    Returns:
        the rows; the number of rows for each note in NOTES; the tokens that end answers but are not in `stops`.

    Raises:
        InputError: the template refuses a conversation, or leaves nothing of an answer.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("tokenizer: has no end-of-sequence token, so no answer could ever end; set eos_token")
    ends = {*stops, end_of_turn(tokenizer)} - {None}
    options = {"tokenizer": tokenizer, "ends": sorted(ends), "template": marked_template(tokenizer), "name": name}
    key = name_tokens(rows, tokenizer, options["template"], options["ends"])
    made = rows.map(
        _encode_batch,
        with_indices=True,
        batched=True,
        batch_size=200,
        remove_columns=rows.column_names,
        fn_kwargs=options,
        num_proc=num_proc,
        new_fingerprint=key,
    )
    notes = {note: sum(made[note]) for note in NOTES}
    return made.select_columns(["input_ids", "labels", "row"]), notes, set(made["end"]) - stops


def name_tokens(rows: Dataset, tokenizer: PreTrainedTokenizerBase, *made_with) -> str:
    """The fingerprint under which `datasets` keeps the tokens of rows on disk, so that a later start finds them. Its own
    would change with the tokenizer's state."""
    own = [tokenizer_fingerprint(tokenizer), tokenizer.special_tokens_map, tokenizer.chat_template]
    return digest([rows._fingerprint, own, made_with, list(map(fingerprint, CODE))])


def end_answers(
    rows: Dataset, columns: Sequence[str], tokenizer: PreTrainedTokenizerBase, stops: set[int], num_proc: int | None = None
) -> tuple[Dataset, int, set[int]]:
    """Tokenised rows whose answers, in `columns`, end at the token at which generation stops. Answers that were truncated,
    according to `<side>_finished` next to `<side>_ids`, end before that token, so that the model does not learn to break
    off.

    Returns:
        the rows; how many answers EOS was appended to; the tokens that end answers but are not in `stops`.
    """
    if not len(rows):
        return rows, 0, set()
    ends = sorted({*stops, end_of_turn(tokenizer)} - {None})
    options = {"columns": columns, "tokenizer": tokenizer, "ends": ends}
    key = name_tokens(rows, tokenizer, "ends", columns, ends)
    made = rows.map(_end_row, fn_kwargs=options, num_proc=num_proc, new_fingerprint=key)
    lasts = {end for found in made["ends"] for end in found}
    return made.remove_columns(["ended", "ends"]), sum(made["ended"]), lasts - stops


def _end_row(row: dict, columns: Sequence[str], tokenizer, ends: list[int]) -> dict:
    found = {"ended": 0, "ends": []}
    for column in columns:
        notes = set()
        found[column] = _up_to_end(tokenizer, row[column], set(ends), notes)
        if row.get(column.removesuffix("ids") + "finished") is False:
            *found[column], _ = found[column]
        else:
            found["ended"] += len(notes)
            found["ends"].append(found[column][-1])
    return found


def marked_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A chat template that marks the assistant's tokens: the tokenizer's own, or TRL's version for the same model."""
    if has_generation_markers(tokenizer.chat_template):
        return tokenizer.chat_template
    try:
        return get_training_chat_template(tokenizer)
    except TEMPLATE_ERRORS:  # TRL does not know the template, or the template refuses TRL's test conversations
        return None


def _encode_batch(batch: dict, indices: list[int], tokenizer, ends, template, name: str) -> dict[str, list]:
    found = {column: [] for column in ("input_ids", "labels", "row", "end", *NOTES)}
    spelled = special_finder(tokenizer)
    for place, index in enumerate(indices):
        row = {column: values[place] for column, values in batch.items()}
        asked = row.get("prompt") or []
        turns, first = ([*asked, *row["completion"]], len(asked)) if "completion" in row else (row["messages"], 0)
        where = f"{name} row {index + 1}"
        spells = any(spelled(turn["content"] or "") >= 0 for turn in turns)
        for piece in encode(tokenizer, turns, first, set(ends), where, template, options_of(row)):
            if _goes_on(tokenizer, piece.labels, ends):
                piece.notes.add("inside")
            if spells:
                piece.notes.add("spelled")
            found["input_ids"].append(piece.ids)
            found["labels"].append(piece.labels)
            found["row"].append(index)
            found["end"].append(next(label for label in reversed(piece.labels) if label != -100))
            for note in NOTES:
                found[note].append(note in piece.notes)
    return found


def encode(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[dict],
    first: int,
    ends: set[int],
    where: str,
    template: str | None,
    options: dict,
) -> list[Piece]:
    """A conversation as rows to train on; the answers from turn `first` on carry loss.

    ends: tokens that may end an answer. template: one with {% generation %} marks, or None.
    """
    if template is not None and not first:
        piece = _by_marks(tokenizer, turns, ends, where, template, options)
        if piece is not None:
            return [piece]
    pieces: list[Piece] = []
    for i, turn in enumerate(turns):
        if turn["role"] != "assistant" or i < first:
            continue
        given, answer, notes = _answer(tokenizer, turns[: i + 1], ends, f"{where}, turn {i + 1}", options)
        last = pieces[-1] if pieces else None
        if last and given[: len(last.ids)] == last.ids:
            last.add(given[len(last.ids) :], False)
        else:
            pieces.append(last := Piece([], []))
            last.add(given, False)
        last.add(answer, True)
        last.notes |= notes
    for piece in pieces if len(pieces) > 1 else ():
        piece.notes.add("split")
    return pieces


def _answer(tokenizer, turns: Sequence[dict], ends: set[int], where: str, options: dict) -> tuple[list, list, set[str]]:
    """(the model's input tokens, the last turn's tokens up to the one at which generation stops, notes)."""
    notes = set()
    whole = render(tokenizer, turns, where, **options)
    if len(turns) > 1:
        before = render(tokenizer, turns[:-1], where, add_generation_prompt=True, **options)
    else:
        before = _before_content(tokenizer, turns[0], whole, where, options)
    if not whole.startswith(before):
        asked = render(tokenizer, turns[:-1], where, **options)
        before = os.path.commonprefix([before, whole])
        if len(before) < len(asked.rstrip()):
            raise InputError(
                f"{where}: the chat template renders the turns before this answer differently once it "
                "is there, so it cannot be trained as it is generated; use another template"
            )
        notes.add("opened")
    tokens = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    given, ids = tokens(before), tokens(whole)
    # If a token spans the border, the answer is tokenised separately, as it will be generated.
    answer = ids[len(given) :] if ids[: len(given)] == given else tokens(whole[len(before) :])
    answer = _up_to_end(tokenizer, answer, ends, notes)
    said = tokenizer.decode(answer[:-1]).strip()
    if not said:
        raise InputError(f"{where}: the chat template leaves nothing of the answer")
    return given, answer, notes


def _before_content(tokenizer, turn: dict, whole: str, where: str, options: dict) -> str:
    """What stands before the content of a conversation's first turn, an answer to nothing: a default system turn and the
    opening of the answer, which are not learned."""
    content = (turn["content"] or "").lstrip()
    other = render(tokenizer, [turn | {"content": "Y" if content.startswith("X") else "X"}], where, **options)
    return os.path.commonprefix([whole, other]) if content else ""


def _up_to_end(tokenizer, answer: list[int], ends: set[int], notes: set[str]) -> list[int]:
    """`answer` without whitespace after its end token; EOS is appended if the template writes no end token."""
    while answer and answer[-1] not in ends and not tokenizer.decode(answer[-1:]).strip():
        answer = answer[:-1]
    if answer and answer[-1] in ends:
        return answer
    notes.add("ended")
    return [*answer, tokenizer.eos_token_id]


def _goes_on(tokenizer, labels: list[int], ends: Sequence[int]) -> bool:
    """Whether text follows a token of `ends` inside an answer."""
    for i in [i for i, label in enumerate(labels[:-1]) if label in ends and labels[i + 1] != -100]:
        rest = labels[i + 1 :]
        rest = rest[: rest.index(-100)] if -100 in rest else rest
        if tokenizer.decode(rest, skip_special_tokens=True).strip():
            return True
    return False


def _as_given(tokenizer, turns: Sequence[dict], where: str, template: str, options: dict) -> list[list[int]] | None:
    """The model's input tokens before each answer; None if the text before one is something else in the whole conversation.
    It is with TRL's training templates, which keep the reasoning of earlier turns, and with DeepSeek's, which later drops
    the opening of the reasoning. None, too, if an answer has lost its reasoning there, as LFM2.5's template has it."""
    whole = render(tokenizer, turns, where, chat_template=template, **options)
    answers = [i for i, turn in enumerate(turns) if i and turn["role"] == "assistant"]
    given = [render(tokenizer, turns[:i], where, add_generation_prompt=True, **options) for i in answers]
    if not all(map(whole.startswith, given)):
        return None
    ends = [*map(len, given[1:]), len(whole)]
    for i, before, end in zip(answers, given, ends, strict=True):
        if any(thought not in whole[len(before) : end] for thought in thoughts_of(turns[i])):
            return None
    return tokenizer(given, add_special_tokens=False)["input_ids"] if given else []


def _by_marks(tokenizer, turns, ends: set[int], where: str, template: str, options: dict) -> Piece | None:
    """The conversation with loss where the template marks it; None if a marked answer is not followed by an end token, or
    what the model is given before it is not, token by token and without loss, what stands before it."""
    given = _as_given(tokenizer, turns, where, template, options)
    if given is None:
        return None
    made = apply(
        tokenizer, turns, where, chat_template=template, return_dict=True, return_assistant_tokens_mask=True, **options
    )
    ids, mask = list(made["input_ids"]), [*made["assistant_masks"], 0]
    # Some of TRL's training templates also mark the end of the generation prompt.
    if any(mask[len(before) - 1] or ids[: len(before)] != before for before in given):
        return None
    last_ones = [i for i in range(len(ids)) if mask[i] and not mask[i + 1]]
    for last in last_ones:
        end = last
        while end > 0 and mask[end] and ids[end] not in ends and not tokenizer.decode(ids[end : end + 1]).strip():
            end -= 1
        if ids[end] in ends:
            mask[end + 1 : last + 1] = [0] * (last - end)  # the marks may include whitespace after the end token
        elif ids[last + 1 : last + 2] and ids[last + 1] in ends:
            mask[last + 1] = 1  # the marks may include only the content: the end token follows directly
        else:
            return None
    labels = [token if marked else -100 for token, marked in zip(ids, mask, strict=False)]
    return Piece(ids, labels) if last_ones else None
