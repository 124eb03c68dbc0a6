"""PPO sharded over two processes (gloo, on CPU) learns what DDP learns, resumes exactly and saves whole models.

As a script this file is what `accelerate launch` starts: all kinds of models one after another, sharing one start-up.
"""

import json
import sys
from pathlib import Path

import ppo_toys as toys
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from test_ppo_resume import figures
from transformers import AutoModelForCausalLM

from llmrecipes.config import ModelArguments
from llmrecipes.models import load_policy, load_reward_model
from llmrecipes.ppo.config import PPOConfig

KINDS = {
    "separate": {
        "trainer_arguments": {"eval_dataset": toys.prompts(5, seed=2)},
        "eval_strategy": "steps",
        "eval_steps": 3,
        "per_device_eval_batch_size": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_score",
    },
    "shared": {"value_model": "shared", "activation_checkpointing": True},
    "fresh_value_model": {"reward": toys.even_share, "old_logprobs": "sampler"},
    "lora": {"trainer_arguments": {"peft_config": LoraConfig(r=4, target_modules="all-linear")}},
}


# ZeRO-3 shards what ZeRO-2 does and the weights too. FSDP2 stands for them all here; the other stages run under ZeRO-3 too.
# A value model of its own comes with adapters.
FIRST = (("fsdp2", "shared"), ("fsdp2", "lora"))
SHARDED = [
    pytest.param(topology, kind, marks=[pytest.mark.long] * ((topology, kind) not in FIRST))
    for topology in toys.SHARDED
    for kind in KINDS
]


def run(inputs: Path, folder: Path, kind: str, resume: str | None = None):
    # As in the recipe, arguments come first: as long as they live, ZeRO-3 spreads models while they are read.
    known = PPOConfig(output_dir=str(folder), use_cpu=True)
    policy, reward = (
        ModelArguments(model_name_or_path=str(inputs / part), dtype="float32") for part in ("policy", "reward")
    )
    settings = dict(
        model=load_policy(policy, toys.tokenizer()),
        reward=[load_reward_model(reward, toys.tokenizer()), toys.even_share],
        max_steps=6,
        num_mini_batches=2,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
        lr_scheduler_type="linear",
        kl_target=0.5,
        kl_horizon=100,
        save_strategy="steps",
        save_steps=3,
        max_grad_norm=0.5,
        data=toys.prompts(20),
    )
    trainer = toys.trainer(folder, **settings | KINDS[kind])
    del known
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def run_kinds(inputs: Path, outputs: Path, topology: str, kinds: list[str]) -> None:
    for kind in kinds:
        trainer = run(inputs, outputs / kind, kind)
        state = {"figures": figures(trainer), "shares": toys.shares_held(trainer, trainer.model.policy)}
        trainer.save_model(str(outputs / kind / "whole"))
        if topology != "ddp":  # its resuming is tested in test_ppo_resume.py
            resumed = run(inputs, outputs / kind, kind, resume=str(outputs / kind / "checkpoint-3"))
            state["resumed"] = figures(resumed)
            resumed.save_model(str(outputs / kind / "resumed"))
        (outputs / f"{kind}.{trainer.args.process_index}.json").write_text(json.dumps(state))


@pytest.fixture(scope="module")
def launch(tmp_path_factory, request):
    """topology -> the folder of its runs, made when first asked for, of those kinds that a selected test reads."""
    kinds = {test.callspec.params["kind"] for test in request.session.items if test.path == request.path}
    inputs, done = tmp_path_factory.mktemp("inputs"), {}
    toys.policy(tie_word_embeddings=True).save_pretrained(inputs / "policy")
    toys.reward_model().save_pretrained(inputs / "reward")

    def start(topology: str) -> Path:
        if topology not in done:
            folder = tmp_path_factory.mktemp(topology)
            toys.launch(__file__, topology, inputs, folder, *sorted(kinds))
            done[topology] = folder
        return done[topology]

    return start


def states(folder: Path, kind: str) -> list[dict]:
    return [json.loads((folder / f"{kind}.{rank}.json").read_text()) for rank in (0, 1)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor that was saved, by file and name."""
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{file.relative_to(folder)}: {name}": t for file in files for name, t in load_file(file).items()}


@pytest.mark.parametrize(("topology", "kind"), SHARDED)
def test_sharded_learns_what_ddp_learns_and_saves_it_whole(launch, topology, kind):
    whole, parts = launch("ddp"), launch(topology)
    for expected, got in zip(states(whole, kind), states(parts, kind), strict=True):
        assert expected["shares"] == {"weights": 1.0, "moments": 1.0}
        assert got["shares"] == pytest.approx(toys.SHARDED[topology], abs=0.02), "sharded"
        for one, other in zip(expected["figures"], got["figures"], strict=True):
            assert other == pytest.approx(one, rel=1e-5, abs=1e-6)
    expected, got = weights(whole / kind / "whole"), weights(parts / kind / "whole")
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    if kind != "lora":
        AutoModelForCausalLM.from_pretrained(parts / kind / "whole")


@pytest.mark.parametrize(("topology", "kind"), SHARDED)
def test_sharded_resumes_exactly(launch, topology, kind):
    folder = launch(topology)
    for state in states(folder, kind):
        assert state["resumed"] == state["figures"]
    expected, got = weights(folder / kind / "whole"), weights(folder / kind / "resumed")
    assert expected.keys() == got.keys() and all(torch.equal(got[name], expected[name]) for name in expected)


if __name__ == "__main__":
    toys.without_compiling()
    run_kinds(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
    toys.leave()
