"""Python: which line is valid, what an expression gives, which body does what the docstring says, which word comes next.

Every item is checked by running it (tests/test_english.py): values by `eval`, validity by `compile`, bodies by calls.
"""

from random import Random

from llmrecipes.data.english.drawing import Item

# valid | invalid (neighbours in spelling)
LINES = """
for i in range(10):\\n    print(i) | for i in range(10)\\n    print(i)
if x == 3:\\n    y = 1 | if x = 3:\\n    y = 1
while n > 0:\\n    n -= 1 | while n > 0 do\\n    n -= 1
def area(w, h):\\n    return w * h | def area(w, h)\\n    return w * h
class Dog(Animal):\\n    pass | class Dog extends Animal:\\n    pass
names = ["Ann", "Bob"] | names = ["Ann", "Bob")
total = sum(x for x in values) | total = sum(x in x for values)
squares = [x * x for x in range(5)] | squares = [for x in range(5) x * x]
from math import sqrt | from math sqrt import
import os.path as p | import os.path p as
print("a", end="") | print("a", end=")
d = {"a": 1, "b": 2} | d = {"a": 1, "b" 2}
with open("f.txt") as file:\\n    text = file.read() | with open("f.txt") file as:\\n    text = file.read()
try:\\n    x = 1\\nexcept ValueError:\\n    x = 2 | try\\n    x = 1\\nexcept ValueError\\n    x = 2
a, b = b, a | a, b = = b, a
x = 1 if ok else 2 | x = if ok 1 else 2
lambda x: x + 1 | lambda x -> x + 1
assert n > 0, "empty" | assert n > 0 : "empty"
raise ValueError("bad") | raise ValueError "bad"
t = (1,) | t = (1,,)
x += 1 | x + = 1
if a and not b:\\n    pass | if a and b not:\\n    pass
if x is None:\\n    pass | if x is:\\n    pass
elements[1:3] = [0, 0] | elements[1:3 = [0, 0]
del names[0] | del names[0
@property\\ndef size(self):\\n    return 1 | @property def size(self):\\n    return 1
def f(*args, **kwargs):\\n    pass | def f(**kwargs, *args):\\n    pass
def f(a, b=2):\\n    pass | def f(a=1, b):\\n    pass
s = f"{x:.2f}" | s = f"{x:.2f"
return_value = not done | return value = not done
async def run():\\n    await task | def async run():\\n    await task
global counter | globally counter
""".strip().splitlines()
WORDS = "apple river window garden yellow python castle summer rocket monday silver orange".split()
# name, parameters, docstring, right body, wrong bodies, calls that tell them apart
FUNCTIONS = (
    ("square", "x", "Return x times x.", "x * x", ("x + x", "x - x"), ("square(3)",)),
    ("is_even", "n", "Whether n is even.", "n % 2 == 0", ("n % 2 == 1", "n / 2 == 0"), ("is_even(4)",)),
    ("first", "items", "The first element of a list.", "items[0]", ("items[1]", "items[-1]"), ("first([5, 6, 7])",)),
    ("last", "items", "The last element of a list.", "items[-1]", ("items[0]", "items[1]"), ("last([5, 6, 7])",)),
    ("add", "a, b", "Return the sum of a and b.", "a + b", ("a - b", "a * b"), ("add(3, 4)",)),
    ("subtract", "a, b", "Return a minus b.", "a - b", ("b - a", "a + b"), ("subtract(9, 4)",)),
    (
        "average",
        "values",
        "Return the mean of the values.",
        "sum(values) / len(values)",
        ("len(values) / sum(values)", "sum(values) * len(values)"),
        ("average([1, 2, 6])",),
    ),
    (
        "largest",
        "values",
        "Return the largest value.",
        "max(values)",
        ("min(values)", "sum(values)"),
        ("largest([1, 5, 2])",),
    ),
    (
        "smallest",
        "values",
        "Return the smallest value.",
        "min(values)",
        ("max(values)", "len(values)"),
        ("smallest([4, 5, 9])",),
    ),
    (
        "count",
        "items",
        "Return how many items there are.",
        "len(items)",
        ("sum(items)", "max(items)"),
        ("count([4, 5, 9])",),
    ),
    ("reverse", "text", "Return the text backwards.", "text[::-1]", ("text[1:]", "text[:-1]"), ("reverse('abc')",)),
    (
        "shout",
        "text",
        "Return the text in capital letters.",
        "text.upper()",
        ("text.lower()", "text.strip()"),
        ("shout('aBc')",),
    ),
    (
        "whisper",
        "text",
        "Return the text in small letters.",
        "text.lower()",
        ("text.upper()", "text.title()"),
        ("whisper('aBc')",),
    ),
    (
        "double_all",
        "values",
        "Return a list with every value doubled.",
        "[2 * v for v in values]",
        ("[v + 2 for v in values]", "[v for v in values]"),
        ("double_all([1, 5])",),
    ),
    (
        "positives",
        "values",
        "Keep only the values above zero.",
        "[v for v in values if v > 0]",
        ("[v for v in values if v < 0]", "[v for v in values if v == 0]"),
        ("positives([-1, 0, 2])",),
    ),
    ("absolute", "x", "Return x without its sign.", "x if x >= 0 else -x", ("-x if x >= 0 else x", "x"), ("absolute(-3)",)),
    (
        "contains",
        "items, x",
        "Whether x is one of the items.",
        "x in items",
        ("x not in items", "items == x"),
        ("contains([1, 2], 2)",),
    ),
    (
        "celsius",
        "f",
        "Convert degrees Fahrenheit to Celsius.",
        "(f - 32) * 5 / 9",
        ("(f + 32) * 5 / 9", "f * 9 / 5 + 32"),
        ("celsius(212)",),
    ),
    (
        "split_words",
        "text",
        "Return the list of words in the text.",
        "text.split()",
        ("text.strip()", "list(text)"),
        ("split_words('a b')",),
    ),
    (
        "join_words",
        "words",
        "Join the words with spaces.",
        "' '.join(words)",
        ("''.join(words)", "','.join(words)"),
        ("join_words(['a', 'b'])",),
    ),
    (
        "sorted_copy",
        "values",
        "Return the values from small to large.",
        "sorted(values)",
        ("sorted(values, reverse=True)", "values[::-1]"),
        ("sorted_copy([2, 3, 1])",),
    ),
    (
        "starts_with_a",
        "word",
        "Whether the word begins with the letter a.",
        "word.startswith('a')",
        ("word.endswith('a')", "word == 'a'"),
        ("starts_with_a('ant')",),
    ),
    (
        "power",
        "base, exponent",
        "Raise base to the exponent.",
        "base ** exponent",
        ("base * exponent", "exponent ** base"),
        ("power(2, 5)",),
    ),
    (
        "without_last",
        "items",
        "Return all items but the last one.",
        "items[:-1]",
        ("items[1:]", "items[-1]"),
        ("without_last([1, 2, 3])",),
    ),
    (
        "is_empty",
        "items",
        "Whether there are no items.",
        "len(items) == 0",
        ("len(items) > 0", "len(items) == 1"),
        ("is_empty([])",),
    ),
    ("minutes", "hours", "Convert hours to minutes.", "hours * 60", ("hours / 60", "hours + 60"), ("minutes(2)",)),
    (
        "circle_area",
        "r",
        "Return the area of a circle of radius r.",
        "3.14159 * r * r",
        ("2 * 3.14159 * r", "3.14159 + r"),
        ("circle_area(3)",),
    ),
    (
        "is_adult",
        "age",
        "Whether the age is at least 18.",
        "age >= 18",
        ("age <= 18", "age > 18"),
        ("is_adult(18)", "is_adult(30)"),
    ),
)
# code up to a point, the word or sign that belongs there, others
NEXT = (
    ("with open(path) ", "as file:", ("in file:", "is file:")),
    ("from collections ", "import Counter", ("export Counter", "as Counter")),
    ("for key, value in scores", ".items():", (".values():", ".keys():")),
    ("for i, name in ", "enumerate(names):", ("len(names):", "print(names):")),
    ("if name not ", "in names:", ("of names:", "at names:")),
    ("try:\n    n = int(text)\nexcept ", "ValueError:", ("ImportError:", "IndexError:")),
    ("import numpy ", "as np", ("is np", "in np")),
    ("class Circle:\n    def __init__(", "self, radius):", ("radius, self):", "return, radius):")),
    ("if __name__ == ", '"__main__":', ('"__init__":', '"main.py":')),
    ("import pandas ", "as pd", ("for pd", "or pd")),
    ("while True:\n    line = input()\n    if not line:\n        ", "break", ("import", "lambda")),
    ("if x > 0:\n    print('positive')\nelif x < 0:\n    print('negative')\n", "else:", ("then:", "case:")),
    ("def gcd(a, b):\n    while b:\n        a, b = b, ", "a % b", ("a + b", "b % a")),
    (
        "def factorial(n):\n    if n == 0:\n        return 1\n    return n * ",
        "factorial(n - 1)",
        ("factorial(n + 1)", "factorial(n)"),
    ),
    ("def fib(n):\n    if n < 2:\n        return n\n    return fib(n - 1) + ", "fib(n - 2)", ("fib(n + 2)", "fib(n)")),
    ("stack = []\nstack.append(1)\ntop = stack.", "pop()", ("push()", "top()")),
    ("total = 0\nfor price in prices:\n    total ", "+= price", ("-= price", "== price")),
    ("names = ['Ann', 'Bob']\nfor name ", "in names:", ("of names:", "from names:")),
    ("try:\n    run()\n", "finally:\n    close()", ("always:\n    close()", "ensure:\n    close()")),
    ("counts = {}\nfor word in words:\n    counts[word] = counts.get(word, ", "0) + 1", ("1) + 0", "word) + 1")),
    ("def load(path):\n    with open(path) as file:\n        return ", "file.read()", ("file.write()", "path.read()")),
    ("import json\nwith open('a.json') as file:\n    data = json.", "load(file)", ("dump(file)", "open(file)")),
    ("import random\ndie = random.", "randint(1, 6)", ("randint(0, 5)", "choice(1, 6)")),
    ("evens = [n for n in numbers if n % 2 ", "== 0]", ("== 2]", "== n]")),
    ("def greet(name):\n    print(f'Hello, ", "{name}!')", ("(name)!')", "[name]!')")),
    (
        "if not isinstance(n, int):\n    raise ",
        "TypeError('n must be an integer')",
        ("NameError('n must be an integer')", "EOFError('n must be an integer')"),
    ),
    (
        "class Square(Shape):\n    def __init__(self, side):\n        ",
        "super().__init__()",
        ("parent().__init__()", "base().__init__()"),
    ),
    ("low, high = 0, len(items)\nwhile low < high:\n    middle = (low + high) ", "// 2", ("** 2", "% 2")),
    ("squares = {n: n * n for n ", "in range(10)}", ("of range(10)}", "to range(10)}")),
    ("queue = [start]\nwhile queue:\n    node = queue.", "pop(0)", ("push(0)", "shift(0)")),
)
NUM_VALUES = 96


