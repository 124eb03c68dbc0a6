"""Quality figures against hand-computed cases and simulated annotators; the recipe builds pairs from a database."""

import json
import random
import socket
from pathlib import Path

import pytest
from forked import run_python
from test_store import judge, samples

from llmrecipes.config import ModelArguments
from llmrecipes.models import build_policy, load_reward_model
from llmrecipes.ranking.quality import low_agreement, measure_quality
from llmrecipes.ranking.quality_page import quality_page
from llmrecipes.ranking.store import Store
from llmrecipes.reward_models.scoring import uncertainty
from llmrecipes.tokenizers import train_tokenizer
from llmrecipes.web import prepare_server

ROOT = Path(__file__).parent.parent


def judgement(item, annotator, ranking, **more):
    flat = [i for group in ranking for i in group]
    return {
        "item_id": item,
        "annotator": annotator,
        "ranking": ranking,
        "order_shown": sorted(flat),
        "is_repeat": False,
        "annotator_kind": "person",
        "all_bad": False,
        "flags": {},
        "seconds": 10.0,
        "position": 1,
    } | more


def test_alpha_of_a_hand_computed_case():
    """One item, places 1 2 3 and 2 1 3: each value twice, n = 6, coincidences o(1,2) = o(2,1) = o(3,3) = 2.

    Ordinal distances are (sum of n_g from c to k - (n_c + n_k) / 2) squared: d(1,2) = d(2,3) = 4, d(1,3) = 16, and
    alpha = 1 - (n - 1) sum o d / sum n_c n_k d, over pairs c < k.
    """
    found = measure_quality([judgement("i", "a", [[0], [1], [2]]), judgement("i", "b", [[1], [0], [2]])])
    expected = 1 - (6 - 1) * (2 * 4) / (2 * 2 * 4 + 2 * 2 * 4 + 2 * 2 * 16)
    assert found["krippendorff_alpha"]["value"] == pytest.approx(expected)


def test_agreement_from_perfect_to_reversed():
    same = [judgement(f"i{n}", who, [[0], [1], [2]]) for n in range(5) for who in "ab"]
    found = measure_quality(same)
    assert found["krippendorff_alpha"]["value"] == 1 and found["annotators"]["a"]["kendall_tau"] == 1
    reversed_ = [judgement(f"i{n}", "b", [[2], [1], [0]]) for n in range(5)]
    found = measure_quality(same[::2] + reversed_)
    assert found["krippendorff_alpha"]["value"] < -0.5 and found["annotators"]["b"]["kendall_tau"] == -1
    assert set(found["agreement_by_item"].values()) == {0.0} and len(low_agreement(found, 0.5)) == 5
    assert not low_agreement(found, 0.0)


def test_random_annotators_agree_by_chance():
    rng = random.Random(0)
    rows = [judgement(f"i{n}", who, [[i] for i in rng.sample(range(4), 4)]) for n in range(200) for who in "abc"]
    found = measure_quality(rows)
    alpha = found["krippendorff_alpha"]
    assert abs(alpha["value"]) < 0.1 and alpha["low"] < 0.05 < 0.2 and alpha["low"] <= alpha["value"] <= alpha["high"]
    assert abs(found["annotators"]["a"]["kendall_tau"]) < 0.12


def test_self_consistency_counts_repeated_items():
    rows = [judgement("i", "a", [[0], [1], [2]]), judgement("i", "a", [[0], [2], [1]], is_repeat=True)]
    found = measure_quality(rows)["annotators"]["a"]
    assert found["self_consistency"] == pytest.approx(2 / 3) and found["repeated_items"] == 1
    assert measure_quality(rows)["judgements"] == 1 and measure_quality(rows)["krippendorff_alpha"] is None


def test_position_bias_is_found_where_there_is_one():
    rng = random.Random(1)
    fair, lazy = [], []
    for n in range(200):
        shown = rng.sample(range(3), 3)
        fair.append(judgement(f"i{n}", "a", [[i] for i in rng.sample(range(3), 3)], order_shown=shown))
        lazy.append(judgement(f"i{n}", "a", [[i] for i in shown], order_shown=shown))
    assert not any(b["biased"] for b in measure_quality(fair)["position_bias"])
    assert [b["mean_place"] for b in measure_quality(lazy)["position_bias"]] == [0, 0.5, 1]
    assert [b["biased"] for b in measure_quality(lazy)["position_bias"]] == [True, False, True]
    assert [b["biased"] for b in measure_quality(lazy[:8])["position_bias"]] == [True, None, True]
    assert measure_quality(lazy[:5])["position_bias"][0]["biased"] is None  # too few to say


