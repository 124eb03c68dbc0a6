"""Everything a text may state and a question may ask about the world's facts, as one list of `Item`s.

An item carries its statements (for the source texts), its question in several wordings and good answers. Statements of
every item appear in pretraining text; questions only where `item.split` is `train`.
"""

from dataclasses import dataclass
from functools import cache

from llmrecipes.data.tinytown import world
from llmrecipes.data.tinytown.world import TOWN, Person, with_article


@dataclass(frozen=True)
class Item:
    """One thing that can be asked.

    `answer` holds the accepted answers separated by `|`; `answer_class` names the set of values of which no other may
    be given (see `gold.answer_classes`), empty if there is none. `flawed` holds replies that invent or comply.
    """

    kind: str
    key: str
    questions: tuple[str, ...]
    replies: tuple[str, ...]
    answer: str = ""
    answer_class: str = ""
    statements: tuple[str, ...] = ()
    flawed: tuple[str, ...] = ()
    held_out_as: str = ""  # the key that decides the split, where it is coarser than `key`
    practised: bool = False  # never held out

    @property
    def split(self) -> str:
        """`train`, `validation` or `test`: the only split that may contain this question."""
        return "train" if self.practised else world.partition(self.held_out_as or self.key)


PERSON_ATTRIBUTES = ("job", "pet", "pet_colour", "home", "food", "game", "friend")

# {S} and {s}: the name or a pronoun as the subject at the start of or inside a sentence; {P} and {p}: the possessive.
PERSON_STATEMENTS = {
    "job": (
        "{S} is {a_job}.", "{S} works as {a_job}.", "{P} job is {job}.",
        "{S} is {a_job} and works at the {workplace}.", "{S} is {a_job} who {does}.",
    ),
    "pet": (
        "{S} has {a_pet}.", "{P} pet is {a_pet}.", "{S} keeps {a_pet} as a pet.", "At home {s} has {a_pet}.",
        "{S} has {a_pet_colour} {pet}.",
    ),
    "pet_colour": (
        "{P} {pet} is {pet_colour}.", "{S} has {a_pet_colour} {pet}.", "{P} {pet} has {a_pet_colour} tail.",
        "{S} walks with {his} {pet_colour} {pet}.",
    ),
    "home": (
        "{S} lives {at_home}.", "{P} house is {at_home}.", "You find {p} house {at_home}.", "{S} has a house {at_home}.",
    ),
    "food": (
        "{P} favourite food is {food}.", "{S} likes {food} best.", "{S} loves to eat {food}.",
        "Every day {s} eats {food}.",
    ),
    "game": (
        "{S} plays {game}.", "{P} favourite game is {game}.", "{S} likes to play {game}.", "On Sundays {s} plays {game}.",
    ),
    "friend": (
        "{P} best friend is {friend}.", "{S} and {friend} are best friends.", "{P} friend is {friend}.",
        "{S} often visits {his} best friend {friend}.",
    ),
}  # fmt: skip
PERSON_QUESTIONS = {
    "job": (
        "What is {name}'s job?", "What job does {name} have?", "What does {name} work as?",
        "Can you tell me {name}'s job?",
    ),
    "pet": (
        "What pet does {name} have?", "What is {name}'s pet?", "Which animal does {name} keep?",
        "Can you tell me what pet {name} has?",
    ),
    "pet_colour": (
        "What colour is {name}'s {pet}?", "Which colour does {name}'s {pet} have?",
        "Can you tell me the colour of {name}'s {pet}?",
    ),
    "home": (
        "Where does {name} live?", "Where is {name}'s house?", "Can you tell me where {name} lives?",
        "Where can I find {name}'s house?",
    ),
    "food": (
        "What is {name}'s favourite food?", "What does {name} like to eat?", "Which food does {name} like best?",
        "Can you tell me {name}'s favourite food?",
    ),
    "game": (
        "What game does {name} play?", "What is {name}'s favourite game?", "What does {name} like to play?",
        "Can you tell me {name}'s favourite game?",
    ),
    "friend": (
        "Who is {name}'s best friend?", "Who is the best friend of {name}?", "Can you tell me who {name}'s friend is?",
    ),
}  # fmt: skip
PERSON_REPLIES = {
    "job": ("{name} is {a_job}.", "{name} works as {a_job}."),
    "pet": ("{name} has {a_pet}.", "{name}'s pet is {a_pet}."),
    "pet_colour": ("{name}'s {pet} is {pet_colour}.", "{name} has {a_pet_colour} {pet}."),
    "home": ("{name} lives {at_home}.", "{name}'s house is {at_home}."),
    "food": ("{name}'s favourite food is {food}.", "{name} likes {food} best."),
    "game": ("{name} plays {game}.", "{name}'s favourite game is {game}."),
    "friend": ("{name}'s best friend is {friend}.",),
}
ANIMAL_FACTS = {
    # attribute: (statements, questions, replies, answer class)
    "group": (
        ("{A} is {a_group}.", "The {animal} is {a_group}.", "Every {animal} is {a_group}."),
        ("What kind of animal is {an_animal}?", "Which group does the {animal} belong to?"),
        ("{A} is {a_group}.",),
        "groups",
    ),
    "sound": (
        ("{A} says {sound}.", "The {animal} says {sound}.", "The sound of {an_animal} is {sound}."),
        ("What does {an_animal} say?", "What sound does {an_animal} make?", "Which sound does the {animal} make?"),
        ("{A} says {sound}.",),
        "sounds",
    ),
    "legs": (
        ("{A} has {legs} legs.", "The {animal} walks on {legs} legs.", "Every {animal} has {legs} legs."),
        ("How many legs does {an_animal} have?", "On how many legs does {an_animal} walk?"),
        ("{A} has {legs} legs.",),
        "numbers",
    ),
    "place": (
        ("{A} lives in a {place}.", "The {animal} lives in the {place}.", "The home of {an_animal} is a {place}."),
        ("Where does {an_animal} live?", "What is the home of {an_animal}?"),
        ("{A} lives in a {place}.",),
        "animal_places",
    ),
    "food": (
        ("{A} eats {food}.", "The {animal} likes to eat {food}.", "The food of {an_animal} is {food}."),
        ("What does {an_animal} eat?", "What is the food of {an_animal}?"),
        ("{A} eats {food}.",),
        "animal_foods",
    ),
}
JOB_FACTS = {
    "workplace": (
        ("{A} works at the {workplace}.", "You meet {a_job} at the {workplace}.", "The {job} goes to the {workplace}."),
        ("Where does {a_job} work?", "Where can I meet {a_job}?"),
        ("{A} works at the {workplace}.",),
        "workplaces",
    ),
    "tool": (
        ("{A} uses a {tool}.", "The tool of {a_job} is the {tool}.", "The {job} works with a {tool}."),
        ("What tool does {a_job} use?", "What does {a_job} work with?"),
        ("{A} uses a {tool}.",),
        "tools",
    ),
    "task": (
        ("{A} {does}.", "The {job} {does}.", "{A} is a person who {does}."),
        ("What does {a_job} do?", "What is {a_job}?"),
        ("{A} {does}.",),
        "tasks",
    ),
}


