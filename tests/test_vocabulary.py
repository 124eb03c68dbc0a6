"""A tokenizer learns from a weighted sample that fits in memory, gives back every byte, and says how it splits what."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from recipe_types import recipe_types
from token_toys import jsonl, texts

from llmrecipes.config import DatasetSource, InputError, ModelArguments
from llmrecipes.models import build_policy, load_policy, load_tokenizer, num_embeddings
from llmrecipes.parsing import parse
from llmrecipes.templates import read_template
from llmrecipes.tokenizers import train_tokenizer
from llmrecipes.tokens import vocabulary
from llmrecipes.tokens.extension import extend_tokenizer, save_extension
from llmrecipes.tokens.vocabulary import check_round_trip, draw_sample, fertility


def run_recipe(stage, argv):
    main = runpy.run_path(str(Path(__file__).parent.parent / "recipes" / f"{stage}.py"))["main"]
    main(*parse(*recipe_types(stage), argv=argv))


def sizes(parts):
    return [sum(len(text.encode()) for text in part) for part in parts.values()]


def test_a_sample_has_the_weights_in_bytes_and_is_drawn_by_seed(tmp_path, capsys):
    a, b = jsonl(tmp_path / "a.jsonl", texts("Ann", 2000)), jsonl(tmp_path / "b.jsonl", [t * 9 for t in texts("Bob", 200)])
    sources = [DatasetSource(a, weight=3), DatasetSource(b, weight=1)]
    draw = lambda seed=1: draw_sample(sources, 20_000, seed)[0]
    one, two = sizes(draw())
    assert 15_000 <= one < 15_100 and 5_000 <= two < 5_400
    assert draw() == draw() != draw(2) and list(draw()) == [a, b]
    half = texts("Ann", 1000)
    assert 0.4 < sum(text in half for text in draw()[a]) / len(draw()[a]) < 0.6, "from everywhere"
    whole, none = draw_sample([DatasetSource(a)], 10**9, 0)
    assert sizes(whole) == [sum(len(t) for t in texts("Ann", 2000))] and none == {a: []}
    draw_sample([DatasetSource(a, weight=1), DatasetSource(b, weight=99)], 10**6, 1)
    assert "b.jsonl: holds " in capsys.readouterr().out
    with pytest.raises(InputError, match="give every source a weight, or none"):
        draw_sample([DatasetSource(a, weight=1), DatasetSource(b)], 10, 0)


@pytest.mark.parametrize("weight", [None, 1])
def test_what_a_sample_is_measured_on_was_not_learned_and_changes_nothing_of_it(tmp_path, monkeypatch, weight):
    sources = [DatasetSource(jsonl(tmp_path / f"{word}.jsonl", texts(word, 900)), weight=weight) for word in ("Ann", "Bob")]
    monkeypatch.setattr(vocabulary, "REPORT_BYTES", 2_000)
    learned, held_out = draw_sample(sources, 10_000, 3)
    monkeypatch.setattr(vocabulary, "REPORT_BYTES", 0)
    alone, none = draw_sample(sources, 10_000, 3)
    assert learned == alone and not any(none.values())
    for source in sources:
        assert not {*learned[source.path]} & {*held_out[source.path]} and 1_000 < sizes(held_out)[0] < 3_000


SPLITS = [{}, {"test_split_size": 0.2}, {"sample_bytes": 3000}, {"eval_datasets": True}]


@pytest.mark.parametrize("keys", SPLITS, ids=["all", "split", "sample", "evaluation set"])
def test_the_report_is_by_source_and_says_whether_its_text_was_learned(tmp_path, monkeypatch, keys, capsys):
    paths = {word: jsonl(tmp_path / f"{word}.jsonl", texts(word, 200)) for word in ("Ann", "Bob")}
    datasets = [{"path": path, "name": word, "split": "train[:80%]"} for word, path in paths.items()]
    config = {"datasets": datasets, "vocab_size": 300, "output_dir": str(tmp_path / "out"), **keys}
    if "eval_datasets" in keys:
        config["eval_datasets"] = [datasets[1] | {"split": "train[80%:]"}]
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    measured, real = {}, vocabulary.fertility
    noted = lambda tokenizers, learned, held_out: measured.update(held_out) or real(tokenizers, learned, held_out)
    monkeypatch.setattr(vocabulary, "fertility", noted)
    run_recipe("tokenizer", ["--config", str(tmp_path / "c.yaml")])
    rows = json.loads((tmp_path / "out" / "tokenizer_report.json").read_text())["sources"]
    learned, held_out = "text it has learned from", "held-out text"
    wanted = {"Ann": held_out, "Bob": held_out} if keys else {"Ann": learned, "Bob": learned}
    if "eval_datasets" in keys:
        wanted = {"Ann": learned, "Bob_from_80_percent": held_out}
    assert {row["source"]: row["measured_on"] for row in rows} == wanted
    assert f"a word, {rows[0]['measured_on']}" in capsys.readouterr().out
    for name, part in measured.items():
        word = name if name in paths else "Bob"
        assert part and all(text.startswith(word) for text in part), name


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
    rows = fertility(tokenizers, {"a": ["what is learned"], "b": ["xyz"]}, {"a": ["Ann has hats."], "b": []})
    assert [(row["source"], row["tokenizer"]) for row in rows] == [(s, t) for s in "ab" for t in tokenizers]
    for row, text in zip(rows, ["Ann has hats."] * 2 + ["xyz"] * 2, strict=True):
        count = len(tokenizers[row["tokenizer"]](text)["input_ids"])
        assert row["bytes_per_token"] == len(text) / count and row["tokens_per_word"] == count / (4 if " " in text else 1)


def test_a_sample_of_nothing_and_keys_without_effect_on_it_are_refused(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"text": null}\n')
    rows = jsonl(tmp_path / "b.jsonl", texts("Ann", 3))
    sources = [DatasetSource(str(tmp_path / name), drop_bad_rows=True) for name in ("b.jsonl", "a.jsonl")]
    with pytest.raises(InputError, match=r"a\.jsonl: nothing is left to learn from: none of 1 rows"):
        draw_sample(sources, 1000, 0)
    assert "a.jsonl: 1 of 1 rows are not usable" in capsys.readouterr().out
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
        "datasets": [{"path": jsonl(tmp_path / "a.jsonl", texts("Ann", 300))}],
        "sample_bytes": 4000,
        "vocab_size": 300,
        "chat_template_path": str(tmp_path / "t.jinja"),
        "template_tokens": ["<|say|>"],
        "compare_tokenizers": [str(tmp_path / "other")],
        "output_dir": str(tmp_path / "out"),
    }
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    run_recipe("tokenizer", ["--config", str(tmp_path / "c.yaml")])
    made = load_tokenizer(ModelArguments(tokenizer_name_or_path=str(tmp_path / "out")))
    assert made.chat_template.startswith(template) and len(made("<|say|>")["input_ids"]) == 1
    report = json.loads((tmp_path / "out" / "tokenizer_report.json").read_text())
    assert [row["tokenizer"] for row in report["sources"]] == ["this one", str(tmp_path / "other")]
    assert read_template(str(tmp_path / "out")) == template
    with pytest.raises(InputError, match="chat_template_path: .*none cannot be read"):
        read_template(str(tmp_path / "none"))


# --- extending a tokenizer ---------------------------------------------------------------------------------------------

PLAIN = texts("Ann", 60)
CODE = [f"def get_hat_{name}(self):\n    return self.hats_of[{name!r}]\n" for name in ("ann", "bob", "eve", "dan")] * 9
LLAMA = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """(folder of a model, folder of the tokenizer that extends its own, the base, the extended one, parts)."""
    folder = tmp_path_factory.mktemp("extended")
    base = train_tokenizer(PLAIN, 300, 64)
    build_policy(LLAMA, base).save_pretrained(folder / "model")
    base.save_pretrained(folder / "model")
    base = load_tokenizer(ModelArguments(tokenizer_name_or_path=str(folder / "model")))
    made, parts = extend_tokenizer(base, CODE, len(base) + 20)
    made.save_pretrained(folder / "tokenizer")
    save_extension(folder / "tokenizer", "model", base, parts)
    again = load_tokenizer(ModelArguments(tokenizer_name_or_path=str(folder / "tokenizer")))
    return folder / "model", folder / "tokenizer", base, again, parts


def test_an_extended_tokenizer_keeps_its_ids_and_joins_old_tokens(extended):
    _, _, base, made, parts = extended
    old = base.get_vocab()
    assert {token: i for token, i in made.get_vocab().items() if i not in parts} == old
    assert sorted(parts) == list(range(len(base), len(base) + 20)) and all(
        made.decode([i]) == base.decode(ids) for i, ids in parts.items()
    )
    split = lambda tokenizer, text: tokenizer(text, add_special_tokens=False)["input_ids"]
    for text in [*CODE[:4], *PLAIN[:4], "Ann<|im_end|>\n", "ä\t3"]:
        whole = [part for i in split(made, text) for part in parts.get(i, [i])]
        assert whole == split(base, text), "new tokens stand exactly where their parts did"
    before, after = (sum(len(split(tokenizer, text)) for text in CODE) for tokenizer in (base, made))
    assert after < 0.6 * before and check_round_trip(made, CODE, base) > 36
    assert made.eos_token_id == base.eos_token_id and made.chat_template == base.chat_template


def test_what_cannot_be_extended_is_one_line(extended):
    base = extended[2]
    for texts_, size, message in (
        (CODE, len(base), "vocab_size: .* is not above the .* tokens"),
        (["a b c"], 320, "nothing to extend the tokenizer by"),
    ):
        with pytest.raises(InputError, match=message):
            extend_tokenizer(base, texts_, size)
    whole = load_tokenizer(ModelArguments(tokenizer_name_or_path=str(extended[0])))
    from tokenizers import pre_tokenizers

    whole.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(use_regex=False)
    with pytest.raises(InputError, match="only byte-level BPE that splits text into words first"):
        extend_tokenizer(whole, CODE, 320)


@pytest.mark.parametrize("tied", [True, False])
def test_new_embeddings_are_the_means_of_their_parts_and_old_ones_stay(extended, tied, tmp_path, capsys):
    _, tokenizer_folder, base, made, parts = extended
    torch.manual_seed(0)
    model = build_policy(LLAMA | {"tie_word_embeddings": tied}, base)
    model.save_pretrained(tmp_path)
    base.save_pretrained(tmp_path)
    args = ModelArguments(model_name_or_path=str(tmp_path), tokenizer_name_or_path=str(tokenizer_folder))
    with pytest.raises(InputError, match="has 20 tokens more than .* has learned; recipes/pretrain.py trains them"):
        load_policy(args, made)
    grown = load_policy(args, made, may_grow=True)
    size = len(base)
    assert f"20 new tokens, of {size} embeddings before and {size + 20} now" in capsys.readouterr().out
    for layer in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(model, layer)().weight, getattr(grown, layer)().weight
        assert torch.equal(new[:size], old)
        for number, ids in parts.items():
            torch.testing.assert_close(new[number], old[ids].mean(0))
    assert (grown.get_input_embeddings().weight is grown.get_output_embeddings().weight) == tied
    ids = base(PLAIN[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(grown(ids).logits[..., :size], model(ids).logits)
    grown.save_pretrained(tmp_path / "grown")
    made.save_pretrained(tmp_path / "grown")
    args.model_name_or_path = str(tmp_path / "grown")
    assert num_embeddings(load_policy(args, made)) == size + 20, "a model that has them is taken as it is"


def test_a_tokenizer_that_extends_another_models_is_refused(extended, tmp_path):
    other = train_tokenizer(CODE, 300, 64)
    build_policy(LLAMA, other).save_pretrained(tmp_path)
    other.save_pretrained(tmp_path)
    args = ModelArguments(model_name_or_path=str(tmp_path), tokenizer_name_or_path=str(extended[1]))
    with pytest.raises(InputError, match="extends the tokenizer of model, not that of"):
        load_policy(args, extended[3], may_grow=True)


def test_the_recipe_reports_fertility_before_and_after(extended, tmp_path):
    argv = ["--datasets", jsonl(tmp_path / "a.jsonl", CODE), "--vocab_size", "290", "--output_dir", str(tmp_path / "out")]
    argv += ["--base_tokenizer_name_or_path", str(extended[0])]
    with pytest.raises(InputError, match="digits: has no effect with `base_tokenizer_name_or_path`"):
        parse(*recipe_types("tokenizer"), argv=[*argv, "--digits", "none"])
    run_recipe("tokenizer", argv)
    rows = json.loads((tmp_path / "out" / "tokenizer_report.json").read_text())["sources"]
    assert [row["vocab_size"] for row in rows] == [290, len(extended[2])] and rows[0]["bytes_per_token"] > rows[1][
        "bytes_per_token"
    ]
    assert len(json.loads((tmp_path / "out" / "extension.json").read_text())["parts"]) == 290 - len(extended[2])
