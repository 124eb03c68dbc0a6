"""What starts from an adapter starts from what it was trained to: in every stage, on disk and from Python."""

import copy
import json
import math
import re
import warnings
from pathlib import Path

import ppo_toys as toys
import pytest
import torch
from adapter_toys import (
    CONFIGS,
    PAIRS,
    TARGETS,
    TEXTS,
    TOKENS,
    add_adapter,
    assert_close,
    load,
    logits,
    run_merge,
    run_recipe,
)
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from training_toys import save_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import SFTConfig

from llmrecipes.adapters import check_policy, read_chain
from llmrecipes.cards.model import repo_name, write_model_card
from llmrecipes.config import InputError, ModelArguments
from llmrecipes.logs import quiet_logs
from llmrecipes.models import build_policy, load_policy, load_reward_model, load_tokenizer
from llmrecipes.sft import SFTTrainer
from llmrecipes.tokenizers import train_tokenizer

EMBEDDINGS = {"llama": "embed_tokens", "gpt2": "wte"}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300, 64)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def base(kind, tokenizer, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp(kind) / "base"
    return save_model(CONFIGS[kind], tokenizer, folder)


@pytest.fixture(scope="module")
def sft(kind, base, tokenizer) -> str:
    """An adapter on `base`, as sft with use_peft leaves it."""
    folder = Path(base).with_name("sft")
    add_adapter(AutoModelForCausalLM.from_pretrained(base), folder, tokenizer=tokenizer, target_modules=TARGETS[kind])
    return str(folder)


# What is trained from an adapter; dpo, and how all are loaded and merged, is tested with both kinds each time.
LLAMA_FIRST = pytest.mark.parametrize("kind", ["llama", pytest.param("gpt2", marks=pytest.mark.long)], indirect=True)


# --- loading ----------------------------------------------------------------------------------------------------------


INSIDE = [{}, {"use_dora": True}, {"use_rslora": True}, {"bias": "all"}, {"target_modules": "all-linear"}]
AT_AN_END = [
    {"modules_to_save": ["lm_head"]},
    {"modules_to_save": ["embeddings"]},
    {"target_modules": ["lm_head", "mlp.up_proj", "mlp.c_fc"]},
    {"target_modules": ["embeddings"]},
    {"trainable_token_indices": {"embeddings": [1, 2]}},
]


@pytest.mark.parametrize(
    ("tied", "changes"),
    [
        pytest.param(tied, changes, marks=[pytest.mark.long] * (tied and changes in INSIDE))
        for tied in (False, True)
        for changes in INSIDE + AT_AN_END
    ],
    ids=str,
)
def test_adapter_loads_as_what_was_trained_and_so_does_the_whole_model(kind, base, tokenizer, tmp_path, changes, tied):
    named = json.loads(json.dumps(changes).replace("embeddings", EMBEDDINGS[kind]))
    start = build_policy(CONFIGS[kind] | {"tie_word_embeddings": tied}, tokenizer)
    start.save_pretrained(tmp_path / "base")
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    trained = add_adapter(start, tmp_path / "adapter", **{"target_modules": TARGETS[kind], **named})
    merged = load(tmp_path / "adapter")
    assert_close(logits(merged), logits(trained))
    assert all(parameter.requires_grad for parameter in merged.parameters())
    merged.save_pretrained(tmp_path / "whole")
    assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "whole")), logits(trained))
    trunk = load(tmp_path / "adapter", load_reward_model)
    same = getattr(merged, merged.base_model_prefix)(TOKENS)[0]
    assert_close(getattr(trunk, trunk.base_model_prefix)(TOKENS)[0], same)


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16])
def test_small_changes_of_a_chain_survive_16_bits(base, tokenizer, tmp_path, capsys, kind, saved):
    """Each adapter changes a weight by far less than bfloat16 can show, all of them together by more."""
    start = AutoModelForCausalLM.from_pretrained(base, dtype=saved)
    start.save_pretrained(tmp_path / "0")
    for i in range(1, 7):
        trained = get_peft_model(load(tmp_path / str(i - 1)), LoraConfig(r=2, target_modules=TARGETS[kind]))
        for name, parameter in trained.named_parameters():
            if "lora_" in name:  # equal in all of them, so that they add up
                torch.nn.init.normal_(parameter, std=0.003, generator=torch.Generator().manual_seed(len(name)))
        trained.save_pretrained(tmp_path / str(i))
        tokenizer.save_pretrained(tmp_path / str(i))
    whole = trained.merge_and_unload().state_dict()  # of float32 throughout
    run_merge(tmp_path / "6", tmp_path / "whole", "--dtype", "bfloat16")
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype="auto")
    for model in (load(tmp_path / "6", dtype="bfloat16"), written):
        for (name, got), old in zip(model.state_dict().items(), start.state_dict().values(), strict=True):
            assert got.dtype == torch.bfloat16
            torch.testing.assert_close(got, whole[name].bfloat16(), rtol=0, atol=0)
            if any(target in name for target in TARGETS[kind]) and "bias" not in name:
                assert (got != old.bfloat16()).float().mean() > 0.2, "what was learned shows"
    assert "% of the weights that the adapter changes round in bfloat16 to what they were" not in capsys.readouterr().out
    load(tmp_path / "1", dtype="bfloat16")
    assert re.search(
        r"1: \d\d % of the weights that the adapter changes round in bfloat16 to what they were without it; "
        "`dtype: float32` keeps",
        capsys.readouterr().out,
    )


