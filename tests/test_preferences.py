"""Foreign preference sets in their published formats become pairs; a bad row is one line with file and row."""

import gzip
import json

import pytest

from llmrecipes.config import DataArguments, InputError
from llmrecipes.data import load_source, load_train_eval
from llmrecipes.data.preferences import argilla, hh_rlhf, rankings, ultrafeedback, ultrafeedback_ratings

HEAD = "\n\nHuman: What is a pen?\n\nAssistant: A tool.\n\nHuman: For what?\n\nAssistant:"
HH = {"chosen": HEAD + " For writing.", "rejected": HEAD + " Find out yourself!"}


def text(turns):
    return turns[-1]["content"]


def order(pairs):
    return [(text(p["chosen"]), text(p["rejected"])) for p in pairs]


# --- hh-rlhf ----------------------------------------------------------------------------------------------------------


def test_hh_transcript_has_the_turns_both_begin_with_as_its_prompt():
    (pair,) = hh_rlhf([HH])
    assert [turn["role"] for turn in pair["prompt"]] == ["user", "assistant", "user"]
    assert pair["chosen"] == [{"role": "assistant", "content": "For writing."}]
    assert order([pair]) == [("For writing.", "Find out yourself!")] and pair["weight"] == 1.0


def test_hh_pair_may_part_before_the_last_question():
    other = "\n\nHuman: What is a pen?\n\nAssistant: Go away.\n\nHuman: Why?\n\nAssistant: Because."
    (pair,) = hh_rlhf([{"chosen": HH["chosen"], "rejected": other}])
    assert len(pair["prompt"]) == 1 and len(pair["chosen"]) == len(pair["rejected"]) == 3


def test_hh_answer_that_begins_like_the_other_one_keeps_the_question_as_prompt():
    longer = HH["chosen"] + "\n\nHuman: Thanks.\n\nAssistant: You are welcome."
    (pair,) = hh_rlhf([{"chosen": longer, "rejected": HH["chosen"]}])
    assert pair["prompt"][-1]["role"] == "user" and len(pair["rejected"]) == 1 and len(pair["chosen"]) == 3


def test_hh_rows_without_a_preference_are_left_out():
    empty = {"chosen": HH["chosen"], "rejected": HEAD}
    assert list(hh_rlhf([{"chosen": HH["chosen"], "rejected": HH["chosen"] + " "}, empty])) == []


# --- UltraFeedback ----------------------------------------------------------------------------------------------------


def completion(response, overall, *ratings):
    aspects = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    notes = {name: {"Rating": rating, "Rationale": "..."} for name, rating in zip(aspects, ratings, strict=False)}
    return {
        "model": "m",
        "principle": "helpfulness",
        "response": response,
        "annotations": notes,
        "overall_score": overall,
        "fine-grained_score": 1.0,
    }


ULTRA = {
    "source": "flan",
    "instruction": "Say hi.",
    "models": ["m"] * 4,
    "correct_answers": ["None"],
    "completions": [
        completion("a", 7.5, "5", "5"),
        completion("b", 8.0, "2", "3"),
        completion("c", 7.5, "4", "N/A"),
        completion("d", None, "1"),
    ],
}


def test_ultrafeedback_gives_every_pair_that_is_no_tie_weighted_to_one():
    pairs = list(ultrafeedback([ULTRA]))
    assert set(order(pairs)) == {("b", "a"), ("b", "c"), ("b", "d"), ("a", "d"), ("c", "d")}
    assert sum(pair["weight"] for pair in pairs) == pytest.approx(1) and {p["source"] for p in pairs} == {"flan"}
    assert {order([p])[0]: p["margin"] for p in pairs}["b", "a"] == 0.5
    assert pairs[0]["prompt"] == [{"role": "user", "content": "Say hi."}]


def test_ultrafeedback_by_ratings_follows_the_mean_of_the_aspects():
    pairs = order(ultrafeedback_ratings([ULTRA]))
    assert ("a", "b") in pairs and ("c", "b") in pairs and len(pairs) == 6


def test_score_of_zero_is_a_score():
    rows = {"instruction": "x", "completions": [completion("a", 0.0), completion("b", 1.0)]}
    assert order(ultrafeedback([rows])) == [("b", "a")]


# --- Argilla ----------------------------------------------------------------------------------------------------------

