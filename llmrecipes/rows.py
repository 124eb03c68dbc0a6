"""Rows of data sets in TRL's standard shapes, converted from those that llmrecipes.shapes lists. Pure: a row in, a row out.

Where prompts are wanted, any shape but text is reduced to its prompt: the answer is cut off. Columns that a shape does not
use are kept. Unreadable rows raise an InputError that names the row.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import dropwhile, takewhile

from llmrecipes.config import InputError
from llmrecipes.shapes import ANSWERS, COLUMNS, QUESTIONS, STANDARD, label_of, recognise, wrong_columns
from llmrecipes.turns import add_system, require_text, short, split_common_prompt, split_transcript, to_turns, without_answer


def to_standard(row: Mapping, where: str = "row", wanted: Sequence[str] = tuple(COLUMNS)) -> dict:
    """The row, checked, in one of the `wanted` standard shapes of TRL; other columns are kept.

    where: "x.jsonl, row 7" begins each error.
    """
    row = _with_options(row, where)
    if tuple(wanted) == ("prompt",):
        return _to_prompt(row, where)
    shape = recognise(row, where, wanted)
    standard = STANDARD.get(shape, shape)
    new = dict(row)
    if standard == "messages":
        new = _to_messages(new, shape, where)
        if not any(turn["role"] == "assistant" for turn in new["messages"]):
            raise InputError(f"{where}: has no assistant turn to learn from")
    elif standard == "preference":
        new = _to_preference(new, shape, where)
    elif standard in ("prompt-completion", "unpaired preference"):
        if shape == "labelled conversation":
            new = _cut_answer(new, where)
        new = _to_completion(new, where)
        if standard == "unpaired preference":
            _require_last_answer(new["completion"], "completion", where)
            new["label"] = bool(label_of(new))
            new.pop("kto_tag", None)
    elif standard == "text":
        require_text(new["text"], "text", where)
    label = label_of(row)
    if standard == "preference" and "unpaired preference" in wanted and isinstance(label, bool):
        raise InputError(
            f"{where}: has a label for one answer, and also chosen and rejected answers; leave one out with `columns:`"
        )
    says_good = isinstance(label, bool) or standard == "prompt-completion" and label in (0, 1)
    if standard in ("messages", "prompt-completion") and says_good:
        raise InputError(
            f"{where}: a label of true or false, 1 or 0, says whether an answer is good (KTO), but here every answer is "
            "trained on; keep only the rows with true, and leave the column out with `columns:`"
        )
    return new


def _to_messages(row: dict, shape: str, where: str) -> dict:
    if shape in ("messages", "sharegpt"):
        column = "messages" if shape == "messages" else "conversations"
        turns = to_turns(row.pop(column), f"{where}, column {column}")
    else:
        turns = _question(row, where, ("output",) if shape == "alpaca" else ANSWERS)
        row.pop("text", None)  # Alpaca's own rendering of the same row
    row["messages"] = add_system(turns, _pop_system(row, where), where)
    return row


def _question(row: dict, where: str, answers: Sequence[str] = ()) -> list[dict]:
    """Turns of a row with a question, optionally `history` before it and `input` or `context` after it, and an answer."""
    there = [name for name in QUESTIONS[:-1] if row.get(name) is not None]  # `input` may belong to another question column
    if len(there) > 1:
        raise InputError(f"{where}: has the questions {' and '.join(there)}; name the columns to use with `columns:`")
    empty = [name for name in QUESTIONS[:-1] if name in row and row.get("input") is None]
    asked = [*there, *empty, QUESTIONS[-1]][0]
    question = require_text(row.pop(asked, None), asked, where, may_be_empty=asked != "input" and bool(row.get("input")))
    extras = {name: row.pop(name) for name in ("input", "context") if name in row}
    parts = [
        question,
        *(require_text(extra, name, where, may_be_empty=True) for name, extra in extras.items() if extra is not None),
    ]
    turns, history = [], row.pop("history", None) or []
    if not isinstance(history, list):
        raise InputError(f"{where}: history must be pairs [question, answer], found {short(history)}")
    for number, pair in enumerate(history, start=1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise InputError(f"{where}: history must be pairs [question, answer], found {short(pair)}")
        turns += [
            {"role": role, "content": require_text(text, f"history, pair {number}", where)}
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
    turns.append({"role": "user", "content": "\n\n".join(part for part in parts if part)})
    there = [name for name in answers if row.get(name) is not None] or [name for name in answers if name in row]
    if len(there) > 1:
        raise InputError(f"{where}: has the answers {' and '.join(there)}; name the columns to use with `columns:`")
    if there:
        turns.append({"role": "assistant", "content": require_text(row.pop(there[0]), there[0], where)})
    return turns


def _to_preference(row: dict, shape: str, where: str) -> dict:
    sides = {}
    for side in ("chosen", "rejected"):
        value, place = row[side], f"{where}, column {side}"
        if shape == "hh-rlhf":
            sides[side] = split_transcript(value, place)
            if side == "chosen" and not sides[side][-1]["content"]:
                raise InputError(f"{place}: the last turn is empty")
        elif isinstance(value, str):
            sides[side] = require_text(value, side, where, may_be_empty=side == "rejected")
        else:
            sides[side] = to_turns(value, place, may_be_empty=side == "rejected")
    texts = [isinstance(value, str) for value in sides.values()]
    if texts[0] != texts[1]:
        raise InputError(f"{where}: one of chosen and rejected is text, the other a list of messages; use one form")
    if "prompt" in row and shape == "preference":
        prompt = _prompt(row["prompt"], where)
        system = _pop_system(row, where)
        if isinstance(prompt, str) and not texts[0] and sides["chosen"][0]["role"] != "assistant":
            prompt = None  # full conversations besides the prompt's text, as in UltraFeedback's binarized forms
        elif isinstance(prompt, str) != texts[0]:
            raise InputError(
                f"{where}: prompt is {_kind(prompt)}, chosen is {_kind(sides['chosen'])}; write all of them as "
                "text or all as lists of messages"
            )
        elif isinstance(prompt, str) and system:
            raise InputError(f"{where}: has `system`, which a prompt of text has no place for; write prompt as messages")
    elif shape == "question preference":
        system = _pop_system(row, where)
        prompt = to_turns(row.pop("conversations"), where) if row.get("conversations") else _question(row, where)
        if texts[0]:
            sides = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
    else:
        prompt, system = None, _pop_system(row, where)
    if prompt is None:
        if texts[0] and shape != "hh-rlhf":
            raise InputError(f"{where}: chosen and rejected are texts without a prompt; add a prompt column")
        prompt, *answers = split_common_prompt(sides["chosen"], sides["rejected"], where)
        sides = dict(zip(sides, answers, strict=True))
    elif not isinstance(prompt, str):
        prompt, sides = _without_prompt(prompt, sides, where)
    if not isinstance(prompt, str):
        prompt = add_system(prompt, system, where)
        for side, turns in sides.items():
            if not any(turn["role"] == "assistant" for turn in turns):
                raise InputError(f"{where}: {side} has no assistant turn")
            _require_last_answer(turns, side, where)
    return row | {"prompt": prompt} | sides


def is_other_prompt(given: Mapping, new: Mapping) -> bool:
    """Whether the row `given` has a `prompt` of text that none of the questions in the conversations beside it is, so that
    its conversion `new` has lost one or the other."""
    text = given.get("prompt")
    if not isinstance(text, str) or isinstance(given.get("completion"), str):
        return False
    turns = new.get("prompt")
    if isinstance(turns, str):  # the conversations were not read
        turns = next((found for name in ("messages", "conversations") if (found := given.get(name))), None)
    said = [turn.get("content", turn.get("value")) for turn in turns or () if isinstance(turn, Mapping)]
    return bool(said) and text.strip() not in (content.strip() for content in said if isinstance(content, str))


def _without_prompt(prompt: list[dict], sides: dict[str, list[dict]], where: str) -> tuple[list, dict]:
    """(prompt, answers) without the prompt in the answers, if they repeat it, also without its system turns; with system
    turns of their own before it, these become the prompt's.

    Raises:
        InputError: one answer of two repeats it.
    """
    is_system = lambda turn: turn["role"] == "system"
    bare, starts = list(dropwhile(is_system, prompt)), {}
    for side, turns in sides.items():
        led = [*takewhile(is_system, turns), *bare]
        possible = (prompt, bare, led) if bare == prompt else (prompt, bare)
        starts[side] = next((start for start in possible if start and turns[: len(start)] == start != turns), [])
    first, *others = starts.values()
    if not any(starts.values()):
        return prompt, sides
    if not all(start in (prompt, bare) for start in starts.values()) and any(start != first for start in others):
        raise InputError(f"{where}: {' and '.join(sides)} do not repeat the prompt alike; leave it out of the answers")
    prompt = prompt if first in (prompt, bare) else first
    return prompt, {side: turns[len(starts[side]) :] for side, turns in sides.items()}


def _require_last_answer(answer: str | list[dict], column: str, where: str) -> None:
    """InputError if `answer`, all of which would be judged, ends with another's turn."""
    if not isinstance(answer, str) and (role := answer[-1]["role"]) != "assistant":
        raise InputError(f"{where}: {column} ends with a turn of the {role}'s, not with an answer; cut it off")


