"""The steps that look at one document: what each mends, drops and leaves alone."""

import random
from collections import Counter

import pytest
from corpora import document

from llmrecipes.config import InputError
from llmrecipes.corpus import extras
from llmrecipes.corpus.arguments import StepArguments
from llmrecipes.corpus.steps import build_steps
from llmrecipes.corpus.steps.blocklist import load_blocked, without_blocked
from llmrecipes.corpus.steps.c4 import c4
from llmrecipes.corpus.steps.fineweb import fineweb
from llmrecipes.corpus.steps.gopher import gopher, gopher_repetition
from llmrecipes.corpus.steps.scrub import scrubbed

PROSE = (
    "The river rises in the mountains and flows to the sea. It is one of the longest in the country, and boats have "
    "used it for many hundreds of years. In spring the snow melts, and the water reaches the gardens of the villages "
    "that stand along its banks. People who live there have built walls to hold it back. Every few years the walls are "
    "not high enough, and the cellars have to be pumped dry with the help of the fire brigade."
)


def test_prose_passes_every_rule():
    for rule in (gopher, gopher_repetition, c4, fineweb):
        assert rule(PROSE) == (PROSE, ""), rule


@pytest.mark.parametrize(
    ("rule", "text", "reason"),
    [
        (gopher, "A short text.", "fewer than 50 words"),
        (gopher, "a b c d e f g h the of " * 10, "mean length"),
        (gopher, PROSE.replace(" ", " # "), "hashes"),
        (gopher, PROSE.replace(" ", " ... "), "ellipses a word"),
        (gopher, "\n".join(f"- {line}" for line in PROSE.split(". ")), "bullet"),
        (gopher, "\n".join(f"{line}..." for line in PROSE.split(". ")), "end in an ellipsis"),
        (gopher, PROSE + " 1234" * 80, "with a letter"),
        (gopher, " ".join(f"palabra{i}" for i in range(80)), "stop words"),
        (gopher_repetition, "\n\n".join([PROSE[:60]] * 3 + [PROSE]), "paragraphs repeated"),
        (gopher_repetition, "\n".join(["Home page"] * 5 + [PROSE]), "lines repeated"),
        (gopher_repetition, PROSE + " buy now" * 40, "commonest 2-gram"),
        (gopher_repetition, PROSE + " " + " ".join([PROSE[:120]] * 2), "repeated 5-grams"),
        (c4, PROSE + " { }.", "curly bracket"),
        (c4, PROSE + " Lorem ipsum dolor.", "lorem ipsum"),
        (c4, "Only one sentence stands here.", "fewer than 5 sentences"),
        (fineweb, "\n".join(PROSE[i : i + 60] + "," for i in range(0, 360, 60)), "end in a mark"),
        (fineweb, "\n".join(f"Item number {i}." for i in range(30)), "30 characters or fewer"),
        (fineweb, PROSE + "\n" + PROSE, "repeated lines"),
    ],
)
def test_each_rule_drops_what_it_is_for(rule, text, reason):
    assert reason in rule(text)[1]


def test_c4_drops_lines():
    menu = "Home | News | About\nPlease enable JavaScript to see this page.\nRead our privacy policy for more.\nToo short.\n"
    assert c4(menu + PROSE)[0] == PROSE


def test_gopher_and_fineweb_decide_as_datatrove_does(monkeypatch):
    """With one splitter of words, on the same documents; C4 differs in how it counts sentences."""
    pytest.importorskip("datatrove")
    from datatrove.data import Document
    from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter

    from llmrecipes.corpus.hashing import TOKEN

    for name in ("gopher_quality_filter", "gopher_repetition_filter", "fineweb_quality_filter"):
        monkeypatch.setattr(
            f"datatrove.pipeline.filters.{name}.split_into_words", lambda text, language: TOKEN.findall(text)
        )
    import pydoc_data.topics

    texts = [PROSE, *pydoc_data.topics.topics.values(), *(document(i) for i in range(20))]
    texts += [part for text in texts for part in text.split("\n\n") if part.strip()]
    texts = texts[::6] + [text + "\n" + text[: len(text) // 3] for text in texts[::20]]
    disagreements = Counter()
    for ours, theirs in (
        (gopher, GopherQualityFilter()),
        (gopher_repetition, GopherRepetitionFilter()),
        (fineweb, FineWebQualityFilter()),
    ):
        for text in texts:
            verdict = theirs.filter(Document(text=text, id=""))
            disagreements[ours.__name__] += (verdict is True) != (not ours(text)[1])
    assert not disagreements.total(), disagreements


def test_personal_data_are_replaced_and_counted():
    changed = Counter()
    text = (
        "Mail joe.doe+x@mail.example.co.uk, call (212) 555-1234, 212-555-1234, +49 30 1234567 or +1 212 555 1234. "
        "Server 93.184.216.34, router 192.168.0.1."
    )
    new, _ = scrubbed(("email", "phone", "ip"), changed, text)
    assert new == "Mail [email], call [phone], [phone], [phone] or [phone]. Server [ip], router 192.168.0.1."
    assert changed == {"email": 1, "phone": 4, "ip": 1}
    assert scrubbed(("email",), Counter(), text)[0].count("[") == 1


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *((text, "email") for text in ("o'brien@x.ie", "a%b@x.org", "иван@пример.рф", "user@xn--e1afmkfd.xn--p1ai")),
        *((text, "ip") for text in ("2001:4860:4860::8888", "2001:4860::", "2a00:1450:4001:81b::200e")),
        *((text, "phone") for text in ("+33 1 23 45 67 89", "+81 3 1234 5678", "+7 (495) 123-45-67", "+1(555)123-4567")),
        ("1-800-555-1234", "phone"),
    ],
)
def test_personal_data_of_other_countries_and_shapes_are_replaced_as_a_whole(text, kind):
    changed = Counter()
    assert scrubbed(("email", "phone", "ip"), changed, f"({text}), {text}: {text}.")[0] == "([x]), [x]: [x].".replace(
        "x", kind
    )
    assert +changed == {kind: 3}


