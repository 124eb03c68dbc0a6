"""Tokenizer, chat template and models belong together: what is written can be read, learned from and stopped."""

import json
import re
import shutil

import pytest
import torch
import training_toys
from forked import run_python
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from training_toys import save_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llmrecipes.adapters import lora_config
from llmrecipes.cards.loading import load_model
from llmrecipes.chat import find_models
from llmrecipes.config import InputError, ModelArguments
from llmrecipes.evaluation import check_language_model
from llmrecipes.models import (
    build_policy,
    context_length,
    eos_token_ids,
    load_policy,
    load_reward_model,
    load_tokenizer,
    stand_in,
)
from llmrecipes.templates import require_chat_template
from llmrecipes.tokenizers import class_for, train_tokenizer

TEXTS = ["Ann has a red hat.", "Bob has 12 blue hats.", "Who has a hat? Ann.", "def f(x):\n    return x + 1\n"] * 5
CONFIG = training_toys.CONFIG | {"max_position_embeddings": 64}
CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Who has a hat?"},
    {"role": "assistant", "content": "Ann."},
    {"role": "user", "content": "Only Ann?"},
    {"role": "assistant", "content": "Bob, too."},
]


SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300, 64)


@pytest.fixture
def folder(tokenizer, tmp_path):
    """A model's folder with its tokenizer."""
    return save_model(CONFIG, tokenizer, tmp_path)


@pytest.mark.parametrize("text", [*TEXTS[:4], "naïve Zoë 東京 🙂\t\n  x", "", " <b>&amp;</b> "])
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_special_tokens_are_single_and_apart(tokenizer):
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    for token in ("<|pad|>", "<|im_start|>", "<|im_end|>"):
        assert len(tokenizer(token)["input_ids"]) == 1
    assert tokenizer.eos_token == "<|im_end|>"


def test_digits_are_tokens_of_their_own(tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokenizer("12")["input_ids"]) == ["1", "2"]


