"""The contents of rows: rankings to pairs, ids and texts of prompts, lines of JSON. Pure; rows.py has their shapes.

Unreadable input raises an InputError that names the row.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from llmrecipes.config import InputError
from llmrecipes.turns import short


def rankings_to_pairs(row: Mapping, where: str = "row") -> list[dict]:
    """All pairs of a ranking that are not ties: {"prompt", "chosen", "rejected", "margin", ...other columns}.

    row: prompt (text or messages), responses (list of text), ranking (best first, ties together: [[2], [0, 3], [1]];
    responses left out of it give no pair). K responses give up to K(K-1)/2 pairs (Ouyang et al. 2022, section 3.5).
    margin: the difference of `scores` if the row has them, otherwise the number of places apart in the ranking. With a
    prompt of messages, chosen and rejected are one assistant message each; with a text prompt they are text.
    `chosen_finished` and `rejected_finished`, if the row has `finish_reasons`: whether the model ended the response itself.
    Responses with equal text never form a pair, and an empty response is never chosen: there would be nothing to learn. Nor
    do two texts of which either was ranked above the other, where one of them stands there twice.
    """
    check_ranking(row, where)
    responses, scores, reasons = row["responses"], row.get("scores"), row.get("finish_reasons")
    carried = {
        k: v for k, v in row.items() if k not in ("responses", "ranking", "scores", *SAMPLE_COLUMNS, *JUDGEMENT_COLUMNS)
    }
    pairs = []
    for (better, high), (worse, low) in combinations(enumerate(row["ranking"]), 2):
        for i in high:
            for j in low:
                if responses[i].strip() in ("", responses[j].strip()):
                    continue
                margin = scores[i] - scores[j] if scores else worse - better
                sides = (responses[i], responses[j])
                if not isinstance(row["prompt"], str):
                    sides = tuple([{"role": "assistant", "content": side}] for side in sides)
                pair = {**carried, "chosen": sides[0], "rejected": sides[1], "margin": float(margin)}
                if reasons:
                    pair |= {"chosen_finished": reasons[i] != "length", "rejected_finished": reasons[j] != "length"}
                pairs.append(pair)
    above = {(str(pair["chosen"]), str(pair["rejected"])) for pair in pairs}
    return [pair for pair in pairs if (str(pair["rejected"]), str(pair["chosen"])) not in above]


def weigh_pairs(pairs: Sequence[Mapping]) -> list[dict]:
    """Pairs with `weight` = 1 / (number of pairs of the same prompt), so that each prompt counts once however many responses
    were ranked (Ouyang et al. 2022, section 3.5, where all pairs of a prompt are one element of a batch)."""
    ids = [pair.get("prompt_id") or prompt_id(pair["prompt"]) for pair in pairs]
    counts = Counter(ids)
    return [{**pair, "weight": 1 / counts[name]} for pair, name in zip(pairs, ids, strict=True)]


def to_implicit(pair: Mapping, where: str = "row") -> dict:
    """The pair without a `prompt` column: chosen and rejected are whole conversations that begin alike."""
    if isinstance(pair["prompt"], str):
        raise InputError(
            f"{where}: pair_format implicit needs prompts of messages; with a text prompt the answer's start "
            "would be lost, so leave `pair_format: explicit`"
        )
    sides = {side: [*pair["prompt"], *pair[side]] for side in ("chosen", "rejected")}
    return {key: value for key, value in pair.items() if key != "prompt"} | sides


# Columns of a samples row that describe its responses, not its prompt.
SAMPLE_COLUMNS = ("finish_reasons", "num_tokens", "sampling", "model", "models")
# Columns of a person's judgement that do not describe a single pair.
JUDGEMENT_COLUMNS = ("all_bad", "flags", "note", "seconds", "order_shown", "time")


def check_ranking(row: Mapping, where: str) -> None:
    """InputError unless `ranking` orders each of `responses` at most once, best first, ties together."""
    responses, ranking = row.get("responses"), row.get("ranking")
    if not isinstance(responses, list) or not all(isinstance(text, str) for text in responses):
        raise InputError(f"{where}: responses must be a list of texts, found {short(responses)}")
    if not isinstance(ranking, list) or not all(isinstance(group, list) and group for group in ranking):
        raise InputError(f"{where}: ranking must look like [[2], [0, 3], [1]], best first, found {short(ranking)}")
    places = [place for group in ranking for place in group]
    if not all(type(place) is int and 0 <= place < len(responses) for place in places):
        raise InputError(
            f"{where}: ranking names a response that does not exist: {short(ranking)}; "
            f"responses are numbered 0 to {len(responses) - 1}"
        )
    if len(set(places)) < len(places):
        raise InputError(f"{where}: ranking names a response twice: {short(ranking)}")


def prompt_id(prompt: str | list[dict]) -> str:
    """Id of a prompt: the first 16 hexadecimal digits of the SHA-256 of its text or of its messages as JSON."""
    text = prompt
    if not isinstance(prompt, str):
        asked = [
            {key: turn[key] for key in ("role", "content", "tool_calls") if key != "tool_calls" or turn.get(key)}
            for turn in prompt
        ]
        text = json.dumps(asked, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prompt_text(prompt: str | list[dict]) -> str:
    """The prompt for people: a text as it is, a single message as its content, a conversation with its roles."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return turn_text(prompt[0])
    return "\n".join(f"{turn['role']}: {turn_text(turn)}" for turn in prompt)


