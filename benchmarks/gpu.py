"""Speed on a GPU: pretraining and SFT against a bare loop, decoding, PPO against trl 1.12.0's. Takes eight minutes.

    python benchmarks/gpu.py [--parts pretrain,sft,lora,decode,ppo] [--smoke] [--trl FOLDER] [--json FILE]

Two more parts learn, and run if named: `shakespeare` (configs/shakespeare-char with three seeds, and killed and resumed;
--text FILE: Shakespeare's text, where the Hub cannot be reached) and `digits` (PPO, GRPO and trl 1.12.0's PPO on an exact
reward, 10.6M parameters, three seeds). How long these take on a GPU was not measured.

Elsewhere random tokens and weights: speed does not depend on them. Each part runs in a process of its own. MFU is
(6 N + 12 L H T) tokens/s over the card's dense bf16 peak, with N all parameters (nanoGPT's and PaLM's count; 4 N with LoRA,
whose frozen weights have no gradients); in `sft` and `lora`, whose rows are packed or joined without padding, T is each
token's own row. --trl: a folder with trl 1.12.0 (`pip install --no-deps --target FOLDER trl==1.12.0`), used with the other
packages of this environment; without it TRL's PPO is not measured. --json is written again with each figure that a part
finds, so that a machine that goes away takes none of them along; the parts that it holds already stay in it until they are
measured again. --smoke: every part on tiny models, also on a CPU, to check that it runs; its figures mean nothing. For a GPU
machine without a network: benchmarks/gpu_offline.py.
"""

import argparse
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from itertools import count
from pathlib import Path

import yaml
from gpu_sides import ROOT, BareLoop, Recipe, build_model, build_pretraining, build_sft, documents, ppo_side

from llmrecipes.durable import write_json
from llmrecipes.options import OptionParser, names_of, result_file

PARTS = ("pretrain", "sft", "lora", "decode", "ppo")
LEARNING = ("shakespeare", "digits")
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
GOALS = {
    "pretrain": "overhead <= 2 %, MFU >= 50 % on an H100",
    "ppo": "samples/s >= 2x, memory <= 0.6x of trl 1.12.0",
    "shakespeare": "loss <= 1.47 in <= 180 s of training; resumed: no difference",
    "digits": "right >= 0.95 from about 0.40",
}
# layers, width, heads, tokens in a row, rows in a micro-batch, vocabulary
SHAPES = {
    "pretrain": (12, 768, 12, 1024, 16, 50304),
    "sft": (32, 960, 15, 2048, 8, 49152),  # SmolLM2-360M's
    "lora": (32, 960, 15, 2048, 8, 49152),
    "decode": (24, 1024, 16, 512, 64, 50304),
    "smoke": (2, 64, 2, 64, 4, 512),
}


def peak_flops(name: str) -> float | None:
    """Dense bf16 FLOP/s of the card that torch calls `name`, from recipes/plan.py's list; None if it is not there, as an L40
    or A10G, or is another form of one that is."""
    from llmrecipes.plan import GPUS

    words = re.findall("[a-z0-9]+", name.lower())
    called = {*words, *map("".join, zip(words, words[1:], strict=False))}  # "RTX 4090" is rtx4090
    if called & {"nvl", "mig", "laptop"}:
        return None
    known = yaml.safe_load(GPUS.read_text(encoding="utf-8"))
    cards = [card for card in known if called.issuperset(card.split("-"))]
    return known[max(cards, key=len)]["tflops"] * 1e12 if cards else None


def pretrain(shape: tuple, steps: int) -> dict:
    """The recipe's trainer and a hand-written loop, alternating on the same rows: medians of three turns each, without the
    first step of a turn; then the trainer with `fused_lm_head`. A side that fails leaves the others their figures."""
    layers, width, _, length, rows, _ = shape
    with tempfile.TemporaryDirectory() as folder:
        sides = {"recipe": Recipe(build_pretraining(shape, steps, folder))}
        trainer = sides["recipe"].trainer
        parameters = sum(p.numel() for p in trainer.model.parameters())
        sides["bare"] = BareLoop(build_model(shape), trainer, steps)
        found = {"parameters": parameters, "tokens_per_step": rows * length}
        flops = 6 * parameters + 12 * layers * width * length
        contest(sides, (), rows * length, flops, found)
        if {"bare_tokens_per_s", "recipe_tokens_per_s"} <= found.keys():
            found["overhead"] = found["bare_tokens_per_s"] / found["recipe_tokens_per_s"] - 1
        report(found)
        fused = {"fused_lm_head": Recipe(build_pretraining(shape, steps, folder, fused_lm_head=True))}
        contest(fused, tuple(sides.values()), rows * length, flops, found)
    return found