ALL = ("email", "phone", "ip", "national_phone", "iban", "card", "key")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *((text, "national_phone") for text in ("0171 1234567", "030 / 901820", "01 23 45 67 89", "(0711) 2345-678")),
        *((text, "national_phone") for text in ("0044 20 7946 0958", "02079460958", "(020) 7946 0958")),
        *((text, "iban") for text in ("DE89 3704 0044 0532 0130 00", "GB29NWBK60161331926819", "NO93 8601 1117 947")),
        *((text, "card") for text in ("4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005")),
        *((text, "key") for text in ("AKIAIOSFODNN7EXAMPLE", "ghp_abcdefghijklmnopqrstuvwxyz0123456789")),
    ],
)
def test_more_kinds_are_replaced_if_asked_for(text, kind):
    changed = Counter()
    shown = "phone" if "phone" in kind else kind
    assert scrubbed(ALL, changed, f"({text}), {text} AND {text}.")[0] == f"([{shown}]), [{shown}] AND [{shown}]."
    assert +changed == {kind: 3} or +changed in ({"phone": 3}, {"phone": 1, "national_phone": 2}) and shown == "phone"
    if kind in ("iban", "card"):
        digit = next(i for i in range(len(text) - 1, 0, -1) if text[i].isdigit())
        wrong = f"{text[:digit]}{(int(text[digit]) + 1) % 10}{text[digit + 1 :]}"
        assert scrubbed((kind,), Counter(), wrong)[0] == wrong, "its check digit is wrong"


def test_a_long_run_of_characters_takes_no_longer_than_words_do():
    """A pattern that looks ahead from each character takes an hour."""
    text = "A" * 1_000_000 + " a@b.org"
    assert scrubbed(ALL, Counter(), text)[0].endswith("A [email]")
    assert scrubbed(ALL, Counter(), "0" * 20_000 + "1 " * 20_000)[0].startswith("0000")


@pytest.mark.parametrize(
    "text",
    [
        "a::b, std::vector, 12:30:45, fe80::1 and ::1",
        "On 2024-01-02 12:30:45 and 1999/12/31.",
        "pi is 3.14159265358979",
        "a 12345678901 b",
        "ISBN 978-3-16-148410-0",
        "version 1.2.3 of 10,000,000 copies",
        "user@host",
        "0x7ffeefbff5c8",
        "pages 100-110, 1914-1918",
        "0.123456789 and 00:12:34, 01-02-2023, 01/02/2023 and 007",
        "1234 5678 9012 3456 and order 4111111111111111222",
    ],
)
def test_other_numbers_stay(text):
    assert scrubbed(ALL, Counter(), text)[0] == text


def test_a_word_list_drops_whole_words_and_phrases(tmp_path):
    (tmp_path / "words.txt").write_text("# a comment\nGrue\nbad phrase\n")
    blocked = load_blocked(str(tmp_path / "words.txt"))
    drops = lambda text: bool(without_blocked(blocked, text)[1])
    assert drops("It is pitch dark; a GRUE.") and drops("What a Bad phrase!") and not drops("gruesome bad phrases")
    with pytest.raises(InputError, match="blocked_words: .*none.txt cannot be read"):
        load_blocked(str(tmp_path / "none.txt"))


