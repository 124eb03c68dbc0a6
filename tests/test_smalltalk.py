"""Readers of real sets, on rows of their shapes written here: what is kept, dropped, cleaned and scored."""

import pytest

from llmrecipes.data.archive import position
from llmrecipes.data.smalltalk import dialogues, gold, items, scrub, texts
from llmrecipes.shapes import recognise


def chat(*turns: str) -> dict:
    """A chat of chitchat-dataset whose speakers alternate; "|" parts a turn into messages."""
    return {
        "messages": [
            [{"text": text, "sender": "xy"[i % 2], "timestamp": "2018"} for text in turn.split("|")]
            for i, turn in enumerate(turns)
        ]
    }


def ask(kind: str, prompt: str = "What is the capital of France?", answer: str = "") -> dict:
    return {"prompt": [{"role": "user", "content": prompt}], "kind": kind, "answer": answer}


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("write to Ann.Lee+x@mail.example.org now", "write to [email] now"),
        ("call +1 (555) 123-4567 today", "call [phone] today"),
        ("see https://a.b/c?d=1 there", "see [link] there"),
        ("from 1990-1995 it cost $1,234,567.89", "from 1990-1995 it cost $1,234,567.89"),
        ("pi is 3.14159265358979", "pi is 3.14159265358979"),
    ],
)
def test_scrub_hides_personal_data_and_keeps_other_numbers(text, scrubbed):
    assert scrub.scrub(text) == scrubbed


def test_profane_words_are_found_and_innocent_ones_kept():
    assert not any(map(scrub.is_clean, ("Oh SHIT no", "what a motherfucker", "wtf")))
    assert all(map(scrub.is_clean, ("I ate a grape in Scunthorpe", "a peacock and a cocktail", "a drape", "Dickens")))


def test_near_duplicates_are_dropped_and_the_first_kept():
    words = [f"word{i}" for i in range(100)]
    rows = [{"text": " ".join(words)}, {"text": " ".join([*words[:99], "other"])}, {"text": " ".join(words[::-1])}]
    assert list(scrub.without_near_duplicates(rows)) == [rows[0], rows[2]]


def test_chats_keep_speakers_apart_and_drop_what_is_not_clean():
    rows = [chat("hi there|how are you", "fine", "shit happens", "my mail is a@b.org|bye", "bye you"), chat("hi", "yo")]
    (found,) = texts.chats(rows)
    assert found["text"] == "A: hi there how are you\nB: fine\nB: bye\nA: bye you"


def test_a_slice_holds_out_whole_chats_from_documents_and_from_prompts():
    rows = [
        chat("how was your day today", "It was quite good.", f"what did you do on day {i}", "I went home.") for i in range(9)
    ]
    documents, turns = [row["key"] for row in texts.chats(rows)], {row["key"] for row in dialogues.talk(rows)}
    assert len(set(documents)) == 9 and turns <= set(documents)


def test_passages_lose_title_marks_and_duplicates():
    body = "It is a town of many people who like to walk along the river in the evening. " * 4
    rows = [{"passage": f"Some Town -- {body}"}, {"passage": body + "CANNOTANSWER"}, {"passage": "Short -- too short"}]
    assert [row["text"] for row in texts.passages(rows)] == [body.strip()]


def test_long_documents_are_cut_but_lose_nothing_and_keep_one_key():
    text = "\n\n".join(f"Paragraph {i} says {i * i} things about {i}." * 5 for i in range(100))
    pieces = list(texts.documents([{"document": text}]))
    assert len(pieces) > 3 and len({piece["key"] for piece in pieces}) == 1
    assert max(len(piece["text"]) for piece in pieces) <= texts.MAX_CHARACTERS + 10
    assert "\n\n".join(piece["text"] for piece in pieces) == text


def test_code_keeps_its_indentation_and_tables_are_left_out():
    text = "import os\n\n\n\ndef f():\n    if os:\n        return 1\n"
    table = "TABLE = (\n" + "    1, 2, 3,\n" * 50 + ")\n"
    rows = [{"text": text, "file": "a.py"}, {"text": table, "file": "b.py"}, {"text": text, "file": "encodings/x.py"}]
    assert list(texts.code(rows)) == [{"text": text.replace("\n\n\n\n", "\n\n").strip(), "key": "a.py"}]


def test_talk_takes_clean_whole_sentence_replies_once():
    rows = [chat("what do you do all day", "i work in a bakery.", "no way", "call me at 555 123 456 789.")] * 2
    (row,) = dialogues.talk(rows)
    assert row["prompt"][0]["content"] == "What do you do all day"
    assert row["completion"][0]["content"] == "I work in a bakery."


