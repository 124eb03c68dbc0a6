"""Minimal pairs of English morphology: agreement, forms of verbs, pronouns, articles, plurals, comparison.

Both sentences of a pair differ in a word or two, and only the first is grammatical.
"""

from llmrecipes.data.english.drawing import Item

# singular head, plural head, what follows the head with a noun of the other number, predicate
SINGULAR_HEADS = (
    ("key", "to the cabinets", "on the table"), ("label", "on the bottles", "hard to read"),
    ("picture", "of the mountains", "on the wall"), ("door", "between the rooms", "locked"),
    ("road", "to the villages", "full of snow"), ("list", "of the guests", "too long"),
    ("box", "of old letters", "in the attic"), ("price", "of the tickets", "very high"),
    ("owner", "of the horses", "from Ireland"), ("roof", "of the houses", "green"),
    ("teacher", "of the twins", "ill today"), ("bridge", "over the rivers", "very old"),
    ("letter", "from my cousins", "on your desk"), ("lamp", "near the windows", "broken"),
)  # fmt: skip
PLURAL_HEADS = (
    ("keys", "to the cabinet", "on the table"), ("labels", "on the bottle", "hard to read"),
    ("pictures", "of the mountain", "on the wall"), ("doors", "of the garage", "locked"),
    ("roads", "to the village", "full of snow"), ("names", "on the list", "hard to read"),
    ("letters", "in the box", "very old"), ("tickets", "for the concert", "too expensive"),
    ("owners", "of the horse", "from Ireland"), ("windows", "of the house", "open"),
    ("parents", "of the girl", "ill today"), ("boats", "under the bridge", "very old"),
    ("flowers", "in the garden", "yellow"), ("chairs", "near the window", "broken"),
)  # fmt: skip
# who, what they do in the relative clause, the verb of the main clause in both numbers, rest
RELATIVES = (
    ("boy", "boys", "likes", "like", "the dogs", "runs", "run", "very fast"),
    ("nurse", "nurses", "knows", "know", "the patients", "works", "work", "at night"),
    ("farmer", "farmers", "owns", "own", "the fields", "gets", "get", "up early"),
    ("girl", "girls", "reads", "read", "the letters", "wants", "want", "to write a book"),
    ("driver", "drivers", "brings", "bring", "the parcels", "lives", "live", "in our street"),
    ("student", "students", "studies", "study", "the planets", "needs", "need", "a new telescope"),
    ("cook", "cooks", "makes", "make", "the cakes", "comes", "come", "from France"),
    ("man", "men", "cleans", "clean", "the windows", "speaks", "speak", "three languages"),
    ("woman", "women", "plays", "play", "the drums", "teaches", "teach", "at our school"),
    ("child", "children", "feeds", "feed", "the ducks", "laughs", "laugh", "a lot"),
)
DETERMINED = (
    ("book", "books", "I have read {} twice"), ("shoe", "shoes", "She never wore {} again"),
    ("picture", "pictures", "Who painted {}"), ("apple", "apples", "Please wash {} first"),
    ("window", "windows", "He forgot to close {}"), ("chair", "chairs", "We bought {} in Spain"),
    ("letter", "letters", "My uncle wrote {}"), ("plate", "plates", "Do not drop {}"),
    ("song", "songs", "Everybody knows {}"), ("tree", "trees", "My grandfather planted {}"),
    ("lamp", "lamps", "They want to sell {}"), ("horse", "horses", "The farmer feeds {}"),
    ("word", "words", "I cannot spell {}"), ("photo", "photos", "She took {} last summer"),
)  # fmt: skip
REFLEXIVES = (
    ("My grandmother", "herself", "himself", "taught {} to swim"),
    ("The king", "himself", "herself", "saw {} in the mirror"),
    ("The queen", "herself", "himself", "asked {} the same question"),
    ("My uncle", "himself", "herself", "made {} a sandwich"),
    ("The actress", "herself", "himself", "prepared {} for the role"),
    ("Her brother", "himself", "herself", "cut {} in the kitchen"),
    ("His sister", "herself", "himself", "bought {} a bicycle"),
    ("My grandfather", "himself", "herself", "introduced {} politely"),
    ("The children", "themselves", "himself", "hid {} behind the curtain"),
    ("The players", "themselves", "itself", "warmed {} up"),
    ("The machine", "itself", "himself", "switched {} off"), ("My parents", "themselves", "herself", "built the house {}"),
    ("The little girl", "herself", "himself", "dressed {} this morning"),
    ("The old man", "himself", "herself", "talked to {} all day"),
    ("The students", "themselves", "himself", "organised the party {}"),
    ("My aunt", "herself", "himself", "found {} a new job"),
    ("The princess", "herself", "himself", "looked at {} in the water"),
    ("My father", "himself", "herself", "repaired the car {}"),
    ("The neighbours", "themselves", "himself", "locked {} out"), ("The boy", "himself", "herself", "hurt {} on the stairs"),
)  # fmt: skip
PARTICIPLES = (
    ("eaten", "ate", "The children have {} all the cake"), ("written", "wrote", "She has {} three novels"),
    ("broken", "broke", "Somebody has {} the window"), ("gone", "went", "They have {} home already"),
    ("seen", "saw", "I have {} that film before"), ("taken", "took", "He has {} my umbrella"),
    ("spoken", "spoke", "Have you {} to the doctor"), ("driven", "drove", "She has never {} a bus"),
    ("begun", "began", "The concert has {} without us"), ("drunk", "drank", "The dog has {} all the water"),
    ("forgotten", "forgot", "My father has {} his keys"), ("given", "gave", "They have {} us a week"),
    ("known", "knew", "I have {} him for years"), ("sung", "sang", "The choir has {} here twice"),
    ("stolen", "stole", "Somebody has {} her purse"), ("swum", "swam", "He has {} across the lake"),
    ("thrown", "threw", "She has {} the old shoes away"), ("worn", "wore", "I have never {} a tie"),
    ("fallen", "fell", "A tree has {} on the road"), ("chosen", "chose", "We have {} a name for the baby"),
    ("flown", "flew", "The birds have {} south"), ("grown", "grew", "The plant has {} a lot"),
)  # fmt: skip
AFTER_AUXILIARY = (
    ("go", "went", "Did she {} to school yesterday"), ("see", "saw", "Did you {} the rainbow"),
    ("buy", "bought", "We did not {} any bread"), ("find", "found", "He could not {} his glasses"),
    ("come", "comes", "My sister will {} tomorrow"), ("sleep", "slept", "The baby did not {} well"),
    ("help", "helps", "Your brother should {} you"), ("win", "won", "They did not {} the match"),
    ("speak", "speaks", "Her husband can {} Italian"), ("bring", "brought", "Did he {} the keys"),
    ("leave", "left", "The train did not {} on time"), ("know", "knows", "The boy does not {} the answer"),
    ("rain", "rains", "It might {} this afternoon"), ("like", "likes", "Does your cat {} milk"),
    ("swim", "swam", "The dog can {} very well"), ("play", "plays", "She must {} the piano every day"),
    ("pay", "paid", "You did not {} the bill"), ("drive", "drives", "My aunt cannot {} a car"),
)  # fmt: skip
PLURALS = (
    ("children", "childs", "Three {} were playing outside"), ("mice", "mouses", "The cat caught two {}"),
    ("feet", "foots", "My {} are cold"), ("teeth", "tooths", "Brush your {} before bed"),
    ("men", "mans", "Two {} carried the piano"), ("women", "womans", "Several {} spoke at the meeting"),
    ("geese", "gooses", "A flock of {} flew over the lake"), ("sheep", "sheeps", "The farmer has forty {}"),
    ("knives", "knifes", "The {} are in the drawer"), ("leaves", "leafs", "The {} are falling from the trees"),
    ("wolves", "wolfs", "We heard {} in the forest"), ("shelves", "shelfs", "He built two {} for his books"),
    ("loaves", "loafs", "She baked five {} of bread"), ("boxes", "boxs", "The {} are too heavy"),
    ("cities", "citys", "We visited four {} in Poland"), ("babies", "babys", "Both {} are asleep"),
    ("potatoes", "potatos", "Please peel the {}"), ("thieves", "thiefs", "The police caught the {}"),
)  # fmt: skip
ARTICLES = (
    ("an hour", "a hour", "We waited for {}"), ("a university", "an university", "She works at {}"),
    ("an honest man", "a honest man", "My uncle is {}"), ("a European city", "an European city", "Prague is {}"),
    ("an apple", "a apple", "He eats {} every day"), ("a uniform", "an uniform", "The guard wears {}"),
    ("an umbrella", "a umbrella", "Take {} with you"), ("a useful tool", "an useful tool", "A hammer is {}"),
    ("an old friend", "a old friend", "I met {} in town"), ("a yellow bird", "an yellow bird", "There is {} on the roof"),
    ("an interesting book", "a interesting book", "This is {}"), ("a house", "an house", "They bought {} by the sea"),
    ("an island", "a island", "Malta is {}"), ("a one-way street", "an one-way street", "This is {}"),
    ("an egg", "a egg", "She boiled {} for breakfast"), ("a hammer", "an hammer", "We need {} and two nails"),
    ("an engineer", "a engineer", "My sister is {}"), ("a wooden box", "an wooden box", "He keeps the coins in {}"),
    ("an accident", "a accident", "There was {} on the bridge"), ("a union", "an union", "The workers formed {}"),
)  # fmt: skip
CASES = (
    ("them", "they", "She gave the tickets to {}"), ("me", "I", "My brother waited for {}"),
    ("him", "he", "We invited {} to dinner"), ("her", "she", "Everybody listened to {}"),
    ("us", "we", "The guide showed {} the castle"), ("they", "them", "Yesterday {} sold the car"),
    ("he", "him", "After lunch {} went for a walk"), ("she", "her", "Every morning {} feeds the birds"),
    ("we", "us", "In summer {} sleep in a tent"), ("I", "me", "On Sundays {} visit my parents"),
    ("their", "they", "The twins forgot {} lunch"), ("my", "me", "I cannot find {} shoes"),
    ("our", "us", "We painted {} kitchen blue"), ("his", "him", "The boy lost {} ball"),
    ("them", "they", "The teacher thanked {} for the flowers"), ("me", "I", "The letter is from {}"),
    ("him", "he", "The dog barked at {}"), ("us", "we", "They did not tell {} the truth"),
)  # fmt: skip
COMPARISONS = (
    ("taller", "more tall", "My sister is {} than my father"), ("older", "more old", "This church is {} than the castle"),
    ("better", "gooder", "The second film was {} than the first"), ("worse", "badder", "The weather is {} than yesterday"),
    ("more beautiful", "beautifuler", "The garden is {} in spring"),
    ("most expensive", "expensivest", "This is the {} hotel in town"),
    ("biggest", "most big", "The whale is the {} animal of all"), ("best", "goodest", "She is the {} player in the team"),
    ("more careful", "carefuler", "You should be {} next time"),
    ("smaller", "more small", "Our kitchen is {} than yours"), ("more difficult", "difficulter", "The last exercise is {}"),
    ("fastest", "most fast", "The cheetah is the {} animal on land"),
    ("more dangerous", "dangerouser", "Ice is {} than snow"), ("cheapest", "most cheap", "We took the {} room"),
)  # fmt: skip
QUANTITIES = (
    ("many", "much", "How {} chairs do we need"), ("much", "many", "How {} water did you drink"),
    ("many", "much", "There were not {} people at the beach"), ("much", "many", "We do not have {} time"),
    ("many", "much", "She has as {} cousins as I do"), ("much", "many", "There is too {} salt in the soup"),
    ("many", "much", "Too {} cars were on the road"), ("much", "many", "How {} money did the coat cost"),
    ("many", "much", "How {} languages does she speak"), ("much", "many", "He never gives us {} advice"),
    ("a few", "a little", "I bought {} oranges"), ("a little", "a few", "Add {} milk to the tea"),
    ("many", "much", "How {} days does May have"), ("much", "many", "There is not {} furniture in the flat"),
)  # fmt: skip
COMPLEMENTS = (
    ("swimming", "to swim", "My grandfather enjoys {} in the lake"), ("to buy", "buying", "They decided {} a smaller car"),
    ("smoking", "to smoke", "She gave up {} last year"), ("to help", "helping", "He promised {} us on Saturday"),
    ("reading", "to read", "Have you finished {} the newspaper"), ("to travel", "travelling", "We hope {} to Japan one day"),
    ("waiting", "to wait", "I do not mind {} for you"), ("to learn", "learning", "She wants {} the violin"),
    ("cooking", "to cook", "He is good at {} fish"), ("to pay", "paying", "They refused {} the bill"),
    ("driving", "to drive", "My aunt avoids {} at night"), ("to move", "moving", "We agreed {} to the city"),
    ("talking", "to talk", "The children kept {} during the film"), ("to win", "winning", "She managed {} the race"),
    ("meeting", "to meet", "She is tired of {} new people"), ("to leave", "leaving", "He offered {} early"),
)  # fmt: skip
POLARITY = (
    ("Nobody", "Somebody", "{} has ever climbed this wall"), ("No student", "Some student", "{} has ever failed this test"),
    ("None of us", "Both of us", "{} have ever been to Iceland"),
    ("Nobody", "Everybody", "{} said anything at all about it"),
    ("She never", "She always", "{} eats any meat"), ("Nothing", "Something", "{} has changed here in the least"),
    ("No dog", "A dog", "{} has ever barked at me here"), ("He did not", "He did", "{} buy anything at all at the market"),
    ("I have not", "I have", "{} finished the letter yet"),
    ("Hardly anybody", "Almost everybody", "{} has ever seen this bird"),
    ("We do not", "We do", "{} live there any more"), ("Few people", "Most people", "{} have ever read the whole law"),
    ("No teacher", "One teacher", "{} has ever complained about her"), ("It has not", "It has", "{} stopped raining yet"),
)  # fmt: skip


