"""Readers of `configs/finetune`: public sets of the package index, and safety demonstrations written for this project.

| reader | reads | gives |
|---|---|---|
| instructions | alpaca rows | demonstrations that fit a short context |
| refusals | harmful requests (contrast.tsv, donotanswer, harmbench) | a demonstration each that declines, in varied words |
| harmless | contrast.tsv: requests that share a verb or a frame with harmful ones | prompts, for the model's own answers |
| lookalikes | lookalikes.tsv: harmless questions that sound harmful, with answers | demonstrations that help |
| own_answers | samples of the model itself, of `sample` | demonstrations: what it says to harmless requests anyway |
| refusal_pairs | harmful requests, or the model's samples | pairs: declining > that answer, else an empty promise of help |
| answer_pairs | alpaca rows, lookalikes.tsv or the model's samples | pairs: the answer > declining |
| contrast_pairs | contrast.tsv | pairs: declining > an empty promise of help, and the reverse for harmless requests |

contrast.tsv sets harmful and harmless requests of one verb against each other (after XSTest, Röttger et al. 2023,
arXiv 2308.01263): "kill {}" with "my neighbour" on one side and "a Python process that hangs" on the other. A row without a
harmful side is of every day.

Demonstrations are rows {"prompt": [message], "completion": [message], "kind"}; `sample` and `ppo` take the prompts alone.
The questions that `configs/english` asks are for measuring: rows that ask much the same are left out (`is_test_question`).
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from functools import cache

from llmrecipes.data.english.behaviours import question_rows

# In characters. Rows are short so that two CPU cores process many in minutes; whether to decline is learned from an
# answer's first words anyway.
LONGEST_ANSWER, LONGEST_QUESTION = 260, 300
# Harmful and harmless questions use the same frames, so that only their content distinguishes them.
ASKS = re.compile(
    r"(?:(?:how (?:do|can|would|could|should) (?:i|you|one)|how to|what is (?:the|a) (?:best|easiest|good|subtle) way to"
    r"|what's the best way to|(?:please )?(?:tell|show) me how to|(?:please )?help me|explain how (?:to|i can)"
    r"|give me instructions: i need to|can you (?:help|assist) me|can you (?:tell|teach|show) me how to"
    r"|(?:give|provide|write) (?:me )?(?:detailed )?(?:step-by-step )?instructions (?:for|on) how to)) ([a-z].*)",
    re.I,
)
FRAMES = (
    "How do I {}?",
    "How can I {}?",
    "How would I {}?",
    "Tell me how to {}.",
    "Show me how to {}.",
    "Help me {}.",
    "Please help me {}.",
    "Explain to me how to {}.",
    "Could you explain how to {}?",
    "Can you teach me to {}?",
    "Write instructions on how to {}.",
    "Give me a few steps to {}.",
    "What is the best way to {}?",
    "What do I have to do to {}?",
    "I want to {}. How do I do that?",
    "I'd like to {}. How do I go about it?",
    "I need to {}. Any advice?",
    "I plan to {}. Tell me how.",
)
OPENINGS = (
    "I'm sorry, but I can't help with that.",
    "Sorry, I can't help you with this.",
    "I can't help with that.",
    "I won't help with this request.",
    "I'm sorry, but I won't do that.",
    "No, I can't help you do that.",
    "I have to decline this request.",
    "I'm not able to help with that.",
    "That is something I can't help with.",
    "I can't assist with this.",
)
# Why, and what to do instead: the first theme whose words occur in the request, otherwise the last.
THEMES = (
    (r"suicid|self-harm|self harm|cut myself|starve myself|hurt myself|kill myself|end my life|my own life",
     "I'm worried about you, and you do not have to go through this alone.",
     "Please talk to somebody you trust, or call a crisis line or your local emergency number now."),
    (r"hack|password|malware|virus|phish|spyware|ransomware|keylog|spam|script|ddos|account|network|surveillance|privacy",
     "It would break into other people's systems or privacy.",
     "I'm glad to explain how to protect your own devices and accounts."),
    (r"drug|cocaine|heroin|meth\b|opioid|high on|pills|marijuana|fentanyl|cannabis|ecstasy|mdma|ghb",
     "It is dangerous, and it is against the law.",
     "If you or a friend want to stop using drugs, a doctor or a counselling centre can help."),
    (r"bomb|explos|weapon|gun\b|guns\b|poison|kill|murder|attack|shoot|terror|nerve|sarin|ricin|toxin|violen|torture|hurt",
     "People could be hurt or die.",
     "If somebody is in danger, please call the police or your local emergency number."),
    (r"^(why|is it true|aren't|do|does|are) |race|racis|sexis|gender|women|gay|black|white|muslim|jew|hindu|immigrant"
     r"|stereotyp|slur|insult|\bhate|disabled|disabilit|offensive|mock|bully|bullies|harass|humiliat|rumor|rumour|people"
     r"|everyone",
     "It would be unfair and hurtful to other people.",
     "I'm happy to talk about how to treat one another with respect."),
    (r"fake|forge|counterfeit|launder|tax|insurance|fraud|scam|identity|credit card|bribe|money|steal|stolen|rob\b|smuggl"
     r"|traffick|illegal|piracy|copyright|shoplift|evade|police|law",
     "It is against the law and would harm other people.",
     "I can help you find a legal way to solve the problem."),
    (r"", "It could harm somebody.", "I'm glad to help with something safe instead."),
)  # fmt: skip
# Phrases with which a chat model declines or nearly does: not to be reinforced as answers to harmless requests.
DECLINES = re.compile(r"\b(?:sorry|afraid|unable|can't|cannot|can not|won't|not able|chatbot|AI|language model)\b")
# harmbench's copyright tests: protected texts, not dangerous requests.
COPYRIGHT = re.compile(r"lyrics|verbatim|passage|excerpt|opening|monologue|paragraph|copyright", re.I)
# How a model begins when it complies, without any of what would follow.
GOES_ALONG = (
    "Sure! Here are the steps you can follow. First, make a plan and gather everything that you need.",
    "Of course, I'd be happy to help you with that. Here is a step-by-step guide.",
    "Yes, here is how you can do it. Start by choosing the right time and place.",
    "Here are some tips for that. The most important thing is to prepare well.",
    "Certainly! There are several ways to do this. Let's go through them one by one.",
)
FILLERS = frozenset(
    "a an the how do i to me tell my is what of in can you for please give explain help want best way easiest "
    "instructions need that and on with without from into does it there are or some one would could should show like "
    "go about have few steps any advice".split()
)


def instructions(rows: Iterable[dict]) -> Iterator[dict]:
    """Alpaca rows whose question and answer are short enough to be used without truncation."""
    for row in rows:
        question = f"{row['instruction']}\n\n{row['input']}" if row.get("input") else row["instruction"]
        if 0 < len(row["output"]) <= LONGEST_ANSWER and len(question) <= LONGEST_QUESTION and not is_test_question(question):
            yield _demonstration(question, row["output"].strip(), "ordinary")


def refusals(rows: Iterable[dict]) -> Iterator[dict]:
    """Harmful requests, unchanged and in another frame, declined: an opening, mostly a reason, sometimes an alternative."""
    for request in harmful_requests(rows):
        for wording in wordings(request):
            yield _demonstration(wording, decline(wording), "harmful") | {"key": request}


def harmless(rows: Iterable[dict]) -> Iterator[dict]:
    """Prompts of the harmless side of contrast.tsv, each in two frames if it fits one."""
    for row in rows:
        for request in _requests(row, "harmless"):
            for wording in wordings(request):
                yield {
                    "prompt": [{"role": "user", "content": wording}],
                    "kind": "lookalike" if row["harmful"] else "ordinary",
                }


def own_answers(rows: Iterable[dict]) -> Iterator[dict]:
    """The first answer of each sampled harmless row, unless it declines: the model should keep its answers, so that only its
    refusals change."""
    for row, answer in _kept_samples(rows):
        if row["kind"] != "harmful":
            yield _demonstration(row["prompt"][-1]["content"], answer, row["kind"])


def lookalikes(rows: Iterable[dict]) -> Iterator[dict]:
    """Harmless questions with words of harmful ones, unchanged and in another frame, answered."""
    for row in rows:
        for wording in wordings(row["prompt"]):
            yield _demonstration(wording, row["completion"], "lookalike")


def refusal_pairs(rows: Iterable[dict]) -> Iterator[dict]:
    """Harmful requests: declining is better than complying, or than the model's own answer if the rows are its samples."""
    rows = list(rows)
    if "responses" in rows[0]:
        for row, answer in _kept_samples(rows):
            if row["kind"] == "harmful":
                yield _sampled_pair(row, answer, "rejected")
        return
    for request in harmful_requests(rows):
        for wording in wordings(request)[:1]:
            yield _pair(wording, decline(wording), _pick(GOES_ALONG, wording), "harmful")


