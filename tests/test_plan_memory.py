"""The plan's memory and parameters are those of the models, the tracker and a process."""

import json
from http.client import IncompleteRead
from operator import itemgetter

import pytest
import yaml
from forked import run_python
from plan_toys import LLAMA, job

from llmrecipes.config import InputError
from llmrecipes.keys.settings import Settings
from llmrecipes.plan.advice import peak
from llmrecipes.plan.architecture import FAMILIES, known_keys, read_architecture
from llmrecipes.plan.job import Lora, _read_lora
from llmrecipes.plan.lookup import KNOWN, find_vocabulary, hub_file
from llmrecipes.plan.memory import phases

GPT2 = {"model_type": "gpt2", "vocab_size": 50257, "n_embd": 512, "n_layer": 2, "n_head": 8, "n_positions": 1024}


NEOX = {"model_type": "gpt_neox", "vocab_size": 50304, "hidden_size": 512, "num_hidden_layers": 2, "num_attention_heads": 8,
        "intermediate_size": 2048, "max_position_embeddings": 1024}  # fmt: skip


QWEN3 = {**LLAMA, "model_type": "qwen3", "vocab_size": 60000, "head_dim": 128, "tie_word_embeddings": True}


GEMMA3 = {**LLAMA, "model_type": "gemma3_text", "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 128,
          "sliding_window": 256}  # fmt: skip


EXPERTS = {**LLAMA, "model_type": "qwen3_moe", "head_dim": 64, "num_experts": 8, "num_experts_per_tok": 2,
           "moe_intermediate_size": 384}  # fmt: skip


WIDE = LLAMA | {"intermediate_size": 8192}


MISTRAL = LLAMA | {"model_type": "mistral", "vocab_size": 2000, "max_position_embeddings": 8192}


