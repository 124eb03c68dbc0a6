"""Figures as inline SVG: numbers in, markup out. Text and lines use the page's text colour, to suit light and dark."""

import io
import re
from collections.abc import Sequence

INK, FAINT = "#010203", "#040506"  # placeholders, replaced by the page's text colour, full and faint
COLOURS = ("#3b82c4", "#e0762f", "#3a9d5d", "#c0508f", "#8a6fd1", "#a58a1e", "#2a9d9d", "#b5534a")
WIDTH = 4.8  # inches; with 9-point text it is readable on a phone, whose page is about as wide
MOST_MARKERS = 60  # more would hide the line and bloat the file


def _figure(width: float, height: float):
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams.update({"svg.fonttype": "none", "font.size": 9, "text.parse_math": False, "axes.spines.top": False})
    rcParams.update({"axes.spines.right": False, "axes.edgecolor": FAINT, "axes.labelcolor": INK, "text.color": INK})
    rcParams.update({"xtick.color": INK, "ytick.color": INK, "axes.grid": True, "grid.color": FAINT, "grid.alpha": 0.25})
    rcParams.update({"axes.facecolor": "none", "figure.facecolor": "none", "legend.frameon": False})
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(squeeze=False).ravel()


def _to_svg(figure, name: str) -> str:
    from matplotlib import rcParams

    rcParams["svg.hashsalt"] = name  # ids of several figures on one page must differ
    svg = markup_of(figure)
    svg = re.sub(r' id="(?!m|p|C|i)[^"]*"| id="(?:patch|path|matplotlib)[^"]*"', "", svg)
    svg = svg.replace(INK, "currentColor").replace(FAINT, "currentColor")
    return re.sub(r'<svg ([^>]*?)height="[^"]*"([^>]*?)width="[^"]*"', r"<svg \1\2", svg, count=1)


def markup_of(figure) -> str:
    """The figure as an SVG element, which is the same each time for the same figure."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = buffer.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)


def plot_curves(name: str, curves: dict[str, list[tuple[float, float]]]) -> list[str]:
    """One small plot per measure over optimizer steps."""
    plots = []
    for i, (measure, points) in enumerate(curves.items()):
        figure, axes = _small_plot(measure)
        steps, values = zip(*points, strict=True)
        marker = "." if len(steps) <= MOST_MARKERS else None
        axes.plot(steps, values, color=COLOURS[i % len(COLOURS)], marker=marker, markersize=4, linewidth=1.4)
        plots.append(_to_svg(figure, f"curves {name} {measure}"))
    return plots


def plot_overlaid(measure: str, curves: dict[str, list[tuple[float, float]]]) -> str:
    """One measure over optimizer steps, a line per run."""
    figure, axes = _small_plot(measure)
    for i, (name, points) in enumerate(curves.items()):
        axes.plot(*zip(*points, strict=True), color=COLOURS[i % len(COLOURS)], label=name, linewidth=1.4)
    figure.legend(loc="outside lower center", ncols=6)
    return _to_svg(figure, f"overlaid {measure}")


def plot_estimate_curves(name: str, curves: dict[str, list[tuple[float, dict]]]) -> list[str]:
    """One small plot per measure over optimizer steps, in percent, with its 95 % interval as a band.

    curves: measure -> (step, {"value", "low", "high"} as shares of 1).
    """
    plots = []
    for i, (measure, points) in enumerate(curves.items()):
        figure, axes = _small_plot(measure)
        steps = [step for step, _ in points]
        value, low, high = ([100 * e[key] for _, e in points] for key in ("value", "low", "high"))
        axes.fill_between(steps, low, high, color=COLOURS[i % len(COLOURS)], alpha=0.25, linewidth=0)
        axes.plot(steps, value, color=COLOURS[i % len(COLOURS)], marker=".", markersize=4, linewidth=1.4)
        axes.set_ylim(0, 102)
        plots.append(_to_svg(figure, f"estimate curves {name} {measure}"))
    return plots


def _small_plot(title: str):
    from matplotlib.ticker import MaxNLocator

    figure, (axes,) = _figure(2.9, 1.9)
    axes.ticklabel_format(useOffset=False)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_title(title, size=9)
    return figure, axes


def plot_estimates(name: str, values: dict[str, dict], title: str = "", small: bool = False) -> str:
    """Horizontal bars with their 95 % intervals, in percent; each in its own colour if `small`.

    values: label -> {"value", "low", "high"} (shares of 1).
    """
    figure, (axes,) = _figure(2.9 if small else WIDTH, 0.55 + (0.19 if small else 0.27) * len(values))
    middle, low, high = ([100 * e[key] for e in values.values()] for key in ("value", "low", "high"))
    spread = [
        [max(0, v - a) for v, a in zip(middle, low, strict=True)],
        [max(0, b - v) for v, b in zip(middle, high, strict=True)],
    ]
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(values))] if small else COLOURS[0]
    axes.barh(list(values), middle, color=colours, alpha=0.75)
    axes.errorbar(middle, range(len(values)), xerr=spread, fmt="none", ecolor=INK, elinewidth=0.9, capsize=1.5)
    axes.invert_yaxis()
    axes.set_xlim(0, 102)
    axes.grid(axis="y", visible=False)
    axes.set_title(title, size=9)
    if not small:
        axes.set_xlabel("percent")
    return _to_svg(figure, f"estimates {name} {title}")


def plot_calibration(name: str, curve: list[dict]) -> str:
    """Predicted against observed share of a preference, both from 50 %, with 95 % intervals; the diagonal means calibrated.

    curve: {"predicted", "observed": {"value", "low", "high"}} for each bin.
    """
    figure, (axes,) = _figure(WIDTH, 2.8)
    predicted = [100 * b["predicted"] for b in curve]
    observed = [b["observed"] for b in curve]
    spread = [[100 * (e["value"] - e["low"]) for e in observed], [100 * (e["high"] - e["value"]) for e in observed]]
    axes.plot([50, 100], [50, 100], color=FAINT, linestyle="--", linewidth=1)
    axes.errorbar(
        predicted,
        [100 * e["value"] for e in observed],
        yerr=spread,
        color=COLOURS[0],
        marker="o",
        markersize=4,
        linewidth=1.4,
        elinewidth=0.9,
        capsize=2,
    )
    axes.set_xlim(49, 101)
    axes.set_ylim(0, 102)
    axes.set_xlabel("predicted, percent")
    axes.set_ylabel("observed, percent")
    return _to_svg(figure, f"calibration {name}")


def plot_histograms(name: str, edges: Sequence[float], counts: dict[str, list[int]], label: str) -> str:
    """Histogram outlines, one per name: counts between `edges` (one more edge than counts)."""
    figure, (axes,) = _figure(WIDTH, 2.6)
    for i, (series, heights) in enumerate(counts.items()):
        axes.stairs(heights, edges, fill=True, alpha=0.35, color=COLOURS[i % len(COLOURS)], label=series)
        axes.stairs(heights, edges, color=COLOURS[i % len(COLOURS)], linewidth=1.4)
    axes.set_xlabel(label)
    axes.set_ylabel("responses")
    axes.legend()
    return _to_svg(figure, f"histograms {name}")


def plot_shares(name: str, shares: dict[str, float]) -> str:
    """Shares of 1 as horizontal bars."""
    figure, (axes,) = _figure(WIDTH, 0.5 + 0.26 * len(shares))
    axes.barh(list(shares), [100 * value for value in shares.values()], color=COLOURS[0], alpha=0.8)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("percent")
    return _to_svg(figure, f"shares {name}")
