"""Questions with answers, safety prompts and gold-versus-distractor pairs from public sets.

Answered prompts are rows {"prompt": [user message], "completion": [assistant message], "kind", "answer"}: `sft` trains
on the completion; `sample`, `ppo` and `evaluate` take the prompt, and the rule of gold.py reads kind and answer.
`answer` holds the accepted answers with "|" between them; it is empty where there is none (talk, advice, harm).
Pairs are rows {"prompt", "chosen", "rejected"} of messages, for `reward` and `dpo`.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise

from llmrecipes.data.smalltalk.scrub import chat_key, collapse, is_clean

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I'm sorry, I can't help with that. It could hurt someone.",
    "Sorry, I can't help you with this.",
    "I can't help with that, because it could cause harm.",
)
SOUNDS_HARMFUL = re.compile(
    r"\b(kill|murder|shot|shoot|gun|bomb|weapon|war\b|attack|drug|poison|steal|stole|rob\b|bank|death|died|dead|dying|crime"
    r"|criminal|illegal|prison|jail|hit\b|blood|gang|nuclear|virus|explo|hack|password|secret|kidnap|assassin|terror)",
    re.I,
)
# The model has no way to know; these stand in for the answers that its sources do not have.
UNSURE = (
    "I don't know. Please ask a doctor.",
    "I'm not sure. A doctor can tell you more.",
    "I don't know enough about that. Please ask a doctor.",
)


def talk(rows: Iterable[dict]) -> Iterator[dict]:
    """Adjacent turns of chitchat-dataset as message and reply: clean, 3 to 25 words, the reply a sentence.

    `key` is the chat's, as in texts.chats, so that a slice holds out whole chats from both.
    """
    seen = set()
    for row in rows:
        turns = [(turn[0]["sender"], collapse(" ".join(m["text"] for m in turn))) for turn in row["messages"]]
        for (one, said), (other, reply) in pairwise(turns):
            if one != other and _is_fit(said) and _is_fit(reply) and reply[-1] in ".!?" and said not in seen:
                seen.add(said)
                yield _answered(_capital(said), _capital(reply), "chat", []) | {"key": chat_key(row)}


def trivia(rows: Iterable[dict]) -> Iterator[dict]:
    """Questions about the world with short answers (NQ-open): the first answer is the demonstration.

    Innocent questions with a word of the harmful ones in them ("who shot the sheriff") are of kind "lookalike".
    """
    for row in rows:
        question = to_question(row["question"])
        kind = "lookalike" if SOUNDS_HARMFUL.search(question) else "trivia"
        yield _answered(question, to_sentence(row["answer"][0]), kind, row["answer"])


def choice(rows: Iterable[dict]) -> Iterator[dict]:
    """Multiple-choice questions as free questions (OpenBookQA, CommonsenseQA, SIQA): answered by the gold option."""
    for row in rows:
        if row.get("answer"):
            gold = split_options(row["answer"])[0]
            yield _answered(choice_prompt(row), to_sentence(gold), "commonsense", [gold])


def advice(rows: Iterable[dict]) -> Iterator[dict]:
    """Questions about health (HealthSearchQA), which has no answers: the demonstration sends to a doctor."""
    for row in rows:
        question = to_question(row["question"])
        yield _answered(question, _pick(UNSURE, question), "unknowable", [])


def harmful(rows: Iterable[dict]) -> Iterator[dict]:
    """Harmful requests (donotanswer's `prompt`, harmbench's lines): the demonstration refuses."""
    for row in rows:
        for request in [row["prompt"]] if "prompt" in row else row["text"].split("\n"):
            if request.strip():
                yield _answered(collapse(request), _pick(REFUSALS, request), "harmful", [])


def gold_pairs(rows: Iterable[dict]) -> Iterator[dict]:
    """Each multiple-choice question as pairs: the gold option is chosen, each distractor rejected."""
    for row in rows:
        if not row.get("answer") or len(row["question"].split()) < 4:
            continue
        gold = split_options(row["answer"])[0]
        prompt = [{"role": "user", "content": choice_prompt(row)}]
        for option in split_options(row["options"]):
            if option.lower() != gold.lower():
                chosen, rejected = ([{"role": "assistant", "content": to_sentence(x)}] for x in (gold, option))
                yield {"prompt": prompt, "chosen": chosen, "rejected": rejected, "kind": "commonsense"}


def split_options(text: str) -> list[str]:
    """Options of "A. one\\nB. two" without their letters."""
    return [collapse(part) for part in re.split(r"(?:^|\n)\s*[A-Z]\. ", text) if part.strip()]


def to_question(text: str) -> str:
    """`text` with a capital at the beginning and a question mark at the end."""
    text = _capital(collapse(text))
    return text if text.endswith(("?", ".", "!")) else text + "?"


def to_sentence(text: str) -> str:
    """`text` with a capital at the beginning and a full stop at the end."""
    text = _capital(collapse(text))
    return text if text.endswith((".", "!", "?")) else text + "."


def choice_prompt(row: dict) -> str:
    """Question of a multiple-choice row, with its passage before it; an unfinished sentence becomes a question."""
    question = collapse(row["question"])
    if not question.endswith("?"):
        question = f"How does this go on: {question.rstrip('.')} ..."
    return _capital(f"{collapse(row['passage'])} {question}" if row.get("passage") else question)


def _answered(prompt: str, completion: str, kind: str, answers: list[str]) -> dict:
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": completion}],
        "kind": kind,
        "answer": "|".join(collapse(answer) for answer in answers),
    }


def _is_fit(text: str) -> bool:
    size_fits = 3 <= len(text.split()) <= 25 and len(text) <= 160
    return size_fits and is_clean(text) and text[0].isalnum() and text.isascii()


def _capital(text: str) -> str:
    text = re.sub(r"\bi('m|'ll|'ve|'d)?\b", lambda found: found[0].capitalize(), text)
    return text[:1].upper() + text[1:]


def _pick(texts: tuple[str, ...], key: str) -> str:
    """One of `texts`, the same for the same `key` in every run."""
    return texts[hashlib.sha256(key.encode()).digest()[0] % len(texts)]
