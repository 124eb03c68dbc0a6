"""Rankings from a file: rankings.jsonl or a CSV, matched with the samples by prompt_id."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from llmrecipes.config import InputError
from llmrecipes.formats import check_ranking, parse_jsonl


def read_rankings(path: str, samples: list[dict]) -> list[dict]:
    """Samples with their rankings, one row for each prompt and annotator.

    The file has `prompt_id`, `ranking` and maybe `annotator`. A ranking is a list of groups, best first
    ([[2], [0, 3], [1]]), or text with letters or numbers: "C > A = D > B", "2 > 0 = 3 > 1". Responses may be left out;
    they give no pair. Samples nobody ranked are left out.

    Raises:
        InputError: file missing or empty, a row broken, a prompt unknown, or ranked twice by one annotator.
    """
    by_id = {row["prompt_id"]: row for row in samples}
    ranked, seen = [], set()
    for where, row in _read_rows(path):
        missing = [column for column in ("prompt_id", "ranking") if not row.get(column)]
        if missing:
            raise InputError(f"{where}: columns are {', '.join(row)}; expected prompt_id, ranking (and annotator)")
        sample = by_id.get(row["prompt_id"])
        if sample is None:
            raise InputError(f"{where}: there is no sample with prompt_id {row['prompt_id']}; is it of another run?")
        annotator = row.get("annotator") or "unnamed"
        if (row["prompt_id"], annotator) in seen:
            raise InputError(f"{where}: {annotator} ranked prompt {row['prompt_id']} already; keep one of the rows")
        seen.add((row["prompt_id"], annotator))
        ranking = parse_ranking(row["ranking"], where) if isinstance(row["ranking"], str) else row["ranking"]
        new = sample | {"ranking": ranking, "annotator": annotator}
        check_ranking(new, where)
        ranked.append(new)
    if not ranked:
        raise InputError(f"{path}: is empty; it should hold rows with prompt_id and ranking")
    return ranked


def parse_ranking(text: str, where: str) -> list[list[int]]:
    """Groups of positions from "C > A = D > B" (letters from A) or "2 > 0 = 3 > 1" (numbers from 0)."""
    groups = [group.split("=") for group in text.split(">")]
    places = [[place.strip() for place in group] for group in groups]
    if all(re.fullmatch(r"\d+", place) for group in places for place in group):
        return [[int(place) for place in group] for group in places]
    if all(re.fullmatch(r"[A-Za-z]", place) for group in places for place in group):
        return [[ord(place.upper()) - ord("A") for place in group] for group in places]
    raise InputError(f'{where}: ranking {text!r} is not like "C > A = D > B" or "2 > 0 = 3 > 1"')


def _read_rows(path: str) -> Iterator[tuple[str, dict]]:
    """(where, row) of a JSONL or CSV file."""
    file = Path(path)
    if not file.is_file():
        raise InputError(f"rankings_file: {path} does not exist")
    if file.suffix not in (".jsonl", ".csv"):
        raise InputError(f"rankings_file: {path} is neither .jsonl nor .csv")
    with file.open(encoding="utf-8", newline="" if file.suffix == ".csv" else None) as lines:
        rows = csv.DictReader(lines) if file.suffix == ".csv" else parse_jsonl(lines, path)
        for number, row in enumerate(rows, start=1):
            yield f"{path}, row {number}", row