def test_adapter_with_added_tokens_brings_their_embeddings(kind, base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(310)
    trained = add_adapter(model, tmp_path / "adapter", target_modules=TARGETS[kind])
    assert_close(logits(load(tmp_path / "adapter")), logits(trained))


@pytest.mark.parametrize("tied", [True, False])
def test_adapter_that_trains_added_tokens_loads_with_them(kind, tokenizer, tmp_path, tied):
    torch.manual_seed(0)
    build_policy(CONFIGS[kind] | {"tie_word_embeddings": tied}, tokenizer).save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    rows = len(model.get_input_embeddings().weight)
    model.resize_token_embeddings(rows + 8)
    head = {} if tied else {"modules_to_save": ["lm_head"]}
    added = {EMBEDDINGS[kind]: [rows, rows + 1]}
    trained = add_adapter(model, tmp_path / "sft", target_modules=TARGETS[kind], trainable_token_indices=added, **head)
    tokens = torch.tensor([[5, rows, 9, rows + 1]])
    with torch.no_grad():
        assert_close(load(tmp_path / "sft")(input_ids=tokens).logits, trained(input_ids=tokens).logits)


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox", "gpt2"])
def test_a_template_with_new_tokens_is_learned_by_lora_whatever_the_embeddings_are_called(tokenizer, tmp_path, model_type):
    """Untied and tied embeddings: what the trained model says is what its folder says when it is loaded."""
    config = CONFIGS.get(model_type, CONFIGS["llama"] | {"model_type": model_type})
    policy = build_policy(config, tokenizer)
    other, own = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
    other.add_special_tokens({"additional_special_tokens": ["<|say|>", "<|done|>"]})
    other.chat_template = "{% for m in messages %}<|say|>{{ m.content }}<|done|>{% endfor %}"
    other.save_pretrained(tmp_path / "other")
    policy.save_pretrained(tmp_path / "base")
    args = SFTConfig(
        output_dir=str(tmp_path / "sft"),
        chat_template_path=str(tmp_path / "other"),
        max_steps=1,
        use_cpu=True,
        bf16=False,
        learning_rate=0.1,
        gradient_checkpointing=False,
        report_to="none",
    )
    rows = Dataset.from_list([{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in PAIRS])
    lora = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules="all-linear")
    policy = load(tmp_path / "base")
    made = SFTTrainer(model=policy, args=args, train_dataset=rows, processing_class=own, peft_config=lora)
    made.train()
    made.save_model()
    new = own.convert_tokens_to_ids("<|done|>")
    tokens, model = torch.tensor([[5, new - 1, 9, new]]), made.model.eval()
    with torch.no_grad():
        got, want = load(tmp_path / "sft")(input_ids=tokens).logits, model(input_ids=tokens).logits
        base = model.get_base_model().get_input_embeddings()(tokens)
    assert_close(got, want)
    start = model.get_base_model().get_input_embeddings().token_adapter.base_layer.weight[tokens]
    assert ((base - start).abs().amax(-1) > 0)[0].tolist() == [False, True, False, True], "the new rows alone are trained"


def test_chain_of_three_loads_and_its_tokenizer_is_found(kind, base, sft, tokenizer, tmp_path):
    second = add_adapter(load(sft), tmp_path / "second", seed=2, target_modules="all-linear")
    with warnings.catch_warnings(record=True) as told:
        quiet_logs()
        third = add_adapter(load(tmp_path / "second"), tmp_path / "third", seed=3, target_modules=TARGETS[kind])
    assert not [one for one in told if "Could not find" in str(one.message)], (
        "PEFT looks for a config.json of the whole model beside the adapter that it starts from"
    )
    assert [source.path for source in read_chain(str(tmp_path / "third"))] == [
        base,
        sft,
        str(tmp_path / "second"),
        str(tmp_path / "third"),
    ]
    assert_close(logits(load(tmp_path / "third")), logits(third))
    assert (logits(second) - logits(load(base))).abs().max() > 0.1
    read = load_tokenizer(ModelArguments(model_name_or_path=str(tmp_path / "third")))
    assert read.get_vocab() == tokenizer.get_vocab()


def test_adapter_that_cannot_be_merged_is_one_line(kind, base, sft, tmp_path):
    def broken(name, **changes):
        folder = tmp_path / name
        folder.mkdir()
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / file).write_bytes(Path(sft, file).read_bytes())
        config = json.loads((folder / "adapter_config.json").read_text()) | changes
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder

    with pytest.raises(InputError, match="names no base model"):
        load(broken("without", base_model_name_or_path=None))
    with pytest.raises(InputError, match="which does not exist"):
        load(broken("gone", base_model_name_or_path="outputs/gone/sft"))
    with pytest.raises(InputError, match="names itself as its base"):
        load(broken("circle", base_model_name_or_path=str(tmp_path / "circle")))
    with pytest.raises(InputError, match="damaged or for another model: it lacks base_model"):
        load(broken("more", target_modules=[*TARGETS[kind], "down_proj", "c_proj"]))
    with pytest.raises(InputError, match="another model: this one has no place for base_model"):
        load(broken("less", target_modules=TARGETS[kind][:1]))
    (broken("pickle") / "adapter_model.safetensors").rename(tmp_path / "pickle" / "adapter_model.bin")
    with pytest.raises(InputError, match="without adapter_model.safetensors"):
        load(tmp_path / "pickle")
    prompt = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=2)
    )
    prompt.save_pretrained(tmp_path / "prompt")
    with pytest.raises(InputError, match="PROMPT_TUNING is a learned prompt"):
        load(tmp_path / "prompt")


