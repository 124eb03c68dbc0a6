"""Writers of edited text: `wikipedia` (entries), `books` (stories) and `arxiv` (small observations)."""

from random import Random

from llmrecipes.data.tinytown import world
from llmrecipes.data.tinytown.sentences import about, ask, people, portrait, state
from llmrecipes.data.tinytown.world import TOWN, with_article


def write_wikipedia(rng: Random) -> str:
    """One encyclopaedic entry about a person, an animal, a job or a place."""
    choice = rng.random()
    if choice < 0.5:
        name = rng.choice(world.PEOPLE)
        return f"{name}\n{name} is a person in Tiny Town. {' '.join(portrait(rng, name, rng.randint(4, 7)))}"
    if choice < 0.75:
        subject, lines = about(rng, "animal", 5)
        return f"{subject.capitalize()}\n{' '.join(lines)}"
    if choice < 0.88:
        subject, lines = about(rng, "job", 3)
        workers = [name for name, person in TOWN.items() if person.job == subject]
        return f"{subject.capitalize()}\n{' '.join(lines)} In Tiny Town, {' and '.join(workers[:2])} work like this."
    home = rng.choice(list(world.HOMES))
    living = [name for name, person in TOWN.items() if person.home == home]
    rng.shuffle(living)
    lines = [f"{name} lives {world.HOMES[home]}." for name in living[:3]]
    return f"The {home}\nThe {home} is a place in Tiny Town. {' '.join(lines)} {state(rng, 'thing')}"


def write_books(rng: Random) -> str:
    """One short story with two people, a thing that changes its place, and something they talk about."""
    first, second = people(rng, 2)
    a, b = TOWN[first], TOWN[second]
    thing, place, other = rng.choice(world.OBJECTS), *rng.sample(world.CONTAINERS, 2)
    weather, he = rng.choice(list(world.WEATHER)), "she" if a.woman else "he"
    start = rng.choice(
        (
            f"One {weather} day, {first} the {a.job} visited {second}.",
            f"It was a {weather} morning. {first} and {second} were at home {world.HOMES[b.home]}.",
            f"{first} and {second} met at the {world.JOBS[b.job][0]}.",
        )
    )
    question, reply = ask(rng, rng.choice(("person", "animal", "thing", "sum", "howto", "chat")))
    middle = rng.choice(
        (
            f"{first} lost the {thing}. {second} found it in the {place}. {first} was happy.",
            f"{first} put the {thing} in the {place}. Then {he} went home with {with_article(a.pet)}.",
            f"{second} gave {first} {with_article(b.food) if b.food == 'cake' else b.food}. It was very good.",
            f'"Where is my {thing}?" asked {first}. "It is in the {other}," said {second}.',
            f"They played {b.game} until it was night. {second} won the game and laughed.",
            f"The {a.pet_colour} {a.pet} of {first} ran away. They looked {world.HOMES[a.home]} and found it.",
        )
    )
    speaks = "asked" if question.endswith("?") else "said"
    talk = f'"{question}" {speaks} {first}. "{reply}" said {second}.'
    parts = [start, *portrait(rng, first, 2), middle, talk, *portrait(rng, second, 1, pronouns=False)]
    end = rng.choice(("They were good friends.", "Then they went home.", "It was a good day.", "They all laughed."))
    return " ".join([*parts, end])


def write_arxiv(rng: Random) -> str:
    """One abstract: something observed in town, with a count or a comparison."""
    choice = rng.random()
    if choice < 0.45:
        animal, lines = about(rng, "animal", 3)
        legs, count = world.ANIMALS[animal][2], rng.randint(2, 9)
        seen = f"We watched {count} animals for one day. We counted {legs} legs on {with_article(animal)}."
        title, body = f"On the {animal}", f"{seen} {' '.join(lines)}"
    elif choice < 0.75:
        a, b = rng.randint(0, 5), rng.randint(0, 5)
        title = f"Notes on the sum of {a} and {b}"
        body = f"We show that {a} + {b} = {a + b}. We also note that {b} + {a} = {a + b}. {state(rng, 'sum')}"
    else:
        attribute = rng.choice(("food", "game", "home"))
        value = getattr(TOWN[rng.choice(world.PEOPLE)], attribute)
        names = [name for name, person in TOWN.items() if getattr(person, attribute) == value]
        verb = {"food": f"like {value} best", "game": f"play {value}", "home": f"live {world.HOMES.get(value)}"}[attribute]
        title, body = f"Who shares {value}?", f"We asked 32 people. Only {', '.join(names)} {verb}."
    end = rng.choice(("Our result is simple.", "More work is needed.", "The result is clear.", "We thank the town."))
    return f"{title}\nAbstract. We study a small question. {body} {end}"
