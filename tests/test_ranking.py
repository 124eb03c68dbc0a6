"""Samples resume bit for bit; rankings become pairs whose splits share no prompt; simulated raters do as documented."""

import importlib
import json
from pathlib import Path

import pytest
from datasets import load_dataset
from forked import run_python
from recipe_types import recipe_types

from llmrecipes import sampling as sampling_module
from llmrecipes.cards.dataset import write_card, write_jsonl
from llmrecipes.config import InputError
from llmrecipes.models import build_policy
from llmrecipes.parsing import parse
from llmrecipes.ranking.items import check_items
from llmrecipes.ranking.pairs import agreement, build_pairs, build_splits, check_samples, split_prompts
from llmrecipes.ranking.rankings import parse_ranking, read_rankings
from llmrecipes.ranking.simulated import rank_by_score, rank_simulated
from llmrecipes.rows import to_standard
from llmrecipes.sampling import PARTIAL, encode_rows, to_parquet, write_samples
from llmrecipes.tokenizers import train_tokenizer

ROOT = Path(__file__).parent.parent
SHAPE = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 32, "max_position_embeddings": 64}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["The cat sat on the mat.", "What is it?"], vocab_size=300, max_length=64)


@pytest.fixture(scope="module")
def model(tokenizer):
    return build_policy(dict(SHAPE), tokenizer)


def prompts(count=10):
    return [{"prompt": [{"role": "user", "content": f"What {i}?"}], "kind": f"k{i % 2}"} for i in range(count)]


def sample(model, tokenizer, output_dir, rows=None, **changes):
    settings = {"num_samples": 3, "batch_size": 4, "seed": 1, "model_name": "m"}
    sampling = {"max_new_tokens": 5, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    sampling |= {key: changes.pop(key) for key in list(changes) if key in sampling}
    output_dir.mkdir(exist_ok=True)
    settings, rows = settings | changes, rows or prompts()
    encoded = encode_rows(model, tokenizer, rows, settings["num_samples"], sampling["max_new_tokens"])
    return write_samples(model, tokenizer, rows, encoded, output_dir, sampling=sampling, **settings)


def test_samples_row_holds_what_the_contract_says(model, tokenizer, tmp_path):
    rows = sample(model, tokenizer, tmp_path)
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in prompts()]
    for row in rows:
        assert len(row["responses"]) == len(row["finish_reasons"]) == len(row["num_tokens"]) == 3
        assert set(row["finish_reasons"]) <= {"stop", "length"} and max(row["num_tokens"]) <= 5
        assert row["model"] == "m" and row["kind"] in ("k0", "k1") and row["sampling"]["seed"] == 1
    assert [json.loads(line) for line in (tmp_path / "samples.jsonl").read_bytes().splitlines()] == rows


def test_resume_equals_uninterrupted(model, tokenizer, tmp_path, monkeypatch):
    whole = sample(model, tokenizer, tmp_path / "whole")
    calls, original = [], sampling_module.sample_responses

    def killed_in_the_third_chunk(*args, **settings):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **settings)

    monkeypatch.setattr(sampling_module, "sample_responses", killed_in_the_third_chunk)
    with pytest.raises(KeyboardInterrupt):
        sample(model, tokenizer, tmp_path / "cut")
    partial = tmp_path / "cut" / PARTIAL
    assert len(partial.read_bytes().splitlines()) == 8
    # A kill in the middle of a write leaves part of a chunk, and part of a line.
    with partial.open("a") as file:
        file.write(json.dumps({"crc32": 1, "row": {"prompt_id": "x"}}) + '\n{"crc32": 2, "row": {"prompt_id": "y", "resp')
    assert sample(model, tokenizer, tmp_path / "cut") == whole and len(calls) == 4
    assert (tmp_path / "cut" / "samples.jsonl").read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()
    # Killed after the samples have got their name, the stage does not sample again.
    assert sample(model, tokenizer, tmp_path / "cut") == whole and len(calls) == 4
    to_parquet(tmp_path / "cut")
    assert sample(model, tokenizer, tmp_path / "cut") == whole and len(calls) == 4


