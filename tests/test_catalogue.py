"""The chains for real models: each is planned, keeps its global batch on fewer GPUs, says what was not run, and trains two
steps with its model scaled down on rows with the data set's columns."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from forked import run_python

from llmrecipes.config import DatasetSource, InputError, RunArguments
from llmrecipes.data import _set_names
from llmrecipes.data.catalogue import exact_answer, gsm8k, tldr, tldr_pairs
from llmrecipes.plan.catalogue import TRAINING, chains, plan_of, table

ROOT = Path(__file__).parent.parent
CHAINS = {folder.name: folder for folder in chains()}
STAGES = (*TRAINING, "grpo")
TRAINED = [file for folder in CHAINS.values() for file in sorted(folder.glob("*.yaml")) if file.stem in STAGES]
ASK = [{"role": "user", "content": "What is the sum of two and three?"}]
GOOD, BAD = ([{"role": "assistant", "content": text}] for text in ("It is five. #### 5", "No idea."))
WORDS = "one two three four five six seven eight nine ten " * 40
# Hub id -> a row with the columns that its page shows.
ROWS = {
    "vwxyzjn/summarize_from_feedback_tldr_3_filtered_oai_preprocessing_1706381144": {
        "id": "a",
        "subreddit": "pets",
        "title": "Cat",
        "post": "My cat sat.",
        "summary": "Cat sat.",
        "query_token": [1, 2],
        "query": "SUBREDDIT: r/pets\n\nTITLE: Cat\n\nPOST: My cat sat.\n\nTL;DR:",
        "reference_response": " Cat sat.<|endoftext|>",
        "reference_response_token": [3, 4],
        "reference_response_token_len": 2,
    },
    "vwxyzjn/summarize_from_feedback_oai_preprocessing_1706381144": {
        "info": {"id": "a", "post": "My cat sat."},
        "summaries": [{"text": " Cat sat.", "policy": "ref"}],
        "choice": 0,
        "worker": "w",
        "batch": "b",
        "split": "train",
        "query": "POST: My cat sat.\n\nTL;DR:",
        "chosen": " Cat sat.<|endoftext|>",
        "rejected": " No.<|endoftext|>",
        "chosen_token": [1],
        "policies": "ref--sup",
    },
    "HuggingFaceH4/ultrachat_200k": {"prompt": "What?", "prompt_id": "a", "messages": [*ASK, *GOOD]},
    "HuggingFaceH4/ultrafeedback_binarized": {
        "prompt": "What is the sum?",
        "prompt_id": "a",
        "chosen": [*ASK, *GOOD],
        "rejected": [*ASK, *BAD],
        "messages": [*ASK, *GOOD],
        "score_chosen": 8.0,
        "score_rejected": 3.0,
    },
    "trl-lib/ultrafeedback_binarized": {
        "chosen": [*ASK, *GOOD],
        "rejected": [*ASK, *BAD],
        "score_chosen": 8.0,
        "score_rejected": 3.0,
    },
    "HuggingFaceTB/smol-smoltalk": {"messages": [*ASK, *GOOD], "source": "everyday"},
    "HuggingFaceTB/smoltalk": {"messages": [*ASK, *GOOD], "source": "everyday"},
    "openai/gsm8k": {"question": "What is the sum of two and three?", "answer": "2 + 3 = 5\n#### 5"},
    "HuggingFaceFW/fineweb": {
        "text": WORDS,
        "id": "a",
        "dump": "CC",
        "url": "u",
        "date": "d",
        "file_path": "f",
        "language": "en",
        "language_score": 0.9,
        "token_count": 400,
    },
    "karpathy/tiny_shakespeare": {"text": WORDS},
    "allenai/c4": {"text": WORDS, "timestamp": "t", "url": "u"},
    "wikimedia/wikipedia": {"id": "1", "url": "u", "title": "t", "text": WORDS},
    **{
        f"common-pile/{name}_filtered": {"id": "1", "text": WORDS, "source": "s", "added": "d", "metadata": {}}
        for name in ("stackv2_edu", "project_gutenberg", "arxiv_papers", "stackexchange")
    },
}
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 320,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 256,
}
# Away with what wants a GPU, another number of steps or the Hub; small is what a CPU has time for.
DROPPED = {
    "total_episodes",
    "num_train_epochs",
    "rollout_batch_size",
    "num_mini_batches",
    "use_vllm",
    "vllm_mode",
    "vllm_gpu_memory_utilization",
    "vllm_max_model_length",
    "chat_template_path",
    "eval_strategy",
    "eval_steps",
    "load_best_model_at_end",
    "hardware",
    "num_gpus",
    "torch_compile",
    "accelerator_config",
    "dataloader_num_workers",
    "global_batch_size",
    "model_revision",
    "packing",
}
FEW = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "per_device_eval_batch_size": 2,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 1,
}
LIMITS = {
    "max_length": 128,
    "max_completion_length": 8,
    "max_prompt_length": 120,
    "per_device_generation_batch_size": 2,
    "num_generations": 2,
    "warmup_steps": 1,
    "lora_r": 4,
}


@pytest.mark.parametrize("file", TRAINED, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_global_batch_is_kept_from_one_gpu_to_eight(file):
    values = yaml.safe_load(file.read_text())
    per_device, total = values["per_device_train_batch_size"], values["global_batch_size"]
    for gpus in (1, 2, 4, 8):
        rows, rest = divmod(total, gpus)
        assert not rest and rows % min(rows, per_device) == 0, f"{gpus} GPUs"
    assert total == per_device * values.get("gradient_accumulation_steps", 1) * values["num_gpus"]


@pytest.mark.parametrize("file", [f for f in TRAINED if f.stem in TRAINING], ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_it_fits_where_it_says(file):
    plan = plan_of(file)
    assert plan["fits"], "on H100s"
    room = float(re.search(r"of (\d+) GB", yaml.safe_load(file.read_text())["hardware"])[1]) * 1e9
    assert plan["peak"] < 0.92 * room


def test_the_table_is_that_of_the_configs():
    assert (ROOT / "configs" / "README.md").read_text() == table(), (
        "python -m llmrecipes.plan.catalogue prints what belongs there"
    )


def test_a_plan_does_not_depend_on_what_has_been_run_in_the_folder(tmp_path, monkeypatch):
    file = CHAINS["pythia-1b-tldr"] / "ppo.yaml"
    expected = plan_of(file)["parameters"]
    for part in ("model_name_or_path", "reward_model_name_or_path"):
        folder = tmp_path / yaml.safe_load(file.read_text())[part]
        folder.mkdir(parents=True)
        config = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
        (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 8}))
    monkeypatch.chdir(tmp_path)
    assert plan_of(file)["parameters"] == expected


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_says_what_was_not_run_and_where_its_data_come_from(name):
    page = (CHAINS[name] / "README.md").read_text()
    assert "## What was run here" in page and "not" in page.split("## What was run here")[1]
    for file in CHAINS[name].glob("*.yaml"):
        values = yaml.safe_load(file.read_text())
        assert "not run" in file.read_text().lower() and values["source"]
        assert all(figure is None for figure in (values.get("expected") or {}).values()), "nothing was measured here"
        for key in ("model_name_or_path", "datasets", "eval_datasets"):
            entries = values.get(key) or []
            for entry in [entries] if isinstance(entries, str) else [e["path"] for e in entries]:
                assert entry.startswith("outputs/") or entry in page, f"README does not name {entry}"


@pytest.mark.parametrize("name", CHAINS)
def test_what_is_taken_from_the_hub_is_pinned_to_a_commit_or_the_page_says_it_is_not(name):
    page = (CHAINS[name] / "README.md").read_text().split("## Where the settings come from")[1]
    for file in CHAINS[name].glob("*.yaml"):
        values = yaml.safe_load(file.read_text())
        taken = [(e["path"], e.get("revision")) for key in ("datasets", "eval_datasets") for e in values.get(key) or []]
        taken += [(values[key], values.get("model_revision")) for key in ("model_name_or_path",) if key in values]
        loose = {path for path, commit in taken if not path.startswith("outputs/") and len(commit or "") != 40}
        assert not loose or "**Not pinned**: the comparisons" in page and loose <= {path for path in ROWS if "oai" in path}
        if "chat_template_path" in values:
            assert "**Not pinned**: the chat template" in page


@pytest.mark.parametrize("file", [f for f in TRAINED if f.stem == "reward"], ids=lambda f: f.parent.name)
def test_a_reward_models_figures_are_named_as_the_recipe_names_them(file):
    values = yaml.safe_load(file.read_text())
    [name] = _set_names([DatasetSource(path=s["path"], split=s["split"]) for s in values["eval_datasets"]])
    assert {*values["expected"], *values.get("published", ())} == {f"eval_{name}_accuracy"}


def test_published_says_where_a_figure_stands():
    assert RunArguments(published={"accuracy": [0.727, "model card"]}).published
    for wrong in (0.727, [0.727], [0.727, ""], ["high", "model card"]):
        with pytest.raises(InputError, match="published.accuracy"):
            RunArguments(published={"accuracy": wrong})


def test_readers_take_the_end_mark_off_and_the_answer_out():
    [row] = tldr([ROWS["vwxyzjn/summarize_from_feedback_tldr_3_filtered_oai_preprocessing_1706381144"]])
    assert row["completion"] == " Cat sat." and row["prompt"].endswith("TL;DR:")
    [pair] = tldr_pairs([ROWS["vwxyzjn/summarize_from_feedback_oai_preprocessing_1706381144"]])
    assert (pair["chosen"], pair["rejected"]) == (" Cat sat.", " No.")
    [question] = gsm8k([{"question": "How much?", "answer": "1,000 + 200\n#### 1,200"}])
    assert question["answer"] == "1200"
    said = ["#### 1,200", "so #### $1200.0", "#### 12\n#### 1200", "1200", "#### 120"]
    assert exact_answer(completions=said, answer=["1200"] * 5) == [1, 1, 1, 0, 0]
    assert exact_answer(completions=[[{"role": "assistant", "content": "#### 5"}]], answer=["5"]) == [1]
    large = gsm8k([{"question": "How much?", "answer": "#### 12,345,678"}])  # longer than a float is printed
    assert exact_answer(completions=["#### 12345679", "#### 12345678.00"], answer=2 * [r["answer"] for r in large]) == [0, 1]
    assert exact_answer(completions=["no number", "#### -0"], answer=[None, "0"]) == [0, 1]


def test_readers_name_the_row_that_they_cannot_read_and_count_what_they_leave_out(capfd):
    question, pair = ROWS["openai/gsm8k"], ROWS["vwxyzjn/summarize_from_feedback_oai_preprocessing_1706381144"]
    wrong = {
        'row 2: answer has no "#### number"': (gsm8k, question, {"answer": "five"}),
        "row 2: question is empty": (gsm8k, question, {"question": " "}),
        "row 2: column answer is no text": (gsm8k, question, {"answer": None}),
        "row 2: column rejected is no text": (tldr_pairs, pair, {"rejected": [1]}),
    }
    for says, (reader, good, change) in wrong.items():
        with pytest.raises(InputError, match=re.escape(says)):
            list(reader([good, good | change]))
    with pytest.raises(InputError, match="row 1: column query is missing; it has prompt"):
        list(tldr([{"prompt": "a"}]))
    assert len(list(tldr_pairs([pair, pair | {"rejected": pair["chosen"]}]))) == 1
    assert "tldr_pairs: left out 1 pairs whose summaries are equal" in capfd.readouterr().out


def scaled_down(file: Path, inputs: Path, output: Path) -> Path:
    """The YAML with a tiny model of the same architecture, local rows and two steps."""
    values = {key: value for key, value in yaml.safe_load(file.read_text()).items() if key not in DROPPED} | FEW
    values |= {key: min(value, LIMITS[key]) for key, value in values.items() if key in LIMITS}
    for key in ("datasets", "eval_datasets"):
        sources = [
            {k: v for k, v in s.items() if k in ("path", "columns", "reader", "weight")} for s in values.get(key) or []
        ]
        for source in sources:
            source["path"] = write_rows(source["path"], inputs)
        values[key] = sources
    if "model_config" in values:
        values["model_config"] = {key: SMALL.get(key, value) for key, value in values["model_config"].items()}
        values["model_config"]["vocab_size"] = 320
        values["tokenizer_name_or_path"] = str(inputs / "llama")
    else:
        kind = plan_kind(file)
        values["model_name_or_path"] = str(inputs / kind)
        if "reward_model_name_or_path" in values:
            values["reward_model_name_or_path"] = str(inputs / f"{kind}-reward")
    values["output_dir"] = str(output)
    path = output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values))
    return path


def plan_kind(file: Path) -> str:
    from llmrecipes.plan.lookup import find_config

    return find_config(yaml.safe_load(file.read_text())["model_name_or_path"], "", None, file.parent)[0]["model_type"]


def write_rows(path: str, inputs: Path) -> str:
    file = inputs / f"{path.replace('/', '--')}.jsonl"
    file.write_text("".join(json.dumps(ROWS[path]) + "\n" for _ in range(8)))
    return str(file)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A tokenizer with a chat template beside a tiny model, and a reward model, of every architecture."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    from llmrecipes.tokenizers import train_tokenizer

    folder = tmp_path_factory.mktemp("catalogue")
    tokenizer = train_tokenizer([WORDS], 320, 256)
    for kind in ("llama", "gpt_neox", "mistral", "qwen2"):
        known = AutoConfig.for_model(kind).to_dict()
        config = AutoConfig.for_model(kind, **{key: value for key, value in SMALL.items() if key in known})
        config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / kind)
        config.num_labels = 1
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / f"{kind}-reward")
        for name in (kind, f"{kind}-reward"):
            tokenizer.save_pretrained(folder / name)
    return folder


ONE_OF_A_KIND = (
    "gpt2-124m-fineweb/pretrain",
    "smollm2-135m/sft",
    "pythia-1b-tldr/reward",
    "zephyr-7b-qlora/dpo",
    "qwen2.5-0.5b-gsm8k/ppo",
    "qwen2.5-0.5b-gsm8k/grpo",
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ONE_OF_A_KIND else pytest.mark.long)
        for name in (f"{file.parent.name}/{file.stem}" for file in TRAINED)
    ],
)
def test_it_trains_two_steps_scaled_down(name, inputs, tmp_path):
    file = ROOT / "configs" / f"{name}.yaml"
    config = scaled_down(file, inputs, tmp_path / "run")
    done = run_python(__file__, file.stem, config)
    assert done.returncode == 0, done.stderr[-3000:]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "finished" and manifest["metrics"]["train_loss"] is not None


if __name__ == "__main__":
    sys.argv = [str(ROOT / "recipes" / f"{sys.argv[1]}.py"), "--config", sys.argv[2]]
    runpy.run_path(sys.argv[0], run_name="__main__")
