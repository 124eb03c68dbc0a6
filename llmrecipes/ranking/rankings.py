"""Rankings from a file: rankings.jsonl or a CSV, matched with the samples by prompt_id."""

import csv
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from llmrecipes.config import InputError
from llmrecipes.formats import check_ranking, parse_jsonl, prompt_id, prompt_text
from llmrecipes.preflight.folders import separator_of
from llmrecipes.turns import is_conversation, short, to_turns


def read_rankings(path: str, samples: list[dict]) -> list[dict]:
    """Samples with their rankings, one row for each prompt and annotator.

    The file has `prompt_id` (or the `prompt`, as text or messages), `ranking` and optionally `annotator`. A ranking is a
    list of groups, best first ([[2], [0, 3], [1]] or, without ties, [2, 0, 1]), or text: such a list, letters
    "C > A = D > B" or numbers "2 > 0 = 3 > 1". Responses may be left out and then give no pair. Samples without a ranking
    are left out.

    Raises:
        InputError: the file is missing or empty, a row is malformed, a prompt is unknown, not the only one with its id, or
            ranked twice by one annotator, or the row's own `responses` are not the sample's.
    """
    by_id, by_text = {}, {}
    for row in samples:
        by_id.setdefault(str(row["prompt_id"]), []).append(row)  # a table's cells are text
        by_text.setdefault(prompt_text(row["prompt"]).strip(), {})[row["prompt_id"]] = True
    ranked, seen = [], set()
    for where, row in _read_rows(path):
        if type(row.get("prompt_id")) is int:
            row["prompt_id"] = str(row["prompt_id"])
        if not row.get("prompt_id") and isinstance(row.get("prompt"), str):
            ids = [*by_text.get(row["prompt"].strip(), ["(no such prompt)"])]
            if len(ids) > 1:
                raise InputError(
                    f"{where}: {len(ids)} samples have this prompt, {short(row['prompt'])}; name its `prompt_id`"
                )
            row["prompt_id"] = ids[0]
        elif not row.get("prompt_id") and is_conversation(row.get("prompt")):
            row["prompt_id"] = prompt_id(to_turns(row["prompt"], f"{where}, column prompt"))
        if not row.get("prompt_id") or not row.get("ranking"):
            empty = [column for column in ("prompt_id", "ranking") if column in row and not row[column]]
            note = f" ({', '.join(empty)} empty)" if empty else ""
            raise InputError(f"{where}: columns are {', '.join(row)}{note}; expected prompt_id, ranking (and annotator)")
        for column in ("prompt_id", "annotator"):
            if not isinstance(row.get(column) or "", (str, int)):
                raise InputError(f"{where}: {column} is {short(row[column])}; write text or a number")
        sample = _sample_of(row, by_id.get(str(row["prompt_id"]), []), by_text, where)
        annotator = row.get("annotator") or "unnamed"
        if (row["prompt_id"], annotator) in seen:
            raise InputError(f"{where}: {annotator} ranked prompt {row['prompt_id']} already; keep one of the rows")
        seen.add((row["prompt_id"], annotator))
        ranking = parse_ranking(row["ranking"], where) if isinstance(row["ranking"], str) else row["ranking"]
        if isinstance(ranking, list) and all(type(place) is int for place in ranking):
            ranking = [[place] for place in ranking]
        new = sample | {"ranking": ranking, "annotator": annotator}
        check_ranking(new, where)
        ranked.append(new)
    if not ranked:
        raise InputError(f"{path}: is empty; it should hold rows with prompt_id and ranking")
    return ranked


def _sample_of(row: dict, found: list[dict], by_text: dict[str, dict], where: str) -> dict:
    """The one sample with the row's prompt_id; InputError if there is none, or if the row itself says that it ranks others'
    responses: places in a ranking mean nothing without them."""
    name = row["prompt_id"]
    if not found:
        raise InputError(f"{where}: there is no sample with prompt_id {short(name)}; is it from another run?")
    if len(found) > 1:
        raise InputError(
            f"{where}: {len(found)} samples have the prompt_id {short(name)}: whose responses are these? Keep one"
        )
    prompt, given = row.get("prompt"), row.get("responses")
    ids = by_text.get(prompt.strip(), {}) if isinstance(prompt, str) else {}
    if ids and found[0]["prompt_id"] not in ids:
        raise InputError(f"{where}: prompt_id {short(name)} is not that of its prompt, {short(prompt)}; correct one of them")
    if isinstance(given, str) and given.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):
            given = json.loads(given)
    if isinstance(given, list) and given != found[0]["responses"]:
        raise InputError(
            f"{where}: ranks other responses than the sample with prompt_id {short(name)} has; is it from another run?"
        )
    return found[0]


def parse_ranking(text: str, where: str) -> list[list[int]]:
    """Groups of positions from "C > A = D > B" (letters from A), "2 > 0 = 3 > 1" (numbers from 0) or a JSON list."""
    if text.strip().startswith("["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise InputError(f"{where}: ranking {short(text)} is not valid JSON; write it like [[2], [0, 3], [1]]") from None
    groups = [group.split("=") for group in text.split(">")]
    places = [[place.strip() for place in group] for group in groups]
    if all(re.fullmatch(r"\d{1,9}", place) for group in places for place in group):
        return [[int(place) for place in group] for group in places]
    if all(re.fullmatch(r"[A-Za-z]", place) for group in places for place in group):
        return [[ord(place.upper()) - ord("A") for place in group] for group in places]
    raise InputError(f'{where}: ranking {short(text)} is not like "C > A = D > B" or "2 > 0 = 3 > 1"')


def _read_rows(path: str) -> Iterator[tuple[str, dict]]:
    """(where, row) of a JSONL or CSV file."""
    file = Path(path)
    if not file.is_file():
        raise InputError(f"rankings_file: {path} does not exist")
    if file.suffix not in (".jsonl", ".csv"):
        raise InputError(f"rankings_file: {path} is neither .jsonl nor .csv")
    # utf-8-sig and semicolons: spreadsheets save CSV files that way.
    with file.open(encoding="utf-8-sig", newline="" if file.suffix == ".csv" else None) as lines:
        try:
            first = lines.readline()
            lines.seek(0)
            separator = separator_of(file, first)
            rows = csv.DictReader(lines, delimiter=separator) if file.suffix == ".csv" else parse_jsonl(lines, path)
            header = (file.suffix == ".csv" and rows.fieldnames) or []
            if twice := [name for name in header if header.count(name) > 1]:
                raise InputError(f"{path}: has the column {twice[0]!r} twice; name each column once")
            for number, row in enumerate(rows, start=1):
                if None in row:
                    raise InputError(f"{path}, row {number}: has more cells than the header; quote cells with commas")
                yield f"{path}, row {number}", row
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path}: cannot be read ({error}); save it as UTF-8") from None