ALL = Lora(16, frozenset(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")), 0.0)


ALL_NEOX = Lora(16, frozenset(("qkv", "out", "up", "down")), 0.0)


PAIRS = {"rows": 2, "padded": True}


TRACED = {
    "pretraining GPT-2 in bfloat16": (GPT2, {"weight_bytes": 2, "autocast": False}),
    "reward model, Llama": (LLAMA, {"head": "score", **PAIRS}),
    "reward model, Llama in bfloat16, LoRA": (LLAMA, {"head": "score", "weight_bytes": 2, "lora": ALL, **PAIRS}),
    "reward model, experts in float32": (EXPERTS, {"head": "score", "batch": 8, **PAIRS}),
    "reward model, Llama, LoRA on down": (
        LLAMA,
        {"head": "score", "lora": Lora(16, frozenset(["down_proj"]), 0.0), **PAIRS},
    ),
    "PPO of Llama in float32, LoRA on o": (
        LLAMA,
        {"ppo": True, "autocast": False, "lora": Lora(16, frozenset(["o_proj"]), 0.0)},
    ),
    "PPO of Llama, tied": (LLAMA | {"tie_word_embeddings": True}, {"ppo": True}),
    "SFT of Llama, rows joined and kept apart by a mask": (LLAMA, {"batch": 2, "flattened": True}),
    "pretraining Gemma 3 on rows longer than its window": (GEMMA3, {}),
    "pretraining Mistral on rows longer than the window that it has by default": (MISTRAL, {"batch": 1, "length": 5120}),
    "pretraining GPT-NeoX with an activation of many operators": (
        NEOX | {"hidden_act": "gelu_fast", "vocab_size": 2000},
        {},
    ),
    "SFT of Gemma 3, tied, short rows, accumulated": (
        GEMMA3,
        {"head": "chunked", "padded": True, "accumulation": 2, "batch": 1, "length": 128},
    ),
    "KTO with a small vocabulary": (
        {**LLAMA, "vocab_size": 2048},
        {"head": "chunked", "has_reference": True, "padded": True},
    ),
}


TRACED_MORE = {
    "reward model, Llama in bfloat16": (LLAMA, {"head": "score", "weight_bytes": 2, "batch": 8, **PAIRS}),
    "reward model, Llama, LoRA on up": (LLAMA, {"head": "score", "lora": Lora(16, frozenset(["up_proj"]), 0.0), **PAIRS}),
    "reward model, Llama in float32, LoRA on k and o": (
        LLAMA,
        {"head": "score", "autocast": False, "lora": Lora(16, frozenset(["k_proj", "o_proj"]), 0.0), **PAIRS},
    ),
    "SFT of Llama, padded": (LLAMA, {"padded": True, "accumulation": 2}),
    "SFT of Gemma 3, LoRA": (GEMMA3, {"head": "chunked", "padded": True, "lora": ALL}),
    "pretraining GPT-NeoX": (NEOX, {}),
    "SFT of Qwen3, tiled head, checkpointing": (QWEN3, {"head": "chunked", "padded": True, "checkpointing": True}),
    "pretraining with a small vocabulary, checkpointing": ({**LLAMA, "vocab_size": 320}, {"checkpointing": True}),
    "SFT of Llama, LoRA": (LLAMA, {"head": "chunked", "padded": True, "lora": ALL}),
    "SFT of Llama in bfloat16, LoRA": (LLAMA, {"head": "chunked", "padded": True, "weight_bytes": 2, "lora": ALL}),
    "SFT of GPT-2, LoRA": (GPT2, {"padded": True, "lora": Lora(16, frozenset(["qkv"]), 0.0)}),
    "SFT of a mixture of experts": (EXPERTS, {"weight_bytes": 2}),
    "reward model with a wide MLP, checkpointing": (WIDE, {"head": "score", "checkpointing": True, "batch": 8, **PAIRS}),
    "reward model, GPT-NeoX, checkpointing": (NEOX, {"head": "score", "checkpointing": True, **PAIRS}),
    "reward model, GPT-NeoX, LoRA, checkpointing": (
        NEOX,
        {"head": "score", "checkpointing": True, "lora": ALL_NEOX, **PAIRS},
    ),
    "DPO of Qwen3": (QWEN3, {"head": "chunked", "has_reference": True, **PAIRS}),
    "DPO of Llama, LoRA, checkpointing": (LLAMA, {"head": "chunked", "lora": ALL, "checkpointing": True, **PAIRS}),
    "KTO of Llama": (LLAMA, {"head": "chunked", "has_reference": True, "padded": True}),
    "GRPO of Llama": (LLAMA, {"grpo": True}),
    "PPO of Llama": (LLAMA, {"ppo": True}),
    "PPO of GPT-NeoX, checkpointing": (NEOX, {"ppo": True, "checkpointing": True}),
    "PPO of Qwen3, LoRA": (QWEN3, {"ppo": True, "lora": ALL}),
}


def closed_over_traced(config, values) -> float:
    from llmrecipes.plan.trace import trace

    planned = job(config, **values)
    parts = phases(planned)
    return sum(parts["update" if planned.rollouts else "training step"].values()) / trace(planned, config)["Total"]


@pytest.mark.parametrize("name", TRACED)
def test_closed_form_is_what_the_tracker_finds(name):
    assert closed_over_traced(*TRACED[name]) == pytest.approx(1, abs=0.1)


def test_policy_and_value_model_take_turns_in_an_update_that_is_not_sharded():
    """As in `PPOTrainer.training_step`, which `benchmarks/memory.py` measures: one model's activations at a time."""
    activations = lambda **more: phases(job(LLAMA | {"vocab_size": 2000}, ppo=True, **more))["update"]["activations"]
    in_turn, together = activations(), activations(sharded=2, gpus=2)
    assert together == pytest.approx(2 * in_turn, rel=0.05)


def test_experts_are_traced_in_the_precision_of_the_run_beside_models_in_another():
    from llmrecipes.plan.trace import trace

    narrow = job(EXPERTS, grpo=True, weight_bytes=2, has_reference=True)  # whose reference model is in float32
    found = trace(narrow, EXPERTS | {"dtype": "float32"})
    assert found["Parameter"] == pytest.approx((2 + 4) * narrow.architecture.parameters, rel=0.01)


FIRST = ("SFT of Qwen3, tiled head, checkpointing", "SFT of Llama, LoRA", "GRPO of Llama", "PPO of Qwen3, LoRA")


# Each runs one to three models through autograd operator by operator.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name not in FIRST)) for name in TRACED_MORE]
)
def test_closed_form_is_what_the_tracker_finds_for_more(name):
    assert closed_over_traced(*TRACED_MORE[name]) == pytest.approx(1, abs=0.1)


REAL = """
import ctypes, sys, torch
ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: what is freed goes back, so that the peak is what was in use
from transformers import AutoConfig, AutoModelForCausalLM

def peak():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))

def step(config, batch, length):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **config)).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(2):
        ids = torch.randint(0, config["vocab_size"], (batch, length))
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

config = eval(sys.argv[1])
step(config | {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}, 1, 8)
before = peak()
step(config, 4, 128)
print((peak() - before) * 1024)
"""


def test_closed_form_is_what_a_process_takes():
    config = {**LLAMA, "vocab_size": 16000}
    sizes = {key: value for key, value in config.items() if key != "model_type"}
    taken = int(run_python("-c", REAL, repr(sizes)).stdout.splitlines()[-1])
    assert peak(job(config, length=128, autocast=False), 0) == pytest.approx(taken, rel=0.15)


def test_parameters_are_those_of_the_model_cards():
    for name, config in yaml.safe_load(KNOWN.read_text()).items():
        assert read_architecture(dict(config), name).parameters == config["parameters"], name


def test_gpt2_reads_its_own_name_of_a_width_alone():
    assert read_architecture(GPT2 | {"intermediate_size": 7, "n_inner": 1000}, "m").width == 1000
    assert read_architecture(GPT2 | {"intermediate_size": 7}, "m").width == 4 * 512
    assert read_architecture({"model_type": "mixtral"}, "m").context is None, "a default that transformers computes"


def test_the_vocabulary_of_a_unigram_tokenizer_is_counted(tmp_path):
    tokens = {"model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.0]]}, "added_tokens": [{"id": 4}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokens))
    assert find_vocabulary(str(tmp_path)) == 5
    (tmp_path / "tokenizer.json").write_text("{}")
    assert find_vocabulary(str(tmp_path)) is None
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(InputError, match="its tokenizer.json is damaged"):
        find_vocabulary(str(tmp_path))


def test_half_an_answer_of_the_hub_is_none(monkeypatch):
    def urlopen(*_, **__):
        raise IncompleteRead(b"{")

    monkeypatch.setattr("llmrecipes.plan.lookup.urlopen", urlopen)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert hub_file("nobody/has-this", None, "config.json") is None


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_transformers(family):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    given = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100, "pad_token_id": 0}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **given))
    assert read_architecture({"model_type": family, **given}, family).parameters == model.num_parameters()