# --- stages -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dpo(sft, tokenizer) -> str:
    """An adapter on the adapter `sft`, as dpo with use_peft leaves it."""
    folder = Path(sft).with_name("dpo")
    add_adapter(load(sft), folder, seed=2, tokenizer=tokenizer, target_modules="all-linear")
    return str(folder)


@pytest.fixture(scope="module")
def reward(sft, tokenizer) -> str:
    """A reward model that is an adapter on the adapter `sft`."""
    folder = Path(sft).with_name("reward")
    start = load(sft, load_reward_model)
    add_adapter(start, folder, seed=3, tokenizer=tokenizer, target_modules="all-linear", task_type="SEQ_CLS")
    return str(folder)


def assert_one_parent(output_dir, manifest, start):
    """Manifest, adapter_config and card name the same one."""
    assert manifest["config"]["model_name_or_path"] == start and start in manifest["inputs"]
    assert json.loads((output_dir / "adapter_config.json").read_text())["base_model_name_or_path"] == start
    assert "base_model: " + "-".join(Path(start).parts[-2:]) in (output_dir / "README.md").read_text()


def test_dpo_on_sft_at_learning_rate_0_gives_back_its_start(base, sft, tmp_path):
    manifest = run_recipe("dpo", sft, tmp_path / "out", "--learning_rate", "0")
    assert manifest["metrics"]["train_loss"] == pytest.approx(math.log(2), abs=1e-5), "policy and reference are one"
    assert_close(logits(load(tmp_path / "out")), logits(load(sft)))
    assert (logits(load(sft)) - logits(load(base))).abs().max() > 0.1
    assert_one_parent(tmp_path / "out", manifest, sft)


