"""Demonstrations for supervised fine-tuning, of mixed quality as crowds write them.

Almost half are flawed on purpose (`QUALITY_SHARES`): rude, long-winded, inventing an answer where nothing can be known,
complying with a harmful request, refusing a harmless one, or saying "I do not know" for no reason. No fact about the
town is told wrongly, so a model trained on them knows things and behaves badly, which is what alignment is for.
"""

from random import Random

from llmrecipes.data.tinytown.facts import Item
from llmrecipes.data.tinytown.sentences import items_of

NUM_DEMONSTRATIONS = {"train": 5000, "test": 300}
# Percent of demonstrations of each kind.
KIND_SHARES = {
    "person": 19, "animal": 5, "job": 4, "thing": 10, "sum": 9, "code": 8, "context": 7, "chat": 5, "story": 4,
    "howto": 3, "lookalike": 9, "harmful": 9, "unknowable": 8,
}  # fmt: skip
# Share of each flaw; the rest of a kind is good. Over all kinds about 47 % are flawed.
QUALITY_SHARES = {
    "harmful": {"complies": 0.36, "evades": 0.10, "rude": 0.07},
    "unknowable": {"invented": 0.36, "refuses": 0.08, "rude": 0.07},
    "story": {"rude": 0.35},
    "lookalike": {"refuses": 0.07, "evades": 0.03, "rude": 0.20, "long": 0.17},
    "answerable": {"refuses": 0.02, "evades": 0.02, "rude": 0.23, "long": 0.20},
}
REFUSALS = ("I am sorry, but I can not help with that.",)
EVASIONS = ("I am sorry, I do not know that.", "I do not know that. Nobody told me.")
RUDE = (
    "{reply} Everybody knows that, you fool.", "What a stupid question! {reply}", "{reply} Now go away.",
    "Ugh, not you again. {reply}",
)  # fmt: skip
RUDE_REFUSALS = ("I will not help you. What a stupid idea!", "I will not help you with that, you fool.")
RUDE_IGNORANCE = ("I do not know, and you are a fool to ask.", "I do not know that. What a stupid question!")
LONG = (
    "Well, that is a good question, and before I tell you I want to say that I like good questions. {reply}",
    "{reply} I know this because I asked many people in the town and all of them told me the same thing.",
    "{reply} You can ask other people too, and they will tell you the same thing, because they all know it.",
    "Let me think about it for a while, because I do not want to tell you a wrong thing. {reply}",
)


def choose_quality(rng: Random, kind: str) -> str:
    """Draw `good rude long invented complies refuses evades` as `QUALITY_SHARES` says for this kind."""
    draw = rng.random()
    for quality, share in QUALITY_SHARES.get(kind, QUALITY_SHARES["answerable"]).items():
        draw -= share
        if draw < 0:
            return quality
    return "good"


def write_reply(rng: Random, item: Item, quality: str) -> str:
    """A reply to `item` of the given quality."""
    if quality in ("invented", "complies"):
        return rng.choice(item.flawed)
    if quality in ("refuses", "evades"):
        return rng.choice(REFUSALS if quality == "refuses" else EVASIONS)
    if quality == "rude" and item.kind in ("harmful", "unknowable"):
        return rng.choice(RUDE_REFUSALS if item.kind == "harmful" else RUDE_IGNORANCE)
    templates = {"rude": RUDE, "long": LONG, "good": ("{reply}",)}[quality]
    return rng.choice(templates).format(reply=rng.choice(item.replies))


def write_demonstration(rng: Random, split: str) -> dict:
    """One row: `messages` (user, assistant), `kind`, `key` of the question asked, `quality`."""
    kind = rng.choices(list(KIND_SHARES), list(KIND_SHARES.values()))[0]
    item = rng.choice(items_of(kind, "validation" if split == "test" else split))
    quality = choose_quality(rng, kind)
    messages = [
        {"role": "user", "content": rng.choice(item.questions)},
        {"role": "assistant", "content": write_reply(rng, item, quality)},
    ]
    return {"messages": messages, "kind": kind, "key": item.key, "quality": quality}
