"""Rows that people bring: what is unambiguous is converted with nothing lost, all else is one line that names the row."""

import json

import pytest
import yaml

from llmrecipes.config import InputError
from llmrecipes.rows import to_standard

DEMONSTRATION = ("messages", "prompt-completion")


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


ASK, REPLY = turn("user", "How deep is the lake?"), turn("assistant", "Nine metres.")
NO = turn("assistant", "No.")
CALL = {"type": "function", "function": {"name": "depth", "arguments": {"of": "lake"}}}


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        # OpenAI's fine-tuning file
        (
            {"messages": [turn("user", "Hi", name="Ann"), turn("assistant", "Yes?", weight=1)]},
            [turn("user", "Hi", name="Ann"), turn("assistant", "Yes?")],
        ),
        ({"messages": [turn("developer", "Be brief."), ASK, REPLY]}, [turn("system", "Be brief."), ASK, REPLY]),
        (
            {
                "messages": [
                    ASK,
                    turn("assistant", None, function_call={"name": "depth", "arguments": '{"of": "lake"}'}),
                    turn("function", "9", name="depth"),
                    REPLY,
                ]
            },
            [ASK, turn("assistant", None, tool_calls=[CALL]), turn("tool", "9", name="depth"), REPLY],
        ),
        (
            {"messages": [ASK, turn("assistant", "", tool_calls=[CALL]), turn("tool", "9"), REPLY], "tools": [{"x": 1}]},
            [ASK, turn("assistant", "", tool_calls=[CALL]), turn("tool", "9"), REPLY],
        ),
        # content in parts, which are joined as they are
        (
            {
                "messages": [
                    turn("user", [{"type": "text", "text": "How deep "}, {"type": "text", "text": "is the lake?"}]),
                    turn("assistant", ["Nine ", "metres."]),
                ]
            },
            [ASK, REPLY],
        ),
        (
            {
                "messages": [
                    turn("user", [{"type": "input_text", "text": "How deep is the lake?"}]),
                    turn("assistant", [{"type": "output_text", "text": "Nine metres."}]),
                ]
            },
            [ASK, REPLY],
        ),
        # keys that Arrow fills with null are not there
        (
            {"messages": [turn("user", "Hi", tool_calls=None), turn("assistant", "Yes?", reasoning_content="Hm.")]},
            [turn("user", "Hi"), turn("assistant", "Yes?", reasoning_content="Hm.")],
        ),
        # both ways of writing in one table, whose other keys Arrow fills with null
        (
            {
                "messages": [
                    turn("user", "Hi", **{"from": None, "value": None}),
                    turn(None, None, **{"from": "gpt", "value": "Yes?"}),
                ]
            },
            [turn("user", "Hi"), turn("assistant", "Yes?")],
        ),
        # ShareGPT and its relatives
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}], "system": "Be kind."},
            [turn("system", "Be kind."), turn("user", "Hi"), turn("assistant", "Yes?")],
        ),
        ({"conversations": [ASK, REPLY]}, [ASK, REPLY]),
        (
            {
                "conversations": [
                    {"from": "Human", "value": "Hi"},
                    {"from": "function_call", "value": json.dumps(CALL["function"])},
                    {"from": "observation", "value": "9"},
                    {"from": "gpt", "value": "Nine."},
                ]
            },
            [turn("user", "Hi"), turn("assistant", "", tool_calls=[CALL]), turn("tool", "9"), turn("assistant", "Nine.")],
        ),
        # Alpaca and its relatives
        (
            {"instruction": "And now?", "input": "", "output": "Ten.", "system": "Count.", "history": [["Go!", "Nine."]]},
            [
                turn("system", "Count."),
                turn("user", "Go!"),
                turn("assistant", "Nine."),
                turn("user", "And now?"),
                turn("assistant", "Ten."),
            ],
        ),
        (
            {"instruction": "Sum up.", "context": "A long day.", "response": "Long."},
            [turn("user", "Sum up.\n\nA long day."), turn("assistant", "Long.")],
        ),
        ({"instruction": "", "input": "Hi", "output": "Yes?"}, [turn("user", "Hi"), turn("assistant", "Yes?")]),
        ({"question": "Hi", "answer": "Yes?"}, [turn("user", "Hi"), turn("assistant", "Yes?")]),
        ({"query": "Hi", "response": "Yes?"}, [turn("user", "Hi"), turn("assistant", "Yes?")]),
        ({"input": "Hi", "output": "Yes?"}, [turn("user", "Hi"), turn("assistant", "Yes?")]),
        (
            {"system_prompt": "Be kind.", "question": "Hi", "response": "Yes?"},
            [turn("system", "Be kind."), turn("user", "Hi"), turn("assistant", "Yes?")],
        ),
    ],
)
def test_demonstration_becomes_messages(row, messages):
    new = to_standard(row, wanted=DEMONSTRATION)
    assert new["messages"] == messages
    assert not {"system", "system_prompt", "history", "input", "context", "conversations"} & set(new)


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        # the prompt repeated in both answers, as text or as messages
        ({"prompt": ASK["content"], "chosen": [ASK, REPLY], "rejected": [ASK, NO]}, ([ASK], [REPLY], [NO])),
        ({"prompt": [ASK], "chosen": [ASK, REPLY], "rejected": [ASK, NO]}, ([ASK], [REPLY], [NO])),
        (
            {"system": "Be kind.", "question": "Hi", "chosen": "Yes?", "rejected": "No."},
            ([turn("system", "Be kind."), turn("user", "Hi")], [turn("assistant", "Yes?")], [NO]),
        ),
        (
            {
                "conversations": [{"from": "human", "value": "Hi"}],
                "chosen": {"from": "gpt", "value": "Yes?"},
                "rejected": {"from": "gpt", "value": "No."},
            },
            ([turn("user", "Hi")], [turn("assistant", "Yes?")], [NO]),
        ),
        ({"prompt": "1 + 1 is", "chosen": " 2", "rejected": ""}, ("1 + 1 is", " 2", "")),
    ],
)
def test_pair_becomes_a_preference(row, pair):
    new = to_standard(row, wanted=("preference",))
    assert (new["prompt"], new["chosen"], new["rejected"]) == pair
    assert not {"system", "question", "conversations"} & set(new)


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        (
            {"messages": [turn("system", "Be kind."), ASK, REPLY, turn("user", "Sure?"), turn("assistant", "Yes.")]},
            [turn("system", "Be kind."), ASK, REPLY, turn("user", "Sure?")],
        ),
        ({"messages": [ASK, REPLY, turn("user", "Sure?")]}, [ASK, REPLY, turn("user", "Sure?")]),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}]}, [turn("user", "Hi")]),
        ({"instruction": "Add.", "input": "1 1", "output": "2"}, [turn("user", "Add.\n\n1 1")]),
        ({"question": "Hi"}, [turn("user", "Hi")]),
        ({"prompt": "1 + 1 is", "completion": " 2"}, "1 + 1 is"),
        ({"prompt": [ASK], "completion": [REPLY]}, [ASK]),
        ({"prompt": [ASK], "chosen": [REPLY], "rejected": [REPLY]}, [ASK]),
        ({"chosen": [ASK, REPLY], "rejected": [ASK, NO]}, [ASK]),
        (
            {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes?", "rejected": "\n\nHuman: Hi\n\nAssistant: No."},
            [turn("user", "Hi")],
        ),
        ({"prompt": ASK["content"], "messages": [ASK, REPLY]}, [ASK]),
        (
            {"prompt": "Hi", "chosen": [turn("user", "Hi"), REPLY], "rejected": [turn("user", "Hi"), NO]},
            [turn("user", "Hi")],
        ),
    ],
)
def test_prompt_is_taken_from_any_shape(row, prompt):
    new = to_standard(row, wanted=("prompt",))
    assert new["prompt"] == prompt and "messages" not in new


