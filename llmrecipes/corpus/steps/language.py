"""Documents of the wanted languages (CLD2, whose model lies in the package `pycld2`; nothing is fetched).

`python benchmarks/data.py --only language` prints its accuracy beside py3langid's; LOG.md holds the figures.
"""

import re
from collections.abc import Callable

from llmrecipes.corpus.extras import need

MOST = 20_000  # characters that decide
UNREADABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")  # CLD2 refuses a text with any of them


def load_detector() -> Callable[[str], str]:
    """Text -> ISO 639-1 code, "un" where it cannot be said."""
    cld2 = need("pycld2", "languages")

    def detect(text: str) -> str:
        try:
            return cld2.detect(UNREADABLE.sub(" ", text[:MOST]))[2][0][1]
        except cld2.error:
            return "un"

    return detect


def of_languages(detect: Callable[[str], str], wanted: frozenset[str], text: str) -> tuple[str, str]:
    language = detect(text)
    return text, "" if language in wanted else f"language {language}"
