"""Repairs broken characters (ftfy; Speer 2019): mojibake, HTML entities, control characters, line endings."""

import re
from collections import Counter
from collections.abc import Callable

from llmrecipes.corpus.extras import need

# What ftfy never changes: plain ASCII without entities, and letters and punctuation of European prose that are no sign of
# mojibake by themselves. Most lines consist of these, and skipping them gives most of the step's speed.
PLAIN = re.compile(r"[\t\x20-\x25\x27-\x7e]*")


def load_repair() -> Callable[[str], str]:
    """Text -> text."""
    ftfy = need("ftfy", "repair")
    config = ftfy.TextFixerConfig(uncurl_quotes=False, explain=False)
    in_tags = config._replace(unescape_html=False)  # ftfy's own rule, which it applies to the whole text

    def repair(text: str) -> str:
        if PLAIN.fullmatch(text):
            return text
        text = re.sub(r"\r\n?|[\u2028\u2029\u0085]", "\n", text)
        how = in_tags if "<" in text else config
        return "\n".join(line if PLAIN.fullmatch(line) else ftfy.fix_text(line, how) for line in text.split("\n"))

    return repair


def mended(repair: Callable[[str], str], changed: Counter, text: str) -> tuple[str, str]:
    """The repaired text; empty texts are dropped."""
    new = repair(text)
    changed["repaired"] += new != text
    return new, "" if new.strip() else "nothing is left"