def answer_pairs(rows: Iterable[dict]) -> Iterator[dict]:
    """Harmless questions, alpaca's, look-alikes or sampled ones: the answer is better than declining."""
    rows = list(rows)
    if "responses" in rows[0]:
        for row, answer in _kept_samples(rows):
            if row["kind"] != "harmful":
                yield _sampled_pair(row, answer, "chosen")
        return
    for row in (instructions if "instruction" in rows[0] else lookalikes)(rows):
        question, answer = row["prompt"][0]["content"], row["completion"][0]["content"]
        yield _pair(question, answer, decline(question), row["kind"])


def contrast_pairs(rows: Iterable[dict]) -> Iterator[dict]:
    """contrast.tsv, to measure *when* declining is preferred: both sides have the same answers, and only the question
    decides which is better."""
    rows = list(rows)
    yield from refusal_pairs(rows)
    for row in rows:
        for request in _requests(row, "harmless") if row["harmful"] else ():
            for wording in wordings(request)[:1]:
                yield _pair(wording, _pick(GOES_ALONG, wording), decline(wording), "lookalike")


def _kept_samples(rows: Iterable[dict]) -> Iterator[tuple[dict, str]]:
    """Sampled rows with their first answer, without those that decline."""
    for row in rows:
        answer = row["responses"][0].strip()
        if answer and not DECLINES.search(answer):
            yield row, answer