def test_answers_stay_beside_a_prompt_for_reward_functions():
    new = to_standard({"question": "1 + 1?", "answer": "#### 2", "level": 3}, wanted=("prompt",))
    assert new == {"prompt": [turn("user", "1 + 1?")], "answer": "#### 2", "level": 3}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [ASK, turn("assistant", None)]}, "turn 2: the assistant's content is null"),
        ({"messages": [ASK, turn("assistant", 7)]}, "turn 2: content must be text, found 7"),
        ({"messages": [turn("user", " "), REPLY]}, "turn 1: the user's content is empty"),
        ({"messages": [ASK, turn("assistant", " \n")]}, "turn 2: the assistant's answer is empty"),
        ({"messages": [ASK, turn("assistant", "", reasoning_content="Hm.")]}, "the assistant's answer is empty"),
        (
            {"messages": [turn("user", [{"type": "image_url", "image_url": {}}]), REPLY]},
            "turn 1: .* a part that is not text",
        ),
        ({"messages": [turn("martian", "Hi"), REPLY]}, "turn 1: the role 'martian' is not known"),
        ({"messages": [turn(None, "Hi"), REPLY]}, "turn 1: the role None is not known"),
        ({"messages": ["Hi", "Yes?"]}, "turn 1: expected a message"),
        ({"messages": [ASK, turn("user", "Hello?")]}, "has no assistant turn to learn from"),
        ({"messages": json.dumps([ASK, REPLY])}, "column messages: is the JSON text of a list"),
        ({"conversations": json.dumps([ASK, REPLY])}, "column conversations: is the JSON text of a list"),
        ({"messages": [ASK, turn("assistant", "Eight.", weight=0), ASK, REPLY]}, "turn 2: has `weight` other than 1"),
        ({"messages": [ASK, turn("assistant", "Eight.", train=False), ASK, REPLY]}, "turn 2: has `train` other than 1"),
        ({"messages": [ASK, turn("assistant", "Eight.", loss=False), ASK, REPLY]}, "turn 2: has `loss` other than 1"),
        ({"messages": [turn("system", "A"), ASK, REPLY], "system": "B"}, "the column system .* differ"),
        ({"messages": [ASK, turn("assistant", None, tool_calls=[{"x": 1}])]}, "turn 2: expected a tool call"),
        ({"messages": [ASK, REPLY], "tools": "depth(of)"}, "tools must be a list"),
        ({"messages": [ASK, REPLY], "tools": {"name": "depth"}}, "tools must be a list"),
        (
            {"messages": [ASK, REPLY], "tools": ["depth"]},
            "each of `tools` must be a mapping or its JSON text, found 'depth'",
        ),
        ({"messages": [ASK, REPLY], "tools": [None]}, "each of `tools` must be a mapping or its JSON text, found None"),
        ({"messages": [ASK, REPLY], "chat_template_kwargs": "thinking"}, "chat_template_kwargs must be a mapping"),
        ({"messages": [ASK, REPLY], "chat_template_kwargs": [1]}, "chat_template_kwargs must be a mapping"),
        ({"messages": [ASK, REPLY], "system": "A", "system_prompt": "B"}, "system and system_prompt differ"),
        ({"messages": [ASK, REPLY], "label": True}, "label of true or false.*KTO"),
        ({"prompt": "Hi", "completion": "No.", "label": False}, "label of true or false.*KTO"),
        ({"prompt": "Hi", "completion": "No.", "label": 0}, "label of true or false.*KTO"),
        ({"prompt": [ASK], "completion": "Nine metres."}, "prompt is messages, completion is text"),
        ({"prompt": "Hi", "completion": [REPLY]}, "prompt is text, completion is messages"),
        ({"prompt": json.dumps([ASK]), "completion": "Nine."}, "prompt is the JSON text of a list"),
        ({"prompt": "Hi", "completion": ""}, "completion is empty"),
        ({"prompt": "Hi", "completion": None}, "completion is null"),
        ({"prompt": [ASK], "completion": [ASK]}, "completion has no assistant turn"),
        ({"prompt": "Hi", "completion": "Yes?", "system": "Be kind."}, "has `system`, which a prompt of text"),
        ({"instruction": "Add.", "output": None}, "output is null"),
        ({"instruction": None, "context": "1 + 1", "output": "2"}, "instruction is null"),
        ({"question": None, "context": "1 + 1", "answer": "2"}, "question is null"),
        ({"instruction": "Add.", "output": ""}, "output is empty"),
        ({"instruction": "", "input": "", "output": "2"}, "instruction is empty"),
        ({"instruction": "Add.", "output": "2", "history": [["Go!"]]}, "history must be pairs"),
        ({"instruction": "Add.", "output": "2", "history": 5}, "history must be pairs"),
        ({"instruction": "Be brief.", "question": "Hi", "output": "Yes?"}, "has the questions instruction and question"),
        ({"instruction": "Add.", "context": 3, "output": "2"}, "context "),
        ({"question": "Hi", "answer": "Yes?", "response": "No."}, "has the answers response and answer"),
        ({" Prompt": "Hi", "Completion": "Yes?"}, r'Rename with `columns: \{" Prompt": prompt, Completion: completion\}`'),
        ({"prompt": "Hi", "response": "Yes?"}, r"Rename with `columns: \{prompt: question, response: answer\}`"),
        ({"Question": "Hi", "Answer": "Yes?", "tools": []}, r"\{Question: question, Answer: answer, tools: tools\}"),
        ({"prompt": [ASK], "response": [REPLY]}, r"Rename with `columns: \{prompt: prompt, response: completion\}`"),
        ({"problem": "1 + 1", "solution": "2"}, r"Rename with `columns: \{problem: question, solution: answer\}`"),
        ({"conversation": [{"input": "Hi", "output": "Yes?"}]}, "or write the rows with a `reader`"),
        ({"winner": "model_a", "prompt": "Hi"}, "or write the rows with a `reader`"),
    ],
)
def test_unusable_demonstration_is_one_line(row, message):
    with pytest.raises(InputError, match="^x.jsonl, row 7.*" + message):
        to_standard(row, "x.jsonl, row 7", DEMONSTRATION)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": [ASK], "chosen": "Nine metres.", "rejected": "No."}, "prompt is messages, chosen is text"),
        ({"query": "Hi", "accepted": "Yes?", "loser": "No."}, r"\{query: question, accepted: chosen, loser: rejected\}"),
        ({"instruction": "Hi", "completions": [{"response": "Yes?"}]}, "become pairs with `reader: .*:ultrafeedback`"),
        ({"prompt": "Hi", "chosen": [REPLY], "rejected": [REPLY]}, "prompt is text, chosen is messages"),
        (
            {"prompt": [ASK], "chosen": [REPLY], "rejected": "No."},
            "one of chosen and rejected is text, the other a list of messages",
        ),
        ({"prompt": [ASK], "chosen": [turn("assistant", "")], "rejected": [REPLY]}, "the assistant's answer is empty"),
        ({"prompt": "Hi", "chosen": " ", "rejected": "No."}, "chosen is empty"),
        ({"prompt": "Hi", "chosen": "Yes?", "rejected": None}, "column rejected: is null"),
        ({"prompt": [ASK], "chosen": [REPLY], "rejected": [ASK]}, "rejected has no assistant turn"),
        ({"prompt": [ASK], "chosen": [REPLY, ASK], "rejected": [REPLY]}, "chosen ends with a turn of the user's"),
        ({"chosen": "Yes?", "rejected": "No."}, "texts without a prompt"),
        ({"prompt": "Hi", "responses": ["a", "b"], "ranking": [[0], [1]]}, "reader: llmrecipes.data.preferences:rankings"),
        ({"prompt": "Hi", "accepted": "a", "negative": "b"}, r"\{prompt: prompt, accepted: chosen, negative: rejected\}"),
    ],
)
def test_unusable_pair_is_one_line(row, message):
    with pytest.raises(InputError, match="^x.jsonl, row 7.*" + message):
        to_standard(row, "x.jsonl, row 7", ("preference",))


