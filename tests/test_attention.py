"""Packed and padding-free rows are attended by document, without a mask: the same numbers, everywhere or not at all."""

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers import AutoConfig, AutoModelForCausalLM, TrainingArguments

from llmrecipes import attention
from llmrecipes.attention import BY_DOCUMENT, attention_of, borders_of, require_borders, why_masked
from llmrecipes.config import InputError
from llmrecipes.pretraining import PretrainTrainer
from llmrecipes.sft import SFTTrainer
from llmrecipes.tokenizers import train_tokenizer
from llmrecipes.tokens.blocks import collator_for
from llmrecipes.tokens.corpus import build_blocks

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
LENGTHS = (5, 1, 9, 3)
TEXTS = [f"{name} has a {colour} hat." for name in ("Ann", "Bob", "Cleo") for colour in ("red", "green")]
CHATS = [
    {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "So" + ", so" * i + "."}]}
    for i, text in enumerate(TEXTS)
]


def build(kind="llama", **changes):
    torch.manual_seed(0)
    sizes = {} if kind == "gpt2" else SIZES
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes | changes))


def rows(*lengths):
    """A packed row of documents of these lengths as TRL's collator makes it."""
    torch.manual_seed(1)
    places = torch.cat([torch.arange(length) for length in lengths])[None]
    return {"input_ids": torch.randint(3, 300, places.shape), "position_ids": places}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300, 128)


