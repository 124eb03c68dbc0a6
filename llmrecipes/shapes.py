"""Which shape a row of a data set has, by its columns. Pure.

| shape | columns | from |
|---|---|---|
| text | text | pretraining |
| messages | messages: [{role, content}], maybe system, tools | demonstrations |
| prompt-completion | prompt, completion (both text or both messages) | demonstrations |
| preference | prompt, chosen, rejected (text or messages) | pairs; a prompt repeated in the answers goes |
| unpaired preference | prompt, completion, label (true or false) | KTO |
| labelled conversation | messages or conversations; label or kto_tag, of the last answer | -> unpaired preference |
| implicit preference | chosen, rejected (messages that begin alike) | pairs |
| prompt | prompt (text or messages) | prompts to sample from |
| alpaca | instruction, output, maybe input, system, history | -> messages |
| question-answer | question or query or input; answer or response or output | -> messages |
| sharegpt | conversations: [{from, value}], maybe system, tools | -> messages |
| question preference | question or instruction or conversations; chosen, rejected | -> preference |
| hh-rlhf | chosen, rejected ("\\n\\nHuman: ... \\n\\nAssistant: ..." transcripts) | -> preference |
| rankings | prompt, responses, ranking | one row a pair, by the reader preferences:rankings |
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache

from llmrecipes.config import InputError
from llmrecipes.turns import TURN, short

# Column names of a question and of its answer, in order of preference.
QUESTIONS = ("instruction", "question", "query", "input")
ANSWERS = ("output", "response", "answer")
# In order of recognition: a row has the first wanted shape all of whose columns it has; of "a|b", one is enough.
SHAPES: dict[str, tuple[str, ...]] = {
    "rankings": ("prompt", "responses", "ranking"),
    "preference": ("prompt", "chosen", "rejected"),
    "question preference": ("|".join(("conversations", *QUESTIONS)), "chosen", "rejected"),
    "hh-rlhf": ("chosen", "rejected"),  # recognised by its text; otherwise an implicit preference
    "implicit preference": ("chosen", "rejected"),
    "unpaired preference": ("prompt", "completion", "label"),  # if the label is true or false
    "labelled conversation": ("messages|conversations", "label|kto_tag"),  # the same
    "prompt-completion": ("prompt", "completion"),
    "messages": ("messages",),
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
    "question-answer": ("|".join(QUESTIONS), "|".join(ANSWERS)),
    "text": ("text",),
    "prompt": ("prompt",),
}
# What each foreign shape becomes.
STANDARD = {"alpaca": "messages", "sharegpt": "messages", "question-answer": "messages"}
STANDARD |= dict.fromkeys(("question preference", "hh-rlhf", "implicit preference"), "preference")
STANDARD["labelled conversation"] = "unpaired preference"
# Columns of each standard shape; others are kept unchanged.
COLUMNS = {
    "text": ("text",),
    "messages": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "preference": ("prompt", "chosen", "rejected"),
    "unpaired preference": ("prompt", "completion", "label"),
    "prompt": ("prompt",),
    "rankings": ("prompt", "responses", "ranking"),
}
# Columns that trainers of transformers and TRL would take for their own, such as tokens and masks.
TAKEN = {"input_ids", "attention_mask", "position_ids", "token_type_ids", "labels", "label", "label_ids", "seq_lengths"}
TAKEN |= {"completion_mask", "assistant_masks", "prompt_ids", "completion_ids", "chosen_ids", "rejected_ids"}
TAKEN |= {"prompt_input_ids", "chosen_input_ids", "rejected_input_ids", "ref_chosen_logps", "ref_rejected_logps"}
TAKEN |= {"image", "images", "videos", "pixel_values", "inputs_embeds", "cu_seq_lens_q", "cu_seq_lens_k"}
# Names that data sets use for the standard columns, but too ambiguous to be renamed without asking.
_ASKED = ("question", "query", "instruction", "input", "source_text", "problem", "inputs")
_ANSWERED = ("response", "output", "answer", "reply", "target", "target_text", "solution", "targets")
SYNONYMS = {"messages": ("conversation", "dialog", "dialogue", "chat", "turns"),
            "prompt": _ASKED,
            "completion": _ANSWERED,
            "question": (*_ASKED, "prompt"),
            "answer": (*_ANSWERED, "completion"),
            "text": ("content", "document", "body", "raw_content", "code"),
            "chosen": ("accepted", "preferred", "positive", "winner", "response_j", "chosen_response"),
            "rejected": ("dispreferred", "negative", "loser", "response_k", "rejected_response")}  # fmt: skip
# Shapes to rename to besides the wanted ones, by what they become: a question of text is asked as a conversation.
ASKED = {"messages": ("question", "answer"), "preference": ("question", "chosen", "rejected"), "prompt": ("question",)}
# Columns that some shapes read besides their own: `columns` would leave them out if it did not name them.
BESIDE = ("context", "history", "system", "system_prompt", "tools", "functions", "chat_template_kwargs", "margin", "weight")


@cache
def _columns_of(wanted: tuple[str, ...]) -> list[tuple[str, list[list[str]]]]:
    """Each shape that becomes one of those wanted, with the names that each of its columns may have."""
    shapes = [shape for shape in SHAPES if STANDARD.get(shape, shape) in wanted]
    return [(shape, [column.split("|") for column in SHAPES[shape]]) for shape in shapes]


def recognise(row: Mapping, where: str = "data set", wanted: Sequence[str] = tuple(COLUMNS)) -> str:
    """Name of the shape of `row` that is, or converts to, one of the `wanted` standard shapes; InputError with its columns
    if there is none."""
    for there in (lambda name: row.get(name) is not None, row.__contains__):  # shapes with a null column come last
        for shape, columns in _columns_of(tuple(wanted)):
            if not all(any(map(there, names)) for names in columns):
                continue
            if shape == "hh-rlhf" and not (isinstance(row["chosen"], str) and TURN.match(row["chosen"])):
                continue
            if STANDARD.get(shape, shape) == "unpaired preference" and label_of(row) not in (0, 1):  # false and true
                continue
            return shape
    raise InputError(wrong_columns(row, wanted, where))


def standard_shape(row: Mapping, where: str, wanted: Sequence[str]) -> str:
    """Which of the `wanted` standard shapes `to_standard` converts `row` to."""
    return "prompt" if tuple(wanted) == ("prompt",) else STANDARD.get(shape := recognise(row, where, wanted), shape)


def label_of(row: Mapping) -> object:
    """Whether the row's answer is good, as it says itself; None if it does not."""
    return row["kto_tag"] if row.get("label") is None and "kto_tag" in row else row.get("label")