FIELDS = {"prompt": "Say hi.", "response-1": "a", "response-2": "b", "response-3": "c"}
RANKS = [{"rank": 2, "value": "response-1"}, {"rank": 1, "value": "response-2"}, {"rank": 2, "value": "response-3"}]


@pytest.mark.parametrize(
    "record",
    [
        FIELDS
        | {
            "ranking": [{"user_id": "u1", "value": RANKS, "status": "submitted"}],
            "ranking-suggestion": RANKS[:2],
            "external_id": None,
            "metadata": "{}",
        },
        FIELDS | {"ranking": {"user_id": ["u1"], "value": [RANKS], "status": ["submitted"]}},
        FIELDS
        | {
            "ranking": [
                {
                    "user_id": "u1",
                    "status": "submitted",
                    "value": {"rank": [2, 1, 2], "value": ["response-1", "response-2", "response-3"]},
                }
            ]
        },
        {"fields": FIELDS, "responses": [{"user_id": "u1", "status": "submitted", "values": {"ranking": {"value": RANKS}}}]},
    ],
    ids=["export", "columns", "structs", "records"],
)
def test_argilla_1_ranking_with_ties(record):
    pairs = list(argilla([record]))
    assert order(pairs) == [("b", "a"), ("b", "c")] and {p["annotator"] for p in pairs} == {"u1"}
    assert [p["weight"] for p in pairs] == [0.5, 0.5]


def test_argilla_2_ranking_nested_and_flat():
    best_first = ["response-2", "response-1", "response-3"]
    nested = {
        "id": "1",
        "fields": FIELDS,
        "metadata": {},
        "vectors": {},
        "suggestions": {"ranking": {"value": best_first[::-1], "agent": "model"}},
        "responses": {"ranking": [{"value": best_first, "user_id": "u1"}], "comment": [{"value": "fine", "user_id": "u1"}]},
    }
    flat = FIELDS | {
        "id": "1",
        "status": "completed",
        "ranking.responses": [best_first],
        "ranking.responses.users": ["u1"],
        "ranking.responses.status": ["submitted"],
        "ranking.suggestion": best_first[::-1],
        "ranking.suggestion.agent": "model",
    }
    expected = [("b", "a"), ("b", "c"), ("a", "c")]
    assert order(argilla([nested])) == order(argilla([flat])) == expected


def test_argilla_ratings_of_single_texts_are_ranked_by_annotator():
    record = FIELDS | {
        f"response-{i}-rating": [
            {"user_id": "u1", "value": v, "status": "submitted"},
            {"user_id": "u2", "value": 6 - v, "status": "submitted"},
        ]
        for i, v in ((1, 5), (2, 1), (3, 5))
    }
    pairs = list(argilla([record]))
    assert order(pairs) == [("a", "b"), ("c", "b"), ("b", "a"), ("b", "c")]
    assert [p["margin"] for p in pairs] == [4.0] * 4 and [p["weight"] for p in pairs] == [0.25] * 4


def test_argilla_leaves_out_what_nobody_submitted():
    draft = FIELDS | {"ranking": [{"user_id": "u1", "value": RANKS, "status": "discarded"}]}
    assert list(argilla([draft, FIELDS | {"ranking": [], "ranking-suggestion": RANKS}])) == []


# --- through the data layer: files, splits and mistakes -----------------------------------------------------------------


def source(tmp_path, rows, reader, name="x.jsonl"):
    content = "".join(json.dumps(row) + "\n" for row in rows)
    path = tmp_path / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(content.encode()))
    else:
        path.write_text(content)
    return {"path": str(path), "reader": f"llmrecipes.data.preferences:{reader}"}


def test_published_gz_file_is_read_with_and_without_the_reader(tmp_path):
    spec = source(tmp_path, [HH] * 3, "hh_rlhf", "hh.jsonl.gz")
    for entry in (spec, {"path": spec["path"]}):
        rows, _ = load_train_eval(DataArguments(datasets=[entry]), 0, ("preference",))
        assert len(rows) == 3 and order([rows[0]]) == [("For writing.", "Find out yourself!")]


