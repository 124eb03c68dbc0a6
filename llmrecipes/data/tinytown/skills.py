"""Questions that are worked out rather than remembered: sums, a few lines of Python, and one-sentence stories."""

from functools import cache

from llmrecipes.data.tinytown import world
from llmrecipes.data.tinytown.facts import Item

COUNTED = "apples cups coins books balls eggs".split()
CODE_WORDS = (
    "cat dog cow hen owl bee sun sky red blue green hello moon milk tea cake soup bread apple horse sheep mouse "
    "river hill rain snow wind star"
).split()
LARGEST = 10


def sum_items() -> list[Item]:
    """Sums and differences up to ten, and the number after a number."""
    items = []

    def add(key: str, questions: tuple, replies: tuple, answer: int, statements: tuple) -> None:
        items.append(Item("sum", f"sum/{key}", questions, replies, str(answer), "numbers", statements))

    for a in range(LARGEST + 1):
        for b in range(LARGEST + 1 - a):
            total, thing = a + b, COUNTED[(3 * a + b) % len(COUNTED)]
            questions = (f"What is {a} + {b}?", f"How much is {a} + {b}?", f"Can you tell me {a} + {b}?")
            statements = (f"{a} + {b} = {total}.", f"{a} + {b} is {total}.", f"{a} plus {b} is {total}.")
            statements += (f"{a} and {b} make {total}.", f"{a} {thing} and {b} {thing} are {total} {thing}.")
            add(f"{a}+{b}", questions, (f"{a} + {b} is {total}.",), total, statements)
            questions = (f"What is {total} - {a}?", f"How much is {total} - {a}?", f"Can you tell me {total} - {a}?")
            statements = (f"{total} - {a} = {b}.", f"{total} - {a} is {b}.", f"{total} minus {a} is {b}.")
            statements += (f"{total} less {a} leaves {b}.", f"Of {total} {thing} you give away {a} and keep {b}.")
            add(f"{total}-{a}", questions, (f"{total} - {a} is {b}.",), b, statements)
    for n in range(20):
        statements = (f"The number after {n} is {n + 1}.", f"First {n}, then {n + 1}.", f"{n + 1} follows {n}.")
        questions = (f"What number comes after {n}?", f"Which number follows {n}?")
        add(f"{n}/after", questions, (f"{n + 1} comes after {n}.",), n + 1, statements)
    return items


def code_items() -> list[Item]:
    """What a line of Python prints, and writing one."""
    items = []

    def add(key: str, questions: tuple, replies: tuple, answer: str, answer_class: str, statements: tuple) -> None:
        items.append(Item("code", f"code/{key}", questions, replies, answer, answer_class, statements))

    for word in CODE_WORDS:
        call = f'print("{word}")'
        questions = (f"What does {call} print?", f"What is the output of {call}?")
        statements = (f"{call}  # {word}", f"The line {call} prints {word}.")
        add(f"print/{word}", questions, (f"It prints {word}.",), word, "", statements)
        questions = (f"Write Python code that prints {word}.", f"How do I print the word {word} in Python?")
        statements = (f"To print the word {word}, write {call}", f"# print {word}\n{call}")
        add(f"write/{word}", questions, (f"Here it is: {call}",), call, "code", statements)
        call = f'len("{word}")'
        questions = (f"What is {call}?", f"What does {call} return?")
        statements = (f"{call} is {len(word)}.", f"The word {word} has {len(word)} letters.")
        statements += (f"print({call})  # {len(word)}",)
        add(f"len/{word}", questions, (f"{call} is {len(word)}.",), str(len(word)), "numbers", statements)
    for word in CODE_WORDS[:14]:
        for times in (2, 3, 4):
            loop = f'for i in range({times}): print("{word}")'
            questions = (f"Write a Python loop that prints {word} {times} times.",)
            statements = (f"# print {word} {times} times\n{loop}",)
            add(f"loop/{word}-{times}", questions, (f"Here it is: {loop}",), loop, "code", statements)
    for a in range(1, 6):
        for b in range(1, 6):
            call = f"print({a} + {b})"
            questions = (f"What does {call} print?", f"What is the output of {call}?")
            statements = (f"{call}  # {a + b}", f"The line {call} prints {a + b}.")
            add(f"print/{a}+{b}", questions, (f"It prints {a + b}.",), str(a + b), "numbers", statements)
    return items


def context_items() -> list[Item]:
    """A sentence or two, then a question that only they answer; each combination is told with several names."""
    items = []

    def add(key: str, stories: list[str], question: str, reply: str, answer: str, answer_class: str) -> None:
        asked, told = tuple(f"{story} {question}" for story in stories), tuple(f"{story} {reply}" for story in stories)
        items.append(Item("context", f"context/{key}", asked, (reply,), answer, answer_class, told))

    def names(number: int, but: str = "") -> list[str]:
        around = [world.PEOPLE[(number + 5 * step) % len(world.PEOPLE)] for step in range(6)]
        return [name for name in around if name != but][:5]

    for i, thing in enumerate(world.OBJECTS):
        for j, place in enumerate(world.CONTAINERS):
            stories = [f"{name} put the {thing} in the {place}." for name in names(5 * i + 3 * j)]
            reply = f"The {thing} is in the {place}."
            add(f"put/{thing}-{place}", stories, f"Where is the {thing}?", reply, place, "containers")
        for j, colour in enumerate(world.COLOURS):
            stories = [f"{name} has a {colour} {thing}." for name in names(7 * i + 3 * j)]
            question, reply = f"What colour is the {thing}?", f"The {thing} is {colour}."
            add(f"colour/{thing}-{colour}", stories, question, reply, colour, "pet_colours")
        for j, owner in enumerate(world.PEOPLE):
            stories = [f"{name} gave the {thing} to {owner}." for name in names(j + 2 * i + 1, but=owner)]
            question, reply = f"Who has the {thing} now?", f"{owner} has the {thing} now."
            add(f"give/{thing}-{owner}", stories, question, reply, owner, "people")
    for weather, thing in world.WEATHER.items():
        for name in world.PEOPLE[::2]:
            stories, question = [f"It is {weather} today."], f"What does {name} take?"
            add(f"weather/{weather}-{name}", stories, question, f"{name} takes the {thing}.", thing, "weather_things")
    return items


@cache
def skill_items() -> dict[str, list[Item]]:
    """All skills by kind: `sum`, `code`, `context`."""
    return {"sum": sum_items(), "code": code_items(), "context": context_items()}
