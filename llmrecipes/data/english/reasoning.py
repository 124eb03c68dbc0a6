"""Short problems whose answer follows from what is said: order, quantity, place, kind, cause, time, condition."""

from random import Random

from llmrecipes.data.english.drawing import Item

NAMES = "Anna Ben Carla David Emma Felix Grace Henry Irene Jacob Karen Liam Maria Noah Olivia Peter Ruth Simon Tara Victor"
NAMES = tuple(NAMES.split())
COMPARED = (("taller", "tallest", "shortest"), ("older", "oldest", "youngest"), ("faster", "fastest", "slowest"),
            ("heavier", "heaviest", "lightest"), ("richer", "richest", "poorest"))  # fmt: skip
THINGS = ("apples", "coins", "books", "eggs", "pencils", "stamps", "balls", "cards")
CONTAINERS = ("drawer", "basket", "cupboard", "box", "suitcase", "fridge", "bag", "garage")
OBJECTS = ("key", "ring", "letter", "torch", "camera", "wallet", "watch", "scarf")
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
# invented kinds, so that nothing but the premises can tell
KINDS = ("wugs", "blickets", "daxes", "fendles", "toves", "zorps", "mips", "lorks")
TRAITS = ("blue", "round", "heavy", "sweet", "made of glass", "very old")
CAUSES = (
    ("Mary dropped the glass on the stone floor, so the glass", "broke.", "grew.", "sang.", "melted."),
    ("Nobody watered the plant for two months, so it", "died.", "flew away.", "doubled in size.", "turned into stone."),
    ("He forgot his umbrella and it rained hard, so he got", "wet.", "rich.", "taller.", "younger."),
    ("She left the ice cream in the sun, so it", "melted.", "froze.", "boiled over.", "caught fire."),
    ("The battery was empty, so the phone", "switched off.", "became heavier.", "rang louder.", "turned blue."),
    ("The road was covered with ice, so the car", "slid.", "floated.", "flew.", "melted."),
    ("He had not eaten all day, so he was very", "hungry.", "full.", "tall.", "famous."),
    ("The soup was too hot, so she waited until it had", "cooled down.", "dried up.", "caught fire.", "grown."),
    ("The baby was tired, so it fell", "asleep.", "upwards.", "in love.", "silent for a year."),
    ("She blew out the candle, so the room became", "dark.", "bright.", "larger.", "crowded."),
    ("He ran five miles without a break, so he was", "out of breath.", "well rested.", "freezing.", "bored of sleeping."),
    ("The tyre was flat, so they could not", "drive on.", "see the sky.", "hear the radio.", "eat lunch."),
    ("The bread was in the oven for three hours, so it was", "burnt.", "raw.", "frozen.", "wet."),
    ("She put the wet shirt in the sun, so it", "dried.", "froze.", "grew sleeves.", "got wetter."),
    ("The shop was closed, so we could not", "buy any milk.", "walk home.", "see the moon.", "breathe."),
    ("The bridge was too weak for the lorry, so it", "collapsed.", "became stronger.", "moved to the city.", "dissolved."),
)  # fmt: skip
IMPOSSIBLE = (
    ("The suitcase does not fit into the car because the suitcase is too", "large.", "small."),
    ("The ball does not fit through the hole because the hole is too", "small.", "large."),
    ("I could not reach the shelf because the shelf was too", "high.", "low."),
    ("We could not hear the speaker because he spoke too", "quietly.", "loudly."),
    ("She could not lift the box because the box was too", "heavy.", "light."),
    ("He could not read the sign because the letters were too", "small.", "big."),
    ("We missed the train because we arrived too", "late.", "early."),
    ("The boy could not wear the shoes because his feet were too", "big.", "clean."),
    ("The tea could not be drunk yet because it was too", "hot.", "cold."),
    ("They could not afford the house because it was too", "expensive.", "cheap."),
    ("We could not see the road because the fog was too", "thick.", "thin."),
    ("The knife did not cut the bread because the knife was too", "blunt.", "sharp."),
    ("The rope did not reach the ground because it was too", "short.", "long."),
    ("She could not sleep because the street was too", "noisy.", "quiet."),
    ("The ice did not carry the skater because the ice was too", "thin.", "thick."),
    ("He did not finish the test because the time was too", "short.", "long."),
)  # fmt: skip
NUM_OF_KIND = 24


def reasoning_items(rng: Random) -> dict[str, list[Item]]:
    """kind -> items with two to four choices, the right one first."""
    writers = {"order": _order, "sum": _sum, "tracking": _tracking, "syllogism": _syllogism, "calendar": _calendar,
               "condition": _condition, "sequence": _sequence}  # fmt: skip
    items = {kind: [write(rng) for _ in range(NUM_OF_KIND)] for kind, write in writers.items()}
    return items | {
        "cause": [(context, choices) for context, *choices in map(list, CAUSES)],
        "obstacle": [(context, choices) for context, *choices in map(list, IMPOSSIBLE)],
    }


