"""Minimal pairs of English word order: both sentences hold the same words, and only the first is grammatical."""

from llmrecipes.data.english.drawing import Item

# Each kind's rows are "grammatical | ungrammatical"; `_pair` adds capitals and the end mark.
PAIRS = {
    "question": """
where did you put the scissors? | where you did put the scissors?
when will the train arrive? | when the train will arrive?
why is your brother laughing? | why your brother is laughing?
what has she bought for dinner? | what she has bought for dinner?
how can I open this bottle? | how I can open this bottle?
who did they invite to the wedding? | who they did invite to the wedding?
what are the neighbours building? | what the neighbours are building?
where does your uncle live? | where your uncle does live?
why did the teacher leave early? | why the teacher did leave early?
which film have you seen? | which film you have seen?
how long will the meeting last? | how long the meeting will last?
when are we going home? | when we are going home?
what should I wear tonight? | what I should wear tonight?
how often do the buses run? | how often the buses do run?
where have the children gone? | where the children have gone?
why were you crying? | why you were crying?
how many books did he write? | how many books he did write?
what time does the shop close? | what time the shop does close?
""",
    "embedded": """
I do not know where the station is | I do not know where is the station
she asked me where my parents were | she asked me where were my parents
tell us when the shop opens | tell us when opens the shop
can you explain how the machine works? | can you explain how works the machine?
nobody knows why he left the city | nobody knows why left he the city
I wonder how old the tree is | I wonder how old is the tree
he forgot where the keys were | he forgot where were the keys
we have no idea who that man is | we have no idea who is that man
she told him how much the coat had cost | she told him how much had the coat cost
please find out when the plane lands | please find out when lands the plane
they asked why we were so late | they asked why were we so late
I remember what the doctor said | I remember what said the doctor
do you know which bus goes to the museum? | do you know which goes bus to the museum?
he showed me where his parents lived | he showed me where lived his parents
ask her how she can help us | ask her how can she help us
I cannot say when the rain will stop | I cannot say when will the rain stop
""",
    "adjectives": """
she wore a long red dress | she wore a red long dress
they live in a big old house | they live in an old big house
he drives a small white car | he drives a white small car
we saw a beautiful Chinese vase | we saw a Chinese beautiful vase
there is a nice wooden table in the hall | there is a wooden nice table in the hall
my aunt has a little brown dog | my aunt has a brown little dog
I found an expensive leather bag | I found a leather expensive bag
the girl drew a tall green tree | the girl drew a green tall tree
he gave me a lovely silver ring | he gave me a silver lovely ring
a young French teacher moved in | a French young teacher moved in
we bought two round glass lamps | we bought two glass round lamps
the three old bridges were closed | three the old bridges were closed
she kept a heavy iron key | she kept an iron heavy key
he wore his new woollen hat | he wore his woollen new hat
they sold cheap plastic chairs | they sold plastic cheap chairs
an ugly black spider sat there | a black ugly spider sat there
""",
    "adverb": """
she always drinks tea in the morning | she drinks always tea in the morning
my father often plays the guitar | my father plays often the guitar
he closed the door quickly | he closed quickly the door
I have never eaten snails | I have eaten never snails
they usually visit us in August | they visit usually us in August
she speaks Spanish very well | she speaks very well Spanish
we sometimes see deer in the garden | we see sometimes deer in the garden
the boy carefully opened the parcel | the boy opened carefully the parcel
you can really trust her | you can trust really her
my sister never forgets a birthday | my sister forgets never a birthday
I like this song very much | I like very much this song
he has already read the letter | he has read already the letter
we hardly know our neighbours | we know hardly our neighbours
the dog suddenly bit the postman | the dog bit suddenly the postman
she rarely watches television | she watches rarely television
they still owe me some money | they owe still me some money
""",
    "particle": """
please turn it off | please turn off it
she picked them up at noon | she picked up them at noon
he threw it away yesterday | he threw away it yesterday
I will call you back | I will call back you
we put it off until Monday | we put off it until Monday
they gave it up last year | they gave up it last year
take them off before you come in | take off them before you come in
he wrote it down at once | he wrote down it at once
do not wake him up | do not wake up him
the dentist pulled it out | the dentist pulled out it
she tried them on in the shop | she tried on them in the shop
the storm blew it down | the storm blew down it
you can look it up at home | you can look up it at home
my mother let us in | my mother let in us
he switched it on again | he switched on it again
we must hand them in today | we must hand in them today
""",
    "degree": """
he is not old enough to drive | he is not enough old to drive
she ran fast enough to win | she ran enough fast to win
the soup is not warm enough | the soup is not enough warm
is the rope long enough? | is the rope enough long?
it was such a good idea | it was a such good idea
we had such a long day | we had a such long day
she has such a kind face | she has a such kind face
what a beautiful garden this is | a what beautiful garden this is
all the windows were open | the all windows were open
both the twins were late | the both twins were late
half the class was ill | the half class was ill
he ate all the bread | he ate the all bread
this room is too small for us | this room is small too for us
the box was very heavy | the box was heavy very
the water is quite cold | the water is cold quite
the shirt was far too big | the shirt was big far too
""",
    "objects": """
the postman handed her two letters | the postman handed two letters her
he gave his mother a scarf | he gave a scarf his mother
I sent my friend a postcard | I sent a postcard my friend
they showed the police the photo | they showed the photo the police
we bought the baby a toy | we bought a toy the baby
the waiter brought us the menu | the waiter brought the menu us
my aunt told us a story | my aunt told a story us
he lent me his bicycle | he lent his bicycle me
she reads her son a poem every night | she reads a poem her son every night
the firm offered him a job | the firm offered a job him
can you pass me the salt? | can you pass the salt me?
they owe the bank a lot of money | they owe a lot of money the bank
our neighbour teaches us Greek | our neighbour teaches Greek us
I made them some soup | I made some soup them
you promised the children a puppy | you promised a puppy the children
the king gave the farmer some land | the king gave some land the farmer
""",
    "auxiliaries": """
she has been sleeping for hours | she been has sleeping for hours
they could have been killed | they have could been killed
it will have stopped by noon | it have will stopped by noon
the house was being painted | the house being was painted
you should have told me | you have should told me
he might be waiting outside | he be might waiting outside
we had not seen the sign | we not had seen the sign
I do not like onions | I not do like onions
she is not coming to the party | she not is coming to the party
the bread has all been eaten | the bread all been has eaten
you must not touch the wire | you must touch not the wire
he does not eat meat | he does eat not meat
the work will be finished soon | the work be will finished soon
they have been warned twice | they been have warned twice
my phone is being repaired | my phone being is repaired
I would have called you | I have would called you
""",
    "relative": """
the man who sold us the car was honest | the man sold who us the car was honest
the book that I am reading is funny | the book I that am reading is funny
the house in which they live is old | the house which in they live is old
the girl whose bike was stolen cried | the girl bike whose was stolen cried
I know somebody who can help us | I know who somebody can help us
this is the place where we met | this is where the place we met
the people who live upstairs are noisy | the people live who upstairs are noisy
the day when she left was cold | the day she when left was cold
everything that he says is true | everything he that says is true
the cake that my mother made was good | the cake my mother that made was good
the dog that bit him ran away | the dog bit that him ran away
here is the letter which came today | here is the letter came which today
the boy with whom she danced smiled | the boy whom with she danced smiled
I lost the pen that you gave me | I lost the pen you that gave me
""",
    "phrases": """
the cat slept under the bed | the cat slept the bed under
she put the milk in the fridge | she put the milk the fridge in
we walked along the river | we walked the river along
he came to see us after lunch | he came to see us lunch after
my best friend lives in Rome | best my friend lives in Rome
her father's car is very old | father's her car is very old
those two men are brothers | two those men are brothers
the first three pages are missing | three the first pages are missing
I would like a cup of tea | I would like a cup tea of
they arrived at the airport late | they arrived the airport at late
she is afraid of big dogs | she is afraid big dogs of
he stood between the two trees | he stood the two trees between
it rained for three days | it rained three days for
some of the eggs were broken | some the of eggs were broken
everyone except the driver was asleep | everyone the driver except was asleep
he is as tall as his father | he is tall as as his father
""",
}  # fmt: skip


def syntax_items() -> dict[str, list[Item]]:
    """kind -> items; the context is empty and the choices are sentences, the grammatical one first."""
    return {kind: [_pair(line) for line in text.strip().splitlines()] for kind, text in PAIRS.items()}


def _pair(line: str) -> Item:
    sentences = (part.strip() for part in line.split("|"))
    return "", [text[0].upper() + text[1:] + ("" if text.endswith("?") else ".") for text in sentences]
