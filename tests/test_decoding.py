"""A recorded step of fixed size decodes what the growing cache decodes; models that it cannot decode are refused."""

from contextlib import contextmanager
from unittest.mock import Mock

import ppo_toys as toys
import pytest
import torch
import yaml
from cuda_graphs import use_tapes
from forked import run_python
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from test_ppo_architectures import FAMILIES
from transformers import AutoConfig, AutoModelForCausalLM

from llmrecipes.config import InputError
from llmrecipes.decoding import StaticDecoder
from llmrecipes.generation import sample_responses
from llmrecipes.ppo import PPOConfig

ENDS = [5, 6, 7, 8]


def build(family: str):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **FAMILIES[family] | {"initializer_range": 0.3})
    return AutoModelForCausalLM.from_config(config).eval()


def sample(model, **changes):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(2, 12, (12,), generator=generator).tolist()
    rows = [torch.randint(3, 60, (length,), generator=generator).tolist() for length in lengths]
    settings = {"max_new_tokens": 20, "eos_token_ids": ENDS, "pad_token_id": 0, "batch_size": 6, "return_logprobs": True}
    return sample_responses(model, rows, generator=torch.Generator().manual_seed(3), **settings | changes)


def assert_same(got, expected):
    assert [response.token_ids for response in got] == [response.token_ids for response in expected]
    for one, other in zip(got, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt", "bloom", "deepseek_v3", "mixtral"])
def test_recorded_steps_equal_the_growing_cache(monkeypatch, family):
    model = build(family)
    expected = sample(model)
    lengths = [len(response.token_ids) for response in expected]
    assert min(lengths) < max(lengths), "rows must leave at different times"
    assert_same(sample(model, cache_implementation="static"), expected)
    tapes = use_tapes(monkeypatch)
    assert_same(sample(model, cache_implementation="static"), expected)
    assert 2 <= len(tapes) <= 2 * 3  # two batches; each is recorded with six rows, and again with at most three, with one


def test_recorded_steps_of_a_model_with_an_adapter(monkeypatch):
    model = get_peft_model(build("llama"), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)).eval()
    expected = sample(model, temperature=0.0)
    use_tapes(monkeypatch)
    assert_same(sample(model, temperature=0.0, cache_implementation="static"), expected)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_recorded_steps_under_autocast(monkeypatch, family):
    """Keys are float32 after rotary positions and values bfloat16. Eager attention has the same bits for any length."""
    model = build(family)
    model.set_attn_implementation("eager")
    use_tapes(monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(sample(model, cache_implementation="static"), sample(model))


@pytest.mark.parametrize("family", ["gemma3_text", "gpt_oss", "mamba", "lfm2"])
def test_models_with_other_caches_are_refused(family):
    with pytest.raises(InputError, match="cache_implementation: static is not for a .*sliding windows or recurrent states"):
        sample(build(family), cache_implementation="static")


@pytest.mark.parametrize("family", ["xglm", "falcon"])  # which read a value from the GPU, or copy one to it
def test_a_step_that_waits_for_the_gpu_is_refused(monkeypatch, family):
    model = build(family)
    use_tapes(monkeypatch)
    with pytest.raises(InputError, match="could not record a step of this .*ForCausalLM .*capturing.*; leave it out"):
        sample(model, cache_implementation="static")


def test_the_cause_of_a_failed_recording_is_said(monkeypatch):
    model = build("llama")
    use_tapes(monkeypatch)

    @contextmanager
    def graph(tape, **_):
        try:
            yield
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nFor debugging …")

    monkeypatch.setattr(torch.cuda, "graph", graph)
    for cause, kind, message in (
        (RuntimeError("the cause\nmore"), InputError, r"this LlamaForCausalLM \(the cause\); leave it out"),
        (torch.OutOfMemoryError("full"), torch.OutOfMemoryError, "full"),
    ):
        steps = Mock(side_effect=[None, cause])  # the first is not recorded
        monkeypatch.setattr(StaticDecoder, "_advance", lambda decoder, steps=steps: steps())
        with pytest.raises(kind, match=message):
            sample(model, cache_implementation="static")


def test_another_attention_is_refused():
    model = build("llama")
    model.set_attn_implementation("flex_attention")
    with pytest.raises(InputError, match="LlamaForCausalLM with attn_implementation flex_attention; use sdpa"):
        sample(model, cache_implementation="static")


def test_ppo_learns_the_same_from_recorded_steps(tmp_path, monkeypatch):
    weights = {}
    for cache in (None, "static"):
        tapes = use_tapes(monkeypatch) if cache else []
        trainer = toys.trainer(tmp_path / str(cache), max_steps=4, cache_implementation=cache)
        trainer.train()
        trainer.save_model()
        weights[cache] = load_file(tmp_path / str(cache) / "model.safetensors")
    assert tapes
    for name, weight in weights["static"].items():
        torch.testing.assert_close(weight, weights[None][name], atol=1e-5, rtol=0)


def test_ppo_refuses_it_where_it_has_no_effect(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="cache_implementation: 'offloaded' is not one of static"):
        PPOConfig(output_dir=str(tmp_path), cache_implementation="offloaded")
    with pytest.raises(
        InputError, match="cache_implementation: is for the built-in decode loop; leave it out with use_vllm"
    ):
        PPOConfig(output_dir=str(tmp_path), cache_implementation="static", use_vllm=True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(InputError, match="cache_implementation: static does not work with FSDP or DeepSpeed"):
        toys.trainer(tmp_path, cache_implementation="static")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is so without a GPU")
def test_sample_says_that_it_needs_a_gpu(tmp_path):
    toys.policy().save_pretrained(tmp_path / "model")
    toys.tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "w1 w2"}\n{"prompt": "w3"}\n')
    given = {"model_name_or_path": "model", "datasets": [{"path": "./prompts.jsonl"}], "max_new_tokens": 8}
    (tmp_path / "sample.yaml").write_text(yaml.safe_dump(given | {"output_dir": "out", "cache_implementation": "static"}))
    done = run_python(toys.ROOT / "recipes/sample.py", "--config", "sample.yaml", cwd=tmp_path)
    assert "static saves time on a GPU alone" in done.stdout, done.stderr
    assert len((tmp_path / "out/samples.jsonl").read_text().splitlines()) == 2