def test_tokenizer_read_back_is_the_one_written(tokenizer, folder):
    read = load_tokenizer(ModelArguments(model_name_or_path=folder))
    assert read.get_vocab() == tokenizer.get_vocab()
    assert read.apply_chat_template(CHAT, tokenize=False) == tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert (read.pad_token_id, read.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert read.model_max_length == 64 and read.padding_side == "right"


def test_too_small_vocabulary_is_refused():
    with pytest.raises(InputError, match="vocab_size: 200"):
        train_tokenizer(TEXTS, 200, 64)


def test_chat_template_writes_chatml(tokenizer):
    assert tokenizer.apply_chat_template(CHAT[:3], tokenize=False) == (
        "<|im_start|>system\nBe short.<|im_end|>\n"
        "<|im_start|>user\nWho has a hat?<|im_end|>\n"
        "<|im_start|>assistant\nAnn.<|im_end|>\n"
    )


def test_prompt_is_the_beginning_of_the_whole_chat(tokenizer):
    """What a model is asked with while sampling is what it saw in training, token for token."""
    prompt = tokenizer.apply_chat_template(CHAT[:2], add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(CHAT[:3], return_dict=False)
    assert whole[: len(prompt)] == prompt
    assert tokenizer.decode(whole[len(prompt) :]) == "Ann.<|im_end|>\n"


def test_generation_mask_covers_answers_and_their_end(tokenizer):
    chat = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    masked = [i for i, m in zip(chat["input_ids"], chat["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(masked) == "Ann.<|im_end|>Bob, too.<|im_end|>"


def test_missing_chat_template_is_an_input_error(tokenizer, folder):
    read = load_tokenizer(ModelArguments(model_name_or_path=folder))
    require_chat_template(read, folder)
    read.chat_template = None
    with pytest.raises(InputError, match="has no chat template"):
        require_chat_template(read, folder)


def test_pad_token_is_given_where_there_is_none(tokenizer, folder, tmp_path):
    read = load_tokenizer(ModelArguments(model_name_or_path=folder))
    read.pad_token = None
    read.save_pretrained(tmp_path / "without")
    again = load_tokenizer(ModelArguments(tokenizer_name_or_path=str(tmp_path / "without")))
    assert again.pad_token is not None


def test_a_tokenizer_that_ends_every_text_leaves_its_eos_out_and_keeps_its_bos(tokenizer, folder, tmp_path, capsys):
    plain = tokenizer("red hat")["input_ids"]
    copy = AutoTokenizer.from_pretrained(folder, bos_token="<|im_start|>", add_bos_token=True, add_eos_token=True)
    copy.save_pretrained(tmp_path)
    begin, end = copy.bos_token_id, copy.eos_token_id
    assert AutoTokenizer.from_pretrained(tmp_path)("red hat")["input_ids"] == [begin, *plain, end]
    read = load_tokenizer(ModelArguments(tokenizer_name_or_path=str(tmp_path)))
    assert read("red hat")["input_ids"] == [begin, *plain]
    assert "put <|im_end|> after every text, after a prompt too; it no longer does" in capsys.readouterr().out
    read.save_pretrained(tmp_path / "again")
    assert AutoTokenizer.from_pretrained(tmp_path / "again")("red hat")["input_ids"] == [begin, *plain]


def test_a_tokenizer_whose_ids_stand_for_other_text_is_refused(tokenizer, folder, tmp_path):
    other = train_tokenizer(["every word of this is another one", "and so are its merges"] * 9, len(tokenizer), 64)
    other.save_pretrained(tmp_path / "other")
    model = ModelArguments(model_name_or_path=folder, tokenizer_name_or_path=str(tmp_path / "other"))
    for load in (load_policy, load_reward_model):
        with pytest.raises(InputError, match=f"other: .* of its {len(other)} tokens stand for other text than in the tok"):
            load(model, load_tokenizer(model))
    again = load_tokenizer(ModelArguments(tokenizer_name_or_path=folder))  # a chat template's tokens in place of unused ones
    again.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    again.save_pretrained(tmp_path / "again")
    model.tokenizer_name_or_path = str(tmp_path / "again")
    with pytest.raises(InputError, match="do not belong together"):  # as before: one token more than the model
        load_policy(model, load_tokenizer(model))
    model.tokenizer_name_or_path = folder
    assert load_policy(model, load_tokenizer(model)).num_parameters()


def test_tokenizer_with_more_tokens_than_the_model_is_refused(tokenizer, folder):
    larger = train_tokenizer([*TEXTS, "many more words make a larger vocabulary than before"] * 3, 340, 64)
    assert len(larger) > len(tokenizer)
    model = ModelArguments(model_name_or_path=folder)
    for load in (load_policy, load_reward_model):
        with pytest.raises(InputError, match=f"{len(larger)} tokens, the model only {len(tokenizer)}"):
            load(model, larger)
    with pytest.raises(InputError, match="do not belong together"):
        build_policy(CONFIG | {"vocab_size": 290}, tokenizer)


@pytest.mark.parametrize(
    "config, part",
    [
        ({"model_type": "no-such-model"}, "no-such-model"),
        (CONFIG | {"hidden_sise": 3}, "no key `hidden_sise`"),
        ({"hidden_size": 3}, "model_type"),
    ],
)
def test_wrong_model_config_is_an_input_error(tokenizer, config, part):
    with pytest.raises(InputError, match=part):
        build_policy(config, tokenizer)


@pytest.mark.parametrize("load", [load_policy, load_reward_model])
def test_missing_and_broken_models_are_input_errors(tokenizer, folder, tmp_path, load):
    with pytest.raises(InputError, match="`model_name_or_path` is missing"):
        load(ModelArguments(), tokenizer)
    with pytest.raises(InputError, match="does not exist"):
        load(ModelArguments(model_name_or_path=str(tmp_path / "nothing")), tokenizer)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="cannot be loaded"):
        load(ModelArguments(model_name_or_path=str(tmp_path / "empty")), tokenizer)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])  # cut off, as by a full disk
    with pytest.raises(InputError, match="model.safetensors is cut off; copy it again"):
        load(ModelArguments(model_name_or_path=folder), tokenizer)


def test_folders_as_downloads_leave_them_are_one_line_that_says_what_to_do(tokenizer, folder, tmp_path):
    def changed(name, file, content=None):
        copy = shutil.copytree(folder, tmp_path / name)
        for name in [file] if isinstance(file, str) else file:
            (copy / name).unlink()
        if content is not None:
            (copy / file).write_bytes(content)
        return str(copy)

    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"
    for name, file, content, part in (
        ("lfs", "model.safetensors", pointer, "model.safetensors is a pointer of Git LFS .* run `git lfs pull`"),
        ("bin", "model.safetensors", None, "no weights as safetensors; others, such as pytorch_model.bin, are not read"),
        ("no model", ("tokenizer.json", "config.json"), None, "holds no model: it has no config.json"),
        ("none", "tokenizer.json", None, "holds no tokenizer; .* as tokenizer_name_or_path"),
    ):
        model = ModelArguments(model_name_or_path=changed(name, file, content))
        with pytest.raises(InputError, match=part):
            load_policy(model, load_tokenizer(model))
    (tmp_path / "none" / "tokenizer.model").write_bytes(b"SentencePiece")
    with pytest.raises(InputError, match="`pip install sentencepiece`, or tiktoken"):
        load_tokenizer(ModelArguments(model_name_or_path=str(tmp_path / "none")))
    read = load_tokenizer(ModelArguments(model_name_or_path=folder))
    read.pad_token = read.eos_token = None
    read.save_pretrained(tmp_path / "endless")
    with pytest.raises(InputError, match="neither an EOS nor a pad token; set eos_token"):
        load_tokenizer(ModelArguments(tokenizer_name_or_path=str(tmp_path / "endless")))


def test_generation_settings_that_could_not_be_written_again_are_mended_or_refused_before_training(
    tokenizer, folder, tmp_path, capsys
):
    file, model = tmp_path / "generation_config.json", ModelArguments(model_name_or_path=folder)
    written = json.loads(file.read_text())
    file.write_text(json.dumps(written | {"temperature": 0.9, "top_p": 0.6}))  # as Vicuna's and the first Llama 2's
    policy = load_policy(model, tokenizer)
    assert "without do_sample: true, which is set from now on" in capsys.readouterr().out
    policy.generation_config.bos_token_id = 3  # as a trainer does, which aligns it with the tokenizer
    policy.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert (saved["do_sample"], saved["temperature"], saved["top_p"]) == (True, 0.9, 0.6)
    file.write_text(json.dumps(written | {"pad_token_id": -1}))  # as the first Llama's
    assert (
        load_policy(model, tokenizer).generation_config.pad_token_id is None and "do_sample" not in capsys.readouterr().out
    )
    file.write_text(json.dumps(written | {"do_sample": False, "temperature": 0.0, "top_p": 0.9}))
    settings = load_policy(model, tokenizer).generation_config
    assert (settings.do_sample, settings.temperature, settings.top_p) == (False, None, None), "greedy it stays"
    file.write_text(json.dumps(written | {"early_stopping": True}))
    with pytest.raises(InputError, match=r"generation_config.json could not be written again: .*early_stopping"):
        load_policy(model, tokenizer)
    for text in ("{not json", "[1]", '{"eos_token_id": "<|im_end|>"}'):
        file.write_text(text)
        with pytest.raises(InputError, match="generation_config.json cannot be read: "):
            load_policy(model, tokenizer)


ENCODERS = {"bert": SMALL, "xlm-roberta": SMALL, "xlm": {"emb_dim": 32, "n_layers": 1, "n_heads": 2}}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.long] * (kind != "bert")) for kind in ENCODERS])
def test_an_encoder_whose_tokens_see_the_answer_is_refused_as_a_policy(tokenizer, tmp_path, kind):
    with pytest.raises(InputError, match=f"model_config: {kind} is an encoder"):
        build_policy(ENCODERS[kind] | {"model_type": kind}, tokenizer)
    built = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=len(tokenizer), **ENCODERS[kind]))
    built.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for load in (load_policy, stand_in):
        with pytest.raises(InputError, match=f"{kind} is an encoder, in which each token sees those after it"):
            load(ModelArguments(model_name_or_path=str(tmp_path)), tokenizer)
    decoder = build_policy(SMALL | {"model_type": "bert", "is_decoder": True}, tokenizer).eval()
    rows = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]])
    assert torch.equal(*decoder(rows).logits[:, :-1].detach()), "no token sees the last one"


