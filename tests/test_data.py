"""Sources and mixtures: seeded, in proportion, and every broken input is one line that names it."""

import json
import re
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal

import datasets
import numpy
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from data_toys import error_of, jsonl

from llmrecipes.config import DataArguments, DatasetSource, InputError
from llmrecipes.data import _set_names as set_names
from llmrecipes.data import load_by_split, load_mixture, load_rows, load_source, load_train_eval, tables, true_rows


def test_mixture_realises_its_weights_and_repeats_nothing(tmp_path):
    a = jsonl(tmp_path / "a.jsonl", [{"text": f"a{i:03d}"} for i in range(300)])
    b = jsonl(tmp_path / "b.jsonl", [{"text": f"b{i:03d}"} for i in range(300)])
    mixed = list(load_mixture([DatasetSource(a, weight=3), DatasetSource(b, weight=1)], 1, ("text",))["text"])
    assert sum(t[0] == "a" for t in mixed) == 300 and sum(t[0] == "b" for t in mixed) == 100
    assert len(set(mixed)) == len(mixed)
    data = DataArguments([{"path": a, "name": "a", "weight": 3}, {"path": b, "name": "b", "weight": 1}], test_split_size=0.1)
    plain, named = (load_train_eval(data, 1, ("text",), name_sources=named) for named in (False, True))
    for rows, same in zip(plain, named, strict=True):
        assert list(rows["text"]) == list(same["text"]) and list(same["source"]) == [text[0] for text in rows["text"]]


def numbers(name, split):
    return ({"text": f"{name} {split} {i}"} for i in range(4))


def test_a_source_may_be_a_function():
    """As Tiny Town is: the function gets the part's name and its split."""
    source = DatasetSource(f"{__name__}:numbers", name="even", split="test", max_rows=2)
    assert all(text.startswith("even test ") for text in load_source(source, 0)["text"])
    assert "cannot load 'no.module:rows'" in error_of(DatasetSource("no.module:rows"))


def test_mixture_is_seeded(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"text": str(i)} for i in range(50)])
    draw = lambda seed: list(load_mixture([DatasetSource(path)], seed, ("text",))["text"])
    assert draw(1) == draw(1) != draw(2)


def test_held_out_rows_are_not_trained_on(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"text": str(i)} for i in range(50)])
    train, held_out = load_train_eval(DataArguments([path], test_split_size=10), 0, ("text",))
    assert len(held_out) == 10 and not set(train["text"]) & set(held_out["text"])


def test_broken_line_is_numbered(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": \n')
    assert "a.jsonl" in error_of(str(path)) and "line 2" in error_of(str(path))


def test_missing_and_empty_files(tmp_path):
    assert "does not exist" in error_of(str(tmp_path / "none.jsonl"))
    (tmp_path / "empty.jsonl").write_text("")
    assert "is empty" in error_of(str(tmp_path / "empty.jsonl"))
    assert "`datasets` is missing" in error_of()


def test_wrong_columns_names_what_is_there_and_what_was_expected(tmp_path):
    message = error_of(jsonl(tmp_path / "a.jsonl", [{"body": "x", "id": 1}]), shapes=("messages",))
    assert "body" in message and "messages" in message


def test_prompts_of_pairs_are_taken_once(tmp_path, capsys):
    pairs = [{"prompt": f"q{i // 3}", "chosen": f"a{i}", "rejected": "b", "id": i} for i in range(9)]
    path = jsonl(tmp_path / "pairs.jsonl", pairs)
    rows = load_rows(DatasetSource(path), 0, ("prompt",))
    assert rows["prompt"] == ["q0", "q1", "q2"] and rows["id"] == [0, 3, 6]
    said = capsys.readouterr().out
    assert f"{path}: 6 of 9 rows are other pairs or answers of a prompt that is taken once (first: {path}, row 2)" in said
    judged = [{"prompt": "q", "completion": f"a{i}", "label": i % 2 == 0} for i in range(3)]
    assert len(load_rows(DatasetSource(jsonl(tmp_path / "judged.jsonl", judged)), 0, ("prompt",))) == 1
    asked = jsonl(tmp_path / "prompts.jsonl", [{"prompt": "q", "id": i} for i in range(3)])
    assert load_rows(DatasetSource(asked), 0, ("prompt",))["id"] == [0, 1, 2], "prompts as they are given stay"


def talk(*said):
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, said, strict=False)]


