"""Keeps documents in the wanted languages (langid; Lui and Baldwin 2012); the model is part of the package, no download.

`python benchmarks/data.py --only language` prints its accuracy next to that of CLD2, which is faster but less accurate.
"""

from collections.abc import Callable

from llmrecipes.config import InputError, nearest
from llmrecipes.corpus.extras import need

MOST = 2000  # characters used for the decision


def load_detector(wanted: list[str]) -> Callable[[str], str]:
    """Text -> ISO 639-1 code.

    Raises:
        InputError: one of `wanted` is a code that langid never returns, so all of that language would be dropped.
    """
    langid = need("py3langid", "languages")
    known = {code for code, _ in langid.rank("")}
    if wrong := [code for code in wanted if code not in known]:
        raise InputError(f"languages: there is no {wrong[0]!r}{nearest(wrong[0], known)}; langid knows "
                         f"{', '.join(sorted(known))}")  # fmt: skip
    return lambda text: langid.classify(text[:MOST])[0]


def of_languages(detect: Callable[[str], str], wanted: frozenset[str], text: str) -> tuple[str, str]:
    language = detect(text)
    return text, "" if language in wanted else f"language {language}"