def test_samples_that_were_changed_before_the_manifest_was_written_are_those_sampled(model, tokenizer, tmp_path, capsys):
    whole, file = sample(model, tokenizer, tmp_path), tmp_path / "samples.jsonl"
    bytes_ = file.read_bytes()
    file.write_bytes(b"".join(bytes_.splitlines(keepends=True)[:5]))  # a killed run's, cut by a damaged disk, say
    assert sample(model, tokenizer, tmp_path) == whole and file.read_bytes() == bytes_
    assert f"{file}: was changed before the run was finished; written again as it was sampled\n" in capsys.readouterr().out


def test_another_seed_gives_other_samples(model, tokenizer, tmp_path):
    one, same, other = (sample(model, tokenizer, tmp_path / str(i), seed=seed) for i, seed in enumerate((1, 1, 2)))
    assert one == same and [r["responses"] for r in one] != [r["responses"] for r in other]


def test_chunks_and_responses_of_a_prompt_are_drawn_apart(model, tokenizer, tmp_path):
    rows = sample(model, tokenizer, tmp_path, rows=[prompts(1)[0]] * 8)
    assert len({text for row in rows for text in row["responses"]}) > 12


def test_parquet_holds_the_same_rows(model, tokenizer, tmp_path):
    rows = sample(model, tokenizer, tmp_path)
    to_parquet(tmp_path)
    write_card(tmp_path, "Samples", {"default": {"train": "samples.parquet"}}, "")
    assert list(load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))) == rows


def test_prompt_ids_of_the_users_own_give_way_to_ours_with_a_line(model, tokenizer, tmp_path, capsys):
    ours = sample(model, tokenizer, tmp_path / "a", rows=prompts(1))[0]["prompt_id"]
    assert "prompt_id" not in capsys.readouterr().out
    (row,) = sample(model, tokenizer, tmp_path / "b", rows=[prompts(1)[0] | {"prompt_id": 7}])
    assert row["prompt_id"] == ours and "own `prompt_id` gives way" in capsys.readouterr().out


def test_prompt_beyond_the_context_is_named_by_row(model, tokenizer, tmp_path):
    rows = prompts(2) + [{"prompt": [{"role": "user", "content": "What is it? " * 30}], "kind": "k0"}]
    with pytest.raises(InputError, match="row 3: the prompt has .* room for 59"):
        sample(model, tokenizer, tmp_path, rows=rows)
    with pytest.raises(InputError, match="column `responses` already"):
        sample(model, tokenizer, tmp_path, rows=[prompts(1)[0] | {"responses": []}])


# --- rankings ---------------------------------------------------------------------------------------------------------


def samples(count=40, num_responses=4):
    rows = prompts(count)
    return check_samples(
        [r | {"responses": ["a" * (1 + (i * j) % 5) for j in range(num_responses)]} for i, r in enumerate(rows, start=1)]
    )


def longer_is_better(row, response):
    return len(response) / 5


def simulated(rows, noise=(0.0,), tie_width=(0.0,), overlap=0.0, seed=0):
    return rank_simulated(rows, longer_is_better, noise, tie_width, overlap, seed)


def test_rater_without_noise_follows_the_rule():
    for row in simulated(samples()):
        lengths = [[len(row["responses"][i]) for i in group] for group in row["ranking"]]
        assert all(len(set(group)) == 1 for group in lengths)
        assert [group[0] for group in lengths] == sorted({n for group in lengths for n in group}, reverse=True)


def test_equal_responses_tie_even_for_a_noisy_rater():
    for row in simulated(samples(), noise=(5.0,)):
        place = {i: n for n, group in enumerate(row["ranking"]) for i in group}
        texts = row["responses"]
        assert all(place[i] == place[j] for i in range(4) for j in range(4) if texts[i] == texts[j])


def test_noisier_rater_contradicts_the_rule_more_often():
    wrong = []
    for noise in (0.05, 0.3, 2.0):
        train, test = build_pairs(simulated(samples(200), noise=(noise,)), set())
        wrong.append(sum(len(p["chosen"][0]["content"]) < len(p["rejected"][0]["content"]) for p in train) / len(train))
    assert wrong[0] < wrong[1] < wrong[2] < 0.6 and wrong[0] < 0.05


def test_strict_rater_ties_less():
    counts = [len(build_pairs(simulated(samples(), tie_width=(width,)), set())[0]) for width in (0.0, 0.25, 0.5, 1.0)]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[2] > counts[3] == 0


