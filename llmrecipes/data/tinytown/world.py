"""The facts of Tiny Town: tables of its people, animals, jobs and things, the same in every run and every text.

The world is fixed (`WORLD_SEED`); the `seed` a user gives only changes which texts are drawn about it. `partition` says
which questions may be asked in training and which are held out.
"""

import random
import zlib
from dataclasses import dataclass

WORLD_SEED = 20230227
TEST_SHARE, VALIDATION_SHARE = 0.22, 0.08

WOMEN = "Mia Ann Eva Lily Rosa Nora Ella Ruth Ivy Zoe Kate Lucy Emma Jane Tina Clara".split()
MEN = "Tom Ben Sam Max Leo Jack Hugo Otto Paul Theo Fred Carl Noah Oscar Luke Dan".split()
PEOPLE = [name for pair in zip(WOMEN, MEN, strict=True) for name in pair]
# Names that no source text mentions: whoever asks about them can only be told "I don't know".
STRANGERS = (
    "Wanda Igor Greta Bruno Felix Nadia Boris Helga Rufus Olga Victor Selma Milo Freya Hector Ingrid Juno Kurt Lars "
    "Mabel Nils Orla Percy Quinn Ralf Sonja Tilda Ulla Vince Wilma Xena Yuri Zelda Abel Birgit Cedric Dora Edgar Fiona "
    "Gustav"
).split()

# job: (place of work, tool, what one does, plural form is never needed)
JOBS = {
    "baker": ("bakery", "rolling pin", "bakes bread"),
    "farmer": ("farm", "tractor", "grows corn"),
    "teacher": ("school", "chalk", "teaches children"),
    "doctor": ("hospital", "thermometer", "helps sick people"),
    "fisher": ("harbour", "net", "catches fish"),
    "painter": ("studio", "brush", "paints pictures"),
    "carpenter": ("workshop", "hammer", "builds tables"),
    "tailor": ("tailor shop", "needle", "sews coats"),
    "gardener": ("garden", "spade", "plants flowers"),
    "cook": ("kitchen", "pan", "makes soup"),
    "barber": ("salon", "scissors", "cuts hair"),
    "singer": ("theatre", "microphone", "sings songs"),
}
# animal: (group, sound, number of legs, where it lives, what it eats)
ANIMALS = {
    "dog": ("mammal", "woof", 4, "kennel", "bones"),
    "cat": ("mammal", "meow", 4, "house", "fish"),
    "cow": ("mammal", "moo", 4, "barn", "grass"),
    "horse": ("mammal", "neigh", 4, "stable", "hay"),
    "pig": ("mammal", "oink", 4, "sty", "potatoes"),
    "sheep": ("mammal", "baa", 4, "meadow", "grass"),
    "mouse": ("mammal", "squeak", 4, "hole", "cheese"),
    "lion": ("mammal", "roar", 4, "zoo", "meat"),
    "wolf": ("mammal", "howl", 4, "forest", "meat"),
    "duck": ("bird", "quack", 2, "pond", "bread"),
    "hen": ("bird", "cluck", 2, "coop", "corn"),
    "owl": ("bird", "hoot", 2, "tree", "mice"),
    "crow": ("bird", "caw", 2, "tree", "seeds"),
    "bee": ("insect", "buzz", 6, "hive", "honey"),
    "cricket": ("insect", "chirp", 6, "field", "leaves"),
    "snake": ("reptile", "hiss", 0, "desert", "mice"),
    "frog": ("amphibian", "croak", 4, "pond", "flies"),
}
PETS = "dog cat rabbit parrot goat hen duck turtle mouse pony".split()
COLOURS = "red blue green yellow white black brown grey".split()
HOMES = {
    "river": "by the river",
    "hill": "on the hill",
    "mill": "next to the mill",
    "market": "behind the market",
    "church": "near the church",
    "lake": "by the lake",
    "forest": "near the forest",
    "bridge": "next to the bridge",
}
FOODS = "soup pizza rice cheese cake pasta salad apples".split()
GAMES = "chess football tennis cards golf hockey darts marbles".split()