def test_labels_may_be_0_and_1_and_nothing_else_than_true_or_false():
    labelled = lambda label: {"prompt": "Hi", "completion": "Yes?", "label": label}
    for label in (0, 1, False, True):
        assert to_standard(labelled(label), "x", ("unpaired preference", "preference"))["label"] is bool(label)
    with pytest.raises(InputError, match="x: label must be true or false, found 'good'"):
        to_standard(labelled("good"), "x", ("unpaired preference", "preference"))
    both = labelled(True) | {"chosen": "Yes.", "rejected": "No."}
    with pytest.raises(InputError, match="x: has a label for one answer, and also chosen and rejected answers"):
        to_standard(both, "x", ("unpaired preference", "preference"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": None}, "prompt is null"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": json.dumps([ASK])}, "prompt is the JSON text of a list"),
        ({"messages": [REPLY]}, "no question is left"),
        ({"prompt": [ASK, REPLY]}, "the prompt ends with an answer of the assistant"),
        ({"text": "Once."}, "columns are text; expected prompt"),
    ],
)
def test_unusable_prompt_is_one_line(row, message):
    with pytest.raises(InputError, match="^x.jsonl, row 7.*" + message):
        to_standard(row, "x.jsonl, row 7", ("prompt",))


def test_what_a_prompt_says_to_the_template_is_checked_and_its_json_text_read():
    for column, value in (("tools", "[{"), ("chat_template_kwargs", "{"), ("chat_template_kwargs", 3)):
        with pytest.raises(InputError, match=f"^x.jsonl, row 7: {column} must be a"):
            to_standard({"prompt": [ASK], column: value}, "x.jsonl, row 7", ("prompt",))
    row = to_standard({"messages": [ASK, REPLY], "chat_template_kwargs": '{"enable_thinking": false}'}, "x", DEMONSTRATION)
    assert row["chat_template_kwargs"] == {"enable_thinking": False}
    same = to_standard({"messages": [ASK, REPLY], "system": "A", "system_prompt": "A"}, "x", DEMONSTRATION)
    assert same["messages"][0] == {"role": "system", "content": "A"}