def test_ranking_of_a_prompt_depends_on_nothing_but_prompt_and_seed():
    rows = samples()
    settings = {"noise": (0.3, 0.3, 0.3), "tie_width": (0.1, 0.1, 0.1), "overlap": 0.5}
    whole = simulated(rows, **settings)
    part = simulated(rows[::-1][:7], **settings)
    assert all(row in whole for row in part) and simulated(rows, **settings, seed=1) != whole


def test_overlap_is_the_share_of_prompts_that_all_raters_rank():
    rows, raters = samples(400), {"noise": (0.1,) * 3, "tie_width": (0.1,) * 3}
    assert len(simulated(rows, **raters)) == 400 and len(simulated(rows, overlap=1.0, **raters)) == 1200
    ranked = simulated(rows, overlap=0.25, **raters)
    assert 0.18 < agreement(ranked)["prompts_in_common"] / 400 < 0.32
    assert {row["annotator"] for row in ranked} == {"simulated-1", "simulated-2", "simulated-3"}


def test_agreement_is_whole_without_noise_and_empty_without_overlap():
    ranked = simulated(samples(), noise=(0.0, 0.0), tie_width=(0.0, 0.0), overlap=1.0)
    assert agreement(ranked)["agreement"] == agreement(ranked)["kendall_tau"] == 1.0
    assert agreement(simulated(samples())) == {}


def test_rank_by_score_puts_what_is_close_to_a_groups_best_together():
    assert rank_by_score([0.1, 0.9, 0.5, 0.85], 0.1) == [[1, 3], [2], [0]]
    assert rank_by_score([1.0, 1.0]) == [[0, 1]]


def test_rule_that_lacks_a_column_says_which():
    with pytest.raises(InputError, match="rule: it needs a column 'kind'; the samples have prompt"):
        rank_simulated([{"prompt": "p", "prompt_id": "1", "responses": ["a"]}], lambda row, _: row["kind"], [0], [0], 0, 0)


@pytest.mark.parametrize("score", ["0.5", None, float("nan"), float("inf"), [1.0]])
def test_rule_that_gives_no_number_is_one_line_with_prompt_and_answer(score):
    with pytest.raises(InputError, match=r"rule: got .*; expected a finite number \(prompt 'p', response 'a'\)"):
        rank_simulated([{"prompt": "p", "prompt_id": "1", "responses": ["a"]}], lambda *_: score, [0], [0], 0, 0)


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_no_prompt_is_in_two_splits():
    rows = samples(60) + samples(30)  # half of the prompts twice
    ranked = simulated(rows, noise=(0.1, 0.1), tie_width=(0.0, 0.0), overlap=0.5)
    test_ids = split_prompts(ranked, 0.2, seed=3)
    splits = build_splits(ranked, test_ids, simulated([row for row in rows if row["prompt_id"] in test_ids]))
    ids = {name: {pair["prompt_id"] for pair in pairs} for name, pairs in splits.items()}
    assert set(ids) == {"train", "test", "test_gold"} and len(test_ids) == 12
    assert not ids["train"] & (ids["test"] | ids["test_gold"])
    assert split_prompts(ranked[::-1], 0.2, seed=3) == test_ids != split_prompts(ranked, 0.2, seed=4)


def test_ties_give_no_pair_and_nothing_but_ties_is_an_error():
    ranked = [row | {"ranking": [[0, 1, 2, 3]]} for row in samples()]
    assert build_pairs(ranked, set()) == ([], [])
    with pytest.raises(InputError, match="no pair to train on"):
        build_splits(ranked, set())


def test_a_held_out_split_without_a_pair_is_left_out_and_a_line_says_what_to_do(capsys):
    ranked = [row | {"ranking": [[0], [1], [2], [3]]} for row in samples()]
    test_ids = split_prompts(ranked, 0.2, seed=0)
    equal = [row | {"ranking": [[0, 1, 2, 3]]} for row in ranked if row["prompt_id"] in test_ids]
    assert set(build_splits(ranked, test_ids, equal)) == {"train", "test"}
    assert "test_gold: left out, " in (said := capsys.readouterr().out) and "out of the eval_datasets" in said
    assert set(build_splits(ranked, test_ids)) == {"train", "test"} and not capsys.readouterr().out  # without a rule


