"""What is said of the rows is what reaches the batches: counted, cut, dropped, marked where they carry loss."""

import copy
import importlib
import itertools
import json
import shutil

import pytest
import trl
from datasets import Dataset
from recipe_types import recipe_types
from training_toys import save_model

from llmrecipes.config import InputError, ModelArguments
from llmrecipes.data.preview import count_answers, count_duplicates, count_pairs, count_prompts, mark, report_rows
from llmrecipes.dpo import DPOTrainer
from llmrecipes.models import load_policy, load_reward_model, load_tokenizer
from llmrecipes.parsing import parse
from llmrecipes.reward_models.trainer import RewardTrainer, pair_columns
from llmrecipes.sft import SFTTrainer
from llmrecipes.tokenizers import train_tokenizer

SHORT, LONG = "How deep is the lake?", "The lake is deep and the hill is high. " * 6 + "How deep is the lake?"
CONFIG = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIG |= {"intermediate_size": 32, "max_position_embeddings": 512}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("model"))
    tokenizer = train_tokenizer([LONG, "Nine metres. Go away!"] * 20, 300, 512)
    save_model(CONFIG, tokenizer, path)
    return ModelArguments(model_name_or_path=path)


@pytest.fixture(scope="module")
def tokenizer(model):
    return load_tokenizer(model)


