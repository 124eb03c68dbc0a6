"""Scores side by side: a table for the terminal, and some answers to read."""

from llmrecipes.formats import prompt_text
from llmrecipes.measures import NAMED, is_share, with_arrow
from llmrecipes.metrics import ALPHA, Estimate, describe_tests

LONGEST = 240  # characters of an answer


def format_table(
    scores: dict[str, dict[str, Estimate]], tasks: set[str] = frozenset(), baseline: str = "", p_values: dict | None = None
) -> str:
    """A line per measure, a column per model: the value ± the larger side of its 95 % interval; ↑ or ↓ is the better way.

    p_values: model -> measure -> p of its difference from `baseline`; small ones are marked, as a last line explains.
    """
    names = list(scores)
    measures = list(dict.fromkeys(measure for by_measure in scores.values() for measure in by_measure))
    width = max(map(len, map(with_arrow, [*measures, "measure"]))) + 2
    lines = ["measure".ljust(width) + "".join(f"{name:>18}" for name in names) + f"{'n':>8}"]
    for measure in measures:
        cells = []
        for name in names:
            estimate = scores[name].get(measure)
            cell = _cell(estimate, is_share(measure) or measure in tasks) if estimate else "-"
            differs = p_values and p_values.get(name, {}).get(measure, 1.0) < ALPHA
            cells.append(cell + (("*" if differs else " ") if p_values else ""))
        counts = sorted({scores[name][measure].n for name in names if measure in scores[name]})
        n = str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
        lines.append(with_arrow(measure).ljust(width) + "".join(f"{cell:>18}" for cell in cells) + f"{n:>8}")
    return "\n".join(lines + ([describe_tests(baseline, p_values)] if p_values else []))


def format_changes(scores: dict[str, dict[str, Estimate]], baseline: str, p_values: dict[str, dict[str, float]]) -> str:
    """A line per model: in which measures it is better or worse than `baseline`, among the differences marked in the
    table."""
    lines = []
    for name, tests in p_values.items():
        better, worse = [], []
        for measure, p in tests.items():
            change = scores[name][measure].value - scores[baseline][measure].value
            if p < ALPHA and change:
                is_better = (change > 0) == (measure not in NAMED or NAMED[measure].better == "up")
                (better if is_better else worse).append(measure)
        lines.append(f"{name} against {baseline}: better: {', '.join(better) or '–'}; worse: {', '.join(worse) or '–'}")
    return "\n".join(lines)


def _cell(estimate: Estimate, is_share: bool) -> str:
    side = max(estimate.high - estimate.value, estimate.value - estimate.low)
    if is_share:
        return f"{100 * estimate.value:.1f} ± {100 * side:.1f} %"
    digits = 3 if abs(estimate.value) < 10 else 1
    return f"{estimate.value:z.{digits}f} ± {side:.{digits}f}" if estimate.value < 1e6 else f"{estimate.value:.2e}"


def format_answers(rows: list[dict], answers: dict[str, list[str]], count: int) -> str:
    """`count` questions, of as many different kinds as possible, each followed by all models' answers."""
    by_kind: dict = {}
    for i, row in enumerate(rows):
        by_kind.setdefault(row.get("kind"), []).append(i)
    order = [i for turn in range(count) for numbers in by_kind.values() for i in numbers[turn : turn + 1]]
    width = max(map(len, answers)) + 2 if answers else 0
    lines = []
    for i in order[:count]:
        lines.append(f"\n> {prompt_text(rows[i]['prompt'])}")
        lines += [f"  {name + ':':<{width}}{_one_line(texts[i])}" for name, texts in answers.items()]
    return "\n".join(lines)


def _one_line(text: str) -> str:
    text = " ".join(text.split()) or "(nothing)"
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
