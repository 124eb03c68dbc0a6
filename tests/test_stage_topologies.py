"""Pretraining, SFT, reward model, DPO, KTO and GRPO sharded over two processes (gloo, on CPU) learn what DDP learns, resume
exactly and write whole models.

As a script this file is what `accelerate launch` starts: the recipes' real command lines one after another, sharing one
start-up.
"""

import json
import math
import os
import shutil
import sys
from pathlib import Path

import ppo_toys as toys
import pytest
import torch
from safetensors.torch import load_file
from test_launch import STEPS, inputs, interrupt, losses, run_recipe  # noqa: F401 (inputs is a fixture)
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Trainer

RUNS = {
    "fresh": {"stage": "pretrain"},  # with Muon, under ZeRO with AdamW
    "muon_bf16": {"stage": "pretrain"},
    "pretrain": {"stage": "pretrain", "optimizer": "adamw", "model_config": None},
    "sft": {"stage": "sft"},
    "packed": {"stage": "sft", "packing": True},
    "lora": {"stage": "sft", "use_peft": True, "lora_r": 4, "lora_target_modules": ["q_proj", "down_proj"]},
    "reward": {"stage": "reward"},
    "dpo": {"stage": "dpo"},
    "kto": {"stage": "kto"},
    "grpo": {"stage": "grpo"},
}
FIRST = {"fsdp2": ("fresh", "lora", "reward", "grpo"), "zero2": (), "zero3": ("packed", "reward", "grpo")}


def is_long(topology: str, run: str) -> bool:
    """ZeRO-3 shards what ZeRO-2 does and the weights too; GRPO has a sharded reference as DPO and KTO have."""
    return run not in FIRST[topology]


SHARDED_RUNS = [
    pytest.param(topology, run, marks=[pytest.mark.long] * is_long(topology, run))
    for topology in toys.SHARDED
    for run in RUNS
    if not (run == "muon_bf16" and "zero" in topology)
]


def run_all(inputs: Path, outputs: Path, topology: str, names: list[str]) -> None:  # noqa: F811
    rank, save_state = int(os.environ["RANK"]), Trainer.save_state

    def record_shares(trainer):  # each recipe saves the state when it has trained, evaluated and saved its model
        shares = {"trained": toys.shares_held(trainer)}
        if getattr(trainer, "ref_model", None) is not None:
            shares["reference"] = toys.shares_held(trainer, trainer.ref_model)
        Path(f"{trainer.args.output_dir}.{rank}.json").write_text(json.dumps(shares))
        save_state(trainer)

    Trainer.save_state = record_shares
    settings = {"learning_rate": 1e-3, "eval_strategy": "steps", "eval_steps": STEPS - 1, "test_split_size": 4}
    if "zero" in topology:
        with pytest.raises(SystemExit, match="^2$"):
            run_recipe("pretrain", inputs, outputs / "refused", num_processes=2, **settings)
    for name in names:
        # Whatever this CPU has: it decides in which precision Muon works.
        torch.cpu.get_capabilities = lambda fast=name == "muon_bf16": {"amx_bf16": fast}
        changes = settings | RUNS[name]
        if name == "pretrain":
            changes["model_name_or_path"] = f"{inputs}/model"
        if name == "fresh" and "zero" in topology:
            changes["optimizer"] = "adamw"
        run_recipe(inputs=inputs, output_dir=outputs / name, num_processes=2, **changes)
        if topology == "ddp":  # its resuming is tested in test_launch.py
            continue
        torch.distributed.barrier()
        if rank == 0:
            shutil.copytree(outputs / name, outputs / "resumed" / name)
            interrupt(outputs / "resumed" / name)
        torch.distributed.barrier()
        run_recipe(inputs=inputs, output_dir=outputs / "resumed" / name, num_processes=2, **changes)
    if topology == "fsdp2":
        run_recipe("dpo", inputs, outputs / "bf16", num_processes=2, bf16=True)
    if topology == "ddp":  # at the end: in this process it is FSDP from now on
        run_recipe("dpo", inputs, outputs / "fsdp_by_key", num_processes=2, fsdp=True, bf16=True)


