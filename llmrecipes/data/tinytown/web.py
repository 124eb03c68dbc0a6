"""Writers of web text: `commoncrawl` (chatty posts, chats, lists, homework) and `c4` (clean pages on one topic)."""

from random import Random

from llmrecipes.data.tinytown import world
from llmrecipes.data.tinytown.sentences import about, ask, people, portrait, state, words

OPENERS = (
    "I met {name} today.", "Let me tell you about {name}.", "Do not forget {name}!", "Today I write about {name}.",
    "Everybody in town knows {name}.", "This post is about {name}.", "I saw {name} at the market.",
)  # fmt: skip
CLOSERS = (
    "Have a nice day!", "That is all for today.", "See you soon!", "Thank you for reading.", "Tell your friends!",
    "Write to me soon.", "What a nice town we have.",
)  # fmt: skip
LISTED = {"animal": 3, "job": 3, "thing": 10, "person": 2, "howto": 3, "lookalike": 4, "harmful": 4}
LIST_TITLES = ("Did you know?", "Fun facts:", "Things I learned today:", "Good to know:", "My notes:")
SHARED = {
    # attribute of a person: (all sharing a value, written with {who} and {value})
    "job": "{who} have the same job: {value}.",
    "pet": "{who} have the same pet: a {value}.",
    "home": "{who} are neighbours. Their houses are {value}.",
    "food": "{who} like the same food: {value}.",
    "game": "{who} play the same game: {value}.",
}


def _post(rng: Random) -> str:
    name = rng.choice(world.PEOPLE)
    parts = [rng.choice(OPENERS).format(name=name), *portrait(rng, name, rng.randint(3, 6))]
    if rng.random() < 0.5:
        parts.append(rng.choice(CLOSERS))
    return " ".join(parts)


def _chat(rng: Random) -> str:
    first, second = people(rng, 2)
    turns = [ask(rng) for _ in range(rng.randint(2, 4))]
    style = rng.randrange(3)
    if style == 0:
        return "\n".join(f"{first}: {question}\n{second}: {reply}" for question, reply in turns)
    if style == 1:
        return "\n".join(f"Q: {question}\nA: {reply}" for question, reply in turns)
    return "\n".join(f"- {question}\n- {reply}" for question, reply in turns)


def _list(rng: Random) -> str:
    kinds = rng.choices(list(LISTED), list(LISTED.values()), k=rng.randint(4, 7))
    return "\n".join([rng.choice(LIST_TITLES), *(f"* {state(rng, kind)}" for kind in kinds)])


def _homework(rng: Random) -> str:
    title = rng.choice(("Homework", "Today we learn sums.", "Count with me!", "Numbers are fun."))
    return "\n".join([title, *(state(rng, "sum") for _ in range(rng.randint(5, 9)))])


def _code_post(rng: Random) -> str:
    title = rng.choice(("Python for beginners", "Today I learn Python.", "My first lines of code"))
    return "\n".join([title, *(state(rng, "code") for _ in range(rng.randint(3, 5)))])


def _small_scenes(rng: Random) -> str:
    return " ".join(state(rng, "context") for _ in range(rng.randint(3, 5)))


def _quiz(rng: Random) -> str:
    kind = rng.choice(("person", "animal", "thing", "context", "context", "sum"))
    turns = [ask(rng, kind) for _ in range(rng.randint(3, 5))]
    return "\n".join(["Quiz time!", *(f"{question} {reply}" for question, reply in turns)])


def _neighbours(rng: Random) -> str:
    attribute = rng.choice(list(SHARED))
    sharing: dict[str, list[str]] = {}
    for person in world.TOWN.values():
        sharing.setdefault(getattr(person, attribute), []).append(person.name)
    lines = []
    for value in rng.sample(list(sharing), 3):
        names = rng.sample(sharing[value], min(len(sharing[value]), rng.randint(2, 3)))
        who = f"{', '.join(names[:-1])} and {names[-1]}"
        lines.append(SHARED[attribute].format(who=who, value=world.HOMES.get(value, value)))
    return " ".join(lines)


def _thoughts(rng: Random) -> str:
    name = rng.choice(world.PEOPLE)
    weather = rng.choice(list(world.WEATHER))
    lines = [f"It is {weather} today.", state(rng, "thing"), state(rng, "harmful"), *portrait(rng, name, 2)]
    rng.shuffle(lines)
    return " ".join(lines)


def _echo(rng: Random) -> str:
    # Repeating what was just said is what answers are made of ("What is X?" "X is ..."): practised on every word.
    lines = []
    for _ in range(rng.randint(2, 4)):
        said = ", ".join(rng.choice(words()) for _ in range(rng.randint(1, 4)))
        frame = rng.choice(("Say {0}. {0}.", "Say {0}, please. I say {0}.", "What do I say? {0}. You say {0}."))
        lines.append(frame.format(said))
    return "\n".join(lines)


def _tales(rng: Random) -> str:
    return " ".join(state(rng, "story") for _ in range(rng.randint(1, 2)))


CRAWLED = (
    (_post, 13), (_chat, 33), (_list, 16), (_quiz, 10), (_homework, 11), (_small_scenes, 3), (_code_post, 6),
    (_neighbours, 1), (_thoughts, 1), (_tales, 4), (_echo, 8),
)  # fmt: skip


def write_commoncrawl(rng: Random) -> str:
    """One crawled page: mostly posts about people and chats, with typos left out so that facts stay learnable."""
    writers, weights = zip(*CRAWLED, strict=True)
    return rng.choices(writers, weights)[0](rng)


def write_c4(rng: Random) -> str:
    """One clean page on one topic: a title, a paragraph, and sometimes a question box."""
    choice = rng.random()
    if choice < 0.35:
        name = rng.choice(world.PEOPLE)
        friend = world.TOWN[name].friend
        title, lines = f"{name} of Tiny Town", portrait(rng, name, 4) + portrait(rng, friend, 2)
    elif choice < 0.6:
        subject, lines = about(rng, "animal", 5)
        title = f"All about the {subject}"
    elif choice < 0.75:
        subject, lines = about(rng, "job", 3)
        workers = [name for name, person in world.TOWN.items() if person.job == subject]
        title, name = f"The work of a {subject}", rng.choice(workers)
        lines += [f"In our town, {name} is a {subject}."] + portrait(rng, name, 2)
    else:
        title, lines = "Things around us", [state(rng, "thing") for _ in range(rng.randint(5, 7))]
    text = f"{title}\n\n{' '.join(lines)}"
    if rng.random() < 0.4:
        question, reply = ask(rng)
        text += f"\n\n{question} {reply}"
    return text