def test_code_of_a_models_repository_runs_in_every_stage_that_is_told_to_run_it(tokenizer, folder, tmp_path, monkeypatch):
    own = shutil.copytree(folder, tmp_path / "own")
    config = json.loads((own / "config.json").read_text())
    code = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    config |= {"model_type": "own", "architectures": ["OwnModel"], "auto_map": code}
    (own / "config.json").write_text(json.dumps(config))
    (own / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    (tmp_path / "q.jsonl").write_text('{"prompt": [{"role": "user", "content": "Who has a hat?"}]}\n')
    rows, env = ["--datasets", f"[{{path: {tmp_path}/q.jsonl}}]"], {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    for load in (
        lambda: load_policy(ModelArguments(model_name_or_path=str(own))),
        lambda: check_language_model("x", str(own)),
    ):
        with pytest.raises(InputError, match="own.* needs code of its own repository, which `trust_remote_code: true` runs"):
            load()
    given = {"sample": ["--model_name_or_path", own, "--num_samples", 1], "evaluate": ["--models", f"{{own: {own}}}"]}
    for stage, keys in given.items():
        argv = [f"recipes/{stage}.py", *keys, *rows, "--max_new_tokens", 2, "--output_dir", tmp_path / stage]
        run = run_python(*argv, "--trust_remote_code", "true", env=env)
        assert run.returncode == 0, run.stderr
    assert json.loads((tmp_path / "sample" / "samples.jsonl").read_text())["num_tokens"] == [2]
    assert find_models(str(own)) == {"own": str(own)}
    for base, adapter in ((own, "lora"), ("lora", "second"), ("ann/own", "hub")):  # an adapter, one on it, on the Hub's
        (tmp_path / adapter).mkdir()
        (tmp_path / adapter / "adapter_model.safetensors").write_bytes(b"")
        written = {"base_model_name_or_path": str(base if "/" in str(base) else tmp_path / base)}
        (tmp_path / adapter / "adapter_config.json").write_text(json.dumps(written))
    monkeypatch.setattr("llmrecipes.cards.loading.try_to_load_from_cache", lambda repo, _: f"{own}/config.json")
    for model in (own, *(tmp_path / name for name in ("lora", "second", "hub"))):
        lines = [line for line in load_model(model, "own", False, True) if re.search("(Tok|LM).*from_pre", line)]
        assert len(lines) == 2 and all("trust_remote_code=True" in line for line in lines), model


def test_weights_that_are_in_no_file_or_of_another_size_are_one_line_and_no_random_numbers(tokenizer, folder, tmp_path):
    for name, change, part in (
        (
            "lost",
            {},
            "3 weights that its config.json implies are in none of its files, such as model.layers.0.mlp.down_proj.weight",
        ),
        ("wide", {"intermediate_size": 7}, "its weights have different sizes than its config.json says"),
        ("pad", {"pad_token_id": 9999}, "cannot be loaded: Padding_idx must be within num_embeddings"),
        ("text", {"intermediate_size": "big"}, "config.json has `intermediate_size`: .big."),
    ):
        copy = shutil.copytree(folder, tmp_path / name)
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | change))
        weights = load_file(copy / "model.safetensors")
        kept = {key: value for key, value in weights.items() if change or "layers.0.mlp.down" not in key and "up" not in key}
        save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(InputError, match=part):
            load_policy(ModelArguments(model_name_or_path=str(copy)), tokenizer)
        if not change:
            with pytest.raises(InputError, match="weights that its config.json implies are in none of its files"):
                load_reward_model(ModelArguments(model_name_or_path=str(copy)), tokenizer)