@pytest.fixture
def masks(monkeypatch):
    """Whether each call of SDPA from now on had a mask."""
    seen = []

    def spy(*args, attn_mask=None, **kwargs):
        seen.append(attn_mask is not None)
        return sdpa(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    monkeypatch.setattr(attention, "scaled_dot_product_attention", spy)
    return seen


class Kernel:
    """Stands in for `torch.nn.attention.varlen.varlen_attn`, which needs a GPU: what it asks for, and what it computes."""

    def __init__(self, monkeypatch, keys=("scale", "window_size", "enable_gqa")):
        self.calls = []
        monkeypatch.setattr(attention, "_on_gpu", lambda tensor: True)
        monkeypatch.setattr(attention, "varlen_attn", self)
        monkeypatch.setattr(attention, "KERNEL_KEYS", frozenset(keys))
        self.keys = keys

    def __call__(self, query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **more):
        assert more.keys() == set(self.keys) and more["window_size"] == (-1, 0), "causal"
        assert query.dtype == key.dtype == value.dtype and query.dtype in (torch.bfloat16, torch.float16)
        assert query.dim() == 3 and key.shape == value.shape and key.shape[::2] == query.shape[::2]
        assert cu_seq_q is cu_seq_k and cu_seq_q.dtype == torch.int32 and cu_seq_q[-1] == len(query)
        assert max_q == max_k == cu_seq_q.diff().max() and type(max_q) is int
        assert more.get("enable_gqa", True) or query.shape[1] == key.shape[1]
        self.calls.append((tuple(query.shape), key.shape[1], query.dtype))
        parts = [given.split(cu_seq_q.diff().tolist()) for given in (query, key, value)]
        outs = [
            sdpa(*(part.transpose(0, 1)[None] for part in document), is_causal=True, scale=more["scale"], enable_gqa=True)
            for document in zip(*parts, strict=True)
        ]
        return torch.cat([out[0].transpose(0, 1) for out in outs])


# --- the function -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_gpu", [False, True])
def test_attention_by_document_is_that_of_a_mask(on_gpu, monkeypatch):
    dtype, tolerance = (torch.bfloat16, 2e-2) if on_gpu else (torch.float32, 1e-5)
    kernel = Kernel(monkeypatch) if on_gpu else None
    places = torch.tensor([[0, 1, 2, 3, 0, 1], [0, 0, 1, 2, 3, 4]])  # documents end with their row
    documents = (places == 0).cumsum(1)
    mask = (documents[:, :, None] == documents[:, None]) & (torch.ones(6, 6).tril() > 0)
    torch.manual_seed(0)
    given = [torch.randn(2, heads, 6, 8, dtype=dtype, requires_grad=True) for heads in (4, 2, 2)]
    weights = torch.randn(2, 6, 4, 8, dtype=dtype)
    out, _ = attention.attend_by_document(torch.nn.Module(), *given, None, scaling=0.3, **borders_of(places))
    found = [out, *torch.autograd.grad((out * weights).sum(), given)]
    expected = sdpa(*given, attn_mask=mask[:, None], scale=0.3, enable_gqa=True).transpose(1, 2)
    expected = [expected, *torch.autograd.grad((expected * weights).sum(), given)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)
    assert not on_gpu or kernel.calls == [((12, 4, 8), 2, torch.bfloat16)]


def test_borders_are_counted_through_all_rows():
    borders = borders_of(torch.tensor([[0, 1, 0], [0, 1, 2]]))
    assert borders["cu_seq_lens_q"].tolist() == borders["cu_seq_lens_k"].tolist() == [0, 2, 3, 6]
    assert borders["cu_seq_lens_q"].dtype == torch.int32 and borders["max_length_q"] == borders["max_length_k"] == 3


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_packed_document_has_the_logits_and_gradients_that_it_has_alone(kind, masks):
    model, given = build(kind).eval(), rows(*LENGTHS)
    with attention_of(model, BY_DOCUMENT):
        packed = model(**given, **borders_of(given["position_ids"]), use_cache=False).logits
    weights = torch.randn(packed.shape)
    (packed * weights).sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    assert masks and not any(masks)
    for ids, own, expected in zip(*(x.split(LENGTHS, 1) for x in (given["input_ids"], packed, weights)), strict=True):
        alone = model(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(own, alone, atol=1e-5, rtol=1e-5)
        (alone * expected).sum().backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad - gradient).norm() <= 1e-5 * gradient.norm()


# --- which models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changes", "dtype", "why"),
    [
        ("llama", {}, torch.float32, None),
        ("llama", {}, torch.bfloat16, None),
        ("mixtral", {"num_local_experts": 2}, torch.float32, None),
        ("gpt2", GPT2 | {"attn_pdrop": 0.0}, torch.float32, None),
        ("gpt2", GPT2, torch.float32, "attn_pdrop is 0.1"),
        ("mistral", {"sliding_window": 4}, torch.float32, None),
        ("mistral", {"sliding_window": 3}, torch.float32, "its attention is not causal inside documents alone"),
        ("gemma2", {"head_dim": 8}, torch.float32, "`sdpa` attention does not support `softcap`"),
        ("llama4_text", {"num_local_experts": 2, "head_dim": 8}, torch.float32, "the model has layers of chunked_attention"),
        ("stablelm", {}, torch.float32, "the borders of documents do not reach its layers"),
        ("falcon", {}, torch.float32, ""),
    ],
)
def test_what_is_not_proven_equal_keeps_its_mask(kind, changes, dtype, why):
    model = build(kind, **changes).train().to(dtype)
    model.config._attn_implementation = "sdpa"
    found = why_masked(model)
    assert found is None if why is None else found.startswith(why)
    assert model.training and model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("kind", "changes"), [("opt", {"word_embed_proj_dim": 32}), ("bloom", {}), ("mamba", {"state_size": 4})]
)
def test_models_whose_rows_would_see_each_other_are_refused(kind, changes):
    changes = changes | {"num_key_value_heads": None}
    with pytest.raises(InputError, match=f"^packing: {kind} does not recognise .* positions: rows would see each other"):
        require_borders(build(kind, **changes), "packing", "rows would see each other", collated=True)


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        (("scale", "window_size", "enable_gqa"), None),
        (("scale", "window_size"), None),  # torch 2.11
        (("is_causal",), f"torch {torch.__version__} has no torch.nn.attention.varlen with `scale`"),  # torch 2.10
        ((), f"torch {torch.__version__} has no torch.nn.attention.varlen with `scale`"),
    ],
)
def test_torchs_kernel_is_taken_as_this_torch_has_it(keys, why, monkeypatch):
    kernel, model = Kernel(monkeypatch, keys), build()
    with torch.autocast("cpu", torch.bfloat16):
        assert why_masked(model) == why
    assert kernel.calls == ([((9, 4, 8), 2, torch.bfloat16)] * 2 if why is None else [])
    assert why or why_masked(model) == "its kernel computes in bfloat16 and float16, not in float32"


