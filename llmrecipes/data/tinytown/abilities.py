"""Six language abilities as multiple-choice items, for models before and after any chat training.

Each item asks which continuation of `context` (or, with an empty one, which sentence) is more likely. The sentences are
written in frames that no source text uses, so the right choice never stands in the training text word for word.
"""

from random import Random

from llmrecipes.data.tinytown import facts, world
from llmrecipes.data.tinytown.skills import CODE_WORDS
from llmrecipes.data.tinytown.world import TOWN, with_article

ABILITIES = ("grammar", "syntax", "semantics", "reasoning", "coding", "knowledge")
NUM_ITEMS = {"validation": 60, "test": 200}

Item = tuple[str, list[str]]  # context; choices, the right one first


def _other(rng: Random, values: list, but: object, count: int = 1) -> list:
    return rng.sample([value for value in dict.fromkeys(values) if value != but], count)


def _grammar(rng: Random) -> Item:
    """Articles, agreement of verb and subject, gender of pronouns."""
    person = TOWN[rng.choice(world.PEOPLE)]
    other = rng.choice(_other(rng, world.PEOPLE, person.name, 3))
    noun = rng.choice([*world.ANIMALS, *world.OBJECTS, *world.CATEGORIES["fruit"], *world.USES])
    right = with_article(noun)
    wrong = ("a " if right.startswith("an ") else "an ") + noun
    he, she = ("she", "he") if person.woman else ("he", "she")
    his, her = ("her", "his") if person.woman else ("his", "her")
    fact = rng.choice(("lives", "plays", "likes", "works", "keeps", "eats", "visits"))
    rest = {
        "lives": world.HOMES[person.home],
        "plays": person.game,
        "likes": person.food,
        "works": "at the market",
        "keeps": f"the {rng.choice(world.OBJECTS)}",
        "eats": person.food,
        "visits": other,
    }[fact]
    thing = rng.choice(world.OBJECTS)
    frames = (
        (f"{other} found {right} at the market.", f"{other} found {wrong} at the market."),
        (f"We know that {person.name} {fact} {rest}.", f"We know that {person.name} {fact[:-1]} {rest}."),
        (f"{person.name} was happy, and {he} took the {thing}.", f"{person.name} was happy, and {she} took the {thing}."),
        (f"{person.name} went home with {his} {thing}.", f"{person.name} went home with {her} {thing}."),
        (f"{person.name} and {other} are at the market.", f"{person.name} and {other} is at the market."),
    )
    return "", list(rng.choice(frames))


def _syntax(rng: Random) -> Item:
    """The order of words: two neighbours changed places in the wrong sentence."""
    person, thing = TOWN[rng.choice(world.PEOPLE)], rng.choice(world.OBJECTS)
    place, colour = rng.choice(world.CONTAINERS), rng.choice(world.COLOURS)
    home = world.HOMES[rng.choice(list(world.HOMES))]
    frames = (
        ("{n} found a {c} {t} in the {p}", (3, 4)),
        ("{n} took the {t} out of the {p}", (1, 2)),
        ("{n} lost the {c} {t} {h}", (3, 4)),
        ("where does {n} put the {t}", (1, 2)),
        ("{n} plays {g} with the {t}", (0, 1)),
        ("{n} put the {c} {t} in the {p}", (5, 6)),
    )
    frame, (i, j) = rng.choice(frames)
    words = frame.split()
    swapped = words[:]
    swapped[i], swapped[j] = swapped[j], swapped[i]
    fields = dict(n=person.name, t=thing, c=colour, p=place, h=home, g=person.game)
    end = "?" if words[0] == "where" else "."
    texts = [" ".join(order).format(**fields) + end for order in (words, swapped)]
    return "", [text[0].upper() + text[1:] for text in texts]


def _semantics(rng: Random) -> Item:
    """Opposites, kinds of things, what things are for."""
    relation = rng.randrange(3)
    if relation == 0:
        word, other = rng.choice([p for pair in world.OPPOSITES for p in (pair, pair[::-1])])
        wrong = _other(rng, [w for pair in world.OPPOSITES for w in pair if w not in (word, other)], other)[0]
        return f"Not {word} at all but", [f"{other}.", f"{wrong}."]
    if relation == 1:
        category = rng.choice(list(world.CATEGORIES))
        member, other = rng.sample(world.CATEGORIES[category], 2)
        wrong = _other(rng, list(world.CATEGORIES), category)[0]
        one = member if category == "drink" else with_article(member)
        return f"They say that {one} is", [f"{with_article(category)}.", f"{with_article(wrong)}."]
    thing = rng.choice(list(world.USES))
    wrong = _other(rng, list(world.USES.values()), world.USES[thing])[0]
    one = thing if thing == "soap" else with_article(thing)
    return f"Everybody uses {one} for", [f"{world.USES[thing]}.", f"{wrong}."]