KIND = itemgetter("model_type")


@pytest.mark.parametrize("targets", [None, ["all-linear"], ["q_proj"], ["c_proj"], ["dense"]])
@pytest.mark.parametrize(
    "config", [LLAMA, GPT2, NEOX, EXPERTS, LLAMA | {"model_type": "smollm3"}], ids=itemgetter("model_type")
)
def test_adapters_have_the_parameters_that_peft_gives_them_or_are_refused(config, targets):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = Settings({"use_peft": True, "lora_target_modules": targets, "lora_r": 8}, {}, {})
    try:
        planned = _read_lora(settings, a := read_architecture(dict(config), "m")).parameters(a)
    except InputError:
        planned = None  # also where PEFT would put adapters on experts, whose sizes are not known
    small = config | {"num_hidden_layers": 2, "n_layer": 2, "pad_token_id": 0}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**small))
        try:
            names = "all-linear" if targets == ["all-linear"] else targets
            model = get_peft_model(model, LoraConfig(r=8, target_modules=names, task_type="CAUSAL_LM"))
        except ValueError:
            assert planned is None
            return
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert planned == (None if targets == ["all-linear"] and config is EXPERTS else trained)


@pytest.mark.parametrize("within", [{}, {"tie_word_embeddings": True}])
@pytest.mark.parametrize("whole", [{}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False}])
@pytest.mark.parametrize(("kind", "text"), [("mistral3", "mistral"), ("gemma3", "gemma3_text"), ("llava", "llama")])
def test_embeddings_of_a_composite_config_are_tied_where_transformers_ties_them(kind, text, whole, within):
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = {"text_config": LLAMA | {"model_type": text, "head_dim": 64} | within} | whole
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **config))
    model.tie_weights()
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert read_architecture({"model_type": kind} | config, "m").tied == tied


def test_what_a_config_says_is_null_is_not_the_classs_default():
    window = lambda **given: read_architecture(LLAMA | {"model_type": "mistral"} | given, "m").window
    assert (window(), window(sliding_window=None), window(sliding_window=8)) == (4096, None, 8)
    heads = {"model_type": "qwen2", "num_attention_heads": 8, "num_key_value_heads": None}
    assert read_architecture(LLAMA | heads, "m").key == 512, "as many as the queries' heads, not 32"


@pytest.mark.parametrize("config", [NEOX, GPT2], ids=itemgetter("model_type"))
def test_sizes_that_the_layers_do_not_read_are_not_counted(config):
    plain = read_architecture(config, "m")
    assert read_architecture(config | {"head_dim": 8, "num_key_value_heads": 2}, "m") == plain


def test_model_config_has_the_keys_that_a_run_takes():
    from transformers import AutoConfig

    from llmrecipes.head_sizes import attention_reads_head_dim

    names = set().union(*map(known_keys, FAMILIES)) | {"num_layers", "rope_theta", "rotary_pct", "tie_weights_"}
    for family in FAMILIES:
        built = AutoConfig.for_model(family)
        taken = {name for name in names if hasattr(built, name)}
        taken |= {"head_dim"} if attention_reads_head_dim(built) else set()
        assert known_keys(family) == taken, family


@pytest.mark.parametrize("family", ["mistral", "qwen2", "mixtral"])
def test_biases_that_the_model_class_does_not_have_are_not_counted(family):
    config = LLAMA | {"model_type": family, "num_local_experts": 2}
    plain = read_architecture(config, "m").parameters
    assert read_architecture(config | {"attention_bias": True, "mlp_bias": True}, "m").parameters == plain
