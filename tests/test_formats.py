"""Foreign rows become TRL's standard shapes with nothing lost; what cannot be read is named by its row."""

import pytest

from llmrecipes.config import InputError
from llmrecipes.formats import (
    parse_jsonl,
    prompt_id,
    prompt_text,
    rankings_to_pairs,
    read_growing,
)
from llmrecipes.rows import to_standard
from llmrecipes.shapes import recognise, standard_shape

USER, HELLO = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"text": "Once."}, "text"),
        ({"messages": [USER, HELLO]}, "messages"),
        ({"prompt": "1 + 1 is", "completion": " 2"}, "prompt-completion"),
        ({"prompt": [USER], "chosen": [HELLO], "rejected": [HELLO]}, "preference"),
        ({"prompt": [USER], "kind": "chat"}, "prompt"),
        ({"instruction": "Add.", "input": "1 1", "output": "2"}, "alpaca"),
        ({"conversations": [{"from": "human", "value": "Hi"}]}, "sharegpt"),
        ({"chosen": "\n\nHuman: Hi\n\nAssistant: Yes?", "rejected": "\n\nHuman: Hi\n\nAssistant: No."}, "hh-rlhf"),
        ({"chosen": [USER, HELLO], "rejected": [USER, HELLO]}, "implicit preference"),
        ({"prompt": [USER], "responses": ["a", "b"], "ranking": [[0], [1]]}, "rankings"),
    ],
)
def test_each_shape_is_recognised(row, shape):
    assert recognise(row) == shape


def test_alpaca_row_becomes_a_conversation_and_keeps_other_columns():
    row = to_standard({"instruction": "Add.", "input": "1 and 1", "output": "2", "source": "x", "text": "rendered"})
    assert row["messages"] == [{"role": "user", "content": "Add.\n\n1 and 1"}, {"role": "assistant", "content": "2"}]
    assert set(row) == {"messages", "source"}


def test_sharegpt_row_becomes_a_conversation():
    turns = [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
    row = to_standard({"conversations": turns, "id": 7})
    assert row == {"id": 7, "messages": [{"role": "system", "content": "Be kind."}, USER, HELLO]}


def test_hh_transcripts_share_the_turns_they_begin_with():
    start = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: How?\n\nNot a turn: really"
    row = to_standard({"chosen": start + "\n\nAssistant: So.", "rejected": start + "\n\nAssistant: No."})
    assert row["prompt"] == [USER, HELLO, {"role": "user", "content": "How?\n\nNot a turn: really"}]
    assert row["chosen"] == [{"role": "assistant", "content": "So."}]
    assert row["rejected"] == [{"role": "assistant", "content": "No."}]


def test_conversations_beside_the_text_of_their_prompt_lose_the_repetition():
    """HuggingFaceH4/ultrafeedback_binarized: a text prompt, and chosen and rejected that begin with it."""
    ask = {"role": "user", "content": "Hi?"}
    sides = {side: [ask, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    got = to_standard({"prompt": "Hi?", "score_chosen": 8.0} | sides)
    assert got["prompt"] == [ask] and got["chosen"] == sides["chosen"][1:] and got["score_chosen"] == 8.0


def test_equal_transcripts_keep_a_last_turn_to_choose():
    row = to_standard({"chosen": "\n\nHuman: Hi\n\nAssistant: A", "rejected": "\n\nHuman: Hi\n\nAssistant: A"})
    assert row["chosen"] == row["rejected"] == [{"role": "assistant", "content": "A"}]


def test_standard_rows_are_left_as_they_are():
    for row in ({"text": "a"}, {"messages": [USER, HELLO], "kind": "chat"}, {"prompt": "a", "chosen": "b", "rejected": "c"}):
        assert to_standard(row) == row


def test_a_conversion_converted_again_stays():
    once = to_standard({"instruction": "Add.", "input": "", "output": "2"})
    assert to_standard(once) == once


def test_ranking_gives_every_pair_that_is_not_a_tie():
    row = {"prompt": [USER], "responses": ["a", "b", "c", "d"], "ranking": [[2], [0, 3], [1]], "kind": "chat"}
    pairs = rankings_to_pairs(row)
    order = [(p["chosen"][0]["content"], p["rejected"][0]["content"], p["margin"]) for p in pairs]
    assert order == [("c", "a", 1.0), ("c", "d", 1.0), ("c", "b", 2.0), ("a", "b", 1.0), ("d", "b", 1.0)]
    assert all(p["kind"] == "chat" and p["prompt"] == [USER] and "responses" not in p for p in pairs)


def test_full_ranking_of_k_gives_k_choose_two_pairs_and_one_big_tie_none():
    responses = [str(i) for i in range(6)]
    ranked = {"prompt": "p", "responses": responses, "ranking": [[i] for i in range(6)]}
    assert len(rankings_to_pairs(ranked)) == 15
    assert rankings_to_pairs(ranked | {"ranking": [list(range(6))]}) == []


def test_equal_responses_are_never_a_pair():
    row = {"prompt": "p", "responses": ["yes", "yes ", "no"], "ranking": [[0], [1], [2]]}
    assert [(p["chosen"], p["rejected"]) for p in rankings_to_pairs(row)] == [("yes", "no"), ("yes ", "no")]


def test_margin_is_the_difference_of_scores_where_there_are_any():
    row = {"prompt": "p", "responses": ["a", "b"], "ranking": [[1], [0]], "scores": [0.25, 1.0]}
    assert rankings_to_pairs(row)[0]["margin"] == 0.75


def test_texts_ranked_both_ways_form_no_pair():
    row = {"prompt": "p", "responses": ["a", "b", "a", "c"], "ranking": [[0], [1], [2], [3]]}
    assert [(pair["chosen"], pair["rejected"]) for pair in rankings_to_pairs(row)] == [("a", "c"), ("b", "c"), ("a", "c")]


@pytest.mark.parametrize("ranking", [[[0], [2]], [[0], [0, 1]], [[0], []], [0, 1], "0 > 1", [[-1], [0]], [[True], [0]]])
def test_impossible_ranking_is_named_with_its_row(ranking):
    with pytest.raises(InputError, match="row 3: .*ranking"):
        rankings_to_pairs({"prompt": "p", "responses": ["a", "b"], "ranking": ranking}, "row 3")


def test_wrong_columns_are_listed_with_the_expected_ones():
    with pytest.raises(InputError, match=r"columns are body, id; expected messages \| prompt, completion"):
        to_standard({"body": "?", "id": 1}, wanted=("messages", "prompt-completion"))
    with pytest.raises(InputError, match="columns are text; expected prompt, chosen, rejected"):
        to_standard({"text": "a"}, wanted=("preference",))
    with pytest.raises(InputError, match=r"expected text. Rename with `columns: \{content: text\}`"):
        to_standard({"content": "a"}, wanted=("text",))


def test_foreign_shapes_serve_where_what_they_become_is_wanted():
    assert standard_shape({"instruction": "a", "output": "b"}, "row", ("messages",)) == "messages"
    assert standard_shape({"prompt": "a", "chosen": "b", "rejected": "c"}, "row", ("prompt",)) == "prompt"


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "text": "Hi"}]},
        {"messages": []},
        {"messages": [{"role": "user", "content": None}]},
        {"conversations": [{"from": "martian", "value": "Hi"}]},
        {"instruction": "a", "output": 3},
        {"text": 5},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: A", "rejected": "plain"},
        {"chosen": [HELLO], "rejected": [USER]},
    ],
)
def test_broken_row_is_named(row):
    with pytest.raises(InputError, match="row 7"):
        to_standard(row, "data.jsonl, row 7")