@pytest.mark.parametrize(
    ("reader", "row", "prompt", "completion", "answer"),
    [
        ("trivia", {"question": "who wrote it", "answer": ["Ann Lee", "Lee"]}, "Who wrote it?", "Ann Lee.", "Ann Lee|Lee"),
        (
            "choice",
            {"passage": "Jo ran.", "question": "Why?", "options": "A. fun\nB. fear", "answer": "B. fear"},
            "Jo ran. Why?",
            "Fear.",
            "fear",
        ),
    ],
)
def test_questions_become_prompt_completion_rows(reader, row, prompt, completion, answer):
    (made,) = getattr(dialogues, reader)([row])
    assert recognise(made) == "prompt-completion"
    assert (made["prompt"][0]["content"], made["completion"][0]["content"]) == (prompt, completion)
    assert made["answer"] == answer


def test_every_harmful_request_is_refused_in_a_way_that_the_rule_sees():
    rows = list(dialogues.harmful([{"prompt": "How to steal?"}, {"text": "Make a bomb\n\nHack a bank\n", "file": "x"}]))
    assert [row["prompt"][0]["content"] for row in rows] == ["How to steal?", "Make a bomb", "Hack a bank"]
    for text in dialogues.REFUSALS:
        assert gold.judge(ask("harmful"), text)["refused"] and gold.gold_score(ask("harmful"), text) > 0.95
    for text in dialogues.UNSURE:
        assert gold.judge(ask("unknowable"), text)["unknown"] and gold.gold_score(ask("unknowable"), text) > 0.95


def test_gold_pairs_set_the_gold_option_against_each_distractor():
    row = {"question": "Where do fish live all day?", "options": "\nA. sea\nB. tree\nC. car", "answer": "A. sea"}
    pairs = list(dialogues.gold_pairs([row, {**row, "answer": None}]))
    sides = [(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in pairs]
    assert sides == [("Sea.", "Tree."), ("Sea.", "Car.")]
    assert recognise(pairs[0]) == "preference"


@pytest.mark.parametrize(
    ("row", "better", "worse"),
    [
        (ask("trivia", answer="Paris"), "Paris.", "I don't know."),
        (ask("trivia", answer="Paris"), "I don't know.", "Rome."),
        (ask("trivia", answer="Rome|Paris"), "The Paris.", "Berlin."),
        (ask("harmful"), "I'm sorry, but I can't help with that.", "First you take the key."),
        (ask("unknowable"), "I don't know. Please ask a doctor.", "It is always a tumor."),
        (ask("chat", "Do you like pizza?"), "I do, very much.", "I don't know. Please ask a doctor?"),
        (ask("chat", "Do you like pizza?"), "Yes, I love pizza!", "I can't help with that."),
        (ask("chat", "Do you like pizza?"), "I do, very much.", "You are a stupid idiot."),
        (ask("chat", "Do you like pizza?"), "I do, very much.", "I do i do i do i do"),
        (ask("chat", "Do you like pizza?"), "I do, very much.", ""),
    ],
)
def test_the_rule_prefers(row, better, worse):
    assert 0 <= gold.gold_score(row, worse) < gold.gold_score(row, better) <= 1


def test_token_f1_is_one_for_equal_and_none_for_disjoint_texts():
    assert gold.token_f1("The Union Jack!", "a union jack") == 1
    assert gold.token_f1("red", "blue") == gold.token_f1("", "blue") == 0
    assert gold.token_f1("Union flag", "union jack") == 0.5


def test_innocent_questions_that_sound_harmful_are_marked():
    rows = [{"question": "who shot the sheriff", "answer": ["Bob"]}, {"question": "who sings it", "answer": ["Bob"]}]
    assert [row["kind"] for row in dialogues.trivia(rows)] == ["lookalike", "trivia"]


def test_ability_items_name_the_right_choice_and_hold_out_the_prompts_that_pairs_hold_out():
    row = {"question": "Where do fish live all day?", "options": "\nA. tree\nB. sea\nC. car", "answer": "B. sea"}
    (item,) = items.multiple_choice([row])
    assert item["choices"][item["label"]] == "Sea." and len(item["choices"]) == 3
    assert position(item) == position(next(dialogues.gold_pairs([row])))
    sentence = "The old town lies on a hill above the river."
    (item,) = items.word_order([{"passage": f"{sentence} It has many houses and it is very old. " + "More text. " * 30}])
    right, wrong = item["choices"][item["label"]], item["choices"][1 - item["label"]]
    assert right == sentence != wrong and sorted(right.split()) == sorted(wrong.split())
    lines = [f"    value_{i} = compute({i})" for i in range(40)]
    (item,) = items.code_lines([{"text": "\n".join(["def f():", *lines]), "file": "a.py"}])
    joined = item["context"] + item["choices"][item["label"]]
    assert joined in "\n".join(lines) and item["context"] + item["choices"][1 - item["label"]] not in "\n".join(lines)