def test_each_prompt_counts_once_in_each_split():
    ranked = simulated(samples(), noise=(0.1, 0.1), tie_width=(0.0, 0.0), overlap=0.5)
    for pairs in build_splits(ranked, split_prompts(ranked, 0.2, seed=0)).values():
        totals = {}
        for pair in pairs:
            totals[pair["prompt_id"]] = totals.get(pair["prompt_id"], 0) + pair["weight"]
        assert len({pair["weight"] for pair in pairs}) > 1
        assert all(total == pytest.approx(1) for total in totals.values())


def test_implicit_pairs_hold_the_prompt_and_read_back_as_explicit_ones(tmp_path):
    ranked = simulated(samples())
    test_ids = split_prompts(ranked, 0.2, seed=0)
    explicit, implicit = (build_splits(ranked, test_ids, pair_format=form) for form in ("explicit", "implicit"))
    assert all("prompt" not in pair for pairs in implicit.values() for pair in pairs)
    write_jsonl(tmp_path / "train.jsonl", implicit["train"])
    write_card(tmp_path, "Pairs", {"default": {"train": "train.jsonl"}}, "")
    loaded = load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert [to_standard(row) for row in loaded] == explicit["train"]
    text = [row | {"prompt": "What?"} for row in ranked]
    with pytest.raises(InputError, match="pair 1: pair_format implicit needs prompts of messages"):
        build_splits(text, test_ids, pair_format="implicit")


def test_numbers_as_prompt_ids_are_ids_from_0_on_and_one_of_two_prompts_is_refused(tmp_path):
    numbered = check_samples([row | {"prompt_id": i} for i, row in enumerate(samples(4))])
    assert [row["prompt_id"] for row in numbered] == [0, 1, 2, 3] and check_items(numbered) == numbered
    assert split_prompts(numbered, 0.5, 0) < {0, 1, 2, 3}
    mixed = check_samples([numbered[0], samples(4)[1] | {"prompt_id": None}, samples(4)[2] | {"prompt_id": "x"}])
    assert mixed[1]["prompt_id"] == samples(4)[1]["prompt_id"] and len(split_prompts(mixed, 0.4, 0)) == 1
    table = write(tmp_path / "r.csv", "prompt_id,ranking\n0,B > A\n3,A > B\n")
    lines = write(tmp_path / "r.jsonl", '{"prompt_id": 0, "ranking": "B > A"}\n{"prompt_id": 3, "ranking": "A > B"}\n')
    ranked = read_rankings(table, numbered)
    assert [(row["prompt_id"], row["ranking"][0]) for row in ranked] == [(0, [1]), (3, [0])]
    assert read_rankings(lines, numbered) == ranked
    with pytest.raises(InputError, match="two prompts have the prompt_id 7; give each its own"):
        check_samples([row | {"prompt_id": 7} for row in samples(2)])


def test_one_response_cannot_be_ranked():
    with pytest.raises(InputError, match="row 1: has 1 response; ranking needs two"):
        samples(num_responses=1)
    with pytest.raises(InputError, match="row 1: columns are prompt, kind; expected prompt, responses"):
        check_samples(prompts(1))
    for responses in ("ab", ["a", None]):
        with pytest.raises(InputError, match="row 1: responses must be a list of texts, found"):
            check_samples([prompts(1)[0] | {"responses": responses}])
    with pytest.raises(InputError, match="test_share"):
        split_prompts(samples(), 1.0, seed=0)


def test_a_row_that_cannot_be_ranked_is_named_by_its_true_number(tmp_path):
    rows = [{"prompt": f"Question {i}", "responses": ["a", "b"] if i != 6 else ["a"]} for i in range(20)]
    file = tmp_path / "samples.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["--datasets", str(file), "--annotator", "simulated", "--rule", "test_ranking:longer_is_better"]
    recipe = importlib.import_module("recipes.rank")
    with pytest.raises(InputError, match=r"samples\.jsonl, row 7: has 1 response"):
        recipe.main(*parse(*recipe_types("rank"), argv=[*argv, "--output_dir", str(tmp_path / "rank")]))


def test_pairs_load_by_load_dataset(tmp_path):
    splits = build_splits(simulated(samples()), split_prompts(samples(), 0.2, seed=0))
    for name, pairs in splits.items():
        write_jsonl(tmp_path / f"{name}.jsonl", pairs)
    (tmp_path / "manifest.json").write_text("{}")
    write_card(tmp_path, "Pairs", {"default": {name: f"{name}.jsonl" for name in splits}}, "")
    loaded = load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert {name: list(rows) for name, rows in loaded.items()} == splits


