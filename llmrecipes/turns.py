"""Conversations: every way of writing them becomes [{"role", "content", ...}] with the roles that templates know.

Reads OpenAI's fine-tuning messages (content as text or as a list of text parts, function_call, tool_calls), ShareGPT's
{"from", "value"} and hh-rlhf's transcripts. Other keys of a turn (tool_calls, reasoning_content, name, ...) are kept. Pure;
unreadable input raises InputError.
"""

import json
import re
from collections.abc import Callable, Mapping

from llmrecipes.config import InputError

# Speaker names used in common data sets -> the role that chat templates know.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
}
# Keys by which rows of OpenAI, ms-swift and axolotl say whether a turn is trained on.
LEARNED = ("weight", "loss", "train", "training")
# Types of a part that is text, as OpenAI's two interfaces name them.
TEXT_PARTS = ("text", "input_text", "output_text")
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]?")


def to_turns(value: object, where: str, may_be_empty: bool = False) -> list[dict]:
    """`value`, a list of messages or one message, as checked messages {"role", "content", ...}.

    Content is text (text parts are concatenated), and null only with tool calls. An assistant's turn must not be empty
    unless `may_be_empty`.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        raise InputError(f"{where}: is the JSON text of a list, not a list; parse it (json.loads) before you write the row")
    if value is None:
        raise InputError(f"{where}: is null; give a list of messages")
    turns = [value] if isinstance(value, Mapping) else value
    if not isinstance(turns, list) or not turns:
        raise InputError(f"{where}: expected a list of messages, found {short(value)}")
    return [_turn(turn, f"{where}, turn {number}", may_be_empty) for number, turn in enumerate(turns, start=1)]


def _turn(turn: object, where: str, may_be_empty: bool) -> dict:
    if not isinstance(turn, Mapping):
        raise InputError(f'{where}: expected a message {{"role": ..., "content": ...}}, found {short(turn)}')
    # A table that holds both ways of writing has the keys of both in every turn, those of the other one null.
    said, speaks = ("value", "from") if turn.get("role") is None and "from" in turn else ("content", "role")
    if speaks not in turn or said not in turn and not (turn.get("tool_calls") or turn.get("function_call")):
        raise InputError(
            f'{where}: expected a message {{"role": ..., "content": ...}} or {{"from": ..., "value": ...}}, '
            f"found {short(turn)}"
        )
    speaker = turn[speaks]
    role = ROLES.get(speaker.lower()) if isinstance(speaker, str) else None
    if role is None:
        raise InputError(f"{where}: the role {short(speaker)} is not known; use system, user, assistant or tool")
    # Arrow fills in keys of other turns as null: treat them as absent.
    rest = {key: part for key, part in turn.items() if key not in (speaks, said) and part is not None}
    new = {"role": role, "content": _content(turn.get(said), where), **rest}
    if speaker == "function_call" or "function_call" in rest:
        call = new.pop("function_call", None) or new["content"]
        new |= {"content": "" if speaker == "function_call" else new["content"], "tool_calls": [_call(call, where)]}
    elif new.get("tool_calls"):
        calls = _parsed(new["tool_calls"]) if isinstance(new["tool_calls"], str) else new["tool_calls"]
        new["tool_calls"] = [_call(call, where) for call in (calls if isinstance(calls, list) else [calls])]
    if new["content"] is None and not new.get("tool_calls"):
        raise InputError(f"{where}: the {role}'s content is null; give a text")
    if role == "assistant" and not (new["content"] or "").strip() and not new.get("tool_calls") and not may_be_empty:
        raise InputError(f"{where}: the assistant's answer is empty")
    if role == "user" and isinstance(new["content"], str) and not new["content"].strip():
        raise InputError(f"{where}: the user's content is empty")
    for key in [key for key in LEARNED if key in new]:
        if new.pop(key) not in (1, "1") and role == "assistant":  # True is 1
            raise InputError(
                f"{where}: has `{key}` other than 1 or true, but all turns of the assistant are trained on; give "
                "`prompt` (the turns before) and `completion` (those to train on) instead of messages"
            )
    return new


def _content(content: object, where: str) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise InputError(f"{where}: content must be text, found {short(content)}")
    parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    for part, text in zip(content, parts, strict=True):
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if kind not in TEXT_PARTS or not isinstance(text, str):
            raise InputError(f"{where}: content holds a part that is not text, {short(part)}; only text is supported")
    return "".join(parts)


def _call(call: object, where: str) -> dict:
    """One tool call as {"type": "function", "function": {"name", "arguments"}, ...}; templates want arguments parsed."""
    if isinstance(call, str):
        call = _parsed(call)
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise InputError(
            f'{where}: expected a tool call {{"function": {{"name": ..., "arguments": ...}}}}, found {short(call)}'
        )
    arguments = inner.get("arguments")
    inner = dict(inner) | {"arguments": _parsed(arguments) if isinstance(arguments, str) else arguments or {}}
    outer = {key: value for key, value in call.items() if value is not None} if "function" in call else {}
    return {"type": "function", **outer, "function": inner}


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def add_system(turns: list[dict], system: object, where: str) -> list[dict]:
    """`turns`, preceded by the row's own `system` text if it has one."""
    if system is None or system == "":
        return turns
    if not isinstance(system, str):
        raise InputError(f"{where}: system must be text, found {short(system)}")
    if turns and turns[0]["role"] == "system":
        if turns[0]["content"] != system:
            raise InputError(f"{where}: the column system and the conversation's own system turn differ; keep one of them")
        return turns
    return [{"role": "system", "content": system}, *turns]


