"""What Trainer lacks and this library adds computes what it says: Muon, SFT's loss, blocks, bits per byte, LoRA."""

import math
import runpy
from pathlib import Path

import pytest
import torch
import trl
from datasets import Dataset
from forked import run_python
from training_toys import COLOURS, CONFIG, NAMES, TEXTS, arguments, save_model

from llmrecipes import muon
from llmrecipes.config import InputError, ModelArguments
from llmrecipes.models import build_policy, load_policy, multiply_in_tf32
from llmrecipes.muon import MuonAdamW, build_muon
from llmrecipes.parsing import parse
from llmrecipes.pretraining import PretrainTrainer
from llmrecipes.sft import SFTTrainer, without_prompts
from llmrecipes.tokenizers import train_tokenizer
from llmrecipes.tokens.blocks import collate_blocks
from llmrecipes.tokens.corpus import build_blocks

ROOT = Path(__file__).parent.parent


CHATS = [
    [
        {"role": "user", "content": f"Which hat has {name}?"},
        {"role": "assistant", "content": f"A {colour} one" + ", I think" * i + "."},
    ]
    for i, name in enumerate(NAMES)
    for colour in COLOURS
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300, 128)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    return save_model(CONFIG, tokenizer, path)


def sft_trainer(folder, tokenizer, output_dir, rows, kind=SFTTrainer, **values):
    values = {"max_length": 128, "gradient_checkpointing": False} | values
    return kind(
        model=load_policy(ModelArguments(model_name_or_path=folder)),
        args=arguments(output_dir, trl.SFTConfig, **values),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


# --- Muon -------------------------------------------------------------------------------------------------------------


def test_muon_takes_hidden_matrices_and_adamw_the_rest(tokenizer):
    policy = build_policy(CONFIG, tokenizer)
    optimizer = build_muon(policy, arguments("unused", learning_rate=1e-3, weight_decay=0.1), muon_learning_rate=0.02)
    name_of = {id(p): name for name, p in policy.named_parameters()}
    muon, decayed, others = ({name_of[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert muon == {name for name in name_of.values() if "proj" in name}
    assert decayed == {"model.embed_tokens.weight", "lm_head.weight"}
    assert all("norm" in name for name in others) and len(muon | decayed | others) == len(name_of)
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 1e-3, 1e-3]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]


HAS_AMX = torch.cpu.get_capabilities().get("amx_bf16", False)


@pytest.mark.parametrize("amx", [False, True])
def test_muon_adamw_moves_as_its_two_parts_alone(amx, monkeypatch):
    """torch.optim.Muon orthogonalizes one matrix after another in bfloat16; ours, many at a time, must move the same: in
    float32 but for rounding, in bfloat16 with AMX exactly."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
    monkeypatch.setattr(muon, "BATCH", 128)  # two of these matrices
    shapes, whole = [], muon.orthogonalize
    monkeypatch.setattr(muon, "orthogonalize", lambda *given: shapes.append((*given[0].shape, given[2])) or whole(*given))
    torch.manual_seed(0)
    start = [torch.randn(16, 4), *torch.randn(3, 4, 16), torch.randn(5)]
    gradients = [torch.randn(3, *value.shape) for value in start]
    ours, alone = ([torch.nn.Parameter(value.clone()) for value in start] for _ in range(2))
    both = MuonAdamW([{"params": ours[:4], "lr": 0.02, "weight_decay": 0.1}], [{"params": ours[4:], "lr": 1e-2}])
    parts = [torch.optim.Muon(alone[:4], lr=0.02, weight_decay=0.1), torch.optim.AdamW(alone[4:], lr=1e-2)]
    for step in range(3):
        for parameter, gradient in zip([*ours, *alone], gradients * 2, strict=True):
            parameter.grad = gradient[step].clone()
        for group in [*both.param_groups, *(g for part in parts for g in part.param_groups)]:
            group["lr"] *= 0.5  # as a scheduler does
        for optimizer in (both, *parts):
            optimizer.step()
    for mine, theirs, before in zip(ours, alone, start, strict=True):
        moved = (theirs - before).norm()
        assert (mine - theirs).norm() < 0.03 * moved, "as near as bfloat16 comes"
        assert torch.equal(mine, theirs) or not (amx and HAS_AMX), "bfloat16 against bfloat16"
    assert torch.equal(ours[4], alone[4]), "AdamW's part is exact"
    sizes = [(2, 4, 16, torch.bfloat16), (1, 4, 16, torch.bfloat16)] if amx else [(3, 4, 16, torch.float32)]
    assert shapes[: len(shapes) // 3] == [(1, 16, 4, sizes[0][3]), *sizes]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resume_equals_uninterrupted(tokenizer, folder, tmp_path, optimizer):
    """Bit-equal weights and losses, through Trainer's checkpoint of optimizer, schedule and data order."""
    blocks = build_blocks(Dataset.from_dict({"text": TEXTS}), tokenizer, 16, 4)

    def train(output_dir, resume=None):
        policy = load_policy(ModelArguments(model_name_or_path=folder))
        args = arguments(
            output_dir,
            max_steps=6,
            save_steps=3,
            lr_scheduler_type="warmup_stable_decay",
            warmup_steps=1,
            lr_scheduler_kwargs={"num_decay_steps": 4},
        )
        optimizers = (build_muon(policy, args, 0.02) if optimizer == "muon" else None, None)
        trainer = PretrainTrainer(
            model=policy, args=args, train_dataset=blocks, data_collator=collate_blocks, optimizers=optimizers
        )
        trainer.train(resume_from_checkpoint=resume)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return losses, policy.state_dict()

    losses, weights = train(tmp_path / "whole")
    resumed_losses, resumed = train(tmp_path / "rest", str(tmp_path / "whole" / "checkpoint-3"))
    assert resumed_losses == losses and losses[-1] < losses[0]
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    before = load_policy(ModelArguments(model_name_or_path=str(tmp_path / "whole" / "checkpoint-3"))).state_dict()
    assert not all(torch.equal(weights[name], before[name]) for name in weights), "the last steps moved something"


@pytest.mark.parametrize("keys, said", [({}, True), ({"tf32": False}, False), ({"bf16": True}, False)])
def test_float32_is_multiplied_in_tf32_where_a_gpu_has_it(monkeypatch, capsys, tmp_path, keys, said):
    turned_on = []
    monkeypatch.setattr("llmrecipes.models.is_torch_tf32_available", lambda: True)
    monkeypatch.setattr("llmrecipes.models.enable_tf32", turned_on.append)
    monkeypatch.setattr("torch.set_float32_matmul_precision", lambda how: None)
    args = arguments(tmp_path, **keys)
    args.use_cpu = False
    multiply_in_tf32(args)
    assert turned_on == [True] * said and ("TF32" in capsys.readouterr().out) == said


def test_torchs_two_settings_of_tf32_agree_and_are_what_is_asked_for():
    """inductor's autotuning reads the older one (`create_precompile_key`), and torch raises where they differ; accelerate
    turns TF32 on for every compiled model in float32 (`AcceleratorState`)."""
    code = """
import torch
from types import SimpleNamespace
from llmrecipes import models
models.is_torch_tf32_available = lambda: True
for given in (None, True, False):
    if given is not None:
        models.enable_tf32(given)  # as TrainingArguments does
    if given is False:
        torch.backends.cuda.matmul.allow_tf32 = True  # as accelerate does
    models.multiply_in_tf32(SimpleNamespace(tf32=given, bf16=False, fp16=False, use_cpu=False))
    print(torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.fp32_precision)
"""
    lines = run_python("-c", code).stdout.splitlines()
    assert [line for line in lines if "TF32" not in line] == ["high tf32", "high tf32", "highest ieee"]


# --- SFT --------------------------------------------------------------------------------------------------------------


def learned_text(trainer, tokenizer):
    """For each row of each batch that reaches the model, the text of the tokens that carry loss."""
    return [
        tokenizer.decode(ids[labels != -100])
        for batch in trainer.get_train_dataloader()
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)
    ]


def test_loss_falls_on_the_assistants_tokens_only(folder, tokenizer, tmp_path):
    two_turns = [*CHATS[0], {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]
    rows = [{"messages": two_turns}, {"messages": [{"role": "system", "content": "Be short."}, *CHATS[1]]}]
    trainer = sft_trainer(folder, tokenizer, tmp_path, rows, assistant_only_loss=True)
    assert sorted(learned_text(trainer, tokenizer)) == ["A green one.<|im_end|>", "A red one.<|im_end|>Yes.<|im_end|>"]


def test_loss_falls_on_the_completion_only(folder, tokenizer, tmp_path):
    rows = [{"prompt": "Ann has a ", "completion": "hat."}, {"prompt": CHATS[0][:1], "completion": CHATS[0][1:]}]
    for row, learned in zip(rows, ["hat.<|im_end|>", "A red one.<|im_end|>"], strict=True):
        assert learned_text(sft_trainer(folder, tokenizer, tmp_path, [row] * 4), tokenizer)[0].strip() == learned


def test_loss_falls_on_the_same_tokens_when_packed(folder, tokenizer, tmp_path):
    rows = [{"messages": chat} for chat in CHATS]
    trainer = sft_trainer(folder, tokenizer, tmp_path, rows, assistant_only_loss=True, packing=True)
    packed = learned_text(trainer, tokenizer)
    assert len(packed) < len(rows), "several conversations share a row"
    assert sorted("".join(packed).split("<|im_end|>")) == sorted([*(chat[1]["content"] for chat in CHATS), ""])


@pytest.mark.parametrize("packing", [False, True])
def test_sft_loss_and_gradient_equal_trls(folder, tokenizer, tmp_path, packing):
    rows = [{"messages": chat} for chat in CHATS]
    results = []
    for kind in (SFTTrainer, trl.SFTTrainer):
        trainer = sft_trainer(
            folder, tokenizer, tmp_path, rows, kind, assistant_only_loss=True, packing=packing, max_length=64
        )
        batches, num_items = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 2, "cpu")
        trainer.model.train()
        losses = [trainer.compute_loss(trainer.model, batch, num_items_in_batch=num_items) for batch in batches]
        sum(losses).backward()
        results.append((torch.stack(losses).detach(), {n: p.grad for n, p in trainer.model.named_parameters()}))
    (losses, gradients), (trl_losses, trl_gradients) = results
    torch.testing.assert_close(losses, trl_losses)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, trl_gradients[name], atol=1e-6, rtol=1e-4)