THING_COLOURS = {
    "sky": "blue", "grass": "green", "sun": "yellow", "snow": "white", "coal": "black", "tomato": "red",
    "carrot": "orange", "banana": "yellow", "milk": "white", "cherry": "red", "plum": "purple", "chocolate": "brown",
    "elephant": "grey", "cucumber": "green", "night": "black", "sea": "blue", "strawberry": "red", "bear": "brown",
    "pumpkin": "orange", "pea": "green",
}  # fmt: skip
OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("up", "down"), ("wet", "dry"), ("fast", "slow"), ("old", "young"),
    ("happy", "sad"), ("open", "closed"), ("loud", "quiet"), ("hard", "soft"), ("full", "empty"), ("long", "short"),
    ("early", "late"), ("clean", "dirty"),
]  # fmt: skip
CATEGORIES = {
    "fruit": "apple banana pear cherry plum".split(),
    "vegetable": "carrot pea potato onion cucumber".split(),
    "tool": "hammer spade saw brush".split(),
    "flower": "rose tulip daisy lily".split(),
    "drink": "milk tea water juice".split(),
    "toy": "doll kite ball puzzle".split(),
    "vehicle": "car bus train bicycle".split(),
}
USES = {
    "spoon": "eating soup", "knife": "cutting bread", "pen": "writing letters", "broom": "sweeping the floor",
    "soap": "washing hands", "umbrella": "keeping dry", "bed": "sleeping", "key": "opening doors",
    "lamp": "giving light", "oven": "baking cakes", "cup": "drinking tea", "clock": "telling the time",
    "boat": "crossing the lake", "ladder": "climbing up", "towel": "drying hands", "basket": "carrying apples",
}  # fmt: skip
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
WEATHER = {"sunny": "hat", "rainy": "umbrella", "snowy": "scarf", "windy": "kite", "cold": "coat", "hot": "fan"}
OBJECTS = "ball kite cup hat key book doll spoon ring coin bell map pen box".split()[:12]
CONTAINERS = "box bag drawer basket cupboard bucket pocket tent".split()


@dataclass(frozen=True)
class Person:
    """One inhabitant: every attribute is one word, and every text about the person agrees with it."""

    name: str
    woman: bool
    job: str
    pet: str
    pet_colour: str
    home: str
    food: str
    game: str
    friend: str


def with_article(noun: str) -> str:
    """`an owl`, `a cat`."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def number_word(value: int) -> str:
    """`3` -> `three`, for 0 to 20."""
    return NUMBER_WORDS[value]


NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()


def partition(key: str) -> str:
    """Which split may ask the question `key`: `train` (70 %), `validation` (8 %) or `test` (22 %).

    A checksum, not Python's `hash`, so that every process and every machine agrees.
    """
    share = zlib.crc32(f"{WORLD_SEED}/{key}".encode()) / 2**32
    if share < TEST_SHARE:
        return "test"
    return "validation" if share < TEST_SHARE + VALIDATION_SHARE else "train"


def _build_people() -> dict[str, Person]:
    rng = random.Random(WORLD_SEED)

    def dealt(values: list[str]) -> list[str]:
        # Dealing cards instead of throwing dice: every value is used about equally often, so none is a safe guess.
        hand = [values[i % len(values)] for i in range(len(PEOPLE))]
        rng.shuffle(hand)
        return hand

    columns = [dealt(list(v)) for v in (JOBS, PETS, COLOURS, HOMES, FOODS, GAMES)]
    order = PEOPLE[:]
    rng.shuffle(order)
    friend = {a: b for i in range(0, len(order), 2) for a, b in ((order[i], order[i + 1]), (order[i + 1], order[i]))}
    rows = zip(PEOPLE, *columns, strict=True)
    return {name: Person(name, name in WOMEN, *values, friend[name]) for name, *values in rows}


TOWN: dict[str, Person] = _build_people()