def _cut_answer(row: dict, where: str) -> dict:
    """A conversation as a prompt and its last answer, the completion."""
    column = "messages" if row.get("messages") is not None else "conversations"
    turns = to_turns(row.pop(column), f"{where}, column {column}")
    prompt = without_answer(turns, where)
    if len(prompt) == len(turns):
        raise InputError(
            f"{where}: ends with a turn of the {turns[-1]['role']}'s, not with an answer to which the label belongs"
        )
    return row | {"prompt": prompt, "completion": turns[len(prompt) :]}


def _to_completion(row: dict, where: str) -> dict:
    prompt, completion = _prompt(row["prompt"], where, may_be_empty=True), row["completion"]
    if isinstance(prompt, str) != isinstance(completion, str) and completion is not None:
        raise InputError(
            f"{where}: prompt is {_kind(prompt)}, completion is {_kind(completion)}; write both as text or "
            "both as lists of messages"
        )
    system = _pop_system(row, where)
    if isinstance(prompt, str):
        if system:
            raise InputError(f"{where}: has `system`, which a prompt of text has no place for; write prompt as messages")
        return row | {"prompt": prompt, "completion": require_text(completion, "completion", where)}
    prompt, sides = _without_prompt(prompt, {"completion": to_turns(completion, f"{where}, column completion")}, where)
    completion = sides["completion"]
    if not any(turn["role"] == "assistant" for turn in completion):
        raise InputError(f"{where}: completion has no assistant turn to learn from")
    return row | {"prompt": add_system(prompt, system, where), "completion": completion}