def without_answer(turns: list[dict], where: str) -> list[dict]:
    """The question: the turns before the assistant's last run of turns."""
    end = len(turns)
    while end and turns[end - 1]["role"] == "assistant":
        end -= 1
    if not any(turn["role"] in ("user", "tool") for turn in turns[:end]):
        raise InputError(f"{where}: no question is left without the assistant's answer")
    return turns[:end]


def split_transcript(text: str, where: str = "row") -> list[dict]:
    """Messages of an hh-rlhf transcript, "\\n\\nHuman: ...\\n\\nAssistant: ..." (arXiv 2204.05862)."""
    if not isinstance(text, str) or not TURN.match(text):
        raise InputError(f'{where}: expected a transcript that begins with "Human:", found {short(text)}')
    parts = TURN.split(text)[1:]
    turns = []
    for speaker, content in zip(parts[0::2], parts[1::2], strict=True):
        role = ROLES[speaker.lower()]
        # Two turns of one speaker in a row (an empty answer between them was dropped by the authors) are one turn.
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += "\n\n" + content.strip()
        else:
            turns.append({"role": role, "content": content.strip()})
    return turns


def split_common_prompt(chosen: list[dict], rejected: list[dict], where: str) -> tuple[list, list, list]:
    """(prompt, chosen, rejected): the longest common prefix of turns, and the rest of each conversation, at least one
    turn."""
    common = 0
    while common < min(len(chosen), len(rejected)) - 1 and chosen[common] == rejected[common]:
        common += 1
    if common == 0:
        raise InputError(f"{where}: chosen and rejected do not begin with the same message, so they have no prompt")
    return chosen[:common], chosen[common:], rejected[common:]


def require_text(value: object, column: str, where: str, may_be_empty: bool = False) -> str:
    """`value` if it is a non-empty text; otherwise InputError with the column."""
    if value is None:
        raise InputError(f"{where}: {column} is null; give a text")
    if not isinstance(value, str):
        raise InputError(f"{where}: {column} must be text, found {short(value)}")
    if not may_be_empty and not value.strip():
        raise InputError(f"{where}: {column} is empty")
    return value


def short(value: object) -> str:
    """`value` as in code, cut at 80 characters: for messages."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def is_conversation(prompt: object) -> bool:
    """Whether a prompt is a list of chat messages."""
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], Mapping) and "role" in prompt[0]


def check_turns(value: object, where: str) -> None:
    """InputError unless `value` is a text or a non-empty list of {"role": str, "content": str or, with tool calls, null}."""
    if isinstance(value, str):
        return
    if not isinstance(value, list) or not value:
        raise InputError(f"{where}: expected a text or a list of messages, found {short(value)}")
    for turn in value:
        fine = isinstance(turn, Mapping) and isinstance(turn.get("role"), str)
        if not fine or not isinstance(turn.get("content"), str) and not turn.get("tool_calls"):
            raise InputError(f'{where}: expected messages {{"role": ..., "content": ...}}, found {short(turn)}')


def special_finder(tokenizer) -> Callable[[str], int]:
    """A function from a text to the place of a special token that it spells out; -1 if it spells out none."""
    by_start: dict[str, list[str]] = {}
    unknown = {tokenizer.unk_token_id} - {tokenizer.eos_token_id}
    for number, token in tokenizer.added_tokens_decoder.items():
        if token.special and number not in unknown:
            by_start.setdefault(token.content[:2], []).append(token.content)

    def find(text: str) -> int:  # most texts hold none of the few beginnings
        places = (text.find(token) for start, own in by_start.items() if start in text for token in own)
        return min((place for place in places if place >= 0), default=-1)

    return find