def turn_text(turn: Mapping) -> str:
    """What a turn says, for people: its content, which is null beside some tool calls, and the calls as JSON."""
    calls = [json.dumps(call.get("function", call), ensure_ascii=False) for call in turn.get("tool_calls") or ()]
    return "\n".join(filter(None, [turn["content"], *calls]))


def parse_jsonl(lines: Iterable[str], where: str) -> Iterator[dict]:
    """Rows of JSON Lines; InputError "where, line 3: ..." for a broken one. Empty lines are skipped."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield parse_line(line, f"{where}, line {number}")


def parse_line(line: str, where: str, row: str | None = None) -> dict:
    """The object in `line`; InputError beginning with `where`, or with `row` if the JSON is valid but its content is
    wrong."""
    listed = "; one list of rows belongs into a file that is called .json" if line.lstrip().startswith("[") else ""
    try:
        value = JSON.decode(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON ({error.msg} at column {error.colno}){listed or _advice(line)}") from None
    except (RecursionError, ValueError) as error:  # nested a thousand deep; a number of thousands of digits
        raise InputError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object {{...}}, found {short(value)}{listed}")
    if "\\u" in line and has_lone_surrogate(value):
        raise InputError(
            f"{row or where}: holds half a character (a lone surrogate, \\ud800 to \\udfff); write whole characters"
        )
    return value


def _once(pairs: list[tuple[str, object]]) -> dict:
    """The object of these pairs; of a key that stands twice, json would drop the first value in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {short(twice)} stands twice in one object")
    return found


JSON = json.JSONDecoder(object_pairs_hook=_once)


def _advice(line: str) -> str:
    """What to do about a line that is not the JSON of one row."""
    if "\0" in line:
        return "; is the file UTF-16? Save it as UTF-8"
    if "\r" in line.strip():
        return "; its lines end in a carriage return alone; end them in a line feed"
    try:
        JSON.raw_decode(line.lstrip())
        return "; each row must stand on a line of its own, with nothing after it"
    except (ValueError, RecursionError):
        is_first = line.strip() in ("{", "[")
        return "; each row must stand whole on one line, or the file be one list that is called .json" if is_first else ""


def has_lone_surrogate(value: object) -> bool:
    """Whether a text in `value` holds a surrogate without its other half, which UTF-8 cannot encode."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def rows_of_batch(batch) -> Iterator[dict | UnicodeDecodeError]:
    """Rows of an Arrow RecordBatch or table; in place of one with text that is not UTF-8, its error."""
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError as error:
        rows = (
            [error]
            if batch.num_rows == 1
            else (row for i in range(batch.num_rows) for row in rows_of_batch(batch.slice(i, 1)))
        )
    yield from rows


def rows_of_object(value: dict) -> list:
    """The rows of a file that is one JSON object: of the only list of objects in it, if its name says that; or itself."""
    lists = [part for part in value.values() if isinstance(part, list) and part and isinstance(part[0], dict)]
    return lists[0] if len(lists) == 1 and set(value) & {"data", "train", "rows", "examples"} else [value]


def read_growing(path: Path) -> list[dict]:
    """Rows of a JSON Lines file that work appends to, skipping a last line cut off by a kill; [] if there is no file."""
    return parse_growing(path.read_bytes()) if path.exists() else []


def parse_growing(text: bytes) -> list[dict]:
    """The objects among the lines of `text`; what is none is skipped."""
    rows = []
    for line in text.split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
