"""`torch_compile` in PPO: trains as without, compiles once for rows of all lengths, saves under the same names."""

import sys
from pathlib import Path
from types import SimpleNamespace

import ppo_toys as toys
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from test_ppo_resume import assert_same
from torch._dynamo.utils import counters
from transformers import TrainerCallback
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llmrecipes import attention
from llmrecipes.config import InputError
from llmrecipes.ppo.compilation import check_compilation, compile_layers

LORA = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
KINDS = {
    "separate": ("eager", {}),
    "aot_eager": ("aot_eager", {}),
    "lora": ("eager", {"trainer_arguments": {"peft_config": LORA}, "activation_checkpointing": True}),
}


class Compiled(TrainerCallback):
    """How many pieces of code were compiled until the end of each step."""

    def __init__(self):
        self.frames = []

    def on_step_end(self, *args, **kwargs):
        self.frames.append(counters["frames"]["total"])


def run(folder: Path, backend: str | None = None, resume: str | None = None, **arguments):
    """Three rollouts of two steps each, with a reward model; `backend` compiles what no test before has compiled."""
    counters.clear()
    compiling = {"torch_compile": True, "torch_compile_backend": backend} if backend else {}
    settings = {"max_steps": 6, "reward": toys.reward_model(), "save_strategy": "steps", "save_steps": 3}
    trainer = toys.trainer(folder, **settings | compiling | arguments)
    trainer.add_callback(compiled := Compiled())
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    return trainer, compiled.frames


def saved(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor in the last save, by file and name."""
    files = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("value_model/*.safetensors"))
    return {f"{file.relative_to(folder)}: {name}": t for file in files for name, t in load_file(file).items()}


def assert_close(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys() and expected
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, atol=1e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    "kind", ["separate", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("aot_eager", "lora"))]
)
def test_it_trains_as_uncompiled_compiles_in_the_first_rollout_alone_and_saves_the_same_names(tmp_path, kind):
    backend, arguments = KINDS[kind]
    plain, frames = run(tmp_path / "plain", **arguments)
    assert set(frames) == {0}
    compiled, frames = run(tmp_path / "compiled", backend, **arguments)
    assert frames[1] > 0 and frames[1:] == [frames[1]] * 5, frames
    assert_close(saved(tmp_path / "compiled"), saved(tmp_path / "plain"))
    for one, other in zip(plain.state.log_history, compiled.state.log_history, strict=True):
        assert one.get("loss") == pytest.approx(other.get("loss"), abs=1e-6)
    first = [entry for entry in compiled.state.log_history if "score" in entry]
    assert [entry["ratio"] for entry in first] == pytest.approx([1.0] * 3, abs=1e-6)


@pytest.mark.parametrize(
    "backend", ["eager", *(pytest.param(name, marks=pytest.mark.long) for name in ("aot_eager", "inductor"))]
)
def test_a_run_continued_within_a_rollout_ends_bit_equal(tmp_path, backend):
    whole, _ = run(tmp_path / "whole", backend)
    if backend == "inductor":  # compiles for the shapes it meets first; those of another rollout now
        torch._dynamo.reset()
    resumed, _ = run(tmp_path / "resumed", backend, resume=str(tmp_path / "whole" / "checkpoint-3"))
    assert_same(resumed, whole)


def test_compiled_attention_of_short_rows_equals_sdpa(monkeypatch):
    """Also with heads that share keys; padded and longer rows, uncompiled code and the layers of models that are not this
    trainer's are left to SDPA."""
    left_to_sdpa = []

    def sdpa(*args, **kwargs):
        left_to_sdpa.append(args[1].shape[2])
        return sdpa_attention_forward(*args, **kwargs)

    monkeypatch.setattr(attention, "sdpa_attention_forward", sdpa)
    module = SimpleNamespace(is_causal=True, num_key_value_groups=2, in_products=True)
    compiled = torch.compile(attention.attend_in_products, backend="eager")
    for tokens, mask, left in ((7, None, False), (7, torch.ones(7, 7, dtype=torch.bool).tril(), True), (129, None, True)):
        query, *states = (torch.randn(2, heads, tokens, 8, requires_grad=True) for heads in (4, 2, 2))
        gradient, found = torch.randn(2, tokens, 4, 8), []
        for attend in (compiled, sdpa_attention_forward):
            output = attend(module, query, *states, mask, scaling=0.3, position_ids=None)[0]
            found.append([output, *torch.autograd.grad(output, (query, *states), gradient)])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-5)
        assert bool(left_to_sdpa) == left, (tokens, left_to_sdpa)
        left_to_sdpa.clear()
    attention.attend_in_products(module, query, *states, None)
    del module.in_products
    short = [given[:, :, :7] for given in (query, *states)]
    compiled(module, *short, None)
    assert left_to_sdpa == [129, 7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"torch_compile_backend": "tvm"}, "torch_compile_backend: 'tvm' is not one of inductor, aot_eager, eager"),
        (
            {"torch_compile_mode": "reduce-overhead"},
            "torch_compile_mode: reduce-overhead records a CUDA graph for each length",
        ),
        ({"torch_compile_backend": "eager", "torch_compile_mode": "max-autotune-no-cudagraphs"}, "eager has no modes"),
    ],
)
def test_what_cannot_be_compiled_is_refused(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        toys.trainer(tmp_path, **arguments)


def test_an_older_torch_does_not_run_out_of_versions(tmp_path, monkeypatch):
    """Its limit of 8 would leave further kinds of models and rows uncompiled."""
    monkeypatch.setattr(torch, "compile", lambda model=None, *, dynamic=None, backend="inductor", mode=None: model)
    with torch._dynamo.config.patch(recompile_limit=8):
        toys.trainer(tmp_path, torch_compile=True, torch_compile_backend="eager")
        assert torch._dynamo.config.recompile_limit == 64


def test_deepspeed_and_quantised_weights_are_refused(tmp_path):
    trainer = toys.trainer(tmp_path, torch_compile=True, torch_compile_backend="eager")
    trainer.model.policy.is_quantized = True
    with pytest.raises(InputError, match="torch_compile: not with load_in_4bit or load_in_8bit"):
        compile_layers(trainer)
    trainer.args.deepspeed_plugin = object()
    with pytest.raises(InputError, match="torch_compile: does not work with DeepSpeed"):
        check_compilation(trainer.args)


def test_compilation_by_the_launch_config_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(InputError, match="dynamo_backend: .*; leave it out there, and set torch_compile: true"):
        toys.trainer(tmp_path)


def test_a_model_without_layers_that_transformers_marks_is_refused(tmp_path):
    with pytest.raises(InputError, match="torch_compile: a LlamaForCausalLM has no layers that could be compiled"):
        toys.trainer(tmp_path, model=toys.policy(num_hidden_layers=0), torch_compile=True)


@pytest.mark.long
@pytest.mark.parametrize("topology", ["ddp", "fsdp2"])
def test_two_processes_train_as_uncompiled(tmp_path, topology):
    toys.launch(__file__, topology, tmp_path, tmp_path)
    assert_close(saved(tmp_path / "compiled"), saved(tmp_path / "plain"))


if __name__ == "__main__":  # what `accelerate launch` starts
    for name, backend in (("plain", None), ("compiled", "aot_eager")):
        assert (run(Path(sys.argv[2], name), backend)[1][-1] > 0) == (backend is not None)
    toys.leave()