def coding_items(rng: Random) -> dict[str, list[Item]]:
    """kind -> items; the choices follow the context directly, so that a context ends in the space before them."""
    lines = [[part.strip().replace("\\n", "\n") for part in line.split(" | ")] for line in LINES]
    bodies = [
        (f'def {name}({params}):\n    """{told}"""\n    return ', [right, *wrong])
        for name, params, told, right, wrong, _ in FUNCTIONS
    ]
    return {
        "line": [("", choices) for choices in lines],
        "value": [_value(rng, number) for number in range(NUM_VALUES)],
        "body": bodies,
        "next": [(context, [right, *wrong]) for context, right, wrong in NEXT],
    }


def _value(rng: Random, number: int) -> Item:
    word, other, third = rng.sample(WORDS, 3)
    a, b, c = (rng.randint(2, 9) for _ in range(3))
    values = [rng.randint(1, 9) for _ in range(4)]
    expression, wrong = (
        (f"len({word!r})", [len(word) - 1, len(word) + 1, word]),
        (f"{a} + {b} * {c}", [(a + b) * c, a + b + c, a * b + c + 1]),
        (f"{word!r}[0]", [word[-1], word[1:], 0]),
        (f"{word!r}.upper()", [word, word.title(), word[::-1]]),
        (f"{values}[1]", [values[0], values[3], values[1] + 10]),
        (f"{a * 10 + b} % 10", [a, a + b + 10, 10]),
        (f"{a * 10 + b} // 10", [b + 10, a * 10, a + 0.5]),
        (f"sum({values})", [sum(values) + 1, max(values), len(values)]),
        (f"max({values})", [min(values), sum(values), max(values) + 1]),
        (f"{word!r} + {other!r}", [other + word, word, word + " " + other]),
        (f"sorted({values})", [values[::-1], sorted(values)[::-1], sorted(values)[1:]]),
        (f"list(range({a}))", [list(range(1, a + 1)), list(range(a + 1)), a]),
        (f"{a} > {b}", [not a > b, a, b]),
        (f"{word!r}[::-1]", [word, word[1:], word.upper()]),
        (f"{word!r} in [{[word, third][number // 16 % 2]!r}, {other!r}]", [number // 16 % 2 == 1, word, other]),
        (f"{a} ** 2", [a * 2 if a != 2 else 5, a + 2 if a != 2 else 6, a**3]),
    )[number % 16]
    right = eval(expression)  # nosec B307
    choices = list(dict.fromkeys(repr(value) for value in (right, *wrong)))
    return f">>> {expression}\n", choices