def test_model_stops_where_the_tokenizer_says(tokenizer, folder):
    """A model taught one answer, end included, says it and stops, also after it was saved and loaded."""
    policy = load_policy(ModelArguments(model_name_or_path=folder), tokenizer)
    assert eos_token_ids(policy, tokenizer) == [tokenizer.eos_token_id]
    assert context_length(policy) == 64
    chat = tokenizer.apply_chat_template(CHAT[1:3], return_tensors="pt", return_dict=False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    for _ in range(30):
        policy(input_ids=chat, labels=chat).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    policy.save_pretrained(folder)
    policy = load_policy(ModelArguments(model_name_or_path=folder), tokenizer).eval()
    prompt = tokenizer.apply_chat_template(CHAT[1:2], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = policy.generate(**prompt, max_new_tokens=30, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "Ann.<|im_end|>"


def test_reward_model_starts_from_the_policy(tokenizer, folder):
    model = ModelArguments(model_name_or_path=folder)
    policy, reward_model = load_policy(model, tokenizer), load_reward_model(model, tokenizer)
    assert reward_model.config.num_labels == 1
    trunk = dict(reward_model.model.named_parameters())
    for name, weight in policy.model.named_parameters():
        assert torch.equal(weight, trunk[name]), name


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("amount", [0, 1, 9])
def test_reward_is_independent_of_padding(tokenizer, folder, side, amount):
    reward_model = load_reward_model(ModelArguments(model_name_or_path=folder), tokenizer).eval()
    chats = [tokenizer.apply_chat_template(c, return_dict=False) for c in (CHAT[:3], CHAT)]
    length = max(map(len, chats)) + amount
    ids = torch.full((2, length), tokenizer.pad_token_id)
    for row, chat in zip(ids, chats, strict=True):
        row[slice(length - len(chat), length) if side == "left" else slice(len(chat))] = torch.tensor(chat)
    with torch.no_grad():
        alone = torch.cat([reward_model(input_ids=torch.tensor([chat])).logits for chat in chats])
        padded = reward_model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()).logits
    assert (alone[0] - alone[1]).abs() > 1e-3, "the two chats score differently"
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["qwen3_moe", "olmo"])
def test_a_head_size_that_only_the_models_code_reads_is_taken(tokenizer, kind):
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = {"model_type": kind, "num_key_value_heads": 2, **sizes}
    if kind == "qwen3_moe":
        config |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    policy = build_policy(config | {"head_dim": 16}, tokenizer)
    assert policy.model.layers[0].self_attn.q_proj.weight.shape == (4 * 16, 32)
    assert policy(torch.tensor([[5, 6, 7]])).logits.isfinite().all()
    again = type(policy.config)(**policy.config.to_dict())
    assert again.head_dim == 16  # saved with it
    with pytest.raises(InputError, match="head_dim: 16 does not fit the layers of bitnet, which need .* = 8; leave it out"):
        build_policy({"model_type": "bitnet", "head_dim": 16, **sizes}, tokenizer)
    assert policy.training == build_policy({"model_type": "llama", **sizes}, tokenizer).training
    with pytest.raises(InputError, match="gpt_neox has no key `head_dim`"):  # read for rotary positions alone
        build_policy({"model_type": "gpt_neox", "head_dim": 16, **sizes}, tokenizer)
    with pytest.raises(InputError, match="^model_config: .* 'num_hidden_layers'.* expected int, got str"):  # in one line
        build_policy({"model_type": "llama", **sizes, "num_hidden_layers": "two"}, tokenizer)


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [(["q_proj"], 2), (["q_proj", "mlp.up_proj"], 4), (["all-linear"], 14), ([r".*\.1\..*_proj"], 7), (None, 4)],
)
def test_lora_goes_where_lora_target_modules_says(tokenizer, targets, adapted):
    policy = build_policy(CONFIG, tokenizer)
    config = lora_config(ModelArguments(use_peft=True, lora_target_modules=targets), policy)
    names = {name for name, _ in get_peft_model(policy, config).named_parameters() if "lora_A" in name}
    assert len(names) == adapted