def test_a_kernel_that_fails_leaves_the_mask(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.\nmore")

    Kernel(monkeypatch)
    monkeypatch.setattr(attention, "varlen_attn", fails)
    assert why_masked(build().to(torch.bfloat16)) == "FlashAttention only supports Ampere GPUs or newer."


def test_a_kernel_without_a_backward_pass_leaves_the_mask(monkeypatch):
    """As of heads of 193 to 224 on consumer GPUs: the run would end with a traceback in its first step."""

    class OneWay(torch.autograd.Function):
        @staticmethod
        def forward(ctx, out):
            return out.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError("FlashAttention backward for head dim > 192 requires A100 or H100")

    kernel = Kernel(monkeypatch)
    monkeypatch.setattr(attention, "varlen_attn", lambda *args, **kwargs: OneWay.apply(kernel(*args, **kwargs)))
    model = build().to(torch.bfloat16)
    assert why_masked(model) == "FlashAttention backward for head dim > 192 requires A100 or H100"
    assert all(weight.grad is None for weight in model.parameters()) and len(kernel.calls) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_torchs_own_kernel_has_the_values_and_gradients_of_single_documents():
    places = torch.cat([torch.arange(length) for length in (130, 1, 64, 300)])[None]
    given = [torch.randn(1, heads, 495, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for heads in (8, 2, 2)]
    borders, weights = borders_of(places.cuda()), torch.randn(1, 495, 8, 64, device="cuda")
    found = []
    for attend in (attention._by_kernel, attention._one_by_one):
        flat = [tensor.transpose(1, 2).flatten(0, 1) for tensor in given]
        out = attend(*flat, borders["cu_seq_lens_q"], borders["max_length_q"], 0.1)
        found.append([out, *torch.autograd.grad((out * weights[0]).sum(), given)])
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() < 1e-2 * other.norm()


# --- in training ------------------------------------------------------------------------------------------------------


def sft(tokenizer, folder, model=None, peft_config=None, steps=2, data=CHATS, **values):
    values = {"packing": True, "max_length": 64, "gradient_checkpointing": False, "bf16": False} | values
    args = trl.SFTConfig(
        output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True, max_steps=steps, logging_steps=1,
        per_device_train_batch_size=3, per_device_eval_batch_size=2, learning_rate=1e-2, **values,
    )  # fmt: skip
    model = model or build(vocab_size=len(tokenizer))
    trainer = SFTTrainer(
        model=model, args=args, train_dataset=Dataset.from_list(data), eval_dataset=Dataset.from_list(data[:3]),
        processing_class=tokenizer, peft_config=peft_config,
    )  # fmt: skip
    trainer.train()
    found = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return [*found, trainer.evaluate()["eval_loss"]]


@pytest.mark.parametrize("how", ["plain", "checkpointed", "lora"])
def test_a_packed_run_learns_the_same_with_and_without_a_mask(how, tokenizer, tmp_path, masks, monkeypatch, capsys):
    def run():
        lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM") if how == "lora" else None
        return sft(tokenizer, tmp_path, peft_config=lora, gradient_checkpointing=how != "plain")

    apart = run()
    first = masks.index(False)
    assert all(masks[:first]) and not any(masks[first + 2 + 8 :]), "after the trial nothing has a mask"
    assert capsys.readouterr().out.count("attention: each document by itself, without a mask\n") == 1
    masks.clear()
    monkeypatch.setattr(attention, "why_masked", lambda model: "because")
    assert apart == pytest.approx(run(), rel=1e-5)
    assert masks and all(masks[-8:]) and "attention: by a mask of documents: because\n" in capsys.readouterr().out


def test_documents_longer_than_a_window_keep_their_mask(tokenizer, tmp_path, masks, monkeypatch, capsys):
    def run():
        model = build("mistral", vocab_size=len(tokenizer), sliding_window=window)
        return sft(tokenizer, tmp_path, model, packing=False, padding_free=True)

    for window, without in ((20, False), (128, True)):
        masks.clear()
        learnt = run()
        assert any(masks[-8:]) is not without
        assert f"but for those longer than the window of {window} tokens\n" in capsys.readouterr().out
        with monkeypatch.context() as patched:
            patched.setattr(attention, "why_masked", lambda model: "because")
            assert learnt == pytest.approx(run(), rel=1e-5)


def test_rows_that_would_see_each_other_are_refused_in_shards_too(tokenizer, tmp_path, monkeypatch):
    """Before its trainer has it in hand, a model that is to be sharded cannot be tried."""
    monkeypatch.setattr(attention, "is_sharded", lambda model: True)
    opt = {"ffn_dim": 64, "word_embed_proj_dim": 32, "vocab_size": len(tokenizer)}
    with pytest.raises(InputError, match="^packing: opt does not recognise document boundaries"):
        sft(tokenizer, tmp_path, build("opt", **opt))
    assert len(sft(tokenizer, tmp_path)) == 3


def test_rows_without_padding_learn_what_padded_rows_learn_and_are_cut(tokenizer, tmp_path, masks):
    longest = {"padding_free": True, "packing": False, "max_length": 20}
    free = sft(tokenizer, tmp_path, **longest)
    assert not any(masks[-8:])
    assert free == pytest.approx(sft(tokenizer, tmp_path, **longest | {"padding_free": False}), rel=1e-5)


def test_on_a_gpu_the_kernel_gets_the_rows_as_autocast_has_them(tokenizer, tmp_path, monkeypatch):
    kernel = Kernel(monkeypatch)
    losses = sft(tokenizer, tmp_path, bf16=True, gradient_checkpointing=True)
    shapes = {(shape[1:], shared, dtype) for shape, shared, dtype in kernel.calls}
    assert shapes == {((4, 8), 2, torch.bfloat16)}
    monkeypatch.setattr(attention, "_on_gpu", lambda tensor: False)
    assert losses == pytest.approx(sft(tokenizer, tmp_path, bf16=True), rel=2e-2)


@torch.compiler.allow_in_graph  # dynamo does not look into torch's own kernel either
def varlen_in_graph(query, key, value, borders, _, longest, __, *, scale, window_size, enable_gqa):
    places = torch.arange(query.shape[0])
    documents = torch.searchsorted(borders, places, right=True)
    mask = (documents[:, None] == documents) & (places[:, None] >= places)
    given = [tensor.transpose(0, 1)[None] for tensor in (query, key, value)]
    return sdpa(*given, attn_mask=mask, scale=scale, enable_gqa=True)[0].transpose(0, 1)


@pytest.mark.parametrize("checkpointed", [False, pytest.param(True, marks=pytest.mark.long)])
def test_compiled_it_is_one_graph_for_documents_of_any_length(checkpointed, tokenizer, tmp_path, monkeypatch):
    graphs, compile_ = [], torch.compile

    def backend(graph, inputs):
        graphs.append([node for node in graph.graph.nodes if "varlen" in str(node.target)])
        return graph.forward

    Kernel(monkeypatch)
    monkeypatch.setattr(attention, "varlen_attn", varlen_in_graph)
    monkeypatch.setattr(torch, "compile", lambda model, **_: compile_(model, backend=backend))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    keys = {"bf16": True, "steps": 6, "packing": False, "padding_free": True, "gradient_checkpointing": checkpointed}
    losses = sft(tokenizer, tmp_path, torch_compile=True, **keys)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert len(graphs) <= 3
    assert checkpointed or all(len(calls) == 2 for calls in graphs), "a call for each layer"
    assert losses == pytest.approx(sft(tokenizer, tmp_path, **keys), rel=2e-2)


def test_pretraining_with_reset_attention_makes_no_mask(tokenizer, tmp_path, masks, monkeypatch):
    blocks = build_blocks(Dataset.from_dict({"text": TEXTS * 6}), tokenizer, 32, 4, reset_attention=True)

    def run():
        model = build(vocab_size=len(tokenizer))
        args = TrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, max_steps=3, logging_steps=1,
            per_device_train_batch_size=2, learning_rate=1e-2,
        )  # fmt: skip
        trainer = PretrainTrainer(
            model=model, args=args, train_dataset=blocks, eval_dataset=[blocks[0]], data_collator=collator_for(model, True)
        )
        trainer.train()
        return [*(e["loss"] for e in trainer.state.log_history if "loss" in e), trainer.evaluate()["eval_loss"]]

    torch.manual_seed(0)
    apart = run()
    assert not any(masks[-8:])
    monkeypatch.setattr(attention, "why_masked", lambda model: "because")
    torch.manual_seed(0)
    assert apart == pytest.approx(run(), rel=1e-5) and all(masks[-8:])
