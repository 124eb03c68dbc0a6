"""Parts of benchmarks/gpu.py that learn something: characters of Shakespeare, and digits by PPO and GRPO."""

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpu_sides import ROOT, ppo_side

CONFIGS = "configs/shakespeare-char"
SEEDS = (1, 2, 3)
TINY = ["--model_config", "{model_type: gpt2, n_embd: 32, n_layer: 2, n_head: 2, n_positions: 64}", "--max_length", "64",
        "--max_steps", "60", "--eval_steps", "15", "--save_steps", "15", "--per_device_train_batch_size", "4",
        "--torch_compile", "false", "--dataloader_num_workers", "0", "--warmup_steps", "2"]  # fmt: skip
DETERMINISTIC = ["--full_determinism", "true", "--max_steps", "1000"]


# ---- Characters ----


def shakespeare(smoke: bool, text: str | None, report: Callable[[dict], None]) -> dict:
    """configs/shakespeare-char as it stands, by its recipes, for each seed: the least validation loss, its step, seconds of
    training (with compilation) and of the command. The first seed runs alone, the others and `resumed` beside each other.
    Three seeds (one with smoke). `report` gets what is found after each run."""
    found = {"text": "generated, a tiny model: its figures mean nothing" if smoke else text or f"that of {CONFIGS}"}
    seeds = SEEDS[: 1 if smoke else None]

    def tell(figures: dict) -> None:
        found.update(figures)
        report(dict(found))

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as beside:
        options = text_options(Path(folder), smoke, text)
        run("tokenizer", Path(folder, "tokenizer"), [*options["train"]])
        common = [
            *options["train"],
            *options["eval"],
            "--tokenizer_name_or_path",
            f"{folder}/tokenizer",
            "--report_to",
            "none",
            "--logging_steps",
            "5" if smoke else "10",
            *TINY * smoke,
        ]

        def train(seed: int) -> None:
            started, output = time.time(), Path(folder, str(seed))
            run("pretrain", output, [*common, "--seed", str(seed)])
            seconds, curve = time.time() - started, read_curve(output, "eval_loss")
            step, trained = min(curve, key=curve.get), next(iter(read_curve(output, "train_runtime").values()))
            figures = {"command_s": seconds, "eval_loss": curve[step], "step": step, "train_s": trained}
            tell({f"seed_{seed}_{name}": value for name, value in figures.items()})

        train(seeds[0])
        others = [beside.submit(train, seed) for seed in seeds[1:]]
        others.append(beside.submit(resumed, Path(folder), common, smoke, tell))
        failed = [error for error in (other.exception() for other in others) if error]
        if not smoke:
            trained = [s for s in seeds if f"seed_{s}_train_s" in found]
            met = [found[f"seed_{s}_eval_loss"] <= 1.47 and found[f"seed_{s}_train_s"] <= 180 for s in trained]
            tell({"goal_met": f"{sum(met)} of {len(seeds)} seeds"})
        if failed:
            raise failed[0]
    return found


def resumed(folder: Path, common: list[str], smoke: bool, tell: Callable[[dict], None]) -> None:
    """The largest difference between the curves of a run and of the same run, killed by SIGKILL after half of its steps and
    started again. On a GPU two runs are equal only with `full_determinism`: 1,000 steps with it."""
    common = [*common, "--seed", str(SEEDS[0]), *DETERMINISTIC * (not smoke)]
    whole, killed = folder / "whole", folder / "killed"
    run("pretrain", whole, common)
    tell({"killed_beside": kill(killed, common, half_of(whole))})
    run("pretrain", killed, common)
    for name in ("loss", "eval_loss"):
        one, two = (read_curve(output, name) for output in (whole, killed))
        if one.keys() != two.keys():
            raise RuntimeError(f"{name} was logged at other steps by the resumed run: {sorted(one.keys() ^ two.keys())}")
        difference = max(abs(one[step] - two[step]) for step in one)
        tell({f"resumed_{name}_points": len(one), f"resumed_{name}_largest_difference": difference})