def test_a_word_list_of_scripts_without_blanks_and_with_a_byte_order_mark(tmp_path):
    (tmp_path / "words.txt").write_text("grue\n\u574f\u8bcd\nx\u574f\n", encoding="utf-8-sig")
    blocked = load_blocked(str(tmp_path / "words.txt"))
    drops = lambda text: bool(without_blocked(blocked, text)[1])
    assert drops("A grue.") and drops("\u8fd9\u662f\u574f\u8bcd\u5417") and drops("an x\u574f\u8fd9")
    assert not drops("\u574f\u7684\u8bcd") and not drops("ax\u574f")


def test_broken_characters_are_mended_and_others_left_alone():
    pytest.importorskip("ftfy")
    changed = Counter()
    ((_, step),) = build_steps(StepArguments(scrub=[]), changed)
    broken = "caf\u00c3\u00a9 \u00e2\u20ac\u201d ok &amp; fine\x08\r\nnext"
    assert step(broken) == ("caf\u00e9 \u2014 ok & fine\nnext", "")
    for text in (
        PROSE,
        "\u201cna\u00efve\u201d \u4e2d\u6587 \U0001f600",
        "if (a < b && c) { return &x; } <b>&amp;</b>",
        "tab\there",
    ):
        assert step(text) == (text, "")
    assert changed["repaired"] == 1 and step(" \x08 ")[1]


def test_languages_are_told_apart():
    pytest.importorskip("py3langid")
    ((_, step),) = build_steps(StepArguments(repair=False, languages=["en", "de"], scrub=[]), Counter())
    german = "Der Fluss entspringt in den Bergen und m\u00fcndet ins Meer, und im Fr\u00fchjahr schmilzt der Schnee."
    french = "La rivi\u00e8re prend sa source dans les montagnes et se jette dans la mer au printemps."
    assert step(PROSE)[1] == step(german)[1] == step("x\x07 " + PROSE)[1] == "" and step(french)[1] == "language fr"
    with pytest.raises(InputError, match="languages: there is no 'german'; langid knows ace, af, "):
        build_steps(StepArguments(languages=["en", "german"]), Counter())


def test_langid_read_at_all_bytes_at_once_says_what_langid_says():
    langid = pytest.importorskip("py3langid")
    import numpy

    from llmrecipes.corpus.steps.language import LONGEST, load_detector

    detect, rng, alphabets = load_detector(["en"]), random.Random(0), (range(32, 127), range(160, 600), range(1024, 40000))
    texts = ["", "a", "the", "\0the", PROSE, PROSE.upper(), *(PROSE[i : i + 30] for i in range(0, 400, 10))]
    texts += ["".join(chr(rng.choice(rng.choice(alphabets))) for _ in range(rng.randrange(80))) for _ in range(300)]
    assert [detect(text) for text in texts] == [langid.classify(text)[0] for text in texts]
    model = langid.langid._get_identifier()
    moves = numpy.frombuffer(model.tk_nextmove, numpy.uint32).reshape(-1, 256)
    reached, longest = numpy.array([0]), 0
    seen = numpy.zeros(len(model.tk_row), bool)
    seen[0] = True
    while len(reached := numpy.unique(moves[numpy.array(model.tk_row)[reached]])) and not seen[reached].all():
        reached = reached[~seen[reached]]
        seen[reached], longest = True, longest + 1
    assert longest == LONGEST, "bytes that the automaton remembers"
    assert not moves[:, 0].any(), "a zero leaves it where it begins"


def test_words_are_those_of_the_pattern_also_where_bytes_find_them():
    from llmrecipes.corpus.hashing import TOKEN, WORD, tokens_of, words_of

    rng, characters = random.Random(1), "aZ_9 .,'\n\t\x1c\x1f\x7f-\u00e9\u0141\u4e2d\u00df\u2026"
    for size in range(200):
        text = "".join(rng.choice(characters[: 13 + 6 * (size % 2)]) for _ in range(size))
        assert words_of(text) == WORD.findall(text.lower()) and tokens_of(text) == TOKEN.findall(text)
    assert words_of("9\u0130a") == ["9i\u0307a"], "in small letters an accent of its own"


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch):
    def missing(module):
        raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    with pytest.raises(InputError, match=r"repair: needs ftfy .*pip install -e '\.\[data\]'"):
        build_steps(StepArguments(), Counter())
    with pytest.raises(InputError, match="languages: needs py3langid"):
        build_steps(StepArguments(repair=False, languages=["en"]), Counter())
    rules = ["gopher", "c4", "fineweb", "gopher_repetition"]
    assert len(build_steps(StepArguments(repair=False, quality=rules), Counter())) == 5, "the others need no extra"