def test_a_prompt_of_text_that_is_none_of_the_questions_beside_it_is_told(tmp_path, capsys):
    """UltraFeedback and UltraChat have both; of two that differ, one would be lost without a word."""
    pairs = [
        {"prompt": p, "chosen": talk("Why?", "So."), "rejected": talk("Why?", "No.")} for p in ("Why? ", "How?", "When?")
    ]
    path = jsonl(tmp_path / "pairs.jsonl", pairs)
    rows = load_rows(DatasetSource(path), 0, ("preference",))
    assert rows["prompt"] == [talk("Why?")] * 3
    text = "about another question than their `prompt`, a text: the conversations beside it are read, the prompt is not"
    assert capsys.readouterr().out == f"{path}: 2 of 3 rows are {text} (first: {path}, row 2)\n"
    chats = jsonl(tmp_path / "chats.jsonl", [{"prompt": p, "messages": talk("Why?", "So.")} for p in ("Why?", "How?")])
    assert load_rows(DatasetSource(chats), 0, ("messages",))["messages"] == [talk("Why?", "So.")] * 2
    assert f"{chats}: 1 of 2 rows are {text} (first: {chats}, row 2)\n" in capsys.readouterr().out
    jsonl(tmp_path / "chats.jsonl", [{"prompt": "How?", "messages": talk("Why?", "So.")}])
    assert load_rows(DatasetSource(chats), 0, ("prompt",))[0]["prompt"] == "How?"
    text = "prompts of text that are not the question of the conversation beside them, which is not read"
    assert capsys.readouterr().out == f"{chats}: 1 of 1 rows are {text} (first: {chats}, row 1)\n"


def test_rows_whose_text_has_a_place_for_an_image_that_is_left_out_are_counted(tmp_path, capsys):
    shown = [talk("<image>\nWhat is this?", "A cat."), talk("And <|image_1|>?", "A dog."), talk("<b>Hi</b>", "Hello.")]
    path = jsonl(tmp_path / "seen.jsonl", [{"messages": turns, "images": ["a.png"]} for turns in shown])
    assert load_rows(DatasetSource(path), 0, ("messages",))["messages"] == shown
    told = "rows are taken without the images that their text has a place for"
    assert f"{path}: 2 of 3 {told} (first: {path}, row 1)" in capsys.readouterr().out
    kept = datasets.Dataset.from_list([{"messages": turns, "picture": {"bytes": b"\xff", "path": None}} for turns in shown])
    kept.to_parquet(tmp_path / "a.parquet")
    load_rows(DatasetSource(str(tmp_path / "a.parquet")), 0, ("messages",))
    said = capsys.readouterr().out
    assert "left out the columns picture" in said and f"a.parquet: 2 of 3 {told}" in said
    load_rows(DatasetSource(jsonl(tmp_path / "html.jsonl", [{"messages": turns} for turns in shown])), 0, ("messages",))
    assert capsys.readouterr().out == "", "without a column of images, the text is about something else"


def test_less_than_one_batch(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"text": "x"}] * 3)
    with pytest.raises(InputError, match="3 rows are less than one batch of 8"):
        load_train_eval(DataArguments([path]), 0, ("text",), min_rows=8)
    pair = jsonl(tmp_path / "pair.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    load = lambda *shapes: load_train_eval(DataArguments([pair]), 0, shapes, min_rows=2)[0]
    assert len(load("unpaired preference", "preference")) == 1, "KTO makes two labelled answers of it"
    with pytest.raises(InputError, match="1 rows are less than one batch of 2"):
        load("preference")


def test_foreign_shapes_become_messages(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"instruction": "Say hi.", "input": "", "output": "Hi."}])
    train, _ = load_train_eval(DataArguments([path]), 0, ("messages",))
    assert train[0]["messages"] == [
        {"role": "user", "content": "Say hi."},
        {"role": "assistant", "content": "Hi."},
    ]


