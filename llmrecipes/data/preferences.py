"""Readers of foreign preference sets: their rows in, preference pairs out; chosen by a source's `reader:` key.

| reader | set | row |
|---|---|---|
| hh_rlhf | Anthropic's hh-rlhf (arXiv 2204.05862) | chosen, rejected: "\\n\\nHuman: ... \\n\\nAssistant: ..." |
| ultrafeedback | openbmb/UltraFeedback (arXiv 2310.01377) | instruction, completions with `overall_score` |
| ultrafeedback_ratings | the same | ... by the mean `Rating` of the annotated aspects |
| rankings | rankings.jsonl, the compare page's votes.jsonl | prompt, responses, ranking |
| argilla | exports of Argilla 1 and 2 | fields of texts; ranking questions, or one rating question a text |

Pairs are {"prompt_id", "prompt", "chosen", "rejected"} of messages with `margin` (where there are scores or ranks) and
`weight` (each prompt counts once). K answers give all pairs that are not ties. Rows without a judgement are left out;
unreadable rows raise InputError("row N: ..."), to which the source's path is added.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from statistics import mean

from llmrecipes.config import InputError
from llmrecipes.data.tables import say
from llmrecipes.formats import prompt_id, rankings_to_pairs, weigh_pairs
from llmrecipes.turns import split_common_prompt, split_transcript

PROMPT_FIELDS = ("prompt", "instruction", "input", "question", "query", "context", "text")
NUMBER = re.compile(r"\d+(?!.*\d)")


def hh_rlhf(rows: Iterable[Mapping]) -> Iterator[dict]:
    """Transcripts -> pairs whose prompt is the common prefix of turns. Equal sides, of which the set has some, and answers
    without text are left out, with a message: they hold no preference to learn."""
    left_out = 0
    for number, row in enumerate(rows, start=1):
        where = f"row {number}"
        if not all(isinstance(row.get(side), str) for side in ("chosen", "rejected")):
            raise InputError(f"{where}: columns are {', '.join(row)}; expected the transcripts chosen and rejected")
        if row["chosen"].strip() == row["rejected"].strip():
            left_out += 1
            continue
        sides = [split_transcript(row[side].rstrip(), where) for side in ("chosen", "rejected")]
        pair = dict(zip(("prompt", "chosen", "rejected"), split_common_prompt(*sides, where), strict=True))
        if pair["prompt"][-1]["role"] != "user":
            # Both continue the assistant's last turn: it belongs to the answers, not to the prompt.
            head = pair["prompt"].pop()
            pair |= {side: [head, *pair[side]] for side in ("chosen", "rejected")}
        answers = [pair["chosen"], pair["rejected"]]
        if not pair["prompt"] or any(side[-1]["role"] != "assistant" or not side[-1]["content"] for side in answers):
            left_out += 1
            continue
        carried = {key: value for key, value in row.items() if key not in pair}
        yield {"prompt_id": prompt_id(pair["prompt"]), **pair, "weight": 1.0, **carried}
    if left_out:
        say(f"hh_rlhf: left out {left_out} pairs whose answers are equal or empty")


def rankings(rows: Iterable[Mapping]) -> Iterator[dict]:
    """Rankings -> all their pairs that are not ties."""
    for number, row in enumerate(rows, start=1):
        missing = [column for column in ("prompt", "responses", "ranking") if not row.get(column)]
        if missing:
            raise InputError(f"row {number}: columns are {', '.join(row)}; {missing[0]} is missing or empty")
        yield from weigh_pairs(rankings_to_pairs({"prompt_id": prompt_id(row["prompt"]), **row}, f"row {number}"))


def ultrafeedback(rows: Iterable[Mapping]) -> Iterator[dict]:
    """Completions with scores -> pairs by `overall_score`, or by the mean rating if a completion has none."""

    def score(completion: Mapping, where: str) -> float | None:
        overall = _number(completion.get("overall_score"), where)
        return _mean_rating(completion, where) if overall is None else overall

    return _scored(rows, score)


def ultrafeedback_ratings(rows: Iterable[Mapping]) -> Iterator[dict]:
    """Completions with scores -> pairs by the mean Rating of the aspects (instruction_following, honesty, ...), which
    contradicts the set's own overall_score in some rows."""
    return _scored(rows, _mean_rating)