def sft(part: str, shape: tuple, steps: int) -> dict:
    """SFT (`lora`: of an adapter) in bf16 and not compiled: rows of different lengths packed into blocks, and joined without
    padding, each by the recipe's trainer and by a hand-written loop. Then, packed, the trainer with the mask that it would
    have without attention by document and, in `sft`, with torch_compile. Only real tokens and attention inside documents
    count."""
    import peft

    lora, found = part == "lora", {}
    plain = {"torch_compile": False}
    runs = {"packed": (True, plain), "padding_free": (False, plain), "masked": (True, plain)}
    runs |= {} if lora else {"compiled": (True, {})}
    for name, (packed, keys) in runs.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                trainer = build_sft(shape, steps, folder, packed, lora, **keys)
                sides, bare = {name: Recipe(trainer)}, f"{name}_bare"
                if name == "masked":
                    trainer._by_document = False
                elif name != "compiled":
                    model = build_model(shape)
                    if lora:
                        model = peft.get_peft_model(model, trainer.model.peft_config["default"])
                    sides[bare] = BareLoop(model, trainer, steps)
                tokens, flops = work_of(documents(trainer), shape, steps, trainer.model, lora)
                found[f"{name}_tokens_per_step"] = tokens
                contest(sides, (), tokens, flops, found)
                found[f"{name}_by_document"] = trainer._by_document
                found[f"{name}_loss"] = sides[name].losses[0]  # masked and not, from the same weights on the same rows
                if {f"{name}_tokens_per_s", f"{bare}_tokens_per_s"} <= found.keys():
                    found[f"{name}_overhead"] = found[f"{bare}_tokens_per_s"] / found[f"{name}_tokens_per_s"] - 1
            except Exception:  # leaves the other runs their figures
                found[f"{name}_failed"] = traceback.format_exc()[-1500:]
            report(found)
        trainer = sides = model = None  # their memory
        free()
    return found


def work_of(lengths: list[int], shape: tuple, steps: int, model, lora: bool) -> tuple[float, float]:
    """(tokens of a step, FLOPs of a token): 6 per weight, 4 where weights are frozen and have no gradients, and attention's
    12 L H of each token and each of its own document's."""
    layers, width, *_ = shape
    tokens = sum(lengths)
    attention = 12 * layers * width * sum(length * length for length in lengths) / tokens
    return tokens / steps, (4 if lora else 6) * sum(p.numel() for p in model.parameters()) + attention


def contest(sides: dict, idle: tuple, tokens: int, flops: float, found: dict) -> None:
    """Adds each side's tokens/s, MFU and peak memory, without what the other sides and `idle` ones hold, to `found`."""
    seconds, memory = {side: [] for side in sides}, {}
    for _ in range(4):  # the first warms up and compiles
        for side, runner in sides.items():
            if f"{side}_failed" not in found:
                try:
                    seconds[side].append(turn(runner))
                    others = (other for other in (*sides.values(), *idle) if other is not runner)
                    memory[side] = peak_gib() - sum(held_gib(other.model, other.optimizer) for other in others)
                except Exception:
                    found[f"{side}_failed"] = traceback.format_exc()[-1500:]
    for side, times in seconds.items():
        if f"{side}_failed" not in found:
            per_second = tokens / sorted(times[1:])[1]
            found[f"{side}_tokens_per_s"], found[f"{side}_peak_gib"] = per_second, memory[side]
            found[f"{side}_mfu"] = (peak := peak_flops(device_name())) and per_second * flops / peak


def turn(side) -> float:
    """Seconds per step of one run of `side`, the first step left out; the peak of memory is that of this run."""
    from training import pace

    reset_peak()
    return pace(side.run())[0]


