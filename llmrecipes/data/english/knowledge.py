"""Facts that an encyclopedia agrees on: geography, chemistry, astronomy, nature, books, art, music, inventions, dates."""

from random import Random

from llmrecipes.data.english.drawing import Item, with_distractors

# Capitals that nobody disputes and that are also the seat of government.
CAPITALS = {
    "Europe": "France/Paris Germany/Berlin Italy/Rome Spain/Madrid Portugal/Lisbon Greece/Athens Austria/Vienna "
    "Poland/Warsaw Hungary/Budapest Norway/Oslo Sweden/Stockholm Finland/Helsinki Denmark/Copenhagen "
    "Ireland/Dublin Iceland/Reykjavik Belgium/Brussels Romania/Bucharest Bulgaria/Sofia Croatia/Zagreb Ukraine/Kyiv",
    "Asia": "Japan/Tokyo China/Beijing India/New_Delhi Thailand/Bangkok Vietnam/Hanoi Iran/Tehran Iraq/Baghdad "
    "Nepal/Kathmandu Mongolia/Ulaanbaatar Pakistan/Islamabad Bangladesh/Dhaka Jordan/Amman Lebanon/Beirut Syria/Damascus",
    "Africa": "Egypt/Cairo Kenya/Nairobi Morocco/Rabat Ghana/Accra Senegal/Dakar Ethiopia/Addis_Ababa Tunisia/Tunis "
    "Angola/Luanda Libya/Tripoli Zimbabwe/Harare Uganda/Kampala Nigeria/Abuja",
    "South America": "Argentina/Buenos_Aires Peru/Lima Colombia/Bogotá Uruguay/Montevideo Venezuela/Caracas Brazil/Brasília "
    "Ecuador/Quito Paraguay/Asunción",
}  # fmt: skip
CURRENCIES = (
    ("Japan", "yen"), ("India", "rupee"), ("Russia", "rouble"), ("the United Kingdom", "pound"), ("Poland", "złoty"),
    ("Switzerland", "franc"), ("South Korea", "won"), ("South Africa", "rand"), ("Thailand", "baht"), ("Germany", "euro"),
)  # fmt: skip
ELEMENTS = (
    ("gold", "Au"), ("iron", "Fe"), ("sodium", "Na"), ("potassium", "K"), ("oxygen", "O"), ("carbon", "C"), ("silver", "Ag"),
    ("lead", "Pb"), ("helium", "He"), ("hydrogen", "H"), ("nitrogen", "N"), ("copper", "Cu"), ("tin", "Sn"),
    ("mercury", "Hg"),
    ("calcium", "Ca"), ("zinc", "Zn"),
)  # fmt: skip
BOOKS = (
    ("Hamlet", "William Shakespeare"), ("Pride and Prejudice", "Jane Austen"), ("Oliver Twist", "Charles Dickens"),
    ("War and Peace", "Leo Tolstoy"), ("Don Quixote", "Miguel de Cervantes"), ("Moby-Dick", "Herman Melville"),
    ("The Odyssey", "Homer"), ("Crime and Punishment", "Fyodor Dostoevsky"), ("Frankenstein", "Mary Shelley"),
    ("The Divine Comedy", "Dante Alighieri"), ("Les Misérables", "Victor Hugo"), ("Faust", "Johann Wolfgang von Goethe"),
    ("The Adventures of Tom Sawyer", "Mark Twain"), ("Nineteen Eighty-Four", "George Orwell"),
    ("The Hobbit", "J. R. R. Tolkien"), ("Dracula", "Bram Stoker"), ("Jane Eyre", "Charlotte Brontë"),
    ("Wuthering Heights", "Emily Brontë"), ("Treasure Island", "Robert Louis Stevenson"),
    ("The Metamorphosis", "Franz Kafka"),
)  # fmt: skip
WORKS = (
    ("The Mona Lisa was painted by", "Leonardo da Vinci"), ("The Starry Night was painted by", "Vincent van Gogh"),
    ("Guernica was painted by", "Pablo Picasso"), ("The Scream was painted by", "Edvard Munch"),
    ("Girl with a Pearl Earring was painted by", "Johannes Vermeer"), ("The Night Watch was painted by", "Rembrandt"),
    ("The Birth of Venus was painted by", "Sandro Botticelli"),
    ("The Persistence of Memory was painted by", "Salvador Dalí"),
    ("The ceiling of the Sistine Chapel was painted by", "Michelangelo"), ("Water Lilies was painted by", "Claude Monet"),
)  # fmt: skip
MUSIC = (
    ("The Four Seasons was composed by", "Antonio Vivaldi"), ("The Magic Flute was composed by", "Wolfgang Amadeus Mozart"),
    ("Swan Lake was composed by", "Pyotr Tchaikovsky"), ("Für Elise was composed by", "Ludwig van Beethoven"),
    ("The Brandenburg Concertos were composed by", "Johann Sebastian Bach"), ("Aida was composed by", "Giuseppe Verdi"),
    ("The Blue Danube was composed by", "Johann Strauss II"), ("Carmen was composed by", "Georges Bizet"),
)  # fmt: skip
PEOPLE = (
    ("The theory of general relativity was published by", "Albert Einstein"),
    ("The law of universal gravitation was published by", "Isaac Newton"),
    ("On the Origin of Species was written by", "Charles Darwin"), ("Penicillin was discovered by", "Alexander Fleming"),
    ("Radium was discovered by", "Marie and Pierre Curie"),
    ("The first periodic table was published by", "Dmitri Mendeleev"),
    ("A vaccine against rabies was developed by", "Louis Pasteur"), ("Dynamite was invented by", "Alfred Nobel"),
    ("The four largest moons of Jupiter were discovered by", "Galileo Galilei"),
    ("X-rays were discovered by", "Wilhelm Röntgen"),
    ("The first man on the Moon was", "Neil Armstrong"), ("The first human in space was", "Yuri Gagarin"),
    ("Printing with movable type was introduced in Europe by", "Johannes Gutenberg"),
    ("The South Pole was first reached by", "Roald Amundsen"), ("Mount Everest was first climbed by", "Hillary and Tenzing"),
    ("The first president of the United States was", "George Washington"),
    ("The World Wide Web was invented by", "Tim Berners-Lee"),
)  # fmt: skip
LANDMARKS = (
    ("The Eiffel Tower stands in", "Paris"), ("The Colosseum stands in", "Rome"), ("Big Ben stands in", "London"),
    ("The Statue of Liberty stands in", "New York"), ("The Parthenon stands in", "Athens"),
    ("The Kremlin stands in", "Moscow"),
    ("The Brandenburg Gate stands in", "Berlin"), ("The Sagrada Família stands in", "Barcelona"),
    ("The Blue Mosque stands in", "Istanbul"), ("The Golden Gate Bridge is in", "San Francisco"),
    ("The White House is in", "Washington"), ("The Forbidden City is in", "Beijing"), ("Machu Picchu lies in", "Peru"),
    ("The Taj Mahal stands in", "India"), ("The Alhambra stands in", "Granada"),
    ("The Great Pyramid of Giza stands in", "Egypt"),
)  # fmt: skip
YEARS = (
    ("The First World War began in", "1914"), ("The Second World War ended in", "1945"), ("The Berlin Wall fell in", "1989"),
    ("The French Revolution began in", "1789"), ("Columbus first reached America in", "1492"),
    ("The Battle of Hastings was fought in", "1066"), ("The first people landed on the Moon in", "1969"),
    ("The Titanic sank in", "1912"), ("The American Declaration of Independence was adopted in", "1776"),
    ("The Great Fire of London broke out in", "1666"), ("The Battle of Waterloo was fought in", "1815"),
)  # fmt: skip
# context: the right answer first
FACTS = {
    "nature": """
The largest planet of the solar system is | Jupiter | Mars | Venus | Mercury
The planet closest to the Sun is | Mercury | Saturn | Earth | Neptune
The planet known as the red planet is | Mars | Venus | Uranus | Saturn
The natural satellite of the Earth is called the | Moon | Sun | Mars | Titan
The star at the centre of our solar system is the | Sun | Moon | Pole Star | Earth
The galaxy that we live in is called the | Milky Way | Andromeda | Big Dipper | Southern Cross
At sea level, pure water boils at | 100 degrees Celsius | 50 degrees Celsius | 200 degrees Celsius | 20 degrees Celsius
Pure water freezes at | 0 degrees Celsius | 40 degrees Celsius | 100 degrees Celsius | 70 degrees Celsius
A molecule of water is made of hydrogen and | oxygen | carbon | nitrogen | iron
The gas that makes up most of the air is | nitrogen | oxygen | helium | carbon dioxide
Plants take up from the air a gas called | carbon dioxide | helium | neon | argon
The hardest natural material is | diamond | chalk | gold | wood
The largest animal that has ever lived is the | blue whale | elephant | white shark | giraffe
The tallest animal alive is the | giraffe | elephant | camel | horse
The fastest animal on land is the | cheetah | horse | lion | hare
The largest bird alive is the | ostrich | eagle | penguin | pelican
Spiders have | eight legs | six legs | four legs | ten legs
Insects have | six legs | eight legs | four legs | two legs
Caterpillars turn into | butterflies | spiders | worms | birds
Tadpoles grow up to be | frogs | fish | snakes | crabs
Pandas feed mostly on | bamboo | fish | honey | grass seeds
Kangaroos live in the wild in | Australia | Africa | India | Brazil
Penguins live in the wild in | Antarctica | Siberia | Alaska | Greenland
Blood is pumped through the body by the | heart | liver | stomach | brain
Humans breathe with their | lungs | kidneys | livers | bones
An adult human normally has | 32 teeth | 12 teeth | 60 teeth | 100 teeth
The longest bone of the human body is in the | thigh | arm | foot | hand
The normal temperature of the human body in degrees Celsius is about | 37 | 27 | 47 | 57
Light travels faster than | sound | radio waves | X-rays | microwaves
The Earth goes round the Sun once in a | year | day | week | month
The Earth turns round its own axis once in a | day | year | month | week
A magnet attracts | iron | wood | paper | glass
The process by which plants make sugar with sunlight is called | photosynthesis | digestion | erosion | fermentation
The force that pulls things to the ground is called | gravity | friction | magnetism | pressure
""",
    "earth": """
The largest ocean of the world is the | Pacific Ocean | Atlantic Ocean | Indian Ocean | Arctic Ocean
The highest mountain above sea level is | Mount Everest | Mont Blanc | Kilimanjaro | Mount Fuji
The largest country by area is | Russia | China | Brazil | Canada
The largest hot desert of the world is the | Sahara | Gobi | Kalahari | Mojave
The continent with the most people is | Asia | Africa | Europe | South America
The Amazon flows mostly through | Brazil | Chile | Mexico | Argentina
The river that flows through London is the | Thames | Seine | Danube | Rhine
The river that flows through Paris is the | Seine | Thames | Tiber | Danube
The river that flows through Cairo is the | Nile | Congo | Niger | Amazon
The sea between Europe and Africa is the | Mediterranean | Baltic | North Sea | Caribbean
The canal that links the Atlantic and the Pacific is the | Panama Canal | Suez Canal | Kiel Canal | Grand Canal
The mountains between France and Spain are the | Pyrenees | Alps | Andes | Carpathians
The official language of Brazil is | Portuguese | Spanish | French | English
The official language of Egypt is | Arabic | French | Turkish | Greek
The official language of Austria is | German | Italian | Hungarian | French
Mount Fuji is a mountain in | Japan | China | Korea | Nepal
Sicily belongs to | Italy | Greece | Spain | Turkey
The Andes are mountains in | South America | Africa | Asia | Europe
The line round the middle of the Earth is called the | equator | meridian | horizon | orbit
The Great Barrier Reef lies off the coast of | Australia | Mexico | Spain | Madagascar
""",
    "everyday": """
A week has | seven days | five days | ten days | twelve days
A leap year has | 366 days | 365 days | 360 days | 400 days
A triangle has | three sides | four sides | five sides | six sides
A hexagon has | six sides | five sides | seven sides | eight sides
A century is | 100 years | 10 years | 50 years | 1000 years
A kilometre is | 1000 metres | 100 metres | 10 metres | 500 metres
An hour has | 60 minutes | 24 minutes | 100 minutes | 30 minutes
A chessboard has | 64 squares | 36 squares | 100 squares | 49 squares
A football team on the field has | eleven players | nine players | seven players | fifteen players
The Olympic symbol has | five rings | four rings | six rings | three rings
Cheese is made from | milk | flour | honey | rice
Wine is made from | grapes | apples | potatoes | corn
Chocolate is made from | cocoa beans | coffee beans | peanuts | hazelnuts
Paper is mostly made from | wood | stone | wool | sand
Glass is mostly made from | sand | salt | wood | clay
Raisins are dried | grapes | plums | apples | cherries
Bread rises in the oven because of | yeast | salt | butter | water
Silk is made by | silkworms | spiders | sheep | bees
Yellow and blue paint mixed together give | green | orange | purple | brown
The Roman numeral X stands for | 10 | 5 | 50 | 100
The square root of 81 is | 9 | 8 | 7 | 18
Half of a dozen is | six | four | eight | twelve
Sushi comes from | Japan | Mexico | Italy | Morocco
A right angle has | 90 degrees | 45 degrees | 180 degrees | 60 degrees
""",
}  # fmt: skip