# --- rows that people bring: converted before they are mixed, checked before they are shuffled ----------------------------


def chat(question, answer="Nine metres.", **more):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def pair(question, rejected="No."):
    sides = {"chosen": "Nine metres.", "rejected": rejected}
    return {"prompt": [{"role": "user", "content": question}]} | {
        side: [{"role": "assistant", "content": text}] for side, text in sides.items()
    }


DEMONSTRATION = ("messages", "prompt-completion")


def questions(rows):
    return sorted(row["messages"][0]["content"] for row in rows)


def test_each_source_is_converted_before_they_are_mixed(tmp_path):
    with_input = jsonl(tmp_path / "a.jsonl", [{"instruction": "Double.", "input": str(i), "output": "x"} for i in range(3)])
    without = jsonl(tmp_path / "b.jsonl", [{"instruction": f"Say {i}.", "output": "x"} for i in range(3)])
    chats = jsonl(tmp_path / "c.jsonl", [chat(f"Ask {i}") for i in range(3)])
    train, _ = load_train_eval(DataArguments([with_input, without, chats]), 0, DEMONSTRATION)
    expected = [f"Double.\n\n{i}" for i in range(3)] + [f"Say {i}." for i in range(3)] + [f"Ask {i}" for i in range(3)]
    assert questions(train) == sorted(expected)


def test_rows_of_several_shapes_in_one_file_are_converted_one_by_one(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl", [chat("Ask"), {"question": "Hi", "answer": "Yes?"}, {"instruction": "Go", "output": "x"}]
    )
    assert questions(load_train_eval(DataArguments([path]), 0, DEMONSTRATION)[0]) == ["Ask", "Go", "Hi"]


def test_messages_and_prompts_with_completions_mix_where_the_loss_stays_the_same(tmp_path):
    a = jsonl(tmp_path / "a.jsonl", [chat("Ask")])
    turns = chat("Hi")["messages"]
    b = jsonl(tmp_path / "b.jsonl", [{"prompt": turns[:1], "completion": turns[1:]}])
    assert questions(load_train_eval(DataArguments([a, b]), 0, DEMONSTRATION)[0]) == ["Ask", "Hi"]
    c = jsonl(tmp_path / "c.jsonl", [{"prompt": [*turns, turns[0]], "completion": turns[1:]}])
    assert "c.jsonl: its prompts hold turns of the assistant" in error_of(a, c, shapes=DEMONSTRATION)
    d = jsonl(tmp_path / "d.jsonl", [{"prompt": "Hi", "completion": "Yes?"}])
    message = error_of(a, d, shapes=DEMONSTRATION)
    assert "a.jsonl is messages" in message and "d.jsonl is prompt-completion as text" in message
    assert "eval_datasets: the rows are prompt-completion as text" in error_of(a, shapes=DEMONSTRATION, eval_datasets=[d])


def test_held_out_rows_may_be_messages_where_the_others_are_prompts_with_completions_and_the_other_way_round(tmp_path):
    turns = lambda i: [{"role": "user", "content": f"Q{i}?"}, {"role": "assistant", "content": f"A{i}."}]
    chats = jsonl(tmp_path / "chats.jsonl", [{"messages": turns(i)} for i in range(3)])
    parts = jsonl(tmp_path / "parts.jsonl", [{"prompt": turns(i)[:1], "completion": turns(i)[1:], "id": i} for i in (3, 4)])
    said = lambda rows: sorted(json.dumps(row) for row in rows["messages"])
    for one, other in ((chats, parts), (parts, chats)):
        data = DataArguments([DatasetSource(one)], eval_datasets=[DatasetSource(other)])
        train, held_out = load_train_eval(data, 0, ("messages", "prompt-completion"))
        assert not {"prompt", "completion"} & {*train.column_names, *held_out.column_names}
        expected = [[json.dumps(turns(i)) for i in numbers] for numbers in (range(3), (3, 4))]
        assert [said(train), said(held_out)] == (expected if one == chats else expected[::-1])
    longer = jsonl(tmp_path / "longer.jsonl", [{"prompt": [*turns(0), *turns(1)[:1]], "completion": turns(1)[1:]}])
    for one, other in ((chats, longer), (longer, chats)):
        error = error_of(one, shapes=("messages", "prompt-completion"), eval_datasets=[{"path": other}])
        assert error.startswith(f"{longer}: its prompts hold turns of the assistant, which carry no loss there")