def wrong_columns(row: Mapping, wanted: Sequence[str], where: str) -> str:
    """The message for a row that has none of the `wanted` shapes: its columns, those expected, and how to rename them."""
    expected = " | ".join(dict.fromkeys(", ".join(COLUMNS[shape]) for shape in wanted))
    empty = [column for column, value in row.items() if value is None]
    note = f" (empty: {', '.join(empty)})" if empty else ""
    message = f"{where}: columns are {', '.join(row) or 'none'}{note}; expected {expected}"
    if (
        "unpaired preference" in wanted
        and {"label", "kto_tag"} & row.keys()
        and ({"prompt", "completion"} <= row.keys() or {"messages", "conversations"} & row.keys())
    ):
        return f"{where}: label must be true or false, found {short(label_of(row))}"
    if "ranking" in row and "preference" in wanted:
        return f"{message}. Rankings become pairs with `reader: llmrecipes.data.preferences:rankings`"
    if isinstance(row.get("completions"), list) and "preference" in wanted:
        return f"{message}. Scored completions become pairs with `reader: llmrecipes.data.preferences:ultrafeedback`"
    if names := _renaming(row, wanted):
        beside = {name: name for name in BESIDE if name in row and name not in names and wanted != ("text",)}
        told = ", ".join(f"{_quoted(old)}: {new}" for old, new in (names | beside).items())
        return f"{message}. Rename with `columns: {{{told}}}`"
    return f"{message}. Rename columns with `columns: {{yours: {COLUMNS[wanted[0]][0]}}}`, or write the rows with a `reader`"


def _renaming(row: Mapping, wanted: Sequence[str]) -> dict[str, str]:
    """Old -> new name of all the columns of a wanted shape, which the row has under other names; empty if it lacks one."""
    plain = {name.strip().lower(): name for name in reversed(row)}
    labelled = "unpaired preference" in wanted  # KTO, which reads no question in place of a prompt
    for columns in [*(COLUMNS[shape] for shape in wanted), *(ASKED[shape] for shape in wanted if shape in ASKED)]:
        found = {}
        for column in columns:
            there = (plain[name] for name in (column, *SYNONYMS.get(column, ())) if name in plain)
            name = next((name for name in there if name not in found and _suits(row[name], name, column, labelled)), None)
            if name is not None:
                found[name] = column
        if len(found) == len(columns):
            return found
    return {}


def _suits(value: object, name: str, column: str, labelled: bool) -> bool:
    """Whether a column's value is of the kind that `column` holds, a prompt of text only if it is called so."""
    if column == "messages":
        first = value[0] if isinstance(value, list) and value else None
        return isinstance(first, Mapping) and ("role" in first or "from" in first)
    if column in ("chosen", "rejected", "label"):
        return column == "label" or isinstance(value, (str, list))
    if column in ("prompt", "completion") and isinstance(value, list):
        return True
    return isinstance(value, str) and (column not in ("prompt", "completion") or labelled or name.strip().lower() == column)


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"\w[\w.-]*", name) else json.dumps(name, ensure_ascii=False)