FUNCTIONS = {"functions": [CALL["function"]]}


@pytest.mark.parametrize(
    "column",
    [{"tools": [json.dumps(CALL)]}, {"tools": json.dumps([json.dumps(CALL)])}, FUNCTIONS, FUNCTIONS | {"tools": []}],
)
def test_tools_are_read_however_a_set_writes_them(column):
    """As JSON text they would be shown as a quoted string; OpenAI's older `functions` would not be shown at all."""
    row = to_standard({"messages": [ASK, REPLY]} | column, "x", DEMONSTRATION)
    assert row["tools"] == [CALL] and "functions" not in row


def test_functions_of_another_kind_stay_a_column():
    row = {"messages": [ASK, REPLY], "functions": ["depth"]}
    assert to_standard(row, "x", DEMONSTRATION) == row


LABELLED = ("unpaired preference", "preference")


def test_a_labelled_answer_ends_with_the_assistants_turn():
    row = {"prompt": [ASK], "completion": [REPLY, ASK], "label": True}
    with pytest.raises(InputError, match="x.jsonl, row 3: completion ends with a turn of the user's, not with an answer"):
        to_standard(row, "x.jsonl, row 3", LABELLED)
    assert to_standard({"prompt": [ASK], "completion": [REPLY, ASK]}, "x", DEMONSTRATION)  # there only answers carry loss


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASK, REPLY], "label": 0},
        {
            "conversations": [{"from": "human", "value": ASK["content"]}, {"from": "gpt", "value": REPLY["content"]}],
            "kto_tag": False,
        },
    ],
)
def test_a_conversations_label_is_that_of_its_last_answer(row):
    made = to_standard(row | {"system": "Be brief."}, "x.jsonl, row 3", LABELLED)
    assert made == {"prompt": [turn("system", "Be brief."), ASK], "completion": [REPLY], "label": False}
    with pytest.raises(InputError, match="x.jsonl, row 3: a label of true or false, 1 or 0, says whether an answer is good"):
        to_standard(row | {"label": False}, "x.jsonl, row 3", ("messages", "prompt-completion"))
    with pytest.raises(InputError, match="x.jsonl, row 3: label must be true or false, found 'good'"):
        to_standard(row | {"label": "good"}, "x.jsonl, row 3", LABELLED)
    with pytest.raises(InputError, match="x.jsonl, row 3: ends with a turn of the user's, not with an answer"):
        to_standard({"messages": [ASK, REPLY, ASK], "label": True}, "x.jsonl, row 3", LABELLED)


