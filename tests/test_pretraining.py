"""Pretraining: its loss and blocks, compiled code, windows of attention."""

import math

import pytest
import torch
from datasets import Dataset
from training_toys import CONFIG, TEXTS, arguments, save_model

from llmrecipes import attention
from llmrecipes.attention import needs_no_mask
from llmrecipes.config import InputError, ModelArguments
from llmrecipes.models import build_policy, load_policy
from llmrecipes.pretraining import PretrainTrainer
from llmrecipes.tokenizers import train_tokenizer
from llmrecipes.tokens.blocks import collate_blocks
from llmrecipes.tokens.corpus import build_blocks
from llmrecipes.training import language_metrics, share_read


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300, 128)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    return save_model(CONFIG, tokenizer, path)


@pytest.mark.parametrize("keys", [{}, {"label_smoothing_factor": 0.1}, {"bf16": True}], ids=["plain", "smoothed", "bf16"])
def test_pretraining_keeps_no_logits_and_its_loss(tokenizer, folder, tmp_path, keys):
    """The trainer's loss is the model's own; its training steps return no logits, unless label smoothing needs them."""
    blocks = build_blocks(Dataset.from_dict({"text": TEXTS}), tokenizer, 16, 4)
    policy = load_policy(ModelArguments(model_name_or_path=folder))
    args = arguments(tmp_path, **keys)
    trainer = PretrainTrainer(model=policy, args=args, train_dataset=blocks, data_collator=collate_blocks)
    batch = collate_blocks([blocks[i] for i in range(4)])
    with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
        loss, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
        whole = policy(**batch)
    expected = trainer.label_smoother(whole, batch["labels"], shift_labels=True) if trainer.label_smoother else whole.loss
    torch.testing.assert_close(loss, expected)
    assert ("logits" in outputs) == bool(keys.get("label_smoothing_factor"))


def test_the_fused_head_trains_as_the_plain_one(tokenizer, folder, tmp_path):
    blocks = build_blocks(Dataset.from_dict({"text": TEXTS}), tokenizer, 16, 4)

    def train(fused_lm_head):
        policy = load_policy(ModelArguments(model_name_or_path=folder))
        trainer = PretrainTrainer(
            model=policy,
            args=arguments(tmp_path, max_steps=3),
            train_dataset=blocks,
            eval_dataset=blocks,
            data_collator=collate_blocks,
            fused_lm_head=fused_lm_head,
        )
        trainer.train()
        return trainer.evaluate()["eval_loss"], policy.state_dict()

    (loss, weights), (fused_loss, fused) = train(False), train(True)
    assert fused_loss == pytest.approx(loss, rel=1e-5)
    start = load_policy(ModelArguments(model_name_or_path=folder)).state_dict()
    for name, value in weights.items():
        assert (fused[name] - value).norm() <= 1e-3 * (value - start[name]).norm(), name