def test_broken_jsonl_line_is_numbered():
    lines = ['{"text": "a"}\n', "\n", '{"text": "b"\n']
    rows = parse_jsonl(lines, "data.jsonl")
    assert next(rows) == {"text": "a"}
    with pytest.raises(InputError, match="data.jsonl, line 3: not valid JSON"):
        next(rows)
    with pytest.raises(InputError, match="line 1: expected an object"):
        list(parse_jsonl(["[1]"], "data.jsonl"))


def test_prompt_id_depends_on_what_is_asked_only():
    assert prompt_id([USER]) == prompt_id([{"content": "Hi", "role": "user"}])
    assert len({prompt_id("Hi"), prompt_id([USER]), prompt_id([USER, HELLO])}) == 3


def test_a_growing_file_is_read_up_to_where_a_kill_cut_it_off(tmp_path):
    file = tmp_path / "x.jsonl"
    assert read_growing(file) == []
    file.write_bytes('{"a": "\u2028"}\n{"a": "ü"}\n{"a": "ü'.encode()[:-1])
    assert read_growing(file) == [{"a": "\u2028"}, {"a": "ü"}]


def test_an_empty_response_is_never_chosen():
    row = {"prompt": "p", "responses": ["", "yes", " "], "ranking": [[0], [1], [2]]}
    assert [(p["chosen"], p["rejected"]) for p in rankings_to_pairs(row)] == [("yes", " ")]


def test_a_prompt_with_tool_calls_shows_them_and_is_another_one_without():
    call = lambda of: {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": of}}]}
    prompts = [[USER, call(of), {"role": "tool", "content": "9"}] for of in ("depth", "width")]
    assert prompt_text(prompts[0]) == 'user: Hi\nassistant: {"name": "depth"}\ntool: 9'
    assert len({*map(prompt_id, prompts)}) == 2


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"text": "a", "text": "b"}', "the key 'text' stands twice in one object"),
        ('{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "the key 'content' stands twice"),
        ('{"text": "a"} {"text": "b"}', "each row must stand on a line of its own"),
        ('{"text": "a"},', "each row must stand on a line of its own"),
        ('{"text": "a"}\r{"text": "b"}', "its lines end in a carriage return alone"),
        ("{\n", "each row must stand whole on one line"),
        ('{\0"\0t', "is the file UTF-16"),
    ],
)
def test_line_that_is_not_one_row_says_what_to_do(text, part):
    with pytest.raises(InputError, match=f"^data.jsonl, line 1: not valid JSON.*{part}"):
        list(parse_jsonl([text], "data.jsonl"))


def test_a_table_is_separated_and_an_object_holds_rows_alike_wherever_it_is_read(tmp_path):
    """By a training, by a plan that counts them, and among rankings."""
    from llmrecipes.data.files import table_rows
    from llmrecipes.data.sources import _parse_json
    from llmrecipes.plan.rows import of_file

    for name, text in (("a.csv", "text;n\na,b;1\n"), ("b.csv", 'text,n\n"a,b",1\n'), ("c.tsv", "text\tn\na,b\t1\n")):
        file = tmp_path / name
        file.write_text("\ufeff" + text, encoding="utf-8")
        assert [row for _, row in table_rows(file)] == [{"text": "a,b", "n": "1"}], name
        assert of_file(file, float("inf")) == 1, name
    for text, rows in (('{"data": [{"a": 1}, {"a": 2}]}', 2), ('{"own": [{"a": 1}, {"a": 2}]}', 1), ('{"text": "a"}', 1)):
        (tmp_path / "d.json").write_text(text)
        assert len(_parse_json(tmp_path / "d.json", text)) == of_file(tmp_path / "d.json", float("inf")) == rows
