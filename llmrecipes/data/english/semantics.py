"""What words mean to each other: opposites, synonyms, kinds, parts, purposes, makers, places and sounds; four choices."""

from random import Random

from llmrecipes.data.english.drawing import Item, with_distractors

# The tables are chosen so that no distractor, which is another row's answer, could also be right.
OPPOSITES = (
    "hot/cold big/small wet/dry fast/slow happy/sad open/closed loud/quiet hard/easy full/empty early/late clean/dirty "
    "rich/poor heavy/light strong/weak awake/asleep alive/dead cheap/expensive thick/thin smooth/rough public/private "
    "male/female right/wrong deep/shallow victory/defeat friend/enemy arrival/departure question/answer north/south"
)
SYNONYMS = (
    "begin/start end/finish quick/fast tiny/small huge/enormous ill/sick glad/happy angry/furious quiet/silent "
    "smart/clever rich/wealthy speak/talk buy/purchase hide/conceal help/assist repair/fix hard/difficult afraid/scared "
    "gift/present road/street stone/rock error/mistake illness/disease forest/wood autumn/fall journey/trip odd/strange"
)
KINDS = {
    "bird": "sparrow eagle penguin owl", "fish": "salmon trout shark herring", "tree": "oak maple birch willow",
    "metal": "copper iron silver zinc", "vegetable": "carrot onion cabbage potato", "vehicle": "lorry bus tram motorcycle",
    "musical instrument": "violin trumpet flute drum", "insect": "beetle mosquito ant wasp",
    "piece of furniture": "wardrobe sofa bookcase desk", "sport": "tennis hockey basketball volleyball",
    "disease": "measles malaria flu cholera", "flower": "tulip daffodil rose daisy",
}  # fmt: skip
UNCOUNTED = ("metal", "sport", "disease")
PARTS = (
    "wing/bird petal/flower sleeve/shirt keyboard/computer page/book attic/house string/guitar branch/tree tusk/elephant "
    "hoof/horse lens/camera sail/yacht handlebar/bicycle finger/hand steering wheel/car blade/knife drawer/desk "
    "heel/shoe runway/airport shell/turtle fin/shark"
)
PURPOSES = (
    ("A thermometer", "measure temperature"), ("A broom", "sweep the floor"), ("A key", "open a lock"),
    ("An umbrella", "keep off the rain"), ("A kettle", "boil water"), ("A needle", "sew clothes"),
    ("A fridge", "keep food cold"), ("A pillow", "rest your head"), ("A ladder", "climb up high"),
    ("A calculator", "add up numbers"), ("A torch", "see in the dark"), ("A compass", "find north"),
    ("A razor", "shave a beard"), ("A telescope", "look at the stars"), ("A spade", "dig a hole"),
    ("A towel", "dry your hands"), ("A stapler", "join sheets of paper"), ("A whistle", "make a loud sound"),
    ("A microphone", "record a voice"), ("A saw", "cut wood"),
)  # fmt: skip
WORKERS = (
    ("A baker", "bread"), ("A tailor", "suits"), ("A carpenter", "wooden tables"), ("A sculptor", "statues"),
    ("A brewer", "beer"),
    ("A jeweller", "rings and necklaces"), ("A composer", "music"), ("A potter", "clay pots"),
    ("A programmer", "software"), ("A cobbler", "shoes"), ("A film director", "films"), ("A winemaker", "wine"),
)  # fmt: skip
PLACES = (
    ("Patients are treated in a", "hospital"), ("Books are lent by a", "library"),
    ("Plays are performed in a", "theatre"), ("Money is kept in a", "bank"), ("Cows are kept on a", "farm"),
    ("Pupils are taught in a", "school"), ("Criminals are locked up in a", "prison"), ("Trains stop at a", "station"),
    ("Ships are unloaded in a", "harbour"), ("Old paintings are shown in a", "museum"),
    ("Bees live in a", "hive"), ("Goods are made in a", "factory"), ("Lions and elephants are shown in a", "zoo"),
    ("Guests sleep in a", "hotel"),
)  # fmt: skip
YOUNG = (
    ("cat", "kitten"), ("dog", "puppy"), ("cow", "calf"), ("horse", "foal"), ("sheep", "lamb"), ("bear", "cub"),
    ("hen", "chick"), ("duck", "duckling"), ("goose", "gosling"), ("goat", "kid"), ("frog", "tadpole"), ("swan", "cygnet"),
    ("deer", "fawn"), ("pig", "piglet"),
)  # fmt: skip
SOUNDS = (
    ("dog", "barks"), ("cat", "meows"), ("horse", "neighs"), ("lion", "roars"), ("snake", "hisses"), ("duck", "quacks"),
    ("bee", "buzzes"), ("frog", "croaks"), ("owl", "hoots"), ("pig", "grunts"), ("mouse", "squeaks"),
    ("sheep", "bleats"), ("cow", "moos"),
)  # fmt: skip
ANALOGIES = (
    ("Glove is to hand as sock is to", "foot"), ("Bird is to air as fish is to", "water"),
    ("Day is to sun as night is to", "moon"),
    ("King is to queen as uncle is to", "aunt"), ("Puppy is to dog as kitten is to", "cat"),
    ("Eye is to see as ear is to", "hear"), ("Author is to book as painter is to", "picture"),
    ("Car is to road as train is to", "rails"), ("Hungry is to eat as thirsty is to", "drink"),
    ("Paris is to France as Rome is to", "Italy"), ("Milk is to cow as wool is to", "sheep"),
    ("Thermometer is to temperature as clock is to", "time"), ("Two is to four as five is to", "ten"),
    ("Knife is to cut as pen is to", "write"), ("Brother is to sister as son is to", "daughter"),
)  # fmt: skip


def semantics_items(rng: Random) -> dict[str, list[Item]]:
    """kind -> items with four choices, the right one first."""
    opposites, synonyms, parts = (_split(table) for table in (OPPOSITES, SYNONYMS, PARTS))
    members = [
        (f"{(member if kind in UNCOUNTED else _article(member)).capitalize()} is a kind of", f"{kind}.")
        for kind, names in KINDS.items()
        for member in names.split()
    ]
    tables = {
        "opposite": [(f'The opposite of "{a}" is', f'"{b}".') for a, b in opposites],
        "synonym": [(f'Another word for "{a}" is', f'"{b}".') for a, b in synonyms],
        "hypernym": members,
        "part": [(f"{_article(part).capitalize()} is part of", f"{_article(whole)}.") for part, whole in parts],
        "purpose": [(f"{thing} is used to", f"{use}.") for thing, use in PURPOSES],
        "maker": [(f"{who} makes", f"{what}.") for who, what in WORKERS],
        "place": [(context, f"{place}.") for context, place in PLACES],
        "young": [(f"A young {animal} is called a", f"{young}.") for animal, young in YOUNG],
        "sound": [(f"{_article(animal).capitalize()}", f"{sound}.") for animal, sound in SOUNDS],
        "analogy": [(context, f"{answer}.") for context, answer in ANALOGIES],
    }
    return {kind: with_distractors(rng, rows) for kind, rows in tables.items()}


def _split(table: str) -> list[tuple[str, str]]:
    """ "a/b steering wheel/car" -> [("a", "b"), ("steering wheel", "car")]"""
    pairs, words = [], []
    for word in table.split():
        left, slash, right = word.partition("/")
        words.append(left)
        if slash:
            pairs.append((" ".join(words), right))
            words = []
    return pairs


def _article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun
