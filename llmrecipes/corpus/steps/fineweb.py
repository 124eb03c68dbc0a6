"""FineWeb's rules (Penedo et al. 2024, arXiv 2406.17557, section 3.6), for web pages."""

from llmrecipes.corpus.hashing import tokens_of
from llmrecipes.corpus.steps.gopher import _repeated

# End marks of the most common scripts; datatrove lists about a hundred more.
ENDS = tuple(".!?\u061f\u06d4\u0964\u0965\u203c\u203d\u2047\u3002\uff01\uff0e\uff1f\uff61\u0589\u104b\u1362\u17d4")


def fineweb(text: str) -> tuple[str, str]:
    """The step: (text, why it is dropped or "")."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return text, "nothing is left"
    if sum(line.endswith(ENDS) for line in lines) / len(lines) < 0.12:
        return text, "less than 12 % of lines end in a mark"
    if sum(len(line) <= 30 for line in lines) / len(lines) > 0.67:
        return text, "more than 67 % of lines are of 30 characters or fewer"
    if _repeated(lines)[1] / len(text.replace("\n", "")) > 0.01:
        return text, "repeated lines are more than 1 % of the text"
    if "\n" in text and text.count("\n") > 0.3 * max(1, len(tokens_of(text))):
        return text, "more than 0.3 ends of lines a word"
    return text, ""