def knowledge_items(rng: Random) -> dict[str, list[Item]]:
    """kind -> items with four choices, the right one first."""
    capitals, continents = [], []
    for continent, countries in CAPITALS.items():
        pairs = [pair.replace("_", " ").split("/") for pair in countries.split()]
        capitals += with_distractors(rng, [(f"The capital of {country} is", f"{city}.") for country, city in pairs])
        continents += [(f"{country} is a country in", f"{continent}.") for country, _ in pairs]
    tables = {
        "currency": [(f"The currency of {country} is the", f"{name}.") for country, name in CURRENCIES],
        "element": [(f"The chemical symbol for {name} is", f"{symbol}.") for name, symbol in ELEMENTS],
        "book": [(f"{title} was written by", f"{author}.") for title, author in BOOKS],
        "continent": rng.sample(continents, 24),
    }
    tables |= {
        kind: [(context, f"{answer}.") for context, answer in rows]
        for kind, rows in {"art": WORKS, "music": MUSIC, "people": PEOPLE, "landmark": LANDMARKS, "year": YEARS}.items()
    }
    facts = {kind: [_fact(line) for line in text.strip().splitlines()] for kind, text in FACTS.items()}
    return {"capital": capitals} | {kind: with_distractors(rng, rows) for kind, rows in tables.items()} | facts


def _fact(line: str) -> Item:
    context, *choices = (part.strip() for part in line.split("|"))
    return context, [f"{choice}." for choice in choices]