@pytest.mark.parametrize("fused_lm_head", [False, True])
def test_the_loss_is_the_mean_over_what_is_predicted_for_gpt2_too(tokenizer, tmp_path, fused_lm_head):
    """Whose class transformers does not know to shift its labels: all tokens were counted, the first of a row too."""
    policy = build_policy({"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2}, tokenizer)
    blocks = build_blocks(Dataset.from_dict({"text": TEXTS}), tokenizer, 16, 4)
    trainer = PretrainTrainer(
        model=policy,
        args=arguments(tmp_path),
        eval_dataset=blocks,
        data_collator=collate_blocks,
        fused_lm_head=fused_lm_head,
    )
    ids = torch.cat([batch["input_ids"] for batch in trainer.get_eval_dataloader()])
    with torch.no_grad():
        logits = policy.eval()(ids).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)


def test_compiled_pretraining_makes_no_mask_and_one_graph(tokenizer, tmp_path, monkeypatch):
    """SDPA has causal kernels only without a mask. Evaluation in batches of another size compiles nothing anew."""
    masks, compile_ = [], torch.compile

    def backend(graph, inputs):
        attention = [node for node in graph.graph.nodes if "scaled_dot_product" in str(node.target)]
        masks.append([(node.kwargs["attn_mask"], node.kwargs["is_causal"]) for node in attention])
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda model, **_: compile_(model, backend=backend))
    blocks = build_blocks(Dataset.from_dict({"text": TEXTS}), tokenizer, 16, 4)
    args = arguments(tmp_path, max_steps=3, torch_compile=True, eval_strategy="steps", eval_steps=1)
    torch._dynamo.reset()
    trainer = PretrainTrainer(
        model=build_policy({"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}, tokenizer),
        args=args,
        train_dataset=blocks,
        eval_dataset=[blocks[i] for i in range(3)],
        data_collator=collate_blocks,
    )
    trainer.train()
    assert masks == [[(None, True)]]


def test_attention_in_windows_keeps_its_mask(tokenizer):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    for kind, window, expected in (("llama", {}, True), ("mistral", {}, False), ("mistral", {"sliding_window": None}, True)):
        policy = build_policy({"model_type": kind, "num_key_value_heads": 2, **sizes, **window}, tokenizer)
        assert needs_no_mask(policy) is expected, kind
        assert policy.config._attn_implementation == "sdpa" and policy.training
    eager = build_policy({"model_type": "llama", **sizes}, tokenizer, attn_implementation="eager")
    assert not needs_no_mask(eager), "it would see the tokens after it"
    falcon = build_policy(
        {"model_type": "falcon", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}, tokenizer
    )
    assert not needs_no_mask(falcon), "its code fails without one"


@pytest.mark.parametrize(("kind", "expected"), [("llama", True), ("mixtral", True), ("falcon", False)])
def test_shards_are_tried_without_a_mask_where_they_train(kind, expected, tokenizer, tmp_path, monkeypatch):
    """Falcon's first step would end with a TypeError."""
    monkeypatch.setattr(attention, "is_sharded", lambda model: True)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "attention_dropout": 0.0}
    shared = {} if kind == "falcon" else {"num_key_value_heads": 1}
    policy = build_policy({"model_type": kind, **sizes, **shared}, tokenizer)
    blocks = build_blocks(Dataset.from_dict({"text": ["one two three four five six"] * 60}), tokenizer, 8, 2)
    args = arguments(tmp_path, max_steps=1, bf16=True, per_device_train_batch_size=2)
    trainer = PretrainTrainer(model=policy, args=args, train_dataset=blocks, data_collator=collate_blocks)
    assert trainer._needs_no_mask is None
    trainer.train()
    assert trainer._needs_no_mask is expected


# --- pretraining's blocks and measures --------------------------------------------------------------------------------


def test_blocks_have_no_padding_and_lose_only_the_tail(tokenizer):
    blocks = build_blocks(Dataset.from_dict({"text": TEXTS}), tokenizer, 16, 4)
    batch = collate_blocks([blocks[i] for i in range(len(blocks))])
    stream = [i for ids in tokenizer(TEXTS)["input_ids"] for i in [*ids, tokenizer.eos_token_id]]
    assert batch["input_ids"].shape == (len(stream) // 16, 16)
    assert batch["input_ids"].flatten().tolist() == stream[: len(stream) // 16 * 16]
    assert tokenizer.pad_token_id not in batch["input_ids"]
    assert torch.equal(batch["labels"], batch["input_ids"]) and "attention_mask" not in batch


def test_too_few_blocks_for_a_batch_is_an_input_error(tokenizer):
    with pytest.raises(InputError, match="less than one batch of 1000"):
        build_blocks(Dataset.from_dict({"text": TEXTS}), tokenizer, 16, 1000)


def test_a_run_that_ends_before_it_has_read_all_rows_says_so():
    assert [share_read({"epoch": epochs}) for epochs in (0.0902, 0.06, 0.999, 1.0, 3.0)] == [
        ", 0.09 epochs",
        ", 0.06 epochs",
        "",
        "",
        "",
    ]


def test_language_metrics_equal_the_sum_over_tokens_by_hand(tokenizer):
    """A model that gives every token 1/8 spends 3 bits a token: bits per byte is 3 x tokens / bytes."""
    texts = ["Ann has a hat.", "Zoë, too."]
    num_bytes = 14 + 10  # ë is two bytes
    num_tokens = sum(len(tokenizer(text)["input_ids"]) for text in texts) + 2  # and each document's end
    metrics = language_metrics(math.log(8), Dataset.from_dict({"text": texts}), tokenizer)
    assert metrics["perplexity"] == pytest.approx(8)
    assert metrics["bits_per_byte"] == pytest.approx(3 * num_tokens / num_bytes)
