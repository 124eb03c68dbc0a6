"""Numbers as the report writes them."""

from collections.abc import Sequence

from llmrecipes.metrics import Estimate

BARS, MOST_BARS = "▁▂▃▄▅▆▇█", 24


def number(value: float | None) -> str:
    """Four significant digits, or a whole number from 10,000 on; empty if unknown."""
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:z.4g}"


def duration(seconds: float) -> str:
    """Seconds as text, in seconds, minutes or hours."""
    return (
        f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
    )


def size(size: int) -> str:
    """Bytes as text, in kB, MB or GB."""
    return f"{size / 1e3:.0f} kB" if size < 1e6 else f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"


def estimate(value: dict | None, percent: bool) -> str:
    """ "value [low, high]" of {"value", "low", "high", "n"}, in percent if `percent`."""
    if not value:
        return "–"
    e = Estimate(**value)
    if percent:
        return f"{100 * e.value:.1f} % [{100 * e.low:.1f}, {100 * e.high:.1f}]"
    return f"{number(e.value)} [{number(e.low)}, {number(e.high)}]"


def sparkline(values: Sequence[float]) -> str:
    """A sparkline of `values` (not empty): at most MOST_BARS bars, scaled from the lowest to the highest value."""
    picked = evenly_spaced(list(values), MOST_BARS)
    low, high = min(picked), max(picked)
    return "".join(BARS[round((len(BARS) - 1) * (v - low) / (high - low))] if high > low else BARS[0] for v in picked)


def evenly_spaced(items: list, most: int) -> list:
    """At most `most` of the items, evenly spaced, including the first and the last."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