def turns(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def chats(*rows):
    return Dataset.from_list([{"messages": turns(question, answer)} for question, answer in rows])


def pairs(*questions):
    sides = [
        {"chosen": turns("", "Nine metres.")[1:], "rejected": turns("", "Go away!" * (1 + i % 2))[1:]} for i in range(9)
    ]
    return Dataset.from_list([{"prompt": turns(q, "")[:1]} | sides[i] for i, q in enumerate(questions)])


def trainer_of(kind, config, policy, tokenizer, rows, tmp_path, held_out=None, **keys):
    args = config(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, **keys)
    return kind(model=policy, args=args, train_dataset=rows, eval_dataset=held_out or rows, processing_class=tokenizer)


def sft_trainer(model, tokenizer, rows, tmp_path, **keys):
    keys = {"assistant_only_loss": True} | keys
    return trainer_of(SFTTrainer, trl.SFTConfig, load_policy(model), tokenizer, rows, tmp_path, **keys)


ROWS = [(SHORT, "Nine metres."), (LONG, "Nine metres."), (SHORT, "Nine metres. " * 30), (SHORT, "Go away!")]


@pytest.mark.parametrize("strategy", ["bfd_split", "wrapped"])
def test_packing_that_splits_long_rows_loses_none_of_their_answers(model, tokenizer, tmp_path, strategy):
    rows = chats((LONG, "Nine metres."), (LONG, "Nine."))
    trainer = sft_trainer(model, tokenizer, rows, tmp_path, max_length=64, packing=True, packing_strategy=strategy)
    counts, blocks = trainer.row_counts["train"], list(trainer.train_dataset["labels"])
    assert (counts.used, counts.cut, counts.lost) == (2, 0, 0)
    assert counts.loss_tokens == sum(label != -100 for block in blocks for label in block) > 0


def test_pairs_that_differ_only_behind_the_limit_are_counted():
    pair = {"prompt_ids": [1, 2], "chosen_ids": [3, 4, 5, 6], "rejected_ids": [3, 4, 7]}
    rows = Dataset.from_list([pair, pair | {"rejected_ids": [3, 8]}])
    for limit, alike in ((4, 1), (5, 0), (6, 0)):
        assert count_pairs(rows, limit).alike == alike
    assert "1 whose two answers are alike up to there" in str(count_pairs(rows, 4))
    assert count_pairs(rows, 4, keep_end=True).alike == 0


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_counts_of_demonstrations_are_what_the_trainer_uses(model, tokenizer, tmp_path, mode):
    trainer = sft_trainer(model, tokenizer, chats(*ROWS), tmp_path, max_length=64, truncation_mode=mode)
    counts, ready = trainer.row_counts["train"], list(trainer.train_dataset)
    assert (counts.rows, counts.used) == (4, len(ready))
    assert (counts.cut, counts.dropped, counts.lost) == ((1, 1, 1) if mode == "keep_start" else (2, 0, 0))
    assert counts.tokens == sum(len(row["input_ids"]) for row in ready)
    assert counts.loss_tokens == sum(label != -100 for row in ready for label in row["labels"])
    whole = [tokenizer.apply_chat_template(turns(*row), return_dict=True)["input_ids"] for row in ROWS]
    assert list(counts.lengths) == list(map(len, whole))
    assert set(trainer.row_counts) == {"train", "eval"}


def test_a_row_of_which_the_template_makes_several_is_counted_once(model, tokenizer, tmp_path, capsys):
    own = copy.deepcopy(tokenizer)  # thoughts of earlier turns are dropped
    own.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}So: {% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    chat = turns(SHORT, "Nine metres.") * 3
    rows = Dataset.from_list([{"messages": chat}, {"messages": turns(SHORT, "Go!")}, {"messages": turns(LONG, "Go!")}])
    pieces = [len(own.apply_chat_template(chat[:n], return_dict=False)) - 1 for n in (2, 4, 6)]
    trainer = sft_trainer(model, own, rows, tmp_path, max_length=pieces[1])
    counts = trainer.row_counts["train"]
    assert list(map(len, trainer.train_dataset["input_ids"])) == [*pieces[:2], counts.lengths[1]]
    assert "3 of 5 rows hold one answer of a longer conversation" in capsys.readouterr().out
    assert (counts.rows, counts.used, counts.cut, counts.dropped, counts.lost) == (3, 2, 1, 1, 1)
    assert counts.lengths[0] == pieces[2] and counts.tokens == sum(map(len, trainer.train_dataset["input_ids"]))


def test_counts_leave_the_prepared_rows_as_trl_makes_them(model, tokenizer, tmp_path):
    for keys in ({"max_length": 64}, {"max_length": 64, "packing": True}, {"max_length": None}):
        ours = sft_trainer(model, tokenizer, chats(*ROWS), tmp_path, **keys).train_dataset
        args = {"assistant_only_loss": True} | keys
        theirs = trainer_of(trl.SFTTrainer, trl.SFTConfig, load_policy(model), tokenizer, chats(*ROWS), tmp_path, **args)
        names = ["input_ids", "labels"]
        assert list(ours.select_columns(names)) == list(theirs.train_dataset.select_columns(names))


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_counts_of_pairs_are_what_dpo_uses(model, tokenizer, tmp_path, mode):
    def trainer(kind):
        policies = load_policy(model), load_policy(model)
        args = trl.DPOConfig(
            output_dir=str(tmp_path), max_length=64, truncation_mode=mode, report_to="none", use_cpu=True, bf16=False
        )
        return kind(
            model=policies[0],
            ref_model=policies[1],
            args=args,
            train_dataset=pairs(SHORT, LONG, SHORT),
            processing_class=tokenizer,
        )

    ours = trainer(DPOTrainer)
    counts, names = ours.row_counts["train"], ["prompt_ids", "chosen_ids", "rejected_ids"]
    theirs = list(trainer(trl.DPOTrainer).train_dataset.select_columns(names))
    for row, side in itertools.product(theirs, names[1:]):
        assert tokenizer.decode(row[side]).endswith("<|im_end|>\n")
        row[side].pop()  # the newline between turns is never generated
    assert list(ours.train_dataset.select_columns(names)) == theirs and counts.used == len(theirs)
    assert (counts.cut, counts.dropped, counts.lost) == ((0, 1, 1) if mode == "keep_start" else (1, 0, 0))
    batch = ours.data_collator(list(ours.train_dataset))
    assert counts.tokens == batch["attention_mask"].sum() and counts.loss_tokens == batch["completion_mask"].sum()


def test_pairs_of_which_no_answer_fits_are_left_out_of_a_reward_model(model, tokenizer, tmp_path):
    rows = pair_columns(pairs(SHORT, LONG, SHORT))
    trainer = trainer_of(
        RewardTrainer, trl.RewardConfig, load_reward_model(model, tokenizer), tokenizer, rows, tmp_path, max_length=64
    )
    counts = trainer.row_counts["train"]
    assert (counts.rows, counts.used, counts.cut, counts.loss_tokens) == (3, len(trainer.train_dataset), 0, None)
    trainer.evaluate()
    assert trainer.row_counts["eval"].rows == 3, "an evaluation does not count the prepared rows again"


def test_held_out_pairs_of_a_split_called_train_are_not_counted_as_those_trained_on(model, tokenizer, tmp_path):
    rows, held_out = pair_columns(pairs(SHORT, SHORT, SHORT)), {"train": pair_columns(pairs(SHORT))}
    reward_model = load_reward_model(model, tokenizer)
    trainer = trainer_of(RewardTrainer, trl.RewardConfig, reward_model, tokenizer, rows, tmp_path, held_out, max_length=64)
    assert {name: counts.used for name, counts in trainer.row_counts.items()} == {"train": 3, "train (held out)": 1}


def test_nothing_left_to_learn_from_is_one_line(model, tokenizer, tmp_path):
    message = r"datasets: nothing is left to learn from: none of 1 \w+ .* max_length 64, the shortest of \d+ tokens"
    for packing in (False, True):
        with pytest.raises(InputError, match=message):
            sft_trainer(model, tokenizer, chats((LONG, "Nine.")), tmp_path, max_length=64, packing=packing)
    with pytest.raises(InputError, match=message):
        trainer_of(DPOTrainer, trl.DPOConfig, load_policy(model), tokenizer, pairs(LONG), tmp_path, max_length=64)
    with pytest.raises(InputError, match=message):
        rows, reward_model = pair_columns(pairs(LONG)), load_reward_model(model, tokenizer)
        trainer_of(RewardTrainer, trl.RewardConfig, reward_model, tokenizer, rows, tmp_path, max_length=64)


# --- what is printed ------------------------------------------------------------------------------------------------------


def answers(*labels):
    return Dataset.from_list([{"input_ids": [1] * len(row), "labels": row} for row in labels])


def test_one_line_of_counts_and_a_warning_above_five_percent(tokenizer, capsys):
    train, test = chats(*[("a", "b")] * 2, ("c", "d")), chats(("a", "b"), ("e", "f"))
    ready = answers(*[[-100, 7, 7, 7]] * 94, *[[-100] * 4 + [7]] * 2, *[[7] * 5] * 4)
    counts = {"train": count_answers(ready, 4)}
    assert report_rows(counts, tokenizer, train, test, ready, 0) == 98
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "rows: 98 of 100 demonstrations used, 4 cut at max_length 4, 2 dropped, 2 whose answer is lost whole, "
        "tokens 4 / 4 / 4 / 5 (10 %, half, 90 %, all), 76.0 % of the tokens carry loss, "
        "1 of 2 rows of held out are also among them"
    )
    assert lines[1].startswith("warning: 6 % of the rows are cut or dropped (4 cut, 2 dropped, 2 without a token")
    assert lines[2].startswith("warning: 50 % of the rows of held out are also trained on") and len(lines) == 3
    report_rows({"train": count_answers(ready, 5)}, tokenizer, train, None, ready, 0)
    assert "warning" not in capsys.readouterr().out


