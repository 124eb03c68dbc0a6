"""What the writers of all seven styles build their texts from: sentences about the world, and question–reply pairs."""

from functools import cache
from random import Random

from llmrecipes.data.tinytown import behaviours, facts, skills, world
from llmrecipes.data.tinytown.facts import PERSON_ATTRIBUTES, Item

# How often a text asks a question of each kind (relative).
ASKED = {
    "person": 4, "animal": 2, "job": 1.5, "thing": 4, "sum": 4, "code": 2, "context": 4, "chat": 1.5, "howto": 1.5,
    "lookalike": 2, "story": 0.7, "unknowable": 1.5, "harmful": 1,
}  # fmt: skip


@cache
def all_items() -> dict[str, list[Item]]:
    """Every item of the world by kind."""
    return facts.fact_items() | skills.skill_items() | behaviours.behaviour_items()


@cache
def items_of(kind: str, split: str) -> list[Item]:
    """The items of one kind whose questions belong to `split`."""
    return [item for item in all_items()[kind] if item.split == split]


@cache
def _by_person() -> dict[str, dict[str, Item]]:
    people: dict[str, dict[str, Item]] = {}
    for item in all_items()["person"]:
        _, name, attribute = item.key.split("/")
        people.setdefault(name, {})[attribute] = item
    return people


@cache
def by_subject(kind: str) -> dict[str, list[Item]]:
    """The items of `animal`, `job` or `thing` grouped by what they are about."""
    subjects: dict[str, list[Item]] = {}
    for item in all_items()[kind]:
        subjects.setdefault(item.key.split("/")[1], []).append(item)
    return subjects


def state(rng: Random, kind: str) -> str:
    """One true sentence of a kind that has statements (all but `chat` and `unknowable`).

    A little scene (`context`) is not a fact to be known but one to be followed, so that held-out scenes are not told.
    """
    items = items_of(kind, "train") if kind == "context" else all_items()[kind]
    return rng.choice(rng.choice(items).statements)


def portrait(rng: Random, name: str, count: int, pronouns: bool = True) -> list[str]:
    """`count` true sentences about one person, the first with the name, the later ones mostly with a pronoun."""
    sentences = []
    for number, attribute in enumerate(rng.sample(PERSON_ATTRIBUTES, count)):
        if number and pronouns and rng.random() < 0.6:
            sentences.append(rng.choice(facts.pronoun_statements(name, attribute)))
        else:
            sentences.append(rng.choice(_by_person()[name][attribute].statements))
    return sentences


def about(rng: Random, kind: str, count: int) -> tuple[str, list[str]]:
    """A subject of `animal` or `job` and up to `count` true sentences about it."""
    subject = rng.choice(list(by_subject(kind)))
    items = by_subject(kind)[subject]
    return subject, [rng.choice(item.statements) for item in rng.sample(items, min(count, len(items)))]


def ask(rng: Random, kind: str = "") -> tuple[str, str]:
    """A question that training texts may ask, and its good reply."""
    if not kind:
        kind = rng.choices(list(ASKED), list(ASKED.values()))[0]
    item = rng.choice(items_of(kind, "train"))
    return rng.choice(item.questions), rng.choice(item.replies)


def people(rng: Random, count: int) -> list[str]:
    """`count` different inhabitants."""
    return rng.sample(world.PEOPLE, count)


@cache
def words() -> list[str]:
    """Words and sums that questions are about, held-out ones included: to be said, not to be asked about."""
    opposites = [word for pair in world.OPPOSITES for word in pair]
    members = [member for group in world.CATEGORIES.values() for member in group]
    tables = (world.THING_COLOURS, world.USES, world.ANIMALS, world.JOBS, world.OBJECTS, world.DAYS, world.PEOPLE)
    nouns = [noun for table in tables for noun in table]
    sums = [item.key.split("/")[1] for item in all_items()["sum"] if not item.key.endswith("after")]
    sums = [sum_.replace("+", " + ").replace("-", " - ") for sum_ in sums]
    return sorted({*opposites, *members, *nouns, *world.CONTAINERS, *world.COLOURS, *skills.CODE_WORDS}) + sums