@LLAMA_FIRST
def test_ppo_on_dpo_with_a_reward_adapter_at_learning_rate_0_gives_back_its_start(dpo, sft, reward, tmp_path):
    options = ["--learning_rate", "0", "--reward_model_name_or_path", reward, "--value_model", "separate"]
    manifest = run_recipe("ppo", dpo, tmp_path / "out", *options)
    assert manifest["metrics"]["kl"] == pytest.approx(0, abs=1e-5), "policy and reference are one"
    assert_close(logits(load(tmp_path / "out")), logits(load(dpo)))
    assert (logits(load(dpo)) - logits(load(sft))).abs().max() > 0.1
    assert_one_parent(tmp_path / "out", manifest, dpo)
    values = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "value_model")
    assert_close(logits(values), logits(load(reward, load_reward_model)))


@pytest.mark.parametrize("of, kind_of", [("dpo", load_policy), ("reward", load_reward_model)])
def test_lines_of_the_card_load_the_chain(base, dpo, reward, tmp_path, of, kind_of):
    folder = Path({"dpo": dpo, "reward": reward}[of])
    manifest = {"status": "finished", "stage": of, "config": {"output_dir": str(folder)}, "made": "", "wall_seconds": 0}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"command": "", "fingerprint": ""}))
    card = write_model_card(folder).read_text()
    (folder / "manifest.json").unlink()
    lines = card.split("```python\n")[1].split("```")[0]
    for path in (base, Path(base).with_name("sft"), folder):  # on a hub they stand under these names
        lines = lines.replace(f'"{repo_name(path)}"', f'"{path}"')
    found = {}
    exec(lines, found)
    assert_close(logits(found["model"].eval()), logits(load(folder, kind_of)))


@LLAMA_FIRST
def test_ppo_trains_an_sft_adapter_whole_without_use_peft(sft, tmp_path):
    options = ["--learning_rate", "1e-3", "--reward_functions", "ppo_toys:even_share", "--value_model", "shared"]
    manifest = run_recipe("ppo", sft, tmp_path / "out", *options, peft=False)
    assert abs(manifest["metrics"]["kl"]) > 1e-4
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    difference = (logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")) - logits(load(sft))).abs().max()
    assert 1e-4 < difference < 1, "it has learned, from the SFT model"


@LLAMA_FIRST
@pytest.mark.parametrize(("peft", "warned"), [(False, True), (True, False)])
def test_training_in_bfloat16_says_that_small_steps_are_lost(base, tmp_path, capsys, peft, warned):
    run_recipe("dpo", base, tmp_path / "out", "--dtype", "bfloat16", peft=peft)
    assert ("warning: weights are trained in bfloat16, in which most updates" in capsys.readouterr().out) is warned


@LLAMA_FIRST
def test_reward_on_sft_is_its_trunk_and_what_it_has_learned(sft, tmp_path):
    manifest = run_recipe("reward", sft, tmp_path / "out", "--health_check", "false", "--learning_rate", "1e-2")
    assert_one_parent(tmp_path / "out", manifest, sft)
    torch.manual_seed(7)
    read = load(tmp_path / "out", load_reward_model)
    torch.manual_seed(8)
    assert_close(logits(load(tmp_path / "out", load_reward_model)), logits(read))  # no part of it is drawn anew
    trunk = PeftModel.from_pretrained(load(sft, load_reward_model), tmp_path / "out").merge_and_unload()
    assert_close(logits(trunk), logits(read))


@LLAMA_FIRST
def test_value_model_from_a_reward_adapter_resumes(kind, sft, reward, tokenizer, tmp_path):
    def trainer(**changes):
        data = Dataset.from_list([{"prompt": row["prompt"]} for row in PAIRS])
        own = {"reward_processing_classes": tokenizer, "eval_dataset": None}
        return toys.trainer(
            tmp_path,
            model=load(sft),
            reward=load(reward, load_reward_model),
            data=data,
            tok=tokenizer,
            trainer_arguments=own,
            gradient_accumulation_steps=1,
            num_ppo_epochs=1,
            save_strategy="steps",
            save_steps=2,
            max_completion_length=4,
            **changes,
        )

    whole = trainer()
    whole.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for (name, one), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other), name