def _to_prompt(row: Mapping, where: str) -> dict:
    """The row as a prompt: its own, or the question in it. Columns with answers are kept, full conversations are not."""
    new = dict(row)
    conversation = new.pop("messages", None)
    if new.get("prompt") is not None:
        prompt = _prompt(new["prompt"], where)
        sides = [new.get(side) for side in ("chosen", "rejected")]
        if isinstance(prompt, str) and all(isinstance(side, list) and side for side in sides):
            prompt = _to_preference({"prompt": prompt, "chosen": sides[0], "rejected": sides[1]}, "preference", where)[
                "prompt"
            ]
        elif isinstance(prompt, str) and conversation:  # a chat besides its first question's text, as in UltraChat
            turns = to_turns(conversation, f"{where}, column messages")
            first = next((i for i, turn in enumerate(turns) if turn["role"] == "user"), None)
            if first is not None and (turns[first]["content"] or "").strip() == prompt.strip():
                prompt = turns[: first + 1]
        system = _pop_system(new, where)
        if system and isinstance(prompt, str):
            raise InputError(f"{where}: has `system`, which a prompt of text has no place for; write prompt as messages")
        if not isinstance(prompt, str) and prompt[-1]["role"] == "assistant":
            raise InputError(
                f"{where}: the prompt ends with an answer of the assistant's, after which another would be "
                "asked for; end it with the question, or name the column `messages`: its last answer is cut "
                "off"
            )
        return new | {"prompt": add_system(prompt, system, where) if system else prompt}
    if row.get("chosen") is not None and row.get("rejected") is not None:
        new["prompt"] = _to_preference(new, recognise(row, where, ("preference",)), where)["prompt"]
    elif conversation is not None or new.get("conversations") is not None:
        turns = conversation if conversation is not None else new.pop("conversations")
        turns = add_system(to_turns(turns, f"{where}, column messages"), _pop_system(new, where), where)
        new["prompt"] = without_answer(turns, where)
    elif any(row.get(name) is not None for name in QUESTIONS):
        turns = _question(new, where)
        new["prompt"] = add_system(turns, _pop_system(new, where), where)
    elif "prompt" in row:
        require_text(row["prompt"], "prompt", where)
    else:
        raise InputError(wrong_columns(row, ("prompt",), where))
    return new


