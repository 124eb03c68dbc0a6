"""The building blocks of a report, before they become HTML (page.py) or Markdown (markdown.py); texts are unescaped."""

from dataclasses import dataclass, field


@dataclass
class Heading:
    """`mark` is a verdict shown after the text: met, missed, healthy, unhealthy or nothing."""

    text: str
    level: int = 3
    mark: str = ""


@dataclass
class Text:
    """`lead`: opening words, in bold."""

    text: str
    lead: str = ""


@dataclass
class Points:
    """A list with bullets."""

    items: list[str]


@dataclass
class Flow:
    """A chain from left to right: each step is a column of boxes (title, lines below), with arrows between steps."""

    steps: list[list[tuple[str, list[str]]]]


@dataclass
class Figure:
    """`svg`: markup from plots.py, in which text is already escaped; several small plots are shown side by side.

    `label`: a description for readers who cannot see the figure.
    """

    svg: str | list[str]
    label: str


@dataclass
class Table:
    """folded: the numbers of the figure above, shown on a click. short: what Markdown shows instead of a long table."""

    head: list[str]
    rows: list[list[str]]
    folded: bool = False
    short: "Table | None" = None


@dataclass
class Said:
    """A question and its answers, each (who, text, note), side by side in columns or one per line."""

    question: str
    answers: list[tuple[str, str, str]]
    kind: str = ""
    columns: bool = True


@dataclass
class Section:
    """folded: the page shows only its title until it is opened."""

    key: str
    title: str
    blocks: list = field(default_factory=list)
    folded: bool = False