def test_held_out_share_never_splits_a_prompt(tmp_path):
    rows = [ULTRA | {"instruction": f"Say {i}."} for i in range(20)]
    data = DataArguments(datasets=[source(tmp_path, rows, "ultrafeedback")], test_split_size=0.2)
    train, test = load_train_eval(data, 0, ("preference",))
    ids = [set(part["prompt_id"]) for part in (train, test)]
    assert len(ids[0]) == 16 and len(ids[1]) == 4 and not ids[0] & ids[1] and len(train) + len(test) == 100


@pytest.mark.parametrize(
    ("reader", "row", "message"),
    [
        ("hh_rlhf", {"chosen": "Hello", "rejected": "Hi"}, r'row 2: expected a transcript that begins with "Human:"'),
        ("hh_rlhf", {"chosen": HH["chosen"], "rejected": "\n\nHuman: Who?\n\nAssistant: I."}, "row 2: .* same message"),
        ("hh_rlhf", {"chosen": HH["chosen"]}, "row 2: columns are .*expected the transcripts"),
        ("ultrafeedback", {"instruction": "x"}, "row 2: columns are .*expected instruction and completions"),
        ("ultrafeedback", {"instruction": "x", "completions": [completion(None, 3.0)]}, "row 2: completion 1 has no text"),
        (
            "ultrafeedback",
            {"instruction": "x", "completions": [completion("a", None, "good")]},
            "row 2, completion 1: score 'good' is not a number",
        ),
        ("argilla", {"prompt": None, "ranking": []}, "row 2: has no prompt"),
        (
            "argilla",
            {"prompt": "x", "ranking": [{"user_id": "u", "status": "submitted", "value": RANKS}]},
            "row 2, ranking: ranks `response-2`, which is not a field",
        ),
        (
            "argilla",
            {"prompt": "x", "rating-2": [{"user_id": "u", "status": "submitted", "value": 3}]},
            "row 2: rates number 2 in `rating-2`",
        ),
    ],
)
def test_bad_row_is_named_with_its_file(tmp_path, reader, row, message):
    good = {
        "hh_rlhf": HH,
        "ultrafeedback": ULTRA,
        "argilla": FIELDS | {"ranking": [{"user_id": "u", "status": "submitted", "value": RANKS}]},
    }[reader]
    spec = source(tmp_path, [good, row], reader)
    with pytest.raises(InputError, match=r"x\.jsonl, " + message):
        load_source(DataArguments(datasets=[spec]).datasets[0], 0)


def test_broken_gz_and_nothing_to_use_are_one_line(tmp_path):
    (tmp_path / "bad.jsonl.gz").write_bytes(gzip.compress(b'{"chosen": 1}\n' * 50)[:-12])
    with pytest.raises(InputError, match=r"bad\.jsonl\.gz: is not a complete gzip file"):
        load_source(DataArguments(datasets=[{"path": str(tmp_path / "bad.jsonl.gz")}]).datasets[0], 0)
    spec = source(tmp_path, [{"chosen": HH["chosen"], "rejected": HH["chosen"]}], "hh_rlhf")
    with pytest.raises(InputError, match="found nothing to use in 1 rows"):
        load_source(DataArguments(datasets=[spec]).datasets[0], 0)


def test_columns_that_only_later_rows_have_are_kept_and_mixed_types_are_one_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(HH) + "\n" + json.dumps(HH | {"kind": "b"}) + "\n")
    rows = load_source(DataArguments(datasets=[str(path)]).datasets[0], 0)
    assert rows["kind"] == [None, "b"]
    path.write_text(json.dumps(HH) + "\n" + json.dumps(HH | {"chosen": [{"role": "user", "content": "x"}]}) + "\n")
    with pytest.raises(InputError, match=r"x\.jsonl, row 2: one of chosen and rejected is text, the other a list"):
        load_train_eval(DataArguments(datasets=[str(path)]), 0, ("preference",))


# --- rankings -------------------------------------------------------------------------------------------------------


def test_rankings_become_pairs_that_count_once_a_prompt():
    row = {"prompt": "q", "responses": ["a", "b", "c"], "ranking": [[1], [0, 2]], "models": ["x", "y", "z"]}
    pairs = list(rankings([row]))
    assert [(p["chosen"], p["rejected"], p["weight"]) for p in pairs] == [("b", "a", 0.5), ("b", "c", 0.5)]
    assert "models" not in pairs[0]
    with pytest.raises(InputError, match="row 1: .*responses is missing"):
        list(rankings([{"prompt": "q", "ranking": [[0]]}]))
