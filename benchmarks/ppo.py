"""PPOTrainer against that of trl 1.12.0, the last release with one: samples/s by phase, peak memory, learning.

    python benchmarks/ppo.py [--updates 2] [--rounds 3] [--workloads fixed,variable,vocabulary] [--sides trl,separate,shared]
                             [--bandit] [--json FILE]

trl 1.12.0 gets its own environment, created on the first call in benchmarks/.trl (venv and pip). The sides run alternately,
one process each, on the same models, prompts (in the same order) and response lengths, which follow a schedule: random
weights, fp32, num_mini_batches 1, pad != eos, no sample generations, old log-probabilities from sampling; the first update
warms up, TRL's last update of a pass is not run. Measures CPU time of one thread, which other load disturbs least.
"separate" compares like with like; "shared" (one trunk for policy and value) is a different algorithm, shown separately;
"compiled", which runs if named in --sides, is "separate" with torch_compile. Ratios are to the first side. Beside the
seconds of "separate" and "compiled" stands their floor: the update's matrix products at this machine's own rate, and what
products and attention kernels take as the models call them (ppo_floor.py).
--workloads smoke: a tiny model, to check that everything runs; its figures mean nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from ppo_sides import ROWS, TOYS, WORKLOADS

from llmrecipes.options import OptionParser, names_of, result_file

ROOT = Path(__file__).parent.parent
ENVIRONMENT = Path(__file__).parent / ".trl"
SIDES = ("trl", "separate", "shared", "compiled")
TOY_UPDATES = 50
# Target ratios to TRL: samples/s at least, peak memory at most.
TARGETS = {
    ("fixed", "separate"): (1.1, 0.75),
    ("variable", "separate"): (1.8, 0.75),
    ("vocabulary", "separate"): (2.8, 0.5),
    ("fixed", "shared"): (1.6, None),
    ("variable", "shared"): (2.6, None),
    ("vocabulary", "shared"): (3.3, None),
}
MEDIANS = ("samples_per_s", "peak_mb", "overhead", "first_update_s")
FLOOR_TARGET = 1.25  # times the floor, separate value model
TOY_TARGETS = {"bandit": 0.8, "stop": 0.95, "stop_pad_is_eos": 0.95}


def trl_python() -> Path:
    """The interpreter of the environment with trl 1.12.0, which is created if missing."""
    python = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / "ready").exists():
        print(f"making {ENVIRONMENT.relative_to(ROOT)} with trl 1.12.0 ...", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        pins = [
            line.strip()
            for line in (ROOT / "requirements.txt").read_text().splitlines()
            if line.startswith(("torch==", "transformers==", "accelerate==", "datasets==", "tokenizers==", "numpy=="))
        ]
        subprocess.run([str(python), "-m", "pip", "install", "-q", *pins, "trl==1.12.0"], check=True)
        (ENVIRONMENT / "ready").touch()
    return python


def in_process(side: str, workload: str, updates: int) -> dict:
    python = trl_python() if side == "trl" else sys.executable
    script = Path(__file__).with_name("ppo_sides.py")
    with tempfile.TemporaryDirectory() as cache:  # empty: what compiling takes is measured too
        own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "TORCHINDUCTOR_CACHE_DIR": cache}
        command = [str(python), str(script), side, workload, str(updates)]
        done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{side}, {workload} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def verdict(value: float, target: float | None, at_most: bool = False) -> str:
    if target is None:
        return ""
    met = value <= target if at_most else value >= target
    return f", {'<=' if at_most else '>='} {target}: {'met' if met else 'MISSED'}"


def report(workload: str, runs: dict[str, list[dict]]) -> dict:
    """Prints each side's medians over the rounds, its ratio to the first side (median and range over the rounds) and its
    phases. Exits if the sides did not process the same number of tokens."""
    tokens = {tuple(run["tokens"]) for each in runs.values() for run in each}
    if len(tokens) > 1:
        sys.exit(f"{workload}: the sides sampled different numbers of response tokens: {sorted(tokens)}")
    print(f"\n{workload}: {WORKLOADS[workload]}; response tokens by update, every side: {list(*tokens)}")
    figures, first = {}, next(iter(runs))
    for side, each in runs.items():
        pairs = list(zip(each, runs[first], strict=True))
        speeds, peaks = (sorted(run[key] / other[key] for run, other in pairs) for key in ("samples_per_s", "peak_mb"))
        at_least, at_most = TARGETS.get((workload, side), (None, None)) if first == "trl" else (None, None)
        middle = {key: statistics.median(run[key] for run in each) for key in MEDIANS}
        phases = {name: statistics.median(run["seconds"][name] for run in each) for name in sorted(each[0]["seconds"])}
        speed, peak = statistics.median(speeds), statistics.median(peaks)
        print(
            f"  {side:9} {middle['samples_per_s']:6.2f} samples/s  {speed:.2f}x [{speeds[0]:.2f}, {speeds[-1]:.2f}]"
            f"{verdict(speed, at_least)}"
        )
        print(
            f"            peak {middle['peak_mb']:.0f} MiB  {peak:.2f}x [{peaks[0]:.2f}, {peaks[-1]:.2f}]"
            f"{verdict(peak, at_most, at_most=True)}"
        )
        own = f"  trainer's own {middle['overhead']:.1%} of wall time, first update after {middle['first_update_s']:.0f} s"
        print(
            "            s/update: " + "  ".join(f"{name} {value:.2f}" for name, value in phases.items()) + own, flush=True
        )
        if each[0]["floor"]:
            middle["floor"] = report_floor(phases, [run["floor"] for run in each], workload)
            middle["kernels"] = report_floor(phases, [run["kernels"] for run in each], None, "kernels")
        figures[side] = {**middle, "speed": speed, "speeds": speeds, "peak": peak, "peaks": peaks, "seconds": phases}
    return figures


def report_floor(phases: dict[str, float], floors: list[dict], workload: str | None, what: str = "floor") -> dict:
    """Prints and returns the floor's seconds (medians over the rounds) and the measured ones as multiples of them.
    workload: whose goal is judged."""
    floor = {name: statistics.median(each[name] for each in floors) for name in sorted(floors[0])}
    times = {name: phases[name] / seconds for name, seconds in floor.items()}
    print(f"            {what}: {'  '.join(f'{name} {seconds:.2f}' for name, seconds in floor.items())}")
    print(f"            x {what}: {'  '.join(f'{name} {ratio:.2f}' for name, ratio in times.items())}")
    total, least = sum(phases.values()), sum(floor.values())
    goal = verdict(total / least, FLOOR_TARGET if (workload, "separate") in TARGETS else None, at_most=True)
    print(f"            in total {total:.2f} s, {what} {least:.2f} s: {total / least:.2f}x{goal}", flush=True)
    return {"seconds": floor, "times": times, "total": total / least}


def learning(updates: int) -> dict:
    """Prints the toys' learning curves and the number of updates that each side needs to reach the target."""
    curves = {}
    for toy in TOYS:
        curves[toy] = {side: in_process(side, toy, updates)["scores"] for side in ("trl", "separate")}
        what = "mean score" if toy == "bandit" else "share of responses ending in EOS"
        print(f"\n{toy}: {what} by update; {ROWS} responses each")
        for side, curve in curves[toy].items():
            reached = next((i for i, value in enumerate(curve) if value >= TOY_TARGETS[toy]), None)
            needed = "never" if reached is None else f"after {reached} updates"
            steps = "  ".join(f"{i}: {curve[i]:.3f}" for i in range(0, len(curve), 5))
            end = statistics.mean(curve[-5:])
            print(f"  {side:9} {TOY_TARGETS[toy]} {needed}; mean of the last five {end:.3f};  {steps}", flush=True)
    return curves