# --- rankings from a file ---------------------------------------------------------------------------------------------


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_rankings_are_read_from_jsonl_and_csv_alike(tmp_path):
    rows = samples(2)
    one, two = (row["prompt_id"] for row in rows)
    lines = [{"prompt_id": one, "ranking": [[2], [0, 3], [1]], "annotator": "ann"}, {"prompt_id": two, "ranking": "1>0"}]
    jsonl = write(tmp_path / "r.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    table = write(tmp_path / "r.csv", f"prompt_id,ranking,annotator\n{one},C > A = D > B,ann\n{two},1 > 0,\n")
    ranked = read_rankings(jsonl, rows)
    assert ranked == read_rankings(table, rows)
    assert [row["ranking"] for row in ranked] == [[[2], [0, 3], [1]], [[1], [0]]]
    assert ranked[0]["annotator"] == "ann" and ranked[0]["kind"] == rows[0]["kind"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt_id": "0" * 16, "ranking": "A>B"}, "row 2: there is no sample with prompt_id"),
        ({"ranking": "A>B"}, "row 2: columns are ranking; expected prompt_id, ranking"),
        ({"prompt_id": "ID", "ranking": "A>B"}, "row 2: unnamed ranked prompt .* already"),
        ({"prompt_id": "ID", "ranking": "A>Z", "annotator": "ann"}, "row 2: ranking names a response that does not exist"),
        ({"prompt_id": "ID", "ranking": "best", "annotator": "ann"}, "row 2: ranking 'best' is not like"),
    ],
)
def test_bad_ranking_is_named_by_its_row(tmp_path, line, message):
    rows = samples(2)
    lines = [{"prompt_id": rows[0]["prompt_id"], "ranking": "A>B"}, line]
    text = "".join(json.dumps(line) + "\n" for line in lines).replace('"ID"', f'"{rows[0]["prompt_id"]}"')
    with pytest.raises(InputError, match=message):
        read_rankings(write(tmp_path / "r.jsonl", text), rows)


def test_missing_and_empty_rankings_file_are_one_line(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_rankings(str(tmp_path / "none.jsonl"), samples())
    with pytest.raises(InputError, match="is empty"):
        read_rankings(write(tmp_path / "r.jsonl", ""), samples())


def rank_recipe(*argv):
    return run_python("recipes/rank.py", *argv)


def test_annotator_that_is_not_there_and_missing_keys_are_one_line(tmp_path):
    given = ["--datasets", write(tmp_path / "samples.jsonl", "".join(json.dumps(row) + "\n" for row in samples(2)))]
    for argv, message in [
        (["--annotator", "page"], "datasets: is missing"),
        (["--annotator", "simulated", *given], "rule: is missing"),
        (["--annotator", "file", *given], "rankings_file: is missing"),
        (["--annotator", "nobody", *given, "--rankings_file", given[1]], "choose from file, simulated, page"),
    ]:
        result = rank_recipe(*argv, "--output_dir", str(tmp_path / "rank"))
        assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "rank").exists()


def test_rankings_of_a_spreadsheet_and_by_prompt_text_are_read(tmp_path):
    rows = samples(2)
    one, two = (row["prompt_id"] for row in rows)
    table = write(tmp_path / "r.csv", f"\ufeffprompt_id;ranking\r\n{one};C > A\r\n{two};[[1], [0, 2]]\r\n")
    assert [row["ranking"] for row in read_rankings(table, rows)] == [[[2], [0]], [[1], [0, 2]]]
    lines = write(tmp_path / "r.jsonl", json.dumps({"prompt": "What 1?", "ranking": [2, 0, 1]}) + "\n")
    (row,) = read_rankings(lines, rows)
    assert row["prompt_id"] == two and row["ranking"] == [[2], [0], [1]]
    lines = write(tmp_path / "m.jsonl", json.dumps({"prompt": rows[1]["prompt"], "ranking": [2, 0, 1]}) + "\n")
    assert isinstance(rows[1]["prompt"], list) and read_rankings(lines, rows) == [row]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt_id,ranking\nID,A > B, C\n", "row 1: has more cells than the header"),
        ("prompt_id,ranking\nID,\n", r"row 1: columns are prompt_id, ranking \(ranking empty\)"),
        ("prompt_id,ranking\nID,[[0]\n", "row 1: ranking '\\[\\[0\\]' is not valid JSON"),
        ("prompt,ranking\nWho?,A > B\n", "row 1: there is no sample with prompt_id"),
    ],
)
def test_broken_csv_is_named_by_its_row(tmp_path, text, message):
    rows = samples(2)
    with pytest.raises(InputError, match=message):
        read_rankings(write(tmp_path / "r.csv", text.replace("ID", rows[0]["prompt_id"])), rows)
    (tmp_path / "latin.csv").write_bytes("prompt_id,ranking,annotator\nx,A,Zo\xe9\n".encode("latin-1"))
    with pytest.raises(InputError, match="save it as UTF-8"):
        read_rankings(str(tmp_path / "latin.csv"), rows)