def text_options(folder: Path, smoke: bool, text: str | None) -> dict[str, list[str]]:
    """The options that replace the config's texts by generated ones or by the file `text`, split as the Hub's set is: nine
    tenths to train on, the first half of the last tenth to evaluate on. Without either, none."""
    if not smoke and not text:
        return {"train": [], "eval": []}
    if smoke:
        choose = random.Random(0)
        words = ["thou", "art", "more", "lovely", "and", "temperate", "rough", "winds", "do", "shake", "the", "buds"]
        whole = " ".join(choose.choice(words) for _ in range(6000))
    else:
        whole = Path(text).read_text(encoding="utf-8")
    nine, half = int(0.9 * len(whole)), int(0.95 * len(whole))
    options = {}
    for name, part in {"train": whole[:nine], "eval": whole[nine:half]}.items():
        (folder / f"{name}.jsonl").write_text(json.dumps({"text": part}) + "\n", encoding="utf-8")
        key = "--datasets" if name == "train" else "--eval_datasets"
        options[name] = [key, json.dumps([{"path": f"{folder}/{name}.jsonl"}])]
    return options


def command(stage: str, output: Path, options: list[str]) -> list[str]:
    config = ["--config", f"{CONFIGS}/{stage}.yaml", "--output_dir", str(output)]
    return [sys.executable, f"recipes/{stage}.py", *config, *options]


def run(stage: str, output: Path, options: list[str]) -> None:
    done = subprocess.run(command(stage, output, options), cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{stage} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-1500:]}")


def read_curve(output: Path, name: str) -> dict[int, float]:
    """What was logged as `name`, by step; of several at one step, the first."""
    logged = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry[name] for entry in reversed(logged) if name in entry}


def half_of(output: Path) -> int:
    return json.loads((output / "trainer_state.json").read_text())["max_steps"] // 2


def kill(output: Path, options: list[str], step: int) -> str:
    """Starts the run and kills it once a checkpoint of `step` or later is there; returns the checkpoint's name."""
    process = subprocess.Popen(
        command("pretrain", output, options), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None:
        for checkpoint in output.glob("checkpoint-*"):
            last = checkpoint.name.rpartition("-")[2]
            if last.isdigit() and int(last) >= step:
                process.send_signal(signal.SIGKILL)
                if process.wait() == -signal.SIGKILL:
                    return checkpoint.name
        time.sleep(0.02)
    raise RuntimeError(f"the run that was to be killed ended with {process.returncode} first")


# ---- Digits ----


def digits(smoke: bool, trl: str | None, report: Callable[[dict], None]) -> dict:
    """From a model that completes digits rightly 40 times in 100, for each seed: the share right of the first and of the
    last five rollouts and the samples needed for 95 %, by our PPO, GRPO and, with `trl`, TRL 1.12.0's PPO, on equally many
    samples. Three seeds (one with smoke, of a small model that learns too). `report` gets what is found after each run."""
    from ppo_digits import START, warm_up

    workload = "digits-smoke" if smoke else "digits"
    updates, sides = 80, (*(["trl"] if trl else []), "separate", "grpo")
    found = {} if trl else {"trl": "not run: --trl names no folder with it"}
    reached = dict.fromkeys(sides, 0)
    seeds = SEEDS[: 1 if smoke else None]
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            policy = f"{folder}/{seed}"
            start, steps = warm_up(policy, workload, seed)
            found[f"seed_{seed}_start"] = f"{start:.3f} right after {steps} steps of warm-up"
            if start > START + 0.1:
                found[f"seed_{seed}_start"] += f", not about {START}: no figure for the goal"
            for side in sides:
                name = f"{'ppo' if side == 'separate' else side}_seed_{seed}"
                started = time.time()
                try:
                    result = ppo_side(side, trl, workload, str(updates), str(seed), policy)
                except RuntimeError as error:
                    found[f"{name}_failed"] = str(error)
                    continue
                curve, rows, last = result["scores"], result["rows"], result["scores"][-5:]
                first = next((i for i, share in enumerate(curve) if share >= 0.95), None)
                reached[side] += sum(last) / len(last) >= 0.95
                found |= {
                    f"{name}_right": f"{curve[0]:.3f} -> {sum(last) / len(last):.3f} after {rows * len(curve)} samples",
                    f"{name}_samples_to_95": "never" if first is None else rows * first,
                    f"{name}_s": time.time() - started,
                    f"{name}_curve": curve,
                }
                report(found)
    return found | {f"{side}_goal_met": f"{count} of {len(seeds)} seeds" for side, count in reached.items()}
