"""A damaged file in a model's folder is one line that names it and says what to do, before anything is loaded."""

import contextlib
import json
import os
import shlex
import shutil

import numpy
import pytest
from forked import run_python
from huggingface_hub.errors import StrictDataclassError
from parsing_toys import SFT
from safetensors.numpy import save_file
from training_toys import CONFIG, TEXTS, save_model
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from llmrecipes.chat import find_models
from llmrecipes.config import InputError, ModelArguments
from llmrecipes.hub import plan_push
from llmrecipes.models import load_policy
from llmrecipes.parsing import parse
from llmrecipes.preflight.model_folders import AGAIN, REPAIR, damages
from llmrecipes.preflight.model_values import lacks_sizes, wrong_values
from llmrecipes.tokenizers import load_tokenizer, train_tokenizer

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "model"
    save_model(CONFIG, train_tokenizer(TEXTS, 300, 128), folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def problems_with(model) -> list[str]:
    argv = ["--model_name_or_path", str(model), "--datasets", '[{path: "stdlib"}]', "--output_dir", f"{model}-trained"]
    with pytest.raises(InputError) as caught:
        parse(*SFT, argv=argv, inputs_exist=True)
    assert not os.path.exists(f"{model}-trained")
    return list(caught.value.args)


# name, what the file then holds (None: its first half), what is said
DAMAGED = [
    ("tokenizer.json", None, "is cut off"),
    ("tokenizer.json", b"{}", "holds no tokenizer, which has `model` and `added_tokens`"),
    ("tokenizer_config.json", b"", "is empty"),
    ("tokenizer_config.json", b'{"chat_template": "{% if %}"}', "is no Jinja in its chat_template, in line 1"),
    ("special_tokens_map.json", b'["<eos>"]', "holds a list where a JSON object is expected"),
    ("config.json", b'{"a": 1,\n b}', "is no JSON in line 2"),
    ("config.json", "{}".encode("utf-16"), "is UTF-16 where UTF-8 is expected"),
    ("config.json", "{}".encode("utf-8-sig"), "begins with a byte order mark; save it without"),
    ("generation_config.json", b"[" * 100_000, "is nested without end"),
    ("chat_template.jinja", b"{% for m in messages %}", "is no Jinja in line 1"),
    ("chat_template.jinja", b"{{ messages | nope }}", "is no Jinja in line 1 (No filter named 'nope'"),
    ("chat_template.jinja", b"\xe9", "is not text (byte 1) where UTF-8 is expected"),
    ("model.safetensors", None, "it was not copied whole"),
    ("model.safetensors", b"\x48\x08\0\0\0\0\0\0{", "is cut off"),
    ("model.safetensors", b"PK" * 100, "is no safetensors file"),
    ("adapter_model.safetensors", b"", "is empty"),
    (
        "model.safetensors",
        b"version https://git-lfs.github.com/spec/v1\n",
        "is a pointer of Git LFS and not the file itself",
    ),
]


@pytest.mark.parametrize(("name", "content", "said"), DAMAGED, ids=[f"{name}-{said[:20]}" for name, _, said in DAMAGED])
def test_a_damaged_file_is_one_line(folder, name, content, said):
    assert not list(damages(folder))
    content = (folder / name).read_bytes()[: (folder / name).stat().st_size // 2] if content is None else content
    (folder / name).write_bytes(content)
    (line,) = problems_with(folder)
    assert f"{folder}: {name} " in line and said in line
    assert AGAIN in line or "save it without" in line or "git lfs pull" in line


def test_shards_are_all_there_and_whole(folder):
    (folder / "model.safetensors").unlink()
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}}))
    for name, key in zip(shards, "ab", strict=True):
        save_file({key: numpy.zeros(8)}, folder / name)
    assert not list(damages(folder))
    size = (folder / shards[0]).stat().st_size
    os.truncate(folder / shards[0], 100)
    (folder / shards[1]).unlink()
    assert [line.partition(" ")[::2] for line in damages(folder)] == [
        (shards[0], f"has 100 bytes, and by its header {size}: it was not copied whole; {AGAIN}"),
        (shards[1], f"is missing, although {INDEX} names it; {AGAIN}"),
    ]
    assert not list(damages(folder, weights=False)), "a plan reads none"


def test_the_base_of_an_adapter_is_looked_at_too(folder, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder), "peft_type": "LORA"}))
    os.truncate(folder / "tokenizer.json", 100)
    assert f"{folder}: tokenizer.json is cut off" in problems_with(adapter)[0]