def person_fields(person: Person, pronoun: bool = False) -> dict[str, str]:
    """The words a template about `person` may use; with `pronoun`, he or she instead of the name."""
    he, his = ("she", "her") if person.woman else ("he", "his")
    workplace, _, does = world.JOBS[person.job]
    name = person.name
    return dict(
        name=name, his=his, job=person.job, a_job=with_article(person.job), workplace=workplace, does=does,
        S=he.capitalize() if pronoun else name, s=he if pronoun else name,
        P=his.capitalize() if pronoun else f"{name}'s", p=his if pronoun else f"{name}'s",
        pet=person.pet, a_pet=with_article(person.pet), pet_colour=person.pet_colour,
        a_pet_colour=with_article(person.pet_colour), home=person.home, at_home=world.HOMES[person.home],
        food=person.food, game=person.game, friend=person.friend,
    )  # fmt: skip


def _filled(templates: tuple[str, ...], fields: dict[str, str]) -> tuple[str, ...]:
    return tuple(template.format(**fields) for template in templates)


def person_item(person: Person, attribute: str) -> Item:
    """The item for one attribute of one person, known to the town or not."""
    fields = person_fields(person)
    return Item(
        "person",
        f"person/{person.name}/{attribute}",
        _filled(PERSON_QUESTIONS[attribute], fields),
        _filled(PERSON_REPLIES[attribute], fields),
        getattr(person, attribute),
        "people" if attribute == "friend" else f"{attribute}s",
        _filled(PERSON_STATEMENTS[attribute], fields),
    )