def test_columns_that_only_some_sources_have_are_kept_whatever_their_types(tmp_path):
    a = jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "answer": 1, "level": 1}])
    b = jsonl(tmp_path / "b.jsonl", [{"prompt": "b", "answer": "one"}, {"prompt": "c", "answer": ["one"], "level": 2.5}])
    rows = {row["prompt"]: row for row in load_mixture([DatasetSource(a), DatasetSource(b)], 0, ("prompt",))}
    assert [rows[key]["answer"] for key in "abc"] == [1, "one", ["one"]]
    assert [rows[key]["level"] for key in "abc"] == [1, None, 2.5]


def test_tool_calls_and_tools_keep_their_own_keys(tmp_path):
    call = lambda **arguments: {"type": "function", "function": {"name": "f", "arguments": arguments}}
    ask, done = chat("Go", "Done.")["messages"]
    reply = {"role": "tool", "content": "1", "name": "f"}
    calls = [{"role": "assistant", "content": None, "tool_calls": [call(**{name: 1})]} for name in "ab"]
    turns = [[ask, some, reply, done] for some in calls]
    tools = [[{"name": "f", "parameters": {name: {"type": "integer"}}}] for name in "ab"]
    paths = [jsonl(tmp_path / f"{i}.jsonl", [{"messages": turns[i], "tools": tools[i]}, chat("Hi")]) for i in (0, 1)]
    train, _ = load_train_eval(DataArguments(paths), 0, DEMONSTRATION)
    found = sorted((row for row in train if row["tools"]), key=str)
    assert [row["messages"] for row in found] == turns and [row["tools"] for row in found] == tools


def test_arrows_nulls_are_no_arguments_of_a_call_and_no_parameters_of_a_tool(tmp_path):
    """A Parquet table has one set of keys for all rows: the model would learn to call with arguments that are not there."""
    call = lambda **arguments: {"type": "function", "function": {"name": "f", "arguments": arguments}}
    tool = lambda name: {"name": "f", "parameters": {"properties": {name: {"type": "integer"}}}}
    ask = {"role": "user", "content": "Go"}
    said = lambda name: {"role": "assistant", "content": None, "tool_calls": [call(**{name: 1})]}
    rows = [{"messages": [ask, said(name)], "tools": [tool(name)]} for name in "ab"]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "rows.parquet"))
    found = list(load_rows(DatasetSource(str(tmp_path / "rows.parquet")), 0, DEMONSTRATION))
    assert [row["messages"][1]["tool_calls"] for row in found] == [[call(a=1)], [call(b=1)]]
    assert [row["tools"] for row in found] == [[tool("a")], [tool("b")]]