def test_the_head_reads_no_position_before_the_first_token_to_learn(folder):
    model = load_policy(ModelArguments(model_name_or_path=folder))
    labels = torch.tensor([[-100, -100, -100, 7], [-100, -100, 5, 6]])
    kept = without_prompts(model, labels)
    assert kept["logits_to_keep"] == 3 and torch.equal(kept["labels"], labels[:, 1:])
    for whole in (torch.full((1, 3), -100), torch.tensor([[5, 6, 7]])):  # nothing to learn, or all of it
        assert list(without_prompts(model, whole)) == ["labels"]


def test_batch_without_a_token_to_learn_has_loss_zero(folder, tokenizer, tmp_path):
    trainer = sft_trainer(folder, tokenizer, tmp_path, [{"messages": chat} for chat in CHATS])
    ids = torch.tensor([[5, 6, 7]])
    batch = {"input_ids": ids, "labels": torch.full_like(ids, -100), "attention_mask": torch.ones_like(ids)}
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(0))
    assert loss.item() == 0.0


def test_all_tokens_masked_is_an_input_error(folder, tokenizer, tmp_path):
    rows = [{"messages": chat} for chat in CHATS]
    with pytest.raises(InputError, match="nothing is left to learn from: none of .* within max_length 8, the shortest"):
        sft_trainer(folder, tokenizer, tmp_path, rows, assistant_only_loss=True, max_length=8)
    with pytest.raises(InputError, match="completion_only_loss: false has no effect on `messages`"):
        sft_trainer(folder, tokenizer, tmp_path, rows, assistant_only_loss=True, completion_only_loss=False)