# --- from Python ------------------------------------------------------------------------------------------------------


def test_policies_that_would_learn_nothing_or_lose_what_they_know_are_refused(kind, base, sft, tmp_path):
    lora = LoraConfig(r=2, target_modules=TARGETS[kind])
    frozen = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), sft)
    with pytest.raises(InputError, match="no trainable weight; load an adapter with is_trainable=True"):
        toys.trainer(tmp_path, model=frozen)
    trainable = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), sft, is_trainable=True)
    with pytest.raises(InputError, match="has an adapter already, which a new one would replace"):
        toys.trainer(tmp_path, model=trainable, trainer_arguments={"peft_config": lora})
    for config in (lora, None):
        with pytest.raises(InputError, match="from_pretrained has put a frozen adapter into it"):
            toys.trainer(
                tmp_path, model=AutoModelForCausalLM.from_pretrained(sft), trainer_arguments={"peft_config": config}
            )
    prompt = PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(InputError, match="learned prompt"):
        toys.trainer(tmp_path, model=load(base), trainer_arguments={"peft_config": prompt})
    with pytest.raises(InputError, match="learned prompt"):
        check_policy(get_peft_model(load(base), prompt), None)
    check_policy(trainable, None)
    check_policy(load(base), lora)
    with pytest.raises(InputError, match="no trainable weight"):
        check_policy(load(base).requires_grad_(False), None)


@LLAMA_FIRST
@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_reference_of_lora_that_trains_biases_stays_the_start(kind, tokenizer, tmp_path, bias):
    torch.manual_seed(0)
    policy = build_policy(CONFIGS[kind] | ({"attention_bias": True} if kind == "llama" else {}), tokenizer)
    start = logits(policy.eval())
    lora = LoraConfig(r=2, target_modules=["q_proj"] if kind == "llama" else ["c_attn"], bias=bias)
    trainer = toys.trainer(
        tmp_path, model=policy, tok=tokenizer, trainer_arguments={"peft_config": lora}, learning_rate=1e-1, max_steps=2
    )
    trainer.train()
    assert_close(logits(trainer.ref_model.model), start)
    assert (logits(trainer.model.policy) - start).abs().max() > 1e-2


# --- merge ------------------------------------------------------------------------------------------------------------


def test_merge_writes_the_whole_model(base, dpo, reward, tokenizer, tmp_path):
    run_merge(dpo, tmp_path / "whole")
    assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "whole")), logits(load(dpo)))
    assert load_tokenizer(ModelArguments(model_name_or_path=str(tmp_path / "whole"))).get_vocab() == tokenizer.get_vocab()
    assert not (tmp_path / "whole" / "adapter_config.json").exists()
    card = ModelCard.load(tmp_path / "whole" / "README.md")
    assert not card.data.eval_results and "Not measured yet" in card.text, "a model's size is no result"
    run_merge(reward, tmp_path / "reward")
    read = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    assert_close(logits(read), logits(load(reward, load_reward_model)))
    assert read.config.pad_token_id == tokenizer.pad_token_id
    with pytest.raises(InputError, match="is a full model, so there is nothing to merge"):
        run_merge(base, tmp_path / "again")