def test_lora_of_a_module_that_is_not_there_is_an_input_error(tokenizer):
    policy = build_policy(CONFIG, tokenizer)
    linear = "name some of down_proj, .* or all-linear"
    for key, names, said in (
        ("lora_target_modules", ["q_proj", "kv_proj"], f"no `kv_proj` here, did you mean `v_proj`\\?; {linear}"),
        ("lora_target_modules", ["q_prj.*"], f"the pattern `q_prj.*` matches no module's whole path, such as .*; {linear}"),
        ("lora_target_modules", ["(q_proj"], f"`\\(q_proj` is no regular expression .*; {linear}"),
        ("lora_modules_to_save", ["lm_haed"], "no `lm_haed` here, did you mean `lm_head`\\?; "),
        (
            "lora_target_parameters",
            ["mlp.experts.up"],
            "no `mlp.experts.up` here; name some of ",
        ),
    ):
        with pytest.raises(InputError, match=f"^{key}: {said}"):
            lora_config(ModelArguments(use_peft=True, **{key: names}), policy)


def test_lora_on_the_parameters_of_experts_is_found_by_name(tokenizer):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 8, "num_hidden_layers": 1}
    sizes |= {"num_experts": 2, "num_experts_per_tok": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    policy = build_policy({"model_type": "qwen3_moe", **sizes}, tokenizer)
    lora = {"use_peft": True, "lora_dropout": 0.0, "lora_target_modules": ["q_proj"]}
    given = lambda name: ModelArguments(lora_target_parameters=[name], **lora)
    config = lora_config(given("mlp.experts.gate_up_proj"), policy)
    advice = "did you mean `experts.gate_up_proj`\\?; name some of mlp.experts.down_proj, mlp.experts.gate_up_proj$"
    with pytest.raises(InputError, match=f"^lora_target_parameters: no `experts.gate_up` here, {advice}"):
        lora_config(given("experts.gate_up"), policy)
    adapted = [name for name, _ in get_peft_model(policy, config).named_parameters() if "lora_A" in name]
    assert len(adapted) == 2


def test_a_tokenizer_alone_is_loaded_as_auto_tokenizer_would(tmp_path):
    """Without AutoTokenizer, which imports torch."""
    own = tmp_path / "own"
    train_tokenizer(["a red hat"] * 3, 300, 64).save_pretrained(own)
    assert class_for(str(own)) is type(AutoTokenizer.from_pretrained(own))
    for number, kind in enumerate((class_for(str(own)), AutoTokenizer)):
        kind.from_pretrained(own, trust_remote_code=False).save_pretrained(tmp_path / str(number))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()
    (own / "config.json").write_text('{"model_type": "gpt2"}')
    assert class_for(str(own)) is AutoTokenizer  # the model may have a class of its own


def test_weights_that_fsdp_could_not_send_are_one_line(tokenizer, monkeypatch):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    moe = {
        "intermediate_size": 16,
        "moe_intermediate_size": 16,
        "n_routed_experts": 2,
        "num_experts_per_tok": 1,
        "n_group": 1,
    }
    moe |= {"topk_group": 1, "first_k_dense_replace": 0, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4}
    deepseek = {"model_type": "deepseek_v3", **sizes, **moe, "qk_nope_head_dim": 4, "v_head_dim": 8}
    build_policy(deepseek, tokenizer)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    build_policy(deepseek, tokenizer)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    build_policy({"model_type": "llama", "intermediate_size": 16, **sizes}, tokenizer)
    with pytest.raises(InputError, match="fsdp_cpu_ram_efficient_loading: .*e_score_correction_bias.* set it to false"):
        build_policy(deepseek, tokenizer)