def test_a_kto_tag_is_no_demonstration():
    row = {"messages": [ASK, REPLY], "kto_tag": False}
    with pytest.raises(InputError, match="says whether an answer is good"):
        to_standard(row, "x.jsonl, row 3", ("messages", "prompt-completion"))


@pytest.mark.parametrize(
    "given", [{"prompt": "Hi", "response": "Yes?", "system": "Be kind."}, {"inputs": "Hi", "targets": "Yes?"}]
)
def test_renaming_as_the_line_says_makes_the_row_usable_and_loses_nothing(given):
    with pytest.raises(InputError) as caught:
        to_standard(given, "x.jsonl, row 7", DEMONSTRATION)
    names = yaml.safe_load(str(caught.value).rpartition("`columns: ")[2].rstrip("`"))
    turns = to_standard({new: given[old] for old, new in names.items()}, "x", DEMONSTRATION)["messages"]
    assert [turn["content"] for turn in turns] == [*filter(None, [given.get("system")]), "Hi", "Yes?"]


SYSTEM = turn("system", "Be brief.")


@pytest.mark.parametrize(
    ("prompt", "before", "whole"),
    [
        ([ASK], [ASK], [ASK]),
        ([SYSTEM, ASK], [ASK], [SYSTEM, ASK]),
        ([ASK], [SYSTEM, ASK], [SYSTEM, ASK]),
        ([ASK, NO], [turn("user", "Sure?")], [ASK, NO]),  # goes on, and repeats nothing
    ],
)
def test_prompt_that_the_answers_repeat_stands_once(prompt, before, whole):
    pair = to_standard({"prompt": prompt, "chosen": [*before, REPLY], "rejected": [*before, NO]}, "x", ("preference",))
    kept = before if prompt[-1] is NO else []
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (whole, [*kept, REPLY], [*kept, NO])
    shown = to_standard({"prompt": prompt, "completion": [*before, REPLY]}, "x", DEMONSTRATION)
    assert (shown["prompt"], shown["completion"]) == (whole, [*kept, REPLY])


@pytest.mark.parametrize("rejected", [[NO], [turn("system", "Be long."), ASK, NO]])
def test_prompt_that_one_answer_repeats_is_refused(rejected):
    with pytest.raises(InputError, match="x, row 7: chosen and rejected do not repeat the prompt alike"):
        to_standard({"prompt": [ASK], "chosen": [SYSTEM, ASK, REPLY], "rejected": rejected}, "x, row 7", ("preference",))


@pytest.mark.parametrize("calls", [CALL, json.dumps([CALL]), json.dumps(CALL)])
def test_tool_calls_may_be_one_or_json(calls):
    row = {"messages": [ASK, turn("assistant", None, tool_calls=calls)]}
    assert to_standard(row, "x", DEMONSTRATION)["messages"][1]["tool_calls"] == [CALL]