@pytest.fixture(scope="module")
def launch(inputs, tmp_path_factory, request):  # noqa: F811
    """topology -> the folder of its runs, of which those that the selected tests read are made when first asked for."""
    done, tests = {}, [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    selected = [(test.callspec.params["topology"], test.callspec.params.get("run")) for test in tests]

    def start(topology: str) -> Path:
        if topology not in done:
            folder = tmp_path_factory.mktemp(topology)
            names = [name for name in RUNS if any(run == name and topology in ("ddp", other) for other, run in selected)]
            (folder / "log.txt").write_text(toys.launch(__file__, topology, inputs, folder, *names))
            done[topology] = folder
        return done[topology]

    return start


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(("topology", "run"), SHARDED_RUNS)
def test_sharded_learns_what_ddp_learns_and_saves_it_whole(launch, topology, run):
    whole, parts = launch("ddp"), launch(topology)
    for rank in (0, 1):
        expected, got = (json.loads((folder / f"{run}.{rank}.json").read_text()) for folder in (whole, parts))
        assert expected["trained"] == {"weights": 1.0, "moments": 1.0}
        assert got["trained"] == pytest.approx(toys.SHARDED[topology], abs=0.02), "sharded"
        assert ("reference" in got) == (run in ("dpo", "kto", "grpo"))
        if "reference" in got:
            assert got["reference"]["weights"] == pytest.approx(toys.SHARDED[topology]["weights"], abs=0.02)
    expected, got = losses(whole / run), losses(parts / run)
    assert len(got) == STEPS + 1 and got[0] != got[-2], "something was learned"
    expected_weights, got_weights = weights(whole / run), weights(parts / run)
    assert got_weights and expected_weights.keys() == got_weights.keys()
    if run == "fresh" and "zero" in topology:  # other optimizer; ZeRO-3 draws other initial weights, of the same size
        assert got == pytest.approx(expected, rel=0.05)
        for name, tensor in expected_weights.items():
            torch.testing.assert_close(got_weights[name].norm(), tensor.norm(), atol=0, rtol=0.2)
    elif run == "muon_bf16":  # torch.optim.Muon under DDP
        assert got == pytest.approx(expected, rel=1e-3)
        for name, tensor in expected_weights.items():
            assert (got_weights[name] - tensor).norm() < 0.1 * tensor.norm(), name
    else:
        assert got == pytest.approx(expected, rel=1e-5, abs=1e-8)  # GRPO's losses are next to nothing
        for name, tensor in expected_weights.items():  # a tenth of one AdamW step: some gradients are next to nothing
            torch.testing.assert_close(got_weights[name], tensor, atol=1e-4, rtol=0, msg=lambda t, name=name: f"{name}: {t}")
    if run == "packed":
        for folder in (whole, parts):
            assert "attention: each document by itself, without a mask\n" in (folder / "log.txt").read_text()
    kind = AutoModelForSequenceClassification if run == "reward" else AutoModelForCausalLM
    _, info = kind.from_pretrained(parts / run, output_loading_info=True)
    assert not any(info.values()), info


@pytest.mark.parametrize(("topology", "run"), SHARDED_RUNS)
def test_sharded_resumes_exactly(launch, topology, run):
    folder = launch(topology)
    assert f"continuing from {folder / 'resumed' / run}/checkpoint-{STEPS - 1}" in (folder / "log.txt").read_text()
    assert losses(folder / "resumed" / run) == losses(folder / run)
    expected, got = weights(folder / run), weights(folder / "resumed" / run)
    assert got and expected.keys() == got.keys() and all(torch.equal(got[name], expected[name]) for name in expected)


def test_fsdp2_in_bfloat16_does_not_round_what_models_return(launch):
    """A policy that equals its reference has the loss log 2, in bfloat16 0.6914."""
    assert losses(launch("fsdp2") / "bf16")[0] == pytest.approx(math.log(2), abs=1e-6)


def test_fsdp2_by_the_recipes_own_key_is_that_of_the_launch_config(launch):
    by_key, by_config = launch("ddp") / "fsdp_by_key", launch("fsdp2") / "bf16"
    for rank in (0, 1):
        shares = [json.loads(Path(f"{folder}.{rank}.json").read_text()) for folder in (by_key, by_config)]
        assert shares[0] == shares[1]
    assert losses(by_key) == losses(by_config)


@pytest.mark.parametrize("topology", [pytest.param("zero2", marks=pytest.mark.long), "zero3"])
def test_muon_is_refused_under_zero(launch, topology):
    """The launched script asserts the exit code 2."""
    folder = launch(topology)
    assert "error: optimizer: muon needs full matrices" in (folder / "log.txt").read_text()
    assert not (folder / "refused").exists()


if __name__ == "__main__":
    toys.without_compiling()
    run_all(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
    toys.leave()