def test_a_table_without_rows_is_said_to_be_empty(tmp_path):
    pandas.DataFrame({"prompt": [], "completion": []}).to_parquet(tmp_path / "none.parquet")
    assert error_of({"path": str(tmp_path / "none.parquet")}).endswith("none.parquet: is empty; it has no rows")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (chat("Ask", None), "content is null"),
        (chat("Ask", ""), "answer is empty"),
        ({"messages": chat("Ask")["messages"][:1]}, "no assistant turn"),
        ({"messages": json.dumps(chat("Ask")["messages"])}, "JSON text"),
        (chat("half a smile: \ud83d"), "lone surrogate"),
        ({"prompt": "Hi", "completion": "Yes?"}, "is prompt-completion as text, but .*row 1 is messages"),
    ],
)
def test_the_true_row_of_the_right_file_is_named(tmp_path, bad, message):
    good = jsonl(tmp_path / "good.jsonl", [chat(f"Ask {i}") for i in range(9)])
    rows = [chat(f"Ask {i}") for i in range(9)]
    rows[6] = bad
    broken = jsonl(tmp_path / "broken.jsonl", rows)
    for sources in ([broken], [good, broken]):
        found = error_of(*sources, shapes=DEMONSTRATION)
        assert re.search(r"broken\.jsonl, row 7\b.*" + message, found) and "good.jsonl" not in found
    # drawn rows and slices keep their numbers
    for spec in ({"path": broken, "max_rows": 8}, {"path": broken, "split": "train[50%:]"}):
        assert "row 7" in error_of(spec, shapes=DEMONSTRATION)
    kept, _ = load_train_eval(DataArguments([{"path": broken, "drop_bad_rows": True}]), 0, DEMONSTRATION)
    assert len(kept) == 8


def test_a_row_that_is_not_utf8_is_named_or_left_out(tmp_path, capsys):
    good = b'{"prompt": "a", "completion": "b"}'
    (tmp_path / "a.jsonl").write_bytes(good + b'\n\n{"prompt": "\xff", "completion": "b"}\n' + good)
    values = pyarrow.array([b"a", b"\xff"], pyarrow.binary())
    prompts = pyarrow.Array.from_buffers(pyarrow.string(), 2, values.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"prompt": prompts, "completion": ["b", "b"]}), tmp_path / "a.parquet")
    for name, place in (("a.jsonl", r"row 2 \(line 3\)"), ("a.parquet", "row 2")):
        load = lambda **keys: load_mixture([DatasetSource(str(tmp_path / name), **keys)], 0, ("prompt-completion",))  # noqa: B023
        with pytest.raises(InputError, match=f"{name}, {place}: holds text that is not UTF-8.*drop_bad_rows"):
            load()
        assert set(load(drop_bad_rows=True)["prompt"]) == {"a"} and "1 of" in capsys.readouterr().out


def test_a_folder_of_files_names_the_file_of_a_row(tmp_path):
    jsonl(tmp_path / "part-0.jsonl", [chat(f"Ask {i}") for i in range(3)])
    jsonl(tmp_path / "part-1.jsonl", [chat("Ask"), chat("Ask", "")])
    assert re.search(r"part-1\.jsonl, row 2\b.*answer is empty", error_of(str(tmp_path), shapes=DEMONSTRATION))
    (tmp_path / "part-1.jsonl").write_text(json.dumps(chat("Ask 3")) + "\n{\n")
    assert "part-1.jsonl, line 2: not valid JSON" in error_of(str(tmp_path), shapes=DEMONSTRATION)
    jsonl(tmp_path / "part-1.jsonl", [chat("Ask 3")])
    rows = load_rows(DatasetSource(str(tmp_path), split="train[1:]"), 0, DEMONSTRATION)
    assert questions(rows) == ["Ask 1", "Ask 2", "Ask 3"]


def test_lines_are_named_where_empty_ones_move_the_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n\n\n{"text": null}\n')
    assert "a.jsonl, row 2 (line 4): text is null" in error_of(str(path))


@pytest.mark.parametrize("text", ["", None, "  "])
def test_null_and_empty_texts_are_named_by_row(tmp_path, text, capsys):
    rows = [{"text": f"Line {i}."} for i in range(5)] + [{"text": text}, {"text": "End."}]
    lines = jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.csv").write_text("id,text\n" + "".join(f"{i},{row['text'] or ''}\n" for i, row in enumerate(rows)))
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    for path in (lines, str(tmp_path / "a.csv"), str(tmp_path / "a.parquet")):
        assert re.search(rf"{re.escape(path)}, row 6: text is (null|empty)", error_of(path))
        kept, _ = load_train_eval(DataArguments([{"path": path, "drop_bad_rows": True}]), 0, ("text",))
        assert len(kept) == 6 and "1 of 7 rows are not usable" in capsys.readouterr().out