def argilla(rows: Iterable[Mapping]) -> Iterator[dict]:
    """Records of Argilla -> pairs, from each annotator's submitted ranking, or from their ratings of the single texts.

    Reads FeedbackDataset exports of Argilla 1 (question: [{"user_id", "value", "status"}]) and records of Argilla 2, nested
    (`fields`, `responses`) or flattened (`<question>.responses`). The prompt is the field named prompt, instruction, input,
    question, query, context or text; `response-2` is rated by the question whose name has its number (`rating-2`,
    `response-2-rating`). Suggestions are not judgements and are ignored.
    """
    for number, row in enumerate(rows, start=1):
        where = f"row {number}"
        fields, questions = _argilla_parts(row, where)
        name = next((name for name in PROMPT_FIELDS if isinstance(fields.get(name), str)), None)
        if name is None:
            raise InputError(
                f"{where}: has no prompt; its fields are {', '.join(fields) or 'none'}, expected one of "
                f"{', '.join(PROMPT_FIELDS)}"
            )
        prompt = [{"role": "user", "content": fields[name]}]
        pairs = []
        for annotator, ranking, texts, scores in _argilla_judgements(fields, questions, name, where):
            new = {"prompt_id": prompt_id(prompt), "prompt": prompt, "responses": texts, "ranking": ranking}
            new |= {"annotator": annotator} | ({"scores": scores} if scores else {})
            pairs += rankings_to_pairs(new, where)
        yield from weigh_pairs(pairs)


def _scored(rows: Iterable[Mapping], score: Callable[[Mapping, str], float | None]) -> Iterator[dict]:
    """Pairs of each row's completions by score; completions without a score give no pair."""
    for number, row in enumerate(rows, start=1):
        where = f"row {number}"
        instruction, completions = row.get("instruction", row.get("prompt")), row.get("completions")
        if not isinstance(instruction, str) or not isinstance(completions, list):
            raise InputError(f"{where}: columns are {', '.join(row)}; expected instruction and completions")
        texts, scores = [], []
        for place, completion in enumerate(completions, start=1):
            text = completion.get("response") if isinstance(completion, Mapping) else None
            if not isinstance(text, str):
                raise InputError(f"{where}: completion {place} has no text `response`")
            found = score(completion, f"{where}, completion {place}")
            if found is not None:
                texts.append(text)
                scores.append(found)
        prompt = [{"role": "user", "content": instruction}]
        new = {"prompt_id": prompt_id(prompt), "prompt": prompt, "responses": texts, "scores": scores}
        new |= {"ranking": _order(scores)} | ({"source": row["source"]} if row.get("source") else {})
        yield from weigh_pairs(rankings_to_pairs(new, where))


def _mean_rating(completion: Mapping, where: str) -> float | None:
    aspects = completion.get("annotations") or {}
    if not isinstance(aspects, Mapping):
        raise InputError(f"{where}: `annotations` must be an object of aspects")
    # An aspect is annotated once, or several times in a list.
    notes = [note for value in aspects.values() for note in (value if isinstance(value, list) else [value])]
    ratings = [_number((note or {}).get("Rating"), where) for note in notes]
    return mean(found) if (found := [r for r in ratings if r is not None]) else None


def _number(value: object, where: str) -> float | None:
    """A score, written as number or text in the sets; None for a missing one ("N/A", "")."""
    if value is None or isinstance(value, str) and value.strip().lower() in ("", "n/a", "none", "nan"):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{where}: score {value!r} is not a number") from None
    return None if number != number else number


def _order(scores: list[float]) -> list[list[int]]:
    """Places by score, best first, equal ones together."""
    levels = sorted(set(scores), reverse=True)
    return [[i for i, score in enumerate(scores) if score == level] for level in levels]