COUNT, SIZE = "where a whole number of 0 or more is expected", "where a whole number of 1 or more is expected"
# name, key, value: of another type than any model has, or out of range
WRONG = [
    ("config.json", "dtype", 5, "`dtype`: 5 where the name of a type, one of float16, bfloat16, float32"),
    ("config.json", "dtype", "bfloat17", "`dtype`: 'bfloat17' where the name of a type"),
    ("config.json", "hidden_size", "32", f"`hidden_size`: '32' {SIZE}"),
    ("config.json", "num_hidden_layers", -2, f"`num_hidden_layers`: -2 {SIZE}"),
    ("config.json", "num_key_value_heads", -1, f"`num_key_value_heads`: -1 {COUNT}"),
    ("config.json", "rms_norm_eps", "1e-6", "`rms_norm_eps`: '1e-6' where a number of 0 or more is expected"),
    ("config.json", "tie_word_embeddings", "no", "`tie_word_embeddings`: 'no' where true or false is expected"),
    ("config.json", "architectures", "LlamaForCausalLM", "`architectures`: 'LlamaForCausalLM' where a list of texts"),
    ("config.json", "text_config", {"hidden_size": -1}, f"`text_config.hidden_size`: -1 {SIZE}"),
    ("generation_config.json", "max_length", "x", f"`max_length`: 'x' {COUNT}"),
    ("generation_config.json", "eos_token_id", "a", "`eos_token_id`: 'a' where a token's number or a list of these"),
    ("generation_config.json", "temperature", -1, "`temperature`: -1 where a number of 0 or more"),
    ("generation_config.json", "do_sample", 1, "`do_sample`: 1 where true or false"),
    ("tokenizer_config.json", "model_max_length", "long", "`model_max_length`: 'long' where a number above 0"),
    ("tokenizer_config.json", "pad_token", 0, "`pad_token`: 0 where a token's text is expected"),
    ("tokenizer_config.json", "padding_side", "middle", "`padding_side`: 'middle' where left or right is expected"),
    ("tokenizer_config.json", "chat_template", 5, "`chat_template`: 5 where a text is expected"),
]


@pytest.mark.parametrize(("name", "key", "value", "said"), WRONG, ids=[f"{name}-{key}" for name, key, *_ in WRONG])
def test_a_value_that_no_model_has_is_one_line(folder, name, key, value, said):
    values = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(values | {key: value}))
    (line,) = problems_with(folder)
    assert f"{folder}: {name} has {said}" in line and REPAIR in line
    (folder / name).write_text(json.dumps(values | {key: None}))
    assert not list(damages(folder)), "null is a value that is not given"


def test_a_config_without_sizes_beside_weights_is_refused_before_gigabytes_of_defaults_are_built(folder):
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (line,) = problems_with(folder)
    assert f"{folder}: config.json says nothing of the model's sizes, such as `hidden_size`, beside weights" in line
    assert not list(damages(folder, weights=False)), "a plan reads no weights"


@pytest.mark.long
def test_no_value_that_transformers_writes_itself_is_refused():
    configs = []
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING:
        with contextlib.suppress(StrictDataclassError):  # one whose defaults contradict each other
            configs.append(json.loads(kind().to_json_string(use_diff=False)))
    assert len(configs) > 100 and not any(map(lacks_sizes, configs))
    assert [wrong for config in configs for wrong in wrong_values("config.json", config)] == []


# name, key, value: JSON objects that are no damage, and mean nothing to transformers
ODD = [
    ("tokenizer.json", "added_tokens", 5, "its tokenizer cannot be loaded: 'int' object"),
    ("tokenizer_config.json", "added_tokens_decoder", {"a": 1}, "its tokenizer cannot be loaded: "),
    ("config.json", "attention_bias", "x", "its config.json cannot be loaded: .*attention_bias"),
    ("config.json", "rope_parameters", {"rope_type": "nope"}, "its model cannot be loaded: has no 'nope'"),
]


@pytest.mark.parametrize(("name", "key", "value", "said"), ODD, ids=[f"{name}-{key}" for name, key, *_ in ODD])
def test_a_value_that_transformers_cannot_take_is_one_line(folder, name, key, value, said):
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | {key: value}))
    model = ModelArguments(model_name_or_path=str(folder))
    with pytest.raises(InputError, match=said):
        load_policy(model, load_tokenizer(model))


def test_chat_and_push_refuse_a_damaged_model(folder):
    (folder / "manifest.json").write_text(json.dumps({"status": "finished", "stage": "sft", "fingerprint": "0"}))
    assert list(find_models(str(folder.parent))) == ["model"] and plan_push(str(folder), "me")
    os.truncate(folder / "config.json", 100)  # without it the chat would leave the model out
    for call in (lambda: find_models(str(folder.parent)), lambda: plan_push(str(folder), "me")):
        with pytest.raises(InputError, match="config.json is cut off"):
            call()


RECIPES = {
    "sft": "--model_name_or_path {}",
    "dpo": "--model_name_or_path {}",
    "kto": "--model_name_or_path {}",
    "grpo": "--model_name_or_path {}",
    "reward": "--model_name_or_path {}",
    "ppo": "--reward_model_name_or_path {}",
    "ppo ": "--value_model_name_or_path {}",
    "sample": "--model_name_or_path {}",
    "evaluate": "--models '{{a: {}}}'",
    "merge": "--model_name_or_path {}",
    "health": "--model_name_or_path {}",
    "plan": "--stage sft --model_name_or_path {}",
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (name != "ppo ")) for name in RECIPES])
def test_every_recipe_that_reads_a_model_says_so(folder, name):
    os.truncate(folder / "tokenizer.json", 100)
    done = run_python(f"recipes/{name.strip()}.py", *shlex.split(RECIPES[name].format(folder)))
    lines = [line for line in done.stderr.splitlines() if "tokenizer.json is cut off" in line]
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: "), done.stderr
