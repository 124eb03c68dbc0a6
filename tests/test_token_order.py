"""Which blocks of which source a training step has: shares, phases, epochs, and how a trainer reads them."""

import re

import numpy as np
import pytest
import torch
from datasets import Dataset
from token_toys import corpus_of, jsonl, rows_of_steps, texts
from training_toys import CONFIG, TEXTS, arguments
from transformers import AutoModelForCausalLM, MambaConfig

from llmrecipes.attention import BORDERS
from llmrecipes.config import DataArguments, InputError
from llmrecipes.models import build_policy
from llmrecipes.pretraining import PretrainTrainer
from llmrecipes.tokenizers import train_tokenizer
from llmrecipes.tokens.arguments import TokenArguments
from llmrecipes.tokens.blocks import TokenBlocks, collate_blocks, collate_flat, collator_for
from llmrecipes.tokens.corpus import build_blocks
from llmrecipes.tokens.mixing import Mixture, share_out
from llmrecipes.tokens.permutation import key_of, permute


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300, 128)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMRECIPES_CACHE", str(tmp_path / "cache"))


# --- order --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 17, 64, 65, 1000, 70_001])
def test_permutations_send_every_number_to_another_and_differ_by_key(size):
    one, other = (permute(np.arange(size), size, key_of(7, key)) for key in (0, 1))
    assert np.array_equal(np.sort(one), np.arange(size))
    assert size < 17 or (one != other).mean() > 0.8 and (one != np.arange(size)).mean() > 0.8
    keys = key_of(7, np.arange(size) % 2)
    assert np.array_equal(permute(np.arange(size), size, keys), np.where(np.arange(size) % 2, other, one))


def test_shares_are_exact_in_a_cycle_and_nearly_so_in_any_part():
    sizes, weights = [900, 70, 5000], np.array([0.67, 0.055, 0.275])
    mixture = Mixture(sizes, [share_out(weights, 10**6)], [10**6], seed=3)
    owners = np.searchsorted(mixture.first_blocks, mixture.locate(range(5000)), side="right") - 1
    assert np.bincount(owners[:2000]).tolist() == [1340, 110, 550]
    counts = np.stack([np.cumsum(owners == i) for i in range(3)], axis=1)
    assert np.abs(counts - np.arange(1, 5001)[:, None] * weights).max() < 2
    assert mixture.drawn(4321).tolist() == counts[4320].tolist()


def test_every_block_comes_once_an_epoch_and_epochs_differ():
    mixture = Mixture([30, 100], [share_out(np.array([0.5, 0.5]), 10**6)], [10**6], seed=3)
    blocks = mixture.locate(range(400))
    small = blocks[blocks < 30]
    assert len(small) == 200 and sorted(small[:30]) == sorted(small[30:60]) == list(range(30))
    assert small[:30].tolist() != small[30:60].tolist()
    assert np.array_equal(mixture.blocks_of(0, 0, 200), small)
    plain = Mixture([30, 100], None, [10**6], seed=3)
    assert sorted(plain.locate(range(130))) == sorted(plain.locate(range(130, 260))) == list(range(130))


def test_a_sample_depends_on_nothing_but_its_number():
    make = lambda seed=3: Mixture([3000, 10**9], [share_out(np.array([1, 9]), 10**10)], [10**10], seed)
    numbers = np.array([3 * 10**9, 5, 40_000, 6, 3 * 10**9 + 1])
    together = make().locate(numbers)
    assert [int(make().locate([n])[0]) for n in numbers] == together.tolist()
    assert (make(4).locate(numbers) != together).any()


def test_phases_go_on_with_the_blocks_that_are_left():
    weights = np.array([[0.9, 0.1], [0.2, 0.8]])
    mixture = Mixture([2000, 900], [share_out(row, 1000) for row in weights], [1234, 2000], seed=1)
    blocks = mixture.locate(range(2000))
    small, large = blocks[blocks >= 2000], blocks[blocks < 2000]
    assert len(set(small)) == len(small) and len(set(large)) == len(large), "nothing is read again"
    assert 0.19 < (blocks[1234:] < 2000).mean() < 0.21 and mixture.drawn(2000).tolist() == [len(large), len(small)]


