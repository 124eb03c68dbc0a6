"""Documents of the wanted languages (langid; Lui and Baldwin 2012), by a model that lies in the package; nothing is fetched.

`python benchmarks/data.py --only language` prints its accuracy beside CLD2's, which is faster and less often right.
"""

from collections.abc import Callable

from llmrecipes.config import InputError, nearest
from llmrecipes.corpus.extras import need

MOST = 2000  # characters that decide


def load_detector(wanted: list[str]) -> Callable[[str], str]:
    """Text -> ISO 639-1 code.

    Raises:
        InputError: one of `wanted` is a code that it never gives, so that all of that language would be dropped.
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