# --- recipes ----------------------------------------------------------------------------------------------------------


def run_recipe(stage, config, folder, output_dir, rows, *options, weight_pairs=False):
    """Metrics of a recipe run in this process."""
    import json

    from llmrecipes.config import DataArguments, PreviewArguments, RunArguments

    data = output_dir.with_suffix(".jsonl")
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["--model_name_or_path", folder, "--datasets", str(data), "--output_dir", str(output_dir)]
    argv += ["--max_steps", "3", "--per_device_train_batch_size", "4", "--learning_rate", "1e-2", "--bf16", "false"]
    argv += ["--activation_checkpointing", "false", "--report_to", "none", "--test_split_size", "4"]
    argv += ["--save_strategy", "no", *options]
    recipe = runpy.run_path(str(ROOT / "recipes" / f"{stage}.py"))
    shared = (RunArguments, DataArguments, PreviewArguments)
    if stage == "reward":
        health = "llmrecipes.reward_models.health:HealthArguments"
        run, data, preview, *rest = parse(*shared, health, config, ModelArguments, argv=argv)
        recipe["main"](run, data, preview, recipe["PairArguments"](weight_pairs), *rest)
    else:
        watch = "llmrecipes.evaluation.watch:WatchArguments"
        recipe["main"](*parse(*shared, config, ModelArguments, watch, argv=argv))
    return json.loads((output_dir / "manifest.json").read_text())["metrics"]


