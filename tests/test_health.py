"""The health check tells constructed reward models apart: perfect, guessing, length-biased, overconfident, unstable."""

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forked import run_python
from training_toys import save_model

from llmrecipes.config import InputError, ModelArguments
from llmrecipes.metrics import fit_temperature, spearman
from llmrecipes.models import load_reward_model
from llmrecipes.pipeline import find_unhealthy
from llmrecipes.reward_models.health import HealthArguments, check_health, find_faults, to_markdown, write_health
from llmrecipes.reward_models.health_measures import ScoredPair, calibration, measure_pairs
from llmrecipes.tokenizers import train_tokenizer

ROOT = Path(__file__).parent.parent
STABLE = {"invariance": {"max_difference": {}, "rows": 0, "score_std": 1.0}}


def pairs(score, count=600, seed=0, longer_wins=0.5, **changes):
    """Pairs of three a prompt; `score(good, length, rng)` for a response of hidden quality `good`."""
    rng, found = random.Random(seed), []
    for i in range(count):
        short, long = rng.randint(5, 20), rng.randint(21, 40)
        lengths = (long, short) if rng.random() < longer_wins else (short, long)
        scores = [score(good, length, rng) for good, length in zip((1.0, 0.0), lengths, strict=True)]
        found.append(ScoredPair(str(i // 3), *scores, *lengths, margin=float(i % 3 + 1), category="ab"[i % 2]))
    return [ScoredPair(**vars(pair) | changes) for pair in found]


def reasons(found, **changes):
    return find_faults(measure_pairs(found) | STABLE, HealthArguments(**changes))


def perfect(good, length, rng):
    return good * 5 + rng.gauss(0, 0.1)


def guessing(good, length, rng):
    return rng.gauss(0, 0.2)


def by_length(good, length, rng):
    return 0.1 * length


def sees(noise, scale=1.0):
    return lambda good, length, rng: scale * (good + rng.gauss(0, noise))


def test_perfect_model_is_healthy():
    found = measure_pairs(pairs(perfect))
    assert found["accuracy"]["value"] == 1 and found["accuracy"]["n"] == 600 and found["num_prompts"] == 200
    assert reasons(pairs(perfect)) == []
    assert found["calibration"]["temperature"] is None  # without a mistake no temperature is best
    assert abs(found["length"]["bias"]["value"]) < 0.01


def test_guessing_model_is_unhealthy():
    (reason,) = reasons(pairs(guessing))
    assert "below health_min_accuracy 0.6" in reason
    few = pairs(sees(1.5), count=12)
    assert reasons(few, health_min_accuracy=0.5)[0].count("may be guessing")


def test_length_biased_model_is_named_as_such():
    text = " ".join(reasons(pairs(by_length, longer_wins=0.7), health_min_accuracy=0.5))
    assert "prefers longer answers: the longer one in 100 % of pairs, the raters in 7" in text
    assert "little more than the length: rank correlation 1.00" in text
    assert "for length gap" in text and "is below health_min_group_accuracy" in text


def test_preference_for_length_that_the_raters_share_is_no_bias():
    length = measure_pairs(pairs(sees(0.3), longer_wins=0.9))["length"]
    assert length["raters_prefer_longer"]["value"] > 0.85 and length["bias"]["low"] < 0.02
    assert abs(length["bias"]["value"]) < 0.06 and length["pair_correlation"]["value"] > 0.4
    assert reasons(pairs(sees(0.3, scale=8), longer_wins=0.9)) == []


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_known_temperature_is_found_and_mends_the_calibration(temperature):
    rng, found = random.Random(1), []
    for i in range(6000):
        logit = abs(rng.gauss(0, 1.5))  # the raters prefer this side with probability sigmoid(logit)
        sign = 1 if rng.random() < 1 / (1 + math.exp(-logit)) else -1
        found.append(ScoredPair(str(i), sign * logit * temperature, 0.0, 5, 5))
    got = calibration(found)
    assert got["temperature"] == pytest.approx(temperature, rel=0.1)
    assert got["error_with_temperature"] < 0.03
    assert (got["error"] < 0.03) == (temperature == 1.0)
    for b in got["curve"]:
        assert b["from"] <= b["predicted"] <= b["to"]
    if temperature == 3.0:
        text = " ".join(reasons(found, health_max_calibration_error=0.1))
        assert "calibration error" in text and "divide its scores by 3" in text


def test_model_that_scores_everything_alike_is_calibrated_and_guessing():
    found = measure_pairs(pairs(lambda *_: 0.5))
    assert found["calibration"]["error"] == 0 and found["calibration"]["temperature"] is None
    assert found["accuracy"]["value"] == 0.5 and reasons(pairs(lambda *_: 0.5))


def test_category_that_is_turned_around_is_named():
    found = pairs(perfect)
    for pair in found[::2]:
        pair.chosen_score, pair.rejected_score = pair.rejected_score, pair.chosen_score
    text = " ".join(reasons(found, health_min_accuracy=0.4))
    assert "for category a is below" in text and "category b" not in text


def test_intervals_take_pairs_of_a_prompt_as_one_observation():
    one, many = pairs(sees(1.0), prompt_id="same"), pairs(sees(1.0))
    width = [e["high"] - e["low"] for e in (measure_pairs(p)["accuracy"] for p in (many, one))]
    assert width[0] < 0.15 and width[1] > 0.5


def test_thresholds_that_are_null_ask_for_nothing():
    keys = [key for key in vars(HealthArguments()) if "_min_" in key or "_max_" in key]
    assert reasons(pairs(by_length, longer_wins=0.0), **dict.fromkeys(keys)) == []


def test_temperature_and_spearman_at_their_borders():
    assert fit_temperature([]) is fit_temperature([1.0, 2.0]) is fit_temperature([-1.0, 0.5]) is None
    assert spearman([1, 2, 3], [1, 2, 3]) is spearman([1, 1, 1, 1], [1, 2, 3, 4]) is None
    assert spearman([1, 2, 3, 4, 9], [1, 4, 9, 16, 17])[0] == pytest.approx(1)
    assert spearman([1, 2, 2, 3, 5], [4, 2, 3, 1, 0])[0] == pytest.approx(-0.9746794)  # scipy.stats.spearmanr


# --- real models ------------------------------------------------------------------------------------------------------

WORDS = "the cat sat on a mat and said hello to every dog in town while it rained outside".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = train_tokenizer([" ".join(WORDS)], vocab_size=300, max_length=128)
    shape = {
        "model_type": "llama",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 128,
    }
    path = tmp_path_factory.mktemp("model")
    save_model(shape, tokenizer, path)
    reward = load_reward_model(ModelArguments(model_name_or_path=str(path)), tokenizer)
    torch.nn.init.normal_(reward.score.weight)
    reward.save_pretrained(path)
    return path, tokenizer


def rows(count=30, seed=0):
    rng, found = random.Random(seed), []
    for i in range(count):
        answers = [" ".join(rng.choices(WORDS, k=rng.randint(2, 12))) for _ in range(2)]
        found.append(
            {"prompt": [{"role": "user", "content": f"Say {i}"}], "kind": "ab"[i % 2]}
            | {
                side: [{"role": "assistant", "content": text}]
                for side, text in zip(("chosen", "rejected"), answers, strict=True)
            }
        )
    return found


def load(folder, **changes):
    return load_reward_model(ModelArguments(model_name_or_path=str(folder[0]), **changes), folder[1]).eval()


def test_real_model_scores_alike_however_it_is_asked(folder, capsys, tmp_path):
    health = check_health(load(folder), folder[1], {"test": rows(), "other": rows(9, 1)}, HealthArguments())
    told = capsys.readouterr().out
    assert f"scoring {len(rows()):,} pairs of test" in told and "pairs of other" in told
    assert set(health["invariance"]["max_difference"]) == {"padding", "row order", "batch size"}
    differences = [health["invariance"]["own_forward"], *health["invariance"]["max_difference"].values()]
    assert max(differences) < 1e-4 < health["invariance"]["score_std"]
    assert list(health["by_set"]) == ["test", "other"] and health["by_set"]["other"]["n"] == 9
    assert set(health["by_category"]) == {"a", "b"}
    scores = [(m["rejected_score"] - m["chosen_score"]) for m in health["mistakes"]]
    assert scores == sorted(scores, reverse=True) and 0 < len(scores) <= 10 and scores[-1] > 0
    write_health(tmp_path, health)
    assert json.loads((tmp_path / "health.json").read_text()) == health
    assert (tmp_path / "health.md").read_text().startswith(f"# Reward model: {health['verdict']}\n")


def test_model_that_reads_its_padding_is_unhealthy(folder):
    model = load(folder)
    # As with a pad token that is the end-of-turn token: the score is read at another place, or at the padding.
    model.config.pad_token_id = None
    model.config.get_text_config().pad_token_id = None
    forward = model.forward

    def at_the_last_place(input_ids, attention_mask):
        hidden = model.model(input_ids=input_ids).last_hidden_state
        return SimpleNamespace(logits=model.score(hidden[:, -1]))

    model.forward = at_the_last_place
    health = check_health(model, folder[1], {"test": rows()}, HealthArguments())
    assert any(r.startswith("padding changes scores by up to") for r in health["reasons"]), health["reasons"]
    model.forward = forward


def test_score_that_is_no_number_is_unhealthy(folder):
    model = load(folder)
    torch.nn.init.constant_(model.score.weight, math.nan)
    health = check_health(model, folder[1], {"test": rows()}, HealthArguments())
    assert health["verdict"] == "unhealthy" and "not finite" in health["reasons"][0] and to_markdown(health)


def test_long_pairs_are_left_out_and_only_long_ones_are_an_input_error(folder):
    health = check_health(load(folder), folder[1], {"test": rows()}, HealthArguments(), max_length=40)
    assert 0 < health["left_out"] < 30 and health["left_out"] + health["num_pairs"] == 30
    with pytest.raises(InputError, match="none of the 30 pairs of test has at most 5 tokens"):
        check_health(load(folder), folder[1], {"test": rows()}, HealthArguments(), max_length=5)
    with pytest.raises(InputError, match="no column `topic`; they have prompt, kind, chosen"):
        check_health(load(folder), folder[1], {"test": rows()}, HealthArguments(health_category="topic"))


def test_text_pairs_are_read_with_their_end(folder):
    texts = [{"prompt": f"Say {i}: ", "chosen": "the cat", "rejected": "a mat and a dog"} for i in range(20)]
    health = check_health(load(folder), folder[1], {"test": texts}, HealthArguments())
    assert health["num_pairs"] == 20 and health["by_category"] == {} == health["by_margin"]


def test_columns_of_a_users_own_named_margin_and_prompt_id_may_hold_anything(folder, capsys):
    own = [None, 7, "x", [1]]
    odd = [row | {"prompt_id": own[i % 4], "margin": ["high", math.nan, [2], 0.5][i % 4]} for i, row in enumerate(rows(16))]
    found = check_health(load(folder), folder[1], {"test": odd}, HealthArguments())
    bare = check_health(load(folder), folder[1], {"test": rows(16)}, HealthArguments())
    assert found["num_prompts"] == 16 and found["calibration"] == bare["calibration"]
    assert {name: group["n"] for name, group in found["by_margin"].items()} == {"0.5": 4} and to_markdown(found)
    assert "12 of 16 pairs have a `margin` that is no number" in capsys.readouterr().out


def health_recipe(*argv):
    return run_python("recipes/health.py", *argv)


def test_recipe_alone_writes_beside_the_model_and_its_exit_code_is_the_verdict(folder, tmp_path):
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    argv = ["--model_name_or_path", folder[0], "--eval_datasets", data]
    result = health_recipe(*argv)
    assert result.returncode == 3 and "reward model: unhealthy on 30 held-out pairs" in result.stdout, result.stderr
    assert (folder[0] / "health.json").exists()
    lenient = [
        "--health_min_accuracy",
        "0",
        "--health_min_group_accuracy",
        "0",
        "--health_max_length_bias",
        "1",
        "--health_max_length_correlation",
        "1",
        "--health_max_calibration_error",
        "1",
    ]
    result = health_recipe(*argv, *lenient, "--output_dir", tmp_path / "out")
    assert result.returncode == 0, result.stdout
    assert json.loads((tmp_path / "out" / "health.json").read_text())["thresholds"]["health_min_accuracy"] == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "`model_name_or_path` is missing"),
        (["--model_name_or_path", "no/such"], "no/such is not on this machine"),
        (["--model_name_or_path", "FOLDER"], "`eval_datasets` is missing"),
        (["--health_min_acuracy", "0.5"], "did you mean `health_min_accuracy`"),
    ],
)
def test_mistakes_are_one_line(folder, argv, message):
    result = health_recipe(*[folder[0] if word == "FOLDER" else word for word in argv])
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1, result.stderr


def test_pipeline_looks_for_the_verdict_of_the_reward_models_a_stage_reads(tmp_path):
    for name, verdict in (("good", "healthy"), ("bad", "unhealthy")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "health.json").write_text(json.dumps({"verdict": verdict, "reasons": ["it guesses", "x"]}))
    stage = SimpleNamespace(values={"reward_model_name_or_path": str(tmp_path / "good")})
    assert find_unhealthy(stage) == "" == find_unhealthy(SimpleNamespace(values={"learning_rate": 1}))
    stage.values["reward_model_name_or_path"] = [str(tmp_path / "good"), str(tmp_path / "bad")]
    assert "bad is unhealthy: it guesses (and 1 more), read" in find_unhealthy(stage)
