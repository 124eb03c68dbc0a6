"""Recorded runs reproduce step by step, so that a changed library or a slip that moves the mathematics is seen.

After an intended change: python tests/test_ppo_golden.py writes ppo_golden.json anew; its diff belongs to the change.
"""

import json
import sys
import tempfile
from pathlib import Path

import ppo_toys as toys
import pytest

GOLDEN = Path(__file__).parent / "ppo_golden.json"
# A record holds float32 results of another CPU; a changed formula moves some figure by far more (see below).
TOLERANCE = {"rel": 2e-4, "abs": 2e-6}
# Shares of about 64 tokens: on another CPU a token at the very edge may fall on the other side of it.
CLIP_SHARES = {"abs": 2.5 / 64}
TIMES = ("time/", "train_", "epoch", "total_flos")
COMMON = {"max_steps": 8, "num_mini_batches": 2, "lr_scheduler_type": "linear", "kl_coef": 0.2}
RUNS = {
    "defaults": {},
    "adaptive_k3": {
        "kl_estimator": "k3",
        "kl_target": 0.5,
        "kl_horizon": 50,
        "whiten_rewards": True,
        "score_clip": 0.5,
        "normalize_scores": True,
        "missing_eos_penalty": 1.0,
        "missing_eos_mode": "replace",
        "temperature": 0.7,
        "top_k": 20,
        "gamma": 0.99,
    },
    "shared_trunk_kl_in_loss": {"value_model": "shared", "kl_in": "loss", "kl_estimator": "k3"},
}


def record(folder, **arguments) -> list[dict[str, float]]:
    """The figures of each optimizer step, then the norm of the trained weights."""
    trainer = toys.trainer(folder, reward=[toys.reward_model(), toys.even_share], **{**COMMON, **arguments})
    trainer.train()
    steps = [
        {name: value for name, value in entry.items() if not name.startswith(TIMES)}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    norms = {name: part.detach().double().norm().item() for name, part in trainer.model.named_parameters()}
    return [*steps, norms]


def equal_but_for_rounding(figure: str, value: float):
    return pytest.approx(value, **(CLIP_SHARES if figure.endswith("clipfrac") else TOLERANCE))


@pytest.mark.parametrize("name", RUNS)
def test_run_equals_its_record(tmp_path, name):
    recorded, now = json.loads(GOLDEN.read_text())[name], record(tmp_path, **RUNS[name])
    assert len(now) == len(recorded)
    for step, (got, expected) in enumerate(zip(now, recorded, strict=True)):
        missing = set(expected) - set(got)
        assert not missing, f"step {step}: {missing} are logged no more"
        for figure, value in expected.items():
            assert got[figure] == equal_but_for_rounding(figure, value), f"step {step}: {figure}"


CHANGES = [{"lam": 0.96}, {"cliprange_value": 0.15}, {"missing_eos_penalty": 0.01}, {"temperature": 0.999}]
MORE = [
    {"gamma": 0.99},
    {"cliprange": 0.21},
    {"vf_coef": 0.11},
    {"kl_coef": 0.21},
    {"whiten_advantages": False},
    {"kl_estimator": "k2"},
    {"adam_epsilon": 1e-6},
    {"max_grad_norm": 0.9},
]


@pytest.mark.parametrize("change", CHANGES + [pytest.param(change, marks=pytest.mark.long) for change in MORE], ids=str)
def test_a_small_change_of_the_mathematics_leaves_the_record(tmp_path, change):
    recorded, now = json.loads(GOLDEN.read_text())["defaults"], record(tmp_path, **change)
    assert any(
        got[figure] != equal_but_for_rounding(figure, value)
        for got, expected in zip(now, recorded, strict=True)
        for figure, value in expected.items()
    )


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN
    path.write_text(json.dumps({name: record(tempfile.mkdtemp(), **run) for name, run in RUNS.items()}, indent=1) + "\n")