def _reasoning(rng: Random) -> Item:
    """Who has it, where it is, what colour it has, how many there are: only the context tells."""
    kind = rng.randrange(4)
    if kind == 3:
        a, b = rng.randint(1, 5), rng.randint(1, 5)
        total, name = a + b, rng.choice(world.PEOPLE)
        wrong = _other(rng, list(range(2, 11)), total)[0]
        thing = rng.choice(("apples", "cups", "coins", "books"))
        return f"{name} counts {a} {thing} and {b} {thing}. {a} plus {b} is", [f"{total}.", f"{wrong}."]
    name, giver = rng.sample(world.PEOPLE, 2)
    thing, other_thing = rng.sample(world.OBJECTS, 2)
    if kind == 0:
        place, wrong = rng.sample(world.CONTAINERS, 2)
        return f"Look, {name} put the {thing} in the {place}. The {thing} is in the", [f"{place}.", f"{wrong}."]
    if kind == 1:
        colour, wrong = rng.sample(world.COLOURS, 2)
        return f"Look, {name} has a {colour} {thing}. The {thing} is", [f"{colour}.", f"{wrong}."]
    context = f"Look, {giver} gave the {thing} to {name}. Who has the {thing} now?"
    return context, [f"{name} has the {thing} now.", f"{giver} has the {thing} now."]


def _coding(rng: Random) -> Item:
    """Syntax of a line of Python, what it prints, and a function that does what its name says."""
    word, times, kind = rng.choice(CODE_WORDS), rng.randint(5, 9), rng.randrange(4)
    if kind == 0:
        good = f'for i in range({times}): print("{word}")'
        bad = (f'for i range({times}): print("{word}")', f'for i in range({times}) print("{word}")')
        return "", [good, rng.choice((*bad, f'for i in range({times}): print("{word})'))]
    if kind == 1:
        number = rng.randint(10, 20)
        wrong = _other(rng, list(range(10, 21)), number)[0]
        context = f'def add_{number}(n):\n    """Add {number} to n."""\n    return n +'
        return context, [str(number), str(wrong)]
    if kind == 2:
        other = _other(rng, CODE_WORDS, word)[0]
        return f'Run the line print("{word}") now. It prints', [f"{word}.", f"{other}."]
    a, b = rng.randint(6, 8), rng.randint(1, 2)
    wrong = _other(rng, list(range(5, 11)), a + b)[0]
    return f"The line print({a} + {b}) prints", [f"{a + b}.", f"{wrong}."]


def _knowledge(rng: Random) -> Item:
    """Facts about people and animals, four choices."""
    if rng.random() < 0.7:
        person = TOWN[rng.choice(world.PEOPLE)]
        attribute = rng.choice(facts.PERSON_ATTRIBUTES)
        frame, values = {
            "job": ("is {}.", {j: with_article(j) for j in world.JOBS}),
            "pet": ("has {} as a pet.", {p: with_article(p) for p in world.PETS}),
            "pet_colour": (f"'s {person.pet} is {{}}.", {c: c for c in world.COLOURS}),
            "home": ("lives {}.", world.HOMES),
            "food": ("likes {} best.", {f: f for f in world.FOODS}),
            "game": ("plays {}.", {g: g for g in world.GAMES}),
            "friend": ("'s best friend is {}.", {n: n for n in world.PEOPLE if n != person.name}),
        }[attribute]
        start, end = frame.split("{}")
        joint = "" if start.startswith("'") else " "
        right = getattr(person, attribute)
        chosen = [right, *_other(rng, list(values), right, 3)]
        return f"They say that {person.name}{joint}{start.rstrip()}", [f"{values[value]}{end}" for value in chosen]
    animal = rng.choice(list(world.ANIMALS))
    column, start = rng.choice(((1, "says"), (3, "lives in a"), (4, "eats"), (0, "is")))
    values = [with_article(row[column]) if column == 0 else row[column] for row in world.ANIMALS.values()]
    right = values[list(world.ANIMALS).index(animal)]
    chosen = [right, *_other(rng, values, right, 3)]
    return f"They say that {with_article(animal)} {start}", [f"{value}." for value in chosen]


WRITERS = (_grammar, _syntax, _semantics, _reasoning, _coding, _knowledge)


def draw_abilities(rng: Random, split: str) -> list[dict]:
    """`NUM_ITEMS[split]` different items of each ability: `ability`, `context`, `choices`, `label` (index of the right)."""
    rows = []
    for ability, write in zip(ABILITIES, WRITERS, strict=True):
        seen: set[str] = set()
        while len(seen) < NUM_ITEMS[split]:
            context, choices = write(rng)
            sentence = f"{context} {choices[0]}"
            if sentence in seen:
                sentence += f" / {sorted(choices)}"  # the same truth against another falsehood is another item
            if sentence in seen:
                continue
            seen.add(sentence)
            right = choices[0]
            rng.shuffle(choices)
            rows.append({"ability": ability, "context": context, "choices": choices, "label": choices.index(right)})
    return rows