@pytest.mark.parametrize("column", ["input_ids", "labels", "label", "completion_mask", "seq_lengths", "text"])
def test_columns_that_a_trainer_would_take_are_left_out_and_said(tmp_path, column, capsys):
    path = jsonl(tmp_path / "a.jsonl", [chat(f"Ask {i}", **{column: [1, 2]}) for i in range(3)])
    train, _ = load_train_eval(DataArguments([path]), 0, DEMONSTRATION)
    assert train.column_names == ["messages"] and f"left out the columns {column}" in capsys.readouterr().out


def test_pairs_of_equal_answers_are_left_out_and_empty_ones_counted(tmp_path, capsys):
    path = jsonl(tmp_path / "a.jsonl", [pair("a", "Nine metres."), pair("b"), pair("c", "")])
    train, _ = load_train_eval(DataArguments([path]), 0, ("preference",))
    said = capsys.readouterr().out
    assert sorted(row["prompt"][0]["content"] for row in train) == ["b", "c"]
    assert re.search(r"1 of 3 rows are pairs of equal answers \(first: .*row 1\)", said)
    assert re.search(r"1 of 3 rows are pairs with an empty rejected answer, which are kept \(first: .*row 3\)", said)
    path = jsonl(tmp_path / "b.jsonl", [pair("a", "Nine metres.")] * 2)
    assert "b.jsonl, row 1: 2 of 2 rows are pairs of equal answers; nothing is left" in error_of(
        path, shapes=("preference",)
    )


# --- splits -------------------------------------------------------------------------------------------------------------


def test_evaluation_sets_of_one_split_name_are_all_measured(tmp_path):
    sources = []
    for folder, name in (("a", "test"), ("a", "other"), ("b", "test")):
        (tmp_path / folder).mkdir(exist_ok=True)
        sources.append(DatasetSource(jsonl(tmp_path / folder / f"{name}.jsonl", [pair(f"{folder}/{name}")])))
    names = lambda some: {
        name: part[0]["prompt"][0]["content"] for name, part in load_by_split(some, 0, ("preference",)).items()
    }
    assert names(sources) == {"a_test": "a/test", "a_other": "a/other", "b_test": "b/test"}
    assert names(sources[:2]) == {"test": "a/test", "other": "a/other"}, "not after the split, which is train in any file"
    named = DatasetSource(jsonl(tmp_path / "held-out v2.jsonl", [pair("c")]), name="mine")
    assert set_names([named]) == ["mine"] and set_names([replace(named, name=None)]) == ["held_out_v2"]
    folder = DatasetSource(str(tmp_path / "a"), split="test")
    assert set_names([folder]) == ["test"] and set_names([folder, sources[2]]) == ["a_test", "test"]
    assert len(names([sources[0], sources[0]])) == 2
    slices = [DatasetSource(sources[0].path, split=split) for split in ("train[90%:]", "train[:-1]+train[2:5]", "train[:]")]
    assert set_names(slices) == ["test_from_90_percent", "test_to_minus_1_and_test_from_2_to_5", "test"]
    slices = [DatasetSource("hub/id", split=split) for split in ("train[90%:]", "train[:-1]+train[2:5]", "train[:]")]
    assert set_names(slices) == ["train_from_90_percent", "train_to_minus_1_and_train_from_2_to_5", "train"]
    (tmp_path / "a" / "test.jsonl").rename(tmp_path / "a" / "held_out.jsonl")
    folders = [DatasetSource(str(tmp_path / folder), split="test") for folder in ("a", "b")]
    jsonl(tmp_path / "a" / "test.jsonl", [pair("a/test")])
    assert names(folders) == {"a_test": "a/test", "b_test": "b/test"}


# --- keys of a source -----------------------------------------------------------------------------------------------------


def test_columns_are_renamed(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "Hi", "response": "Yes?", "label": True}])
    spec = {"path": path, "columns": {"prompt": "prompt", "response": "completion"}}
    train, _ = load_train_eval(DataArguments([spec]), 0, DEMONSTRATION)
    assert list(train) == [{"prompt": "Hi", "completion": "Yes?"}]
    spec["columns"] = {"prompt": "text", "response": "text"}
    assert "`columns` gives the name `text` to two columns" in error_of(spec)