def test_preview_marks_the_tokens_that_carry_loss_and_ends(model, tokenizer, tmp_path, capsys):
    rows = chats((SHORT, "Nine metres."), (SHORT, "Go away!"))
    trainer = sft_trainer(model, tokenizer, rows, tmp_path)
    with pytest.raises(SystemExit) as ended:
        report_rows(trainer.row_counts, tokenizer, rows, None, trainer.train_dataset, 1)
    said = capsys.readouterr().out
    assert ended.value.code in (0, None) and "--- row 2" not in said and "preview: nothing was trained" in said
    assert f"<|im_start|>user\n{SHORT}<|im_end|>\n<|im_start|>assistant\n[[Nine metres.<|im_end|>]]" in said
    assert "rows: 2 of 2 demonstrations used" in said


STAGES = {
    "pretrain": ({"text": LONG}, ["--max_length", "32"]),
    "sft": ({"messages": turns(SHORT, "Nine metres.")}, ["--use_peft", "--lora_target_modules", "q_proj"]),
    "dpo": (pairs(SHORT)[0], ["--precompute_ref_log_probs"]),
    "reward": (pairs(SHORT)[0], []),
    "ppo": ({"prompt": turns(SHORT, "")[:1]}, ["--reward_functions", "builtins:len", "--max_completion_length", "8"]),
}