def decode(shape: tuple, new_tokens: int) -> dict:
    """Tokens per second of `llmrecipes.generation`, without and with cache_implementation: static, and of generate with a
    dynamic and, on a GPU, a compiled static cache."""
    import torch
    from training import now

    from llmrecipes.generation import sample_responses

    *_, length, rows, vocabulary = shape
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(shape).to(device, torch.bfloat16 if device == "cuda" else torch.float32).eval()
    prompts = torch.randint(3, vocabulary, (rows, length // 4), device=device)
    options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": True, "top_k": 0}
    given = {"eos_token_ids": [vocabulary], "pad_token_id": 0, "max_new_tokens": new_tokens, "temperature": 1.0}
    ways = {
        "ours": lambda: sample_responses(model, prompts.tolist(), **given),
        "ours_static": lambda: sample_responses(model, prompts.tolist(), cache_implementation="static", **given),
        "generate": lambda: model.generate(prompts, attention_mask=torch.ones_like(prompts), **options),
    }
    if device == "cuda":
        static = options | {"cache_implementation": "static"}
        ways["generate_static"] = lambda: model.generate(prompts, attention_mask=torch.ones_like(prompts), **static)
    found = {}
    for name, way in ways.items():
        try:
            way()
            started = now()[0]
            way()
            found[f"{name}_tokens_per_s"] = rows * new_tokens / (now()[0] - started)
        except Exception:  # leaves the other ways their figures
            found[f"{name}_failed"] = traceback.format_exc()[-1500:]
        report(found)
    return found


def ppo(smoke: bool, trl: str | None) -> dict:
    """Both sides of benchmarks/ppo.py on Pythia-410M's shape, prompts, responses and epochs of arXiv 2403.17031, rollouts of
    128 (512 there), and ours with torch_compile and with cache_implementation: static against ours without: samples/s and
    memory."""
    workload = "smoke" if smoke else "pythia-410m"
    found = {}
    for side in (*(["trl"] if trl else []), "separate", "static", "compiled"):
        try:
            run = ppo_side(side, trl, workload, "2")
        except RuntimeError as error:
            found[f"{side}_failed"] = str(error)
            report(found)
            continue
        found[f"{side}_samples_per_s"], found[f"{side}_peak_gib"] = run["samples_per_s"], run["peak_mb"] / 1024
        found |= {f"{side}_{name}_s": seconds for name, seconds in run["seconds"].items()}
        found |= {f"{side}_first_update_s": run["first_update_s"], f"{side}_tokens": run["tokens"]}
        report(found)
    for prefix, side, other in (
        ("", "separate", "trl"),
        ("static_", "static", "separate"),
        ("compiled_", "compiled", "separate"),
    ):
        if {f"{side}_tokens", f"{other}_tokens"} <= found.keys():
            if found[f"{side}_tokens"] != found[f"{other}_tokens"]:
                found[f"{prefix}comparison_failed"] = f"{side} and {other} sampled other numbers of tokens"
                continue
            found[f"{prefix}speed"] = found[f"{side}_samples_per_s"] / found[f"{other}_samples_per_s"]
            found[f"{prefix}memory"] = found[f"{side}_peak_gib"] / found[f"{other}_peak_gib"]
    return found


def device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


def reset_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float:
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # peak of the process so far


def free() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def held_gib(model, optimizer) -> float:
    """What a side that does not run keeps on a GPU: weights and optimizer states. On a CPU 0: see `peak_gib`."""
    import torch

    if not torch.cuda.is_available():
        return 0.0
    states = [] if optimizer is None else [value for state in optimizer.state.values() for value in state.values()]
    kept = [value for value in (*model.parameters(), *model.buffers(), *states) if getattr(value, "is_cuda", False)]
    return sum(value.numel() * value.element_size() for value in kept) / 2**30


def report(found: dict) -> None:
    """Tells the process that writes --json what was found so far."""
    print(json.dumps({"device": device_name()} | found), flush=True)


def measure(part: str, smoke: bool, trl: str | None, text: str | None) -> dict:
    from gpu_learning import digits, shakespeare

    from llmrecipes.logs import quiet_logs

    quiet_logs()
    if part in LEARNING:
        return shakespeare(smoke, text, report) if part == "shakespeare" else digits(smoke, trl, report)
    if part == "ppo":
        return ppo(smoke, trl)
    shape = SHAPES["smoke" if smoke else part]
    if part == "decode":
        return decode(shape, 8 if smoke else 128)
    if part == "pretrain":
        return pretrain(shape, steps=3 if smoke else 30)
    return sft(part, shape, steps=3 if smoke else 20)


def shown(value) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)


def main() -> None:
    parser = OptionParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--trl", metavar="FOLDER")
    parser.add_argument("--text", metavar="FILE", help="input.txt of nanoGPT's shakespeare_char, instead of the Hub's rows")
    parser.add_argument("--json", type=result_file, metavar="FILE")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # one part, in a process of its own
    args = parser.parse_args()
    if args.measure:
        report(measure(args.measure, args.smoke, args.trl, args.text))
        return
    try:
        parts = names_of(args.parts, (*PARTS, *LEARNING))
    except ValueError as error:
        parser.error(f"--parts: {error}")
    if args.text and not Path(args.text).is_file():
        parser.error(f"--text: {args.text} is not a file")
    if args.trl and not list(Path(args.trl).glob("trl-1.12.0.dist-info")):
        parser.error(f"--trl: {args.trl} does not hold trl 1.12.0; pip install --no-deps --target {args.trl} trl==1.12.0")
    try:
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        results = {"versions": versions} | (parts_in(args.json, versions, args.smoke) if args.json else {})
    except importlib.metadata.PackageNotFoundError as error:
        parser.error(f"{error.name} is not installed; pip install -r requirements.txt")
    except (ValueError, OSError) as error:
        parser.error(f"--json: {args.json} {error}")
    print("  ".join(f"{name} {version}" for name, version in versions.items()), flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for part in parts:
        try:
            run_part(part, args, results)
        except KeyboardInterrupt:
            sys.exit(f"{part}: stopped" + (f"; what was found so far is in {args.json}" if args.json else ""))
        found = results[part]
        goal = f"   (goal: {GOALS[part]})" if part in GOALS else ""
        print(f"\n{part}, {found['seconds']} s{goal}", flush=True)
        print("\n".join(f"  {name:<32} {shown(value)}" for name, value in found.items() if name != "seconds"), flush=True)
    if any("failed" in key for part in parts for key in results[part]):
        sys.exit(1)


def parts_in(path: Path, versions: dict, smoke: bool) -> dict:
    """The parts that --json holds already, but for those of --smoke. A file with which this run's cannot be in one, of other
    packages or figures that --smoke would replace, is set aside. ValueError or OSError if `path` is something else or cannot
    be written."""
    found = {}
    if path.exists():
        try:
            whole = json.loads(path.read_text(encoding="utf-8"))
            found = {part: figures for part, figures in whole.items() if part != "versions" and not figures.get("smoke")}
            same = whole["versions"] == versions and not smoke
        except (ValueError, KeyError, AttributeError):
            raise ValueError("holds something else; name another file") from None
        if found and not same:
            aside = next(name for i in count(1) if not (name := path.with_suffix(f".{i}{path.suffix}")).exists())
            path.rename(aside)
            print(f"{path}: figures of {'other packages' if not smoke else 'a real run'} were there; now in {aside}")
            found = {}
    write_json(path, {"versions": versions} | found)  # while nothing is lost if it cannot be
    return found


def run_part(part: str, args: argparse.Namespace, results: dict) -> None:
    """Measures `part` in a process of its own; what it reports is in `results`, and in --json, at once."""
    command = [sys.executable, __file__, "--measure", part, *["--smoke"] * args.smoke]
    command += ["--trl", str(Path(args.trl).resolve())] if args.trl else []
    command += ["--text", str(Path(args.text).resolve())] if args.text else []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    started, reported = time.time(), {}
    results.pop(part, None)  # of an earlier run

    def keep(found: dict) -> None:
        reported.update(found)
        results[part] = reported | {"seconds": round(time.time() - started)} | ({"smoke": True} if args.smoke else {})
        if args.json:
            write_json(args.json, results)

    with tempfile.TemporaryFile("w+") as errors:
        # A session of its own, so that what a part starts ends with it.
        streams = {"stdout": subprocess.PIPE, "stderr": errors, "text": True, "start_new_session": True}
        with subprocess.Popen(command, env=environment, **streams) as process:
            try:
                for line in process.stdout:
                    if line.startswith('{"device": '):
                        keep(json.loads(line))
            except KeyboardInterrupt:
                os.killpg(process.pid, signal.SIGKILL)
                keep({"failed": "stopped"})
                raise
        if process.returncode:
            errors.seek(0)
            keep({"failed": errors.read()[-1500:]})


if __name__ == "__main__":
    main()
