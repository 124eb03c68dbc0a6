"""A tokenizer learns from a weighted sample that fits in memory, gives back every byte, and says how it splits what."""

import json

import pytest
from recipe_types import recipe_types
from test_tokens import jsonl, texts

from llmrecipes.config import DatasetSource, InputError
from llmrecipes.models import load_tokenizer, train_tokenizer
from llmrecipes.parsing import parse
from llmrecipes.tokens.vocabulary import check_round_trip, draw_sample, fertility, read_template


def sizes(parts):
    return [sum(len(text.encode()) for text in part) for part in parts.values()]


def test_a_sample_has_the_weights_in_bytes_and_is_drawn_by_seed(tmp_path, capsys):
    a, b = jsonl(tmp_path / "a.jsonl", texts("Ann", 2000)), jsonl(tmp_path / "b.jsonl", [t * 9 for t in texts("Bob", 200)])
    sources = [DatasetSource(a, weight=3), DatasetSource(b, weight=1)]
    draw = lambda seed=1: draw_sample(sources, 20_000, seed)
    one, two = sizes(draw())
    assert 15_000 <= one < 15_100 and 5_000 <= two < 5_400
    assert draw() == draw() != draw(2) and list(draw()) == [a, b]
    half = texts("Ann", 1000)
    assert 0.4 < sum(text in half for text in draw()[a]) / len(draw()[a]) < 0.6, "from everywhere"
    assert sizes(draw_sample([DatasetSource(a)], 10**9, 0)) == [sum(len(t) for t in texts("Ann", 2000))]
    draw_sample([DatasetSource(a, weight=1), DatasetSource(b, weight=99)], 10**6, 1)
    assert "b.jsonl: holds " in capsys.readouterr().out
    with pytest.raises(InputError, match="give every source a weight, or none"):
        draw_sample([DatasetSource(a, weight=1), DatasetSource(b)], 10, 0)


@pytest.mark.parametrize(("digits", "count"), [("single", 6), ("three", 2), ("none", 1)])
def test_digits_are_cut_as_the_key_says(digits, count):
    tokenizer = train_tokenizer(["123456"] * 50, 300, 64, digits)
    assert len(tokenizer("123456")["input_ids"]) == count
    assert check_round_trip(tokenizer, ["Ann has 3 hats."]) > 5


def test_a_tokenizer_that_loses_something_is_named():
    tokenizer = train_tokenizer(["Ann"], 300, 64)
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    with pytest.raises(InputError, match="does not give back"):
        check_round_trip(tokenizer, [])


def test_fertility_is_bytes_over_tokens_of_each_source_and_tokenizer():
    tokenizers = {"small": train_tokenizer(["Ann"], 300, 64), "large": train_tokenizer(texts("Ann", 99), 300, 64)}
    rows = fertility(tokenizers, {"a": ["Ann has hats."], "b": ["xyz"]})
    assert [(row["source"], row["tokenizer"]) for row in rows] == [(s, t) for s in "ab" for t in tokenizers]
    for row, text in zip(rows, ["Ann has hats."] * 2 + ["xyz"] * 2, strict=True):
        count = len(tokenizers[row["tokenizer"]](text)["input_ids"])
        assert row["bytes_per_token"] == len(text) / count and row["tokens_per_word"] == count / (4 if " " in text else 1)


def test_a_sample_of_nothing_and_keys_without_effect_on_it_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": null}\n')
    with pytest.raises(InputError, match="nothing is left to learn from"):
        draw_sample([DatasetSource(str(tmp_path / "a.jsonl"), drop_bad_rows=True)], 1000, 0)
    rows = jsonl(tmp_path / "b.jsonl", texts("Ann", 3))
    for argv, message in (
        (["--sample_bytes", "9", "--test_split_size", "0.1"], "test_split_size: holds nothing out of a sample"),
        (["--sample_bytes", "0"], "`sample_bytes` is 0; it must be at least 1"),
        (["--template_tokens", '["a"]'], "template_tokens: a single character"),
    ):
        with pytest.raises(InputError, match=message):
            parse(*recipe_types("tokenizer"), argv=["--datasets", str(rows), "--output_dir", str(tmp_path / "out"), *argv])


def test_recipe_draws_compares_and_takes_a_template_of_ones_own(tmp_path):
    train_tokenizer(["Ann"], 300, 64).save_pretrained(tmp_path / "other")
    template = "{% for m in messages %}<|say|>{{ m['content'] }}<|im_end|>{% endfor %}"
    (tmp_path / "t.jinja").write_text(template)
    config = {
        "datasets": [{"path": jsonl(tmp_path / "a.jsonl", texts("Ann", 300)), "weight": 1}],
        "sample_bytes": 4000,
        "vocab_size": 300,
        "chat_template_path": str(tmp_path / "t.jinja"),
        "template_tokens": ["<|say|>"],
        "compare_tokenizers": [str(tmp_path / "other")],
        "output_dir": str(tmp_path / "out"),
    }
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    import runpy
    from pathlib import Path

    main = runpy.run_path(str(Path(__file__).parent.parent / "recipes" / "tokenizer.py"))["main"]
    main(*parse(*recipe_types("tokenizer"), argv=["--config", str(tmp_path / "c.yaml")]))
    from llmrecipes.config import ModelArguments

    made = load_tokenizer(ModelArguments(tokenizer_name_or_path=str(tmp_path / "out")))
    assert made.chat_template.startswith(template) and len(made("<|say|>")["input_ids"]) == 1
    report = json.loads((tmp_path / "out" / "tokenizer_report.json").read_text())
    assert [row["tokenizer"] for row in report["sources"]] == ["this one", str(tmp_path / "other")]
    assert read_template(str(tmp_path / "out")) == template
    with pytest.raises(InputError, match="chat_template_path: .*none cannot be read"):
        read_template(str(tmp_path / "none"))