@pytest.mark.parametrize(
    "spec",
    [{"max_rows": 0}, {"max_rows": "ten"}, {"weight": float("nan")}, {"weight": "1"}, {"split": 1}, {"drop_bad_rows": 2}],
)
def test_a_senseless_key_of_a_source_is_refused(tmp_path, spec):
    with pytest.raises(InputError, match=rf"datasets\[0\]: {next(iter(spec))}"):
        DataArguments([{"path": "x.jsonl", **spec}])


def test_a_column_may_change_its_type_after_thousands_of_rows():
    rows = ({"messages": chat(str(i))["messages"], "kind": i if i > tables.CHUNK else "a"} for i in range(2 * tables.CHUNK))
    table = tables.to_table(rows)
    assert len(table) == 2 * tables.CHUNK and table[0]["kind"] == "a" and table[-1]["kind"] == len(table) - 1
    assert table[-1]["messages"] == chat(str(len(table) - 1))["messages"]


def test_what_json_cannot_hold_becomes_text_or_is_left_out_with_a_line(tmp_path, capsys, monkeypatch):
    """Columns that are only copied: `sample` and `evaluate` write them as JSON."""
    values = {"prompt": b"Why?", "when": datetime(2026, 1, 2), "price": Decimal("1.50"), "raw": b"\xff", "id": 2**63 + 1}
    values |= {"log": [{"day": date(2026, 1, 2), "n": 1}]}
    pandas.DataFrame([values]).to_parquet(tmp_path / "a.parquet")
    (row,) = load_rows(DatasetSource(str(tmp_path / "a.parquet")), 0, ("prompt",))
    assert json.loads(json.dumps(row)) == {
        "prompt": "Why?",
        "when": "2026-01-02 00:00:00.000000",
        "price": "1.50",
        "id": str(2**63 + 1),
        "log": [{"day": "2026-01-02", "n": 1}],
    }
    assert "a.parquet: left out the columns raw, which hold neither text nor numbers" in capsys.readouterr().out
    monkeypatch.setattr("corpora.odd_rows", lambda name, split: [values | {"tags": ("a", numpy.int64(3))}], raising=False)
    (given,) = load_rows(DatasetSource("corpora:odd_rows"), 0, ("prompt",))
    assert json.loads(json.dumps(given)) == row | {"tags": ["a", 3]}
    assert "corpora:odd_rows: left out the columns raw" in capsys.readouterr().out
    path = jsonl(tmp_path / "b.jsonl", [{"prompt": "Why?", "id": 2**70, "of": {"n": [-(2**70), 1]}}])
    (row,) = load_rows(DatasetSource(path), 0, ("prompt",))
    assert (row["id"], row["of"]) == (str(2**70), {"n": [str(-(2**70)), 1]})
    assert "numbers of more than 64 bits are kept as text" in capsys.readouterr().out


def test_an_error_after_shuffling_names_the_true_row(tmp_path):
    paths = [jsonl(tmp_path / f"{name}.jsonl", [chat(f"{name} {i}") for i in range(9)]) for name in "ab"]
    data = DataArguments([{"path": paths[0], "max_rows": 5}], [paths[1]])
    train, held_out = load_train_eval(data, 3, ("prompt",))
    loaded = {"training_prompts": train, "evaluation_prompts": held_out}
    for name, rows in loaded.items():
        source, number = rows[2]["prompt"][0]["content"].split()
        place = rf"{source}\.jsonl, row {int(number) + 1}: the prompt has 9 tokens"
        with pytest.raises(InputError, match=place), true_rows(data, 3, ("prompt",), **loaded):
            raise InputError(f"{name.replace('_', ' ')}, row 3: the prompt has 9 tokens")
    with pytest.raises(InputError, match="^`model`: is missing"), true_rows(data, 3, ("prompt",), **loaded):
        raise InputError("`model`: is missing")
