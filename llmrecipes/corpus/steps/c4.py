"""C4's rules (Raffel et al. 2020, arXiv 1910.10683, section 2.2), with those found only in its code. For prose only: they
drop lines, and documents with a curly bracket, so they do not suit code or chats.

The list of bad words is left to `blocked_words`; sentences are counted by their end marks.
"""

import re

CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)")
POLICY = re.compile("terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies")


def c4(text: str) -> tuple[str, str]:
    """The step: (the lines that are kept, why the document is dropped or "")."""
    kept, sentences = [], 0
    for line in text.splitlines():
        line = line.strip()
        if len(line) > 1000 and max(map(len, line.split())) > 1000:
            continue
        words = line.split(None, 2)
        if "[" in line:
            line = CITATION.sub("", line)
        if not line.endswith((".", "?", "!", '"', "'")) or line.endswith("...") or len(words) < 3:
            continue
        small = line.lower()
        if "lorem ipsum" in small:
            return text, "lorem ipsum"
        if "javascript" in small:
            continue
        if "{" in line:
            return text, "a curly bracket"
        if POLICY.search(small):
            continue
        sentences += max(1, len(SENTENCE_END.findall(line)))
        kept.append(line)
    if sentences < 5:
        return text, "fewer than 5 sentences"
    return "\n".join(kept), ""
