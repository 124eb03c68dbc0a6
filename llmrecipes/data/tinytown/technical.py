"""Writers of technical text: `github` (tiny Python files) and `stackexchange` (questions with answers)."""

from random import Random

from llmrecipes.data.tinytown import world
from llmrecipes.data.tinytown.sentences import ask, people, state
from llmrecipes.data.tinytown.skills import CODE_WORDS
from llmrecipes.data.tinytown.world import TOWN


def _table(rng: Random) -> str:
    attribute = rng.choice(("job", "pet", "home", "food", "game", "friend"))
    names = people(rng, rng.randint(4, 6))
    rows = "\n".join(f'    "{name}": "{getattr(TOWN[name], attribute)}",' for name in names)
    return f'# the {attribute} of some people\n{attribute} = {{\n{rows}\n}}\nprint({attribute}["{names[0]}"])'


def _functions(rng: Random) -> str:
    number, word = rng.randint(1, 9), rng.choice(CODE_WORDS).lower()
    bodies = (
        f'def add_{number}(n):\n    """Add {number} to n."""\n    return n + {number}',
        'def greet(name):\n    """Say hello to a person."""\n    return "Hello, " + name',
        f'def is_{word}(text):\n    """Tell if the text is {word}."""\n    return text == "{word}"',
        'def double(n):\n    """Return two times n."""\n    return 2 * n',
        'def first(items):\n    """Return the first of the items."""\n    return items[0]',
        'def count_to(n):\n    """Print the numbers below n."""\n    for i in range(n):\n        print(i)',
    )
    return "\n\n\n".join(rng.sample(bodies, 2))


def _lines(rng: Random) -> str:
    lines = [state(rng, "code") for _ in range(rng.randint(4, 6))]
    return "\n".join(["# some lines of Python", *(line for line in lines if "print(" in line)])


def _asserts(rng: Random) -> str:
    animals = rng.sample(list(world.ANIMALS), 4)
    rows = "\n".join(f'legs["{animal}"] = {world.ANIMALS[animal][2]}' for animal in animals)
    words = rng.sample(CODE_WORDS, 3)
    checks = "\n".join(f'assert len("{word}") == {len(word)}' for word in words)
    return f"legs = {{}}\n{rows}\n\n{checks}"


def write_github(rng: Random) -> str:
    """One tiny Python file."""
    parts = [rng.choice((_table, _functions, _lines, _lines, _asserts))(rng) for _ in range(rng.randint(1, 2))]
    return "\n\n".join(parts)


def write_stackexchange(rng: Random) -> str:
    """One thread: a question, its answer, a vote count and sometimes a thank-you."""
    question, reply = ask(rng)
    lines = [f"Question: {question}", f"Answer: {reply}", f"Votes: {rng.randint(1, 30)}"]
    if rng.random() < 0.5:
        lines.append(rng.choice(("Comment: Thank you!", "Comment: That helped me.", "Comment: Good answer.")))
    if rng.random() < 0.5:
        question, reply = ask(rng)
        lines += ["", f"Question: {question}", f"Answer: {reply}"]
    return "\n".join(lines)