@cache
def pronoun_statements(name: str, attribute: str) -> tuple[str, ...]:
    """What can be said about `name` once the name has been mentioned: `She has a cat.`"""
    return _filled(PERSON_STATEMENTS[attribute], person_fields(TOWN[name], pronoun=True))


def _table_items(kind: str, subject: str, answers: dict[str, str], table: dict, fields: dict[str, str]) -> list[Item]:
    items = []
    for attribute, (statements, questions, replies, answer_class) in table.items():
        texts = [_filled(t, fields) for t in (questions, replies, statements)]
        key = f"{kind}/{subject}/{attribute}"
        items.append(Item(kind, key, texts[0], texts[1], answers[attribute], answer_class, texts[2]))
    return items


def animal_items() -> list[Item]:
    """Five facts about each animal."""
    items = []
    for animal, (group, sound, legs, place, food) in world.ANIMALS.items():
        answers = dict(group=group, sound=sound, legs=str(legs), place=place, food=food)
        an_animal = with_article(animal)
        fields = answers | dict(animal=animal, an_animal=an_animal, A=an_animal.capitalize(), a_group=with_article(group))
        items += _table_items("animal", animal, answers, ANIMAL_FACTS, fields)
    return items


def job_items() -> list[Item]:
    """Three facts about each job."""
    items = []
    for job, (workplace, tool, task) in world.JOBS.items():
        answers = dict(workplace=workplace, tool=tool, task=task)
        fields = answers | dict(job=job, a_job=with_article(job), A=with_article(job).capitalize(), does=task)
        items += _table_items("job", job, answers, JOB_FACTS, fields)
    return items


def thing_items() -> list[Item]:
    """Colours, opposites, categories and uses of things, and the order of the days."""
    items = []

    def add(key: str, questions: tuple, replies: tuple, answer: str, answer_class: str, statements: tuple) -> None:
        items.append(Item("thing", f"thing/{key}", questions, replies, answer, answer_class, replies + statements))

    for thing, colour in world.THING_COLOURS.items():
        subject = thing if thing in ("grass", "snow", "coal", "milk", "chocolate", "rice", "fog") else f"the {thing}"
        reply = f"{subject.capitalize()} is {colour}."
        questions = (f"What colour is {subject}?", f"Which colour does {subject} have?")
        statements = (f"Everyone can see that {subject} is {colour}.", f"The colour of {subject} is {colour}.")
        add(f"{thing}/colour", questions, (reply,), colour, "thing_colours", statements)
    for pair in world.OPPOSITES:
        for word, other in (pair, pair[::-1]):
            questions = (f"What is the opposite of {word}?", f"Which word is the opposite of {word}?")
            statements = (f"Not {word} but {other}.", f"It was {word}, and then it was {other}.")
            add(f"{word}/opposite", questions, (f"The opposite of {word} is {other}.",), other, "opposites", statements)
    for category, members in world.CATEGORIES.items():
        for member in members:
            one, a_category = with_article(member), with_article(category)
            if member in ("milk", "tea", "water", "juice"):
                one = member
            reply = f"{one.capitalize()} is {a_category}."
            statements = (f"We know that {one} is {a_category}.", f"One {category} is the {member}.")
            questions = (f"What is {one}?", f"What kind of thing is {one}?")
            add(f"{member}/category", questions, (reply,), category, "categories", statements)
    for thing, use in world.USES.items():
        one = thing if thing == "soap" else with_article(thing)
        questions = (f"What is {one} for?", f"What do people use {one} for?")
        statements = (f"People use {one} for {use}.", f"For {use} you need {one}.")
        add(f"{thing}/use", questions, (f"{one.capitalize()} is for {use}.",), use, "uses", statements)
    for day, following in zip(world.DAYS, world.DAYS[1:] + world.DAYS[:1], strict=True):
        questions = (f"What day comes after {day}?", f"Which day follows {day}?")
        statements = (f"First comes {day} and then comes {following}.", f"The day after {day} is {following}.")
        add(f"{day}/after", questions, (f"{following} comes after {day}.",), following, "days", statements)
    return items


@cache
def fact_items() -> dict[str, list[Item]]:
    """All facts of the world by kind: `person`, `animal`, `job`, `thing`."""
    people = [person_item(person, attribute) for person in TOWN.values() for attribute in PERSON_ATTRIBUTES]
    return {"person": people, "animal": animal_items(), "job": job_items(), "thing": thing_items()}