@pytest.mark.parametrize("stage", STAGES)
def test_preview_reads_no_weights_and_writes_nothing(model, tmp_path, monkeypatch, capsys, stage):
    row, options = STAGES[stage]
    shutil.copytree(model.model_name_or_path, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 12)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    argv = ["--model_name_or_path", "model", "--datasets", "rows.jsonl", "--output_dir", "out", "--preview", "2"]
    if stage == "pretrain":
        argv += ["--tokenizer_name_or_path", "model"]
    argv += ["--per_device_train_batch_size", "4", "--bf16", "false", "--use_cpu", "--report_to", "none"]
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"recipes.{stage}").main(*parse(*recipe_types(stage), argv=[*argv, *options]))
    said = capsys.readouterr().out
    assert not ended.value.code and sorted(tmp_path.rglob("*")) == before
    assert "--- row 2" in said and "--- row 3" not in said and "rows: 12 of 12" in said
    assert (said.count("[[") > 1) == (stage != "ppo"), "tokens of prompts carry no loss"


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        ({"prompt_ids": "Ask", "chosen_ids": "Yes", "rejected_ids": "No"}, ["chosen: Ask[[Yes]]", "rejected: Ask[[No]]"]),
        ({"chosen_ids": "Yes", "rejected_ids": "No"}, ["chosen: Ye[[s]]", "rejected: N[[o]]"]),
        ({"prompt_ids": "Ask"}, ["Ask"]),
        ({"input_ids": "Once."}, ["[[Once.]]"]),
    ],
)
def test_preview_of_pairs_prompts_and_documents(tokenizer, columns, shown, capsys):
    letters = lambda text: [tokenizer(letter)["input_ids"][0] for letter in text]
    ready = Dataset.from_list([{name: letters(text) for name, text in columns.items()}])
    if "prompt_ids" not in columns:
        ready = ready.with_format("torch")
    counts = {"train": count_prompts(Dataset.from_list([{"prompt_ids": [1]}]), 1)}
    with pytest.raises(SystemExit):
        report_rows(counts, tokenizer, ready, None, ready, 1)
    assert capsys.readouterr().out.splitlines()[1 : 1 + len(shown)] == shown


def test_marks_are_colours_in_a_terminal(tokenizer, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert mark(tokenizer, tokenizer("ab")["input_ids"], [False, True]) == "a\x1b[32mb\x1b[0m"


def test_counts_of_prompts(tokenizer):
    prompts = count_prompts(Dataset.from_list([{"prompt_ids": [1, 2]}, {"prompt_ids": [1]}]), 5)
    assert (prompts.rows, prompts.used, prompts.dropped, list(prompts.lengths)) == (5, 2, 3, [2, 1])


def test_pairs_and_prompts_are_the_same_when_they_ask_the_same():
    assert count_duplicates(pairs("a", "b"), pairs("b", "c", "d")) == 1
    texts = lambda *some: Dataset.from_list([{"text": text} for text in some])
    assert count_duplicates(texts("a", "b"), texts("b", "b", "c")) == 2
    assert count_duplicates(chats(("a", "b")), chats(("a", "c"))) == 0


def test_pairs_cut_in_the_answer_are_counted_as_cut():
    rows = Dataset.from_list([{"prompt_ids": [1] * 3, "chosen_ids": [1] * 4, "rejected_ids": [1]}])
    counts = count_pairs(rows, 5)
    assert (counts.cut, counts.dropped, counts.tokens, counts.loss_tokens) == (1, 0, 9, 3)
