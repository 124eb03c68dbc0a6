"""The plan's closed form against the memory of recipes on a CPU: peak resident memory of a run minus that of the same run
with a minimal model. Freed memory is returned to the system at once, so that the peak is memory in use.

DPO, KTO and PPO have a small vocabulary: TRL's head, and PPO's sampling, take buffers on a CPU that they do not on a GPU.

Run: python benchmarks/memory.py [--stages dpo ppo] [--json FILE]
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from llmrecipes.keys import recipe_keys
from llmrecipes.options import OptionParser, result_file
from llmrecipes.parsing import Options, collect
from llmrecipes.plan import make_plan

ROOT = Path(__file__).parent.parent
SIZES = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 16000,
    "max_position_embeddings": 512,
}
TINY = {**SIZES, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 300}
COMMON = {
    "max_steps": 3,
    "per_device_train_batch_size": 4,
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "activation_checkpointing": False,
    "max_length": 256,
}
STAGES = ("pretrain", "sft", "reward", "dpo", "kto", "ppo")
SMALL_HEAD = {"num_hidden_layers": 6, "vocab_size": 512}
PPO = {
    "max_prompt_length": 192,
    "max_completion_length": 64,
    "rollout_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "reward_functions": ["llmrecipes.data.catalogue:exact_answer"],
}


def write_inputs(folder: Path) -> None:
    """A tokenizer, models of the three sizes, and rows that fill every block."""
    from llmrecipes.models import build_policy
    from llmrecipes.tokenizers import train_tokenizer

    text = "one two three four five six seven eight nine ten " * 60
    tokenizer = train_tokenizer([text], 300, 512)
    for name, sizes in (("large", SIZES), ("small-head", SIZES | SMALL_HEAD), ("tiny", TINY)):
        build_policy(sizes, tokenizer).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    words = text.split()
    count = max(n for n in range(10, len(words), 5) if len(tokenizer(" ".join(words[:n]))["input_ids"]) <= 231)
    ask = [{"role": "user", "content": "Count"}]
    answers = [[{"role": "assistant", "content": " ".join(words[: count - less])}] for less in (0, 2)]
    rows = {
        "pretrain": {"text": text},
        "sft": {"messages": [*ask, *answers[0]]},
        **dict.fromkeys(("reward", "dpo", "kto"), {"prompt": ask, "chosen": answers[0], "rejected": answers[1]}),
        "ppo": {"prompt": [{"role": "user", "content": longest_prompt(tokenizer, words)}], "answer": "5"},
    }
    for stage, row in rows.items():
        (folder / f"{stage}.jsonl").write_text((json.dumps(row) + "\n") * 64)


def longest_prompt(tokenizer, words: list[str]) -> str:
    """The first words, as many as a prompt of PPO may have."""

    def fits(count: int) -> bool:
        turn = [{"role": "user", "content": " ".join(words[:count])}]
        return len(tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"]) <= PPO["max_prompt_length"]

    return " ".join(words[: max(filter(fits, range(1, len(words))))])


def taken_and_planned(stage: str, size: str, folder: Path) -> tuple[int, float]:
    """(peak resident bytes of the run, planned bytes) of `stage` with the model `size`."""
    values = {
        **({k: v for k, v in COMMON.items() if k != "max_length"} | PPO if stage == "ppo" else COMMON),
        "model_name_or_path": str(folder / size),
        "output_dir": str(folder / f"{stage}-{size}"),
        "datasets": [str(folder / f"{stage}.jsonl")],
    }
    config = folder / f"{stage}.yaml"
    config.write_text(yaml.safe_dump(values))
    command = [
        "/usr/bin/env",
        sys.executable,
        "-c",
        MEASURED,
        str(ROOT / "recipes" / f"{stage}.py"),
        "--config",
        str(config),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    settings, _, _ = collect(Options({}, str(config)), recipe_keys(ROOT / "recipes" / f"{stage}.py"))
    return int(re.search(r"VmHWM:\s+(\d+)", done.stdout)[1]) * 1024, make_plan(settings, str(config))["peak"]


MEASURED = """
import ctypes, runpy, sys
import llmrecipes.cpu
llmrecipes.cpu.keep_freed_memory = lambda: None
ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: what is freed goes back
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
print(*(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def main() -> None:
    parser = OptionParser(description=__doc__)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--json", type=result_file, help="write the table there")
    args, table = parser.parse_args(), {}
    with tempfile.TemporaryDirectory() as work:
        write_inputs(Path(work))
        print(f"{'stage':<10}{'taken, MiB':>12}{'planned':>10}{'ratio':>8}")
        for stage in args.stages:
            large = "large" if stage in ("pretrain", "sft", "reward") else "small-head"
            (taken, planned), (without, almost_none) = (
                taken_and_planned(stage, size, Path(work)) for size in (large, "tiny")
            )
            taken, planned = taken - without, planned - almost_none
            table[stage] = {"taken": taken, "planned": planned}
            print(f"{stage:<10}{taken / 2**20:>12.0f}{planned / 2**20:>10.0f}{planned / taken:>8.3f}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