def grammar_items() -> dict[str, list[Item]]:
    """kind -> items; the context is empty and the choices are sentences, the grammatical one first."""
    agreement = [_pair(f"The {n} {pp} {{}} {rest}", "is", "are") for n, pp, rest in SINGULAR_HEADS]
    agreement += [_pair(f"The {n} {pp} {{}} {rest}", "are", "is") for n, pp, rest in PLURAL_HEADS]
    relative = []
    for one, many, does, do, what, goes, go, rest in RELATIVES:
        relative.append(_pair(f"The {one} who {does} {what} {{}} {rest}", goes, go))
        relative.append(_pair(f"The {many} who {do} {what} {{}} {rest}", go, goes))
    determined = []
    for one, many, frame in DETERMINED:
        determined += [_pair(frame, f"this {one}", f"these {one}"), _pair(frame, f"those {many}", f"that {many}")]
    tables = {
        "participle": PARTICIPLES, "auxiliary": AFTER_AUXILIARY, "plural": PLURALS, "article": ARTICLES, "case": CASES,
        "comparison": COMPARISONS, "quantity": QUANTITIES, "complement": COMPLEMENTS, "polarity": POLARITY,
    }  # fmt: skip
    return {
        "agreement": agreement,
        "relative": relative,
        "determiner": determined,
        "reflexive": [_pair(f"{who} {frame}", good, bad) for who, good, bad, frame in REFLEXIVES],
        **{kind: [_pair(frame, good, bad) for good, bad, frame in rows] for kind, rows in tables.items()},
    }


def _pair(frame: str, good: str, bad: str) -> Item:
    """`frame` with the right and with the wrong form, as sentences; frames that begin like a question end like one."""
    words = frame.split()
    asks = words[0] in ("Did", "Do", "Does", "Have", "How", "Who") and words[1] != "not"
    return "", [(text[0].upper() + text[1:]) + ("?" if asks else ".") for text in (frame.format(good), frame.format(bad))]