def test_letters_and_numbers_are_the_same_order():
    assert parse_ranking("C > A = D > B", "") == parse_ranking("2>0=3>1", "") == [[2], [0, 3], [1]]


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: lines[:1] + lines[2:],
        lambda lines: [lines[0], lines[1].replace(b'"responses"', b'"resqonses"'), *lines[2:]],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [lines[0], b"\0" * len(lines[1]), *lines[1:]],
        lambda lines: [lines[0], lines[1].replace(b'"responses": ["', b'"responses": ["#'), *lines[2:]],  # still a row
    ],
)
def test_damaged_lines_of_what_was_sampled_are_sampled_again_and_told(model, tokenizer, tmp_path, damage, capsys):
    whole = sample(model, tokenizer, tmp_path)
    partial, bytes_ = tmp_path / PARTIAL, (tmp_path / "samples.jsonl").read_bytes()
    (tmp_path / "samples.jsonl").unlink()
    partial.write_bytes(b"".join(damage(partial.read_bytes().splitlines(keepends=True)[:9])))
    assert sample(model, tokenizer, tmp_path) == whole
    assert (tmp_path / "samples.jsonl").read_bytes() == bytes_
    assert "is damaged; sampling again from prompt 1\n" in capsys.readouterr().out


SAME = [
    {"prompt_id": "p", "prompt": "Hi", "responses": ["a", "b"]},
    {"prompt_id": "q", "prompt": "Bye", "responses": ["c", "d"]},
]


@pytest.mark.parametrize(
    ("given", "more", "part"),
    [
        ({"prompt_id": "p", "responses": ["b", "a"]}, [], "row 1: ranks other responses than the sample with prompt_id 'p'"),
        ({"prompt_id": "p", "responses": '["x", "y"]'}, [], "row 1: ranks other responses"),
        ({"prompt_id": "p", "prompt": "Bye"}, [], "row 1: prompt_id 'p' is not that of its prompt, 'Bye'"),
        ({"prompt_id": "p"}, [SAME[0] | {"responses": ["x", "y"]}], "2 samples have the prompt_id 'p'"),
        ({"prompt": "Hi"}, [SAME[0] | {"prompt_id": "r"}], "2 samples have this prompt, 'Hi'"),
    ],
)
def test_a_ranking_of_other_responses_than_the_samples_is_refused(tmp_path, given, more, part):
    """Sampled anew, a prompt keeps its id, but the places in old rankings are of other answers."""
    (tmp_path / "r.jsonl").write_text(json.dumps(given | {"ranking": "A > B"}) + "\n")
    with pytest.raises(InputError, match=part):
        read_rankings(str(tmp_path / "r.jsonl"), [*SAME, *more])
    fine = {"prompt_id": "p", "prompt": "Hi", "responses": ["a", "b"], "ranking": "B > A"}
    (tmp_path / "r.jsonl").write_text(json.dumps(fine) + "\n")
    assert read_rankings(str(tmp_path / "r.jsonl"), SAME)[0]["ranking"] == [[1], [0]]


def test_a_column_that_stands_twice_in_a_table_of_rankings_is_refused(tmp_path):
    (tmp_path / "r.csv").write_text("prompt_id,ranking,ranking\np,A > B,B > A\n")
    with pytest.raises(InputError, match="has the column 'ranking' twice"):
        read_rankings(str(tmp_path / "r.csv"), SAME)