def _prompt(prompt: object, where: str, may_be_empty: bool = False) -> str | list[dict]:
    if isinstance(prompt, str):
        if prompt.lstrip().startswith("[{") and _is_json(prompt, list):
            raise InputError(
                f"{where}: prompt is the JSON text of a list, not a list; parse it (json.loads) before you write the row"
            )
        return require_text(prompt, "prompt", where, may_be_empty)
    return to_turns(prompt, f"{where}, column prompt")


def _is_json(text: str, kind: type) -> bool:
    try:
        return isinstance(json.loads(text), kind)
    except (ValueError, RecursionError):
        return False


def _pop_system(row: dict, where: str) -> object:
    """The row's system text, to be put before its conversation."""
    found = [system for name in ("system", "system_prompt") if name in row and (system := row.pop(name))]
    if len(found) > 1 and found[0] != found[1]:
        raise InputError(f"{where}: system and system_prompt differ; name the column to use with `columns:`")
    return found[0] if found else None


def _with_options(row: Mapping, where: str) -> Mapping:
    """The row with its inputs to the chat template other than turns checked: `tools` that are mappings, OpenAI's older
    `functions` among them, and `chat_template_kwargs` as a mapping."""
    if not {"tools", "functions", "chat_template_kwargs"} & row.keys():
        return row
    new = dict(row)
    if not row.get("tools") and _are_functions(row.get("functions")):
        new["tools"] = [{"type": "function", "function": function} for function in new.pop("functions")]
    for name, kind, what in (("tools", list, "a list"), ("chat_template_kwargs", Mapping, "a mapping")):
        value = new.get(name)
        if isinstance(value, str):
            try:
                value = json.loads(value) if value.strip() else None
            except ValueError:
                value = new[name]
        if value is not None and not isinstance(value, kind):
            raise InputError(f"{where}: {name} must be {what} or its JSON text, found {short(new[name])}")
        if name == "chat_template_kwargs" and name in new:  # TRL passes it to the template unchanged
            new[name] = value
        elif name == "tools" and value:
            new[name] = [_tool(tool, where) for tool in value]
    return new


def _are_functions(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(f, Mapping) and "name" in f for f in value)


def _tool(tool: object, where: str) -> Mapping:
    """One tool; its JSON text would be shown to the model as a quoted string."""
    found = json.loads(tool) if isinstance(tool, str) and _is_json(tool, dict) else tool
    if not isinstance(found, Mapping):
        raise InputError(f"{where}: each of `tools` must be a mapping or its JSON text, found {short(tool)}")
    return found


def _kind(value: object) -> str:
    return "text" if isinstance(value, str) else "messages" if isinstance(value, list) else f"a {type(value).__name__}"