def test_lora_trains_and_saves_an_adapter_only(folder, tokenizer, tmp_path):
    rows = [{"messages": chat} for chat in CHATS]
    options = ["--use_peft", "true", "--lora_r", "4", "--lora_target_modules", "all-linear"]
    metrics = run_recipe("sft", "trl.trainer.sft_config:SFTConfig", folder, tmp_path / "sft", rows, *options)
    assert math.isfinite(metrics["eval_loss"])
    assert (tmp_path / "sft" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "sft" / "model.safetensors").exists()
    tuned = load_policy(ModelArguments(model_name_or_path=str(tmp_path / "sft")), tokenizer)
    base = load_policy(ModelArguments(model_name_or_path=folder), tokenizer)
    chat = tokenizer.apply_chat_template(CHATS[0], return_tensors="pt", return_dict=False)
    with torch.no_grad():
        difference = (tuned(input_ids=chat).logits - base(input_ids=chat).logits).abs().max()
    assert difference > 1e-3, "the adapter is loaded, and it learned"


def pairs_of_chats(**columns):
    return [
        {"prompt": a[:1], "chosen": a[1:], "rejected": b[1:]} | {name: values[i] for name, values in columns.items()}
        for i, (a, b) in enumerate(zip(CHATS, CHATS[::-1], strict=True))
    ]


def test_weighted_reward_loss_is_the_weighted_mean_over_pairs(folder, tokenizer, tmp_path):
    from trl import RewardConfig

    from llmrecipes.models import load_reward_model
    from llmrecipes.reward_models.trainer import RewardTrainer, pair_columns

    rows = Dataset.from_list(pairs_of_chats(weight=[float(1 + i % 3) for i in range(len(CHATS))]))
    args = RewardConfig(
        output_dir=str(tmp_path),
        report_to=[],
        bf16=False,
        use_cpu=True,
        center_rewards_coefficient=0.1,
        per_device_train_batch_size=len(CHATS),
    )
    model = load_reward_model(ModelArguments(model_name_or_path=folder), tokenizer)
    torch.nn.init.normal_(model.score.weight)

    def loss(weighted):
        trainer = RewardTrainer(
            model=model, args=args, train_dataset=pair_columns(rows, weighted), processing_class=tokenizer
        )
        trainer.model.train()
        batch = next(iter(trainer.get_train_dataloader()))
        with torch.no_grad():
            got = trainer.compute_loss(trainer.model, dict(batch)).item()
            chosen, rejected = model(batch["input_ids"], batch["attention_mask"]).logits.squeeze(-1).chunk(2)
        losses, weights = -torch.nn.functional.logsigmoid(chosen - rejected), batch.get("weight", torch.ones(1))
        centring = 0.1 * ((chosen + rejected) ** 2).mean()
        return got, ((weights * losses).sum() / weights.expand_as(losses).sum() + centring).item()

    plain, weighted = loss(False), loss(True)
    assert plain[0] == pytest.approx(plain[1], rel=1e-4) and weighted[0] == pytest.approx(weighted[1], rel=1e-4)
    assert abs(plain[0] - weighted[0]) > 1e-4


def test_weight_pairs_through_the_recipe_and_without_the_column(folder, tmp_path):
    def train_loss(name, rows, weight_pairs=True):
        reward, options = "trl.trainer.reward_config:RewardConfig", ("--health_check", "false")
        metrics = run_recipe("reward", reward, folder, tmp_path / name, rows, *options, weight_pairs=weight_pairs)
        return metrics["train_loss"]

    equal = train_loss("equal", pairs_of_chats(weight=[0.5] * len(CHATS)))
    assert equal == pytest.approx(train_loss("none", pairs_of_chats(), weight_pairs=False), rel=1e-6)
    assert equal != train_loss("other", pairs_of_chats(weight=[10.0 ** (i % 2) for i in range(len(CHATS))]))
    some, others = [2.0, 0.5] * (len(CHATS) // 2), [2.0, None] * (len(CHATS) // 2)
    assert train_loss("some", pairs_of_chats(weight=others)) != train_loss("all", pairs_of_chats(weight=some))
    ones = [2.0, 1.0] * (len(CHATS) // 2)
    assert train_loss("nulls", pairs_of_chats(weight=others)) == train_loss("ones", pairs_of_chats(weight=ones))
    for name, rows in (("missing", pairs_of_chats()), ("zero", pairs_of_chats(weight=[0.0] * len(CHATS)))):
        with pytest.raises(InputError, match="weight_pairs: the pairs have no column `weight`"):
            train_loss(name, rows)


def test_reward_loss_does_not_read_the_rankings_margin(folder, tmp_path):
    pairs = pairs_of_chats(margin=[float(i) for i in range(len(CHATS))])
    losses = []
    for name, rows in (("with", pairs), ("without", [{k: p[k] for k in p if k != "margin"} for p in pairs])):
        metrics = run_recipe("reward", "trl.trainer.reward_config:RewardConfig", folder, tmp_path / name, rows)
        losses.append((metrics["train_loss"], metrics["eval_loss"]))
    assert losses[0] == losses[1]
