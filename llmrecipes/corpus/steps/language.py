"""Keeps documents in the wanted languages (langid; Lui and Baldwin 2012); the model is part of the package, no download.

`python benchmarks/data.py --only language` prints its accuracy next to that of CLD2, which is faster but less accurate.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy

from llmrecipes.config import InputError, nearest
from llmrecipes.corpus.extras import need

MOST = 2000  # characters used for the decision
LONGEST = 6  # bytes in a feature of langid's model (a test counts them)


def load_detector(wanted: list[str]) -> Callable[[str], str]:
    """Text -> ISO 639-1 code.

    Raises:
        InputError: one of `wanted` is a code that langid never returns, so all of that language would be dropped.
    """
    langid = need("py3langid", "languages")
    known = {code for code, _ in langid.rank("")}
    if wrong := [code for code in wanted if code not in known]:
        raise InputError(
            f"languages: there is no {wrong[0]!r}{nearest(wrong[0], known)}; langid knows {', '.join(sorted(known))}"
        )
    return _detector(langid.langid._get_identifier())


@lru_cache(maxsize=1)
def _detector(model) -> Callable[[str], str]:
    """What `model.classify` returns, in a fifth of its time: all bytes at once instead of one after the other.

    langid's automaton (Aho and Corasick 1975) looks for byte strings of at most LONGEST bytes, so its state depends on as
    many bytes as that: it takes LONGEST steps, at all positions of the text together.
    """
    moves = numpy.frombuffer(model.tk_nextmove, numpy.uint32)  # [rows, 256] state after a byte
    row = numpy.array(model.tk_row, numpy.intp) << 8  # of a state in `moves`
    feature = numpy.array(model.tk_output, numpy.int32)  # of a state; -1: none
    weights = model.nb_ptc.astype(numpy.float32)  # [features, languages]; float16 would be converted for each text
    after_two = moves[row[moves[row[0] : row[0] + 256]][:, None] + numpy.arange(256)].ravel()

    def detect(text: str) -> str:
        # Zeros in front: no string looked for holds one, so they leave the automaton where it begins.
        data = numpy.frombuffer(bytes(LONGEST - 1) + model._encode(text[:MOST]), numpy.uint8).astype(numpy.intp)
        count = len(data) - LONGEST + 1
        states = after_two.take((data[:count] << 8) + data[1 : count + 1])
        for back in range(2, LONGEST):
            states = moves.take(row.take(states) + data[back : count + back])
        found = feature.take(states)
        found, times = numpy.unique(found[found >= 0], return_counts=True)
        if not len(found):
            return model.nb_classes[0]
        scores = numpy.log1p(times.astype(numpy.float32)) @ weights.take(found, axis=0) + model.nb_pc
        return model.nb_classes[int(scores.argmax())]

    return detect


def of_languages(detect: Callable[[str], str], wanted: frozenset[str], text: str) -> tuple[str, str]:
    """The step: (text, why it is dropped or "")."""
    language = detect(text)
    return text, "" if language in wanted else f"language {language}"