def _order(rng: Random) -> Item:
    a, b, c = rng.sample(NAMES, 3)
    more, most, least = rng.choice(COMPARED)
    first, second = f"{a} is {more} than {b}.", f"{b} is {more} than {c}."
    premises = [first, second]
    rng.shuffle(premises)
    asked, right = rng.choice(((most, a), (least, c)))
    return f"{' '.join(premises)} Of the three, the {asked} is", [f"{right}.", *(f"{n}." for n in (a, b, c) if n != right)]


def _sum(rng: Random) -> Item:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    have, change = rng.randint(6, 12), rng.randint(2, 5)
    verb, total = rng.choice((("finds", have + change), ("gives away", have - change)))
    context = (
        f"{name} has {have} {thing} and {verb} {change} of them."
        if verb == "gives away"
        else (f"{name} has {have} {thing} and {verb} {change} more.")
    )
    wrong = rng.sample([n for n in range(max(1, total - 3), total + 4) if n != total], 3)
    return f"{context} Now the number of {thing} that {name} has is", [f"{total}.", *(f"{n}." for n in wrong)]


def _tracking(rng: Random) -> Item:
    one, other = rng.sample(NAMES, 2)
    thing = rng.choice(OBJECTS)
    first, second, third = rng.sample(CONTAINERS, 3)
    if rng.random() < 0.5:
        context = f"{one} put the {thing} in the {first}. Later {other} moved it from the {first} to the {second}."
        return f"{context} Now the {thing} is in the", [f"{second}.", f"{first}.", f"{third}."]
    away = rng.choice([name for name in NAMES if name not in (one, other)])
    context = f"{one} gave the {thing} to {other}. {away} asked for it, but {other} kept it."
    return f"{context} Now the {thing} belongs to", [f"{other}.", f"{one}.", f"{away}."]


def _syllogism(rng: Random) -> Item:
    kind, above = rng.sample(KINDS, 2)
    trait, other = rng.sample(TRAITS, 2)
    if rng.random() < 0.5:
        context = f"All {kind} are {above}. All {above} are {trait}. Therefore all {kind} are"
        return context, [f"{trait}.", f"{other}."]
    name = rng.choice(NAMES)
    context = f"No {kind} are {trait}. {name} has found one of the {kind}. So what {name} has found is"
    return context, [f"not {trait}.", f"{trait}."]


def _calendar(rng: Random) -> Item:
    if rng.random() < 0.5:
        i, days = rng.randrange(7), rng.randint(2, 5)
        right = DAYS[(i + days) % 7]
        wrong = rng.sample([day for day in DAYS if day not in (right, DAYS[i])], 3)
        return f"Today is {DAYS[i]}. In {days} days it will be", [f"{day}." for day in (right, *wrong)]
    i, months = rng.randrange(12), rng.randint(2, 5)
    right = MONTHS[(i + months) % 12]
    wrong = rng.sample([month for month in MONTHS if month not in (right, MONTHS[i])], 3)
    return f"It is {MONTHS[i]} now. In {months} months it will be", [f"{month}." for month in (right, *wrong)]


def _condition(rng: Random) -> Item:
    """Modus ponens and modus tollens."""
    name, other = rng.sample(NAMES, 2)
    state, opposite, follows, not_follows = rng.choice(
        (
            ("it rains", "it does not rain", "stays at home", "does not stay at home"),
            ("the shop is open", "the shop is closed", "buys bread", "does not buy bread"),
            (f"{other} calls", f"{other} does not call", "goes to the cinema", "does not go to the cinema"),
            ("the sun shines", "the sun does not shine", "swims in the lake", "does not swim in the lake"),
            ("the bus is late", "the bus is on time", "walks to work", "does not walk to work"),
            ("there is snow", "there is no snow", "wears boots", "does not wear boots"),
        )
    )
    rule = f"Whenever {state}, {name} {follows}."
    if rng.random() < 0.5:
        return f"{rule} Today {state}. So today {name}", [f"{follows}.", f"{not_follows}."]
    return f"{rule} Today {name} {not_follows}. So today", [f"{opposite}.", f"{state}."]


def _sequence(rng: Random) -> Item:
    start = rng.randint(1, 9)
    if rng.random() < 0.6:
        step = rng.randint(2, 6)
        terms = [start + step * i for i in range(5)]
    else:
        start = rng.randint(1, 6)
        terms = [start * 2**i for i in range(5)]
    right = terms[-1]
    wrong = rng.sample([n for n in range(right - 4, right + 5) if n != right and n > terms[-2]], 3)
    return f"The next number after {', '.join(map(str, terms[:-1]))} is", [f"{n}." for n in (right, *wrong)]
