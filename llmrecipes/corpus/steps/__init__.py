"""Steps that process one document at a time: text -> (text, why it is dropped or "").

A step is a plain function; `build_steps` returns those that a config selects, in the order in which they run.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from llmrecipes.corpus.arguments import StepArguments
from llmrecipes.corpus.steps.blocklist import load_blocked, without_blocked
from llmrecipes.corpus.steps.c4 import CITATION, c4
from llmrecipes.corpus.steps.fineweb import fineweb
from llmrecipes.corpus.steps.gopher import gopher, gopher_repetition
from llmrecipes.corpus.steps.language import load_detector, of_languages
from llmrecipes.corpus.steps.repair import load_repair, mended
from llmrecipes.corpus.steps.scrub import scrubbed

Step = Callable[[str], tuple[str, str]]
RULES = {"gopher_repetition": gopher_repetition, "gopher": gopher, "c4": c4, "fineweb": fineweb}


def build_steps(steps: StepArguments, changed: Counter) -> list[tuple[str, Step]]:
    """(name, step) pairs in order; the steps count in `changed` what they alter ("email", "repaired").

    Raises:
        InputError: a package or file that a step needs is missing.
    """
    found: list[tuple[str, Step]] = []
    if steps.repair:
        found.append(("repair", partial(mended, load_repair(), changed)))
    if steps.languages:
        found.append(("languages", partial(of_languages, load_detector(steps.languages), frozenset(steps.languages))))
    found += [(name, RULES[name]) for name in steps.quality]
    if steps.blocked_words:
        found.append(("blocked_words", partial(without_blocked, load_blocked(steps.blocked_words))))
    if steps.scrub:
        found.append(("scrub", partial(scrubbed, tuple(steps.scrub), changed)))
    return found


def rewriting(steps: StepArguments) -> Callable[[str], str]:
    """What the steps make of a passage, whether or not they would keep a document of it alone."""
    chain = [step for _, step in build_steps(replace(steps, languages=[], quality=[], blocked_words=None), Counter())]
    if "c4" in steps.quality:
        chain.append(lambda text: (CITATION.sub("", text), ""))

    def rewrite(text: str) -> str:
        for step in chain:
            text, _ = step(text)
        return text

    return rewrite