def _argilla_parts(row: Mapping, where: str) -> tuple[dict, dict]:
    """(field -> text, question -> [{"user_id", "value"}] of submitted responses)."""
    if isinstance(row.get("fields"), Mapping):
        fields, answered = dict(row["fields"]), row.get("responses") or {}
        if isinstance(answered, list):  # Argilla 1's own records: one entry an annotator
            entries = [
                (name, {**entry, "value": part.get("value")})
                for entry in answered
                for name, part in (entry.get("values") or {}).items()
            ]
            answered = {name: [part for other, part in entries if other == name] for name, _ in entries}
        questions = dict(answered)
    else:
        fields = {key: value for key, value in row.items() if isinstance(value, str)}
        questions = {key.removesuffix(".responses"): _zip_flat(row, key) for key in row if key.endswith(".responses")}
        questions |= {
            key: value
            for key, value in row.items()
            if isinstance(value, (list, Mapping))
            and "." not in key
            and not key.endswith(("-suggestion", "suggestion-metadata"))
            and key != "metadata"
        }
    return fields, {name: _submitted(value, f"{where}, {name}") for name, value in questions.items()}


def _zip_flat(row: Mapping, key: str) -> list[dict]:
    values = row[key] or []
    users, status = (row.get(f"{key}.{part}") or [None] * len(values) for part in ("users", "status"))
    return [{"user_id": u, "value": v, "status": s} for u, v, s in zip(users, values, status, strict=False)]


def _submitted(answers: object, where: str) -> list[dict]:
    if isinstance(answers, Mapping):  # a sequence of structs, which `datasets` transposes
        columns = {key: value for key, value in answers.items() if isinstance(value, list)}
        answers = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if not isinstance(answers, list):
        raise InputError(f"{where}: expected a list of responses")
    answers = [answer for answer in answers if isinstance(answer, Mapping) and answer.get("value") is not None]
    return [answer for answer in answers if answer.get("status") in (None, "submitted")]


def _argilla_judgements(fields: dict, questions: dict, prompt: str, where: str) -> Iterator[tuple]:
    """(annotator, ranking, texts, scores or None) for each annotator of each ranking, else of the ratings together."""
    ratings: dict[str, dict[str, float]] = {}
    ranked = False
    for question, answers in questions.items():
        for answer in answers:
            annotator = str(answer.get("user_id") or "unnamed")
            value = answer["value"]
            if isinstance(value, (list, Mapping)):
                groups = _argilla_ranks(value, f"{where}, {question}")
                if groups is None:
                    continue  # a question of labels or spans
                names = [name for group in groups for name in group]
                missing = [name for name in names if not isinstance(fields.get(name), str)]
                if missing:
                    raise InputError(
                        f"{where}, {question}: ranks `{missing[0]}`, which is not a field of the record; "
                        f"it has {', '.join(fields)}"
                    )
                ranked = True
                places = {name: place for place, name in enumerate(names)}
                ranking = [[places[name] for name in group] for group in groups]
                yield annotator, ranking, [fields[name] for name in names], None
            elif isinstance(value, (int, float)) and (digits := NUMBER.search(question)):
                target = next(
                    (
                        name
                        for name in fields
                        if name != prompt and (found := NUMBER.search(name)) and int(found[0]) == int(digits[0])
                    ),
                    None,
                )
                if target is None:
                    raise InputError(f"{where}: rates number {digits[0]} in `{question}`, but no field has that number")
                ratings.setdefault(annotator, {})[target] = float(value)
    if not ranked:
        for annotator, found in ratings.items():
            scores = list(found.values())
            yield annotator, _order(scores), [fields[name] for name in found], scores


def _argilla_ranks(value: object, where: str) -> list[list[str]] | None:
    """Groups of field names, best first, of [{"rank": 1, "value": "response-2"}, ...] (Argilla 1, ties share a rank) or
    ["response-2", "response-1"] (Argilla 2); None for anything else."""
    if isinstance(value, Mapping) and isinstance(value.get("rank"), list):
        value = [{"rank": r, "value": v} for r, v in zip(value["rank"], value.get("value") or [], strict=False)]
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(name, str) for name in value):
        return [[name] for name in value]
    if not all(isinstance(entry, Mapping) and "value" in entry for entry in value):
        return None
    if not all(isinstance(entry.get("rank"), int) for entry in value):
        raise InputError(f"{where}: an entry of the ranking has no number `rank`")
    ranks = sorted({entry["rank"] for entry in value})
    return [[entry["value"] for entry in value if entry["rank"] == rank] for rank in ranks]