def main() -> None:
    parser = OptionParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=2, help="rollouts in a run, the first not counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workloads", default="fixed,variable,vocabulary")
    parser.add_argument("--sides", default="trl,separate,shared", help=f"of {', '.join(SIDES)}")
    parser.add_argument("--bandit", action="store_true", help=f"learning curves of {', '.join(TOYS)}: {TOY_UPDATES} updates")
    parser.add_argument("--json", type=result_file)
    args = parser.parse_args()
    try:
        workloads = names_of(args.workloads, WORKLOADS) if args.workloads else []  # none: --bandit alone
        sides = names_of(args.sides, SIDES)
    except ValueError as error:
        parser.error(f"--workloads, --sides: {error}")
    if not workloads and not args.bandit:
        parser.error("--workloads: names none, and without --bandit nothing is left to measure")
    if args.updates < 2 or args.rounds < 1:
        parser.error("--updates must be at least 2, --rounds at least 1")
    results = {}
    for workload in workloads:
        runs = {side: [] for side in sides}
        for _ in range(args.rounds):
            for side in sides:
                runs[side].append(in_process(side, workload, args.updates))
        results[workload] = {"figures": report(workload, runs), "runs": runs}
    if args.bandit:
        results["learning"] = learning(TOY_UPDATES)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