def test_epochs_are_capped_and_the_rest_goes_to_the_others():
    sizes, weights = np.array([100, 10_000, 10_000]), np.array([0.5, 0.3, 0.2])
    counts = share_out(weights, 8765, room=4 * sizes)
    mixture = Mixture(sizes, [counts], [8765], seed=0)
    drawn = mixture.drawn(8765)
    assert 380 <= drawn[0] <= 400 and drawn.sum() == 8765 and drawn[1] / drawn[2] == pytest.approx(1.5, rel=0.02)
    with pytest.raises(InputError, match="max_epochs: the sources have room for .* of the 8,765 blocks"):
        share_out(weights, 8765, room=sizes // 4)


@pytest.mark.parametrize(
    ("sizes", "samples"), [((10**6, 500), 10**6), ((10**6, 1500), 10**6), ((4 * 10**9, 6 * 10**6), 36 * 10**8)]
)
def test_a_small_source_gives_all_that_its_epochs_allow_however_long_the_phase(sizes, samples):
    counts = share_out(np.array([0.9, 0.1]), samples, room=np.array(sizes))
    assert 0.99 * sizes[1] <= counts[1] * samples / counts.sum() <= sizes[1]


def test_what_a_cap_takes_from_a_source_is_said_for_each_phase(tokenizer, tmp_path, capsys):
    a, b = jsonl(tmp_path / "a.jsonl", texts("Ann", 300)), jsonl(tmp_path / "b.jsonl", texts("Bob", 20))
    data = DataArguments([{"path": a, "weight": [9, 1], "name": "web"}, {"path": b, "weight": [1, 9], "name": "books"}])
    tokens = TokenArguments(phases=[0.5, 0.5], max_epochs=1)
    corpus = corpus_of(data, tokenizer, tmp_path, tokens, max_steps=100)
    said = capsys.readouterr().out
    left = corpus.seen(100)[1]["tokens"] - corpus.seen(50)[1]["tokens"]
    told = re.search(r"books: its weight says 90 % in phase 2, but max_epochs 1 leaves it (.*) %; the others", said)
    assert float(told[1]) == pytest.approx(100 * left / (100 * 16), abs=1) and "in phase 1" not in said


def test_a_config_that_asks_for_too_much_is_one_line(tokenizer, tmp_path):
    a, b = (jsonl(tmp_path / f"{name}.jsonl", texts(name, 40)) for name in ("Ann", "Bob"))
    (tmp_path / "tiny.jsonl").write_text('{"text": "a"}\n')
    run = lambda sources, **keys: corpus_of(DataArguments(sources), tokenizer, tmp_path, TokenArguments(**keys))
    weighted = [{"path": a, "weight": [1, 2]}, {"path": b, "weight": 3}]
    for sources, keys, message in (
        ([a], {"max_epochs": 0.5}, r"max_epochs: the steps read the data \d\.\d\d times, above 0.5"),
        (weighted, {}, "2 weights for 1 phases"),
        ([a, b], {"phases": [0.5, 0.5]}, "phases: no source has a weight"),
        ([{"path": a, "weight": 1}, b], {}, "give every source a weight, or none"),
        (
            [{"path": a, "weight": [1, 0]}, {"path": b, "weight": [1, 0]}],
            {"phases": [0.5, 0.5]},
            "all weights of a phase are 0",
        ),
        ([a, str(tmp_path / "tiny.jsonl")], {}, "tiny.jsonl: 2 tokens do not fill a block of 16"),
        ([str(tmp_path / "tiny.jsonl")], {}, "0 blocks of 16 tokens are less than one batch of 2"),
    ):
        with pytest.raises(InputError, match=message):
            run(sources, **keys)
    with pytest.raises(InputError, match="phases: .* are not parts of the steps"):
        TokenArguments(phases=[0.5, 0.6])


def test_a_source_given_twice_is_said(tokenizer, tmp_path, capsys):
    a, b = (jsonl(tmp_path / f"{name}.jsonl", texts(name, 40)) for name in ("Ann", "Bob"))
    corpus_of(DataArguments([a, b]), tokenizer, tmp_path)
    assert "same texts" not in capsys.readouterr().out
    corpus_of(DataArguments([a, b, {"path": a, "name": "again"}]), tokenizer, tmp_path)
    assert f"warning: again has the same texts as {a}, which are so read twice as often" in capsys.readouterr().out


def test_what_was_read_is_what_is_said(tokenizer, tmp_path, capsys):
    a, b = jsonl(tmp_path / "a.jsonl", texts("Ann", 300)), jsonl(tmp_path / "b.jsonl", texts("Bob", 5))
    data = DataArguments([{"path": a, "weight": [3, 1], "name": "web"}, {"path": b, "weight": [1, 3]}])
    corpus = corpus_of(data, tokenizer, tmp_path, TokenArguments(phases=[0.8, 0.2]), max_steps=100)
    assert "warning: " in capsys.readouterr().out and corpus.batch == 2
    for steps in (3, 100):
        blocks = corpus.blocks.mixture.locate(range(2 * steps))
        for place, facts in enumerate(corpus.seen(steps)):
            first, last = corpus.blocks.first_blocks[place : place + 2]
            own = blocks[(blocks >= first) & (blocks < last)] - first
            ends = corpus.shards[place].document_ends(0, corpus.shards[place].num_tokens)
            documents = {d for w in own for d in np.searchsorted(ends, range(w * 16, w * 16 + 16), side="right")}
            assert facts["tokens"] == 16 * len(own) and facts["unique_tokens"] == 16 * len(set(own))
            assert facts["documents"] == len(documents), "without those in the last tokens, which fill no block"
            assert facts["share"] == len(own) / len(blocks) and facts["epochs"] == len(own) / (last - first)


# --- in a trainer ---------------------------------------------------------------------------------------------------------


def test_a_step_has_the_same_rows_on_any_number_of_processes_and_workers(tokenizer, tmp_path):
    paths = [jsonl(tmp_path / f"{name}.jsonl", texts(name, 100)) for name in ("Ann", "Bob")]
    data = DataArguments([{"path": path, "weight": i + 1} for i, path in enumerate(paths)])
    corpus = corpus_of(data, tokenizer, tmp_path, per_device_train_batch_size=8)
    one = rows_of_steps(corpus, 1, 8)
    assert len(one) == len(corpus.blocks) // 8 and one[0] != one[1]
    for processes, batch, workers in ((2, 4, 0), (4, 2, 0), (1, 2, 0), (2, 1, 2)):
        assert rows_of_steps(corpus, processes, batch, workers) == one


def test_a_run_that_goes_on_reads_only_what_is_left_and_ends_equal(tokenizer, tmp_path):
    """Through several epochs of the data, and with the rows of a step cut up otherwise."""
    data = DataArguments([jsonl(tmp_path / "a.jsonl", texts("Ann", 12))])
    asked = []

    class Noted(TokenBlocks):
        def __getitems__(self, rows):
            asked.extend(rows)
            return super().__getitems__(rows)

    def train(output_dir, rows, accumulation, resume=None):
        corpus = corpus_of(
            data,
            tokenizer,
            tmp_path,
            per_device_train_batch_size=rows,
            max_steps=8,
            gradient_accumulation_steps=accumulation,
        )
        corpus.blocks.__class__ = Noted
        torch.manual_seed(0)
        args = arguments(
            output_dir,
            max_steps=8,
            save_steps=5,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=accumulation,
            lr_scheduler_type="constant",
        )
        trainer = PretrainTrainer(
            model=build_policy(CONFIG, tokenizer), args=args, train_dataset=corpus.blocks, data_collator=collate_blocks
        )
        asked.clear()
        trainer.train(resume_from_checkpoint=resume)
        return len(corpus.blocks), [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    epoch, losses = train(tmp_path / "whole", 2, 2)
    assert epoch < 16 and asked[:32] == list(range(32)), "several epochs, one after the other"
    for rows, accumulation, tolerance in ((2, 2, 0), (1, 4, 1e-5)):
        _, again = train(tmp_path / f"rest{rows}", rows, accumulation, str(tmp_path / "whole" / "checkpoint-5"))
        assert asked[:12] == list(range(20, 32)) and again == pytest.approx(losses, rel=tolerance)


# --- attention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_with_reset_attention_a_document_is_what_it_is_alone(tokenizer, tmp_path, kind):
    torch.manual_seed(0)
    config = CONFIG if kind == "llama" else {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2}
    model = build_policy(config, tokenizer).eval()
    blocks = build_blocks(Dataset.from_dict({"text": texts("Ann", 40)}), tokenizer, 64, 1, reset_attention=True)
    rows = [blocks[i] for i in range(3)]
    batch = collator_for(model, True)(rows)
    assert set(batch) == {"input_ids", "labels", "position_ids", *BORDERS} and (batch["position_ids"] == 0).sum() > 6
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits
        plain = model(input_ids=batch["input_ids"], use_cache=False).logits
        flat = model(**{k: v for k, v in collate_flat(rows).items() if k != "labels"}, use_cache=False).logits
        for row in range(3):
            starts = [*(batch["position_ids"][row] == 0).nonzero().flatten().tolist(), 64]
            for first, last in zip(starts, starts[1:]):
                alone = model(input_ids=batch["input_ids"][row : row + 1, first:last], use_cache=False).logits
                torch.testing.assert_close(logits[row : row + 1, first:last], alone, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(flat.view_as(logits), logits, atol=2e-5, rtol=1e-4)
    assert (plain - logits).abs().max() > 1e-2, "without it, documents see each other"
    labels = collate_flat(rows)["labels"].view(3, 64)
    assert (labels[:, 0] == -100).all() and torch.equal(labels[:, 1:], batch["labels"][:, 1:])


def test_the_trainer_resets_attention_in_training_and_evaluation(tokenizer, tmp_path):
    blocks = build_blocks(Dataset.from_dict({"text": texts("Ann", 40)}), tokenizer, 64, 1, reset_attention=True)
    torch.manual_seed(0)
    model = build_policy(CONFIG, tokenizer).eval()
    trainer = PretrainTrainer(
        model=model, args=arguments(tmp_path), train_dataset=blocks, eval_dataset=blocks, data_collator=collate_blocks
    )
    with torch.no_grad():
        rows = [collate_blocks([blocks[i]]) for i in range(len(blocks))]
        losses = [model(**row, use_cache=False).loss.item() for row in rows]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_model_without_borders_of_documents_refuses_reset_attention():
    model = AutoModelForCausalLM.from_config(MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=32, state_size=4))
    with pytest.raises(InputError, match="reset_attention: mamba does not recognise document boundaries"):
        collator_for(model, True)
