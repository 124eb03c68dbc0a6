"""What a report consists of, before it is HTML (page.py) or Markdown (markdown.py): texts as they are, unescaped."""

from dataclasses import dataclass, field


@dataclass
class Heading:
    """`mark` is a verdict that stands behind the text: met, missed, healthy, unhealthy or nothing."""

    text: str
    level: int = 3
    mark: str = ""


@dataclass
class Text:
    """`lead`: the words that it opens with, in bold."""

    text: str
    lead: str = ""


@dataclass
class Points:
    items: list[str]


@dataclass
class Flow:
    """A chain from left to right: steps of boxes (title, lines below) beneath each other, an arrow between steps."""

    steps: list[list[tuple[str, list[str]]]]


@dataclass
class Figure:
    """`svg`: markup of plots.py, which has escaped the words in it; several small plots stand beside each other.

    `label`: what it shows, for those who cannot see it.
    """

    svg: str | list[str]
    label: str


@dataclass
class Table:
    """folded: the numbers of the figure above, shown on a click. short: what Markdown shows in place of a long one."""

    head: list[str]
    rows: list[list[str]]
    folded: bool = False
    short: "Table | None" = None


@dataclass
class Said:
    """A question and what was answered to it: (who, text, note) each, in columns beside each other or in lines."""

    question: str
    answers: list[tuple[str, str, str]]
    kind: str = ""
    columns: bool = True


@dataclass
class Section:
    """folded: on the page only its title shows until it is opened."""

    key: str
    title: str
    blocks: list = field(default_factory=list)
    folded: bool = False