def test_hurried_and_forgotten_items_are_named():
    rng = random.Random(2)
    rows = [judgement(f"i{n}", "a", [[0], [1]], seconds=rng.uniform(8, 14), position=n) for n in range(40)]
    rows[7]["seconds"], rows[9]["seconds"] = 0.3, 4000.0
    found = {(o["position"], o["what"]) for o in measure_quality(rows)["time_outliers"]}
    assert found == {(7, "fast"), (9, "slow")}
    hasty = [judgement(f"i{n}", "a", [[0], [1]], seconds=0.6, position=n) for n in range(3)]
    assert [o["what"] for o in measure_quality(hasty)["time_outliers"]] == ["fast"] * 3, "also of few"


def test_the_page_shows_names_as_text():
    rows = [judgement(f"i{n}", who, [[0], [1]]) for n in range(3) for who in ("<script>x</script>", "b")]
    page = quality_page(measure_quality(rows))
    assert (
        "<script>x" not in page
        and "&lt;script&gt;x" in page
        and page.count("<svg") == 2
        and "http" not in page.replace("http://www.w3.org", "")
    )


def test_a_models_uncertainty_is_highest_where_it_cannot_tell(tmp_path):
    tokenizer = train_tokenizer(["The cat sat on the mat."] * 5, vocab_size=300, max_length=64)
    shape = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"intermediate_size": 32, "max_position_embeddings": 64, "initializer_range": 1.0}
    build_policy(shape, tokenizer).save_pretrained(tmp_path)
    load_reward_model(ModelArguments(str(tmp_path)), tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    rows = [{"prompt": "The", "responses": ["cat", "cat"]}, {"prompt": "The", "responses": ["cat sat on", "mat the"]}]
    same, different = uncertainty(rows, ModelArguments(model_name_or_path=str(tmp_path)))
    assert same == pytest.approx(0.25) and different < 0.25


def rank(tmp_path, *argv):
    options = ["--datasets", tmp_path / "samples.jsonl", "--annotator", "page", "--serve", "false"]
    return run_python("recipes/rank.py", *options, "--output_dir", tmp_path / "rank", *argv)


def test_recipe_builds_pairs_of_what_was_judged_so_far(tmp_path):
    rows = samples(12)
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    nobody = rank(tmp_path)
    assert nobody.returncode == 2 and "nobody has judged anything yet" in nobody.stderr and "Traceback" not in nobody.stderr
    assert not (tmp_path / "rank").exists()
    store = Store(tmp_path / "rank.sqlite", rows, overlap=1.0, overlap_annotators=2, seed=42)
    for who, ranking in (("ann", [[0], [1], [2]]), ("bob", [[2], [1], [0]])):
        for _ in range(6):
            judge(store, who, ranking)
    done = rank(tmp_path)
    assert done.returncode == 0, done.stderr
    quality = json.loads((tmp_path / "rank" / "quality.json").read_text())
    assert quality["judgements"] == 12 and (tmp_path / "rank" / "quality.html").exists()
    pairs = [json.loads(line) for line in (tmp_path / "rank" / "train.jsonl").read_bytes().splitlines()]
    assert {"prompt", "chosen", "rejected", "weight", "annotator"} <= set(pairs[0]) and not {"note", "seconds"} & set(
        pairs[0]
    )
    # More judgements, the same command: pairs of all of them, without --force.
    judge(store, "ann")
    assert rank(tmp_path).returncode == 0
    assert json.loads((tmp_path / "rank" / "quality.json").read_text())["judgements"] == 13
    strict = rank(tmp_path, "--min_agreement", "1.0")
    left_out = (
        json.loads((tmp_path / "rank" / "quality.json").read_text())["items_left_out"] if strict.returncode == 0 else None
    )
    assert strict.returncode == 2 and "no item reaches" in strict.stderr or left_out > 0
    assert Store(tmp_path / "rank.sqlite").count() == 13


def test_a_port_in_use_gives_way_to_the_next(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        address, _, _ = prepare_server(None, "127.0.0.1", port)
    assert address != f"http://127.0.0.1:{port}" and f"port {port} is in use; taking" in capsys.readouterr().out