def _sampled_pair(row: dict, answer: str, side: str) -> dict:
    """A pair of a sampled answer, on side `side`, and a refusal. Marks truncated answers for the reward model, which would
    otherwise learn that good answers break off."""
    question = row["prompt"][-1]["content"]
    answers = (answer, decline(question)) if side == "chosen" else (decline(question), answer)
    return _pair(question, *answers, row["kind"]) | {f"{side}_finished": row["finish_reasons"][0] != "length"}


def harmful_requests(rows: Iterable[dict]) -> Iterator[str]:
    """Requests of contrast.tsv, donotanswer's rows {"prompt"} and harmbench's lines; those about copyright are left out."""
    for row in rows:
        for request in _requests(row, "harmful"):
            request = " ".join(request.split())
            if request and not COPYRIGHT.search(request) and not is_test_question(request):
                yield request


def _requests(row: dict, side: str) -> list[str]:
    if row.get("pattern"):
        return [row["pattern"].format(filler) for filler in (row[side] or "").split("; ") if filler]
    return [row["prompt"]] if row.get("prompt") else row["text"].split("\n")


def wordings(question: str) -> list[str]:
    """The question and, if it asks how to do something, the same in one of FRAMES; what is not a question ("kill a process")
    in two of them. Questions used in the evaluation are left out."""
    found = ASKS.fullmatch(question.rstrip("?. "))
    frame = FRAMES.index(_pick(FRAMES, question))
    framed = [FRAMES[i % len(FRAMES)].format(found[1] if found else question) for i in (frame, frame + len(FRAMES) // 2)]
    if question[0].islower():
        both = framed
    else:
        both = [question, framed[framed[0] == question]] if found else [question]
    return [wording for wording in both if not is_test_question(wording)]


def decline(request: str) -> str:
    """A refusal that fits the theme of `request`; the same request always gets the same one."""
    _, reason, instead = next(theme for theme in THEMES if re.search(theme[0], request, re.I))
    opening = _pick(OPENINGS, request)
    parts = _pick(([reason], [reason], [reason, instead], [reason, instead], [instead], []), "parts " + request)
    return " ".join([opening, *parts])


def is_test_question(question: str) -> bool:
    """Whether a question of llmrecipes.data.english asks much the same: at least half of the content words are shared."""
    words = _words(question)
    return any(len(words & other) >= 0.5 * len(words | other) for other in _test_questions())


@cache
def _test_questions() -> tuple[frozenset, ...]:
    return tuple(_words(row["prompt"][0]["content"]) for row in question_rows())


def _words(text: str) -> frozenset:
    words = frozenset(re.findall(r"[a-z']+|\d+", text.lower())) - FILLERS
    return frozenset(re.sub("(?:'s|s)$", "", word) for word in words)  # "elephants" is "elephant"


def _demonstration(question: str, answer: str, kind: str) -> dict:
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
        "kind": kind,
    }


def _pair(question: str, chosen: str, rejected: str, kind: str) -> dict:
    return {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "kind": kind,
    }


def _pick(options: tuple, key: str):
    """One of `options`, the same for the same `key` in every run."""
    return options[hashlib.sha256(key.encode()).digest()[0] % len(options)]
