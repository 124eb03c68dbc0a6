"""configs/README.md: every chain for a real model, and what its stages need (`python -m llmrecipes.plan.catalogue`)."""

import os
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

from llmrecipes.keys.strict_yaml import load_yaml
from llmrecipes.manifest import ROOT
from llmrecipes.plan import make_plan
from llmrecipes.plan.reading import read_settings
from llmrecipes.plan.table import GIB, hours

TRAINING = ("pretrain", "sft", "reward", "dpo", "ppo", "grpo")
PROMPT_TOKENS = 512  # tokens of a prompt if no key limits it, as in the chain's ppo.yaml
HEAD = """\
# Configs

Written by `python -m llmrecipes.plan.catalogue > configs/README.md`. A folder is a model's chain; a YAML is one stage of it.
`quickstart`, `finetune`, `smalltalk`, `smoke` and `english` were run here; `accelerate` holds launch topologies, `schemas`
the keys for editors, `tasks` lm-eval's tasks. **The chains below were planned, and tried out with their models scaled down
on made-up rows with the data sets' columns; none of them has run here at its size, on a GPU, or on its data.**

Memory per GPU and time are those of `recipes/plan.py` for H100s of 80 GB at 40 % of their peak
([planning](../docs/planning.md)): upper bounds, for rows of full length, a block for each row where rows are packed, and
in GRPO prompts of 512 tokens. The numbers of rows and their sources are in `llmrecipes/plan/hub_rows.yaml`. Models
of about ten million parameters reach less than 40 %. On 1, 2, 4 or 8 GPUs the global batch stays the same if
`gradient_accumulation_steps` grows as the number of GPUs shrinks or, where it is 1 already, `per_device_train_batch_size`
shrinks as the number grows; the plan and the run name the values.

| chain | stage | trained, of all parameters | GPUs | rows a step | GiB a GPU | time | published |
|---|---|---|---|---|---|---|---|
"""


def chains() -> list[Path]:
    """The folders of configs/ that train a real model: those whose YAMLs say on what hardware they were not run."""
    folders = sorted({path.parent for path in (ROOT / "configs").glob("*/*.yaml")})
    return [
        folder for folder in folders if any("not run here" in f.read_text(encoding="utf-8") for f in folder.glob("*.yaml"))
    ]


def launch_config(file: Path) -> str | None:
    """The --config_file that the YAML's launch line names."""
    words = next(line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("# Launch: ")).split()
    return words[words.index("--config_file") + 1] if "--config_file" in words else None


def plan_of(file: Path) -> dict:
    """The plan of one of the catalogue's YAMLs on its own hardware, from the configs alone: what a chain has already left in
    outputs/ does not count."""
    file, topology = file.resolve(), launch_config(file)
    with TemporaryDirectory() as empty, chdir(empty):
        settings, config = read_settings(["--config", str(file)], None, ROOT / "recipes")
        prompt_tokens = PROMPT_TOKENS if "num_iterations" in settings.keys else None  # of GRPO, which has no key for it
        return make_plan(settings, config, accelerate_config=topology and str(ROOT / topology), prompt_tokens=prompt_tokens)


def table() -> str:
    """The text of configs/README.md."""
    lines = []
    for folder in chains():
        files = {file.stem: file for file in folder.glob("*.yaml")}
        for stage in [*TRAINING, *sorted(set(files) - set(TRAINING))]:
            if stage in files:
                lines.append(_line(folder.name, stage, files[stage]))
    return HEAD + "\n".join(lines) + "\n"


def _line(chain: str, stage: str, file: Path) -> str:
    published = load_yaml(str(file)).get("published") or {}
    figures = "; ".join(f"{metric} {value}" for metric, (value, _) in published.items()) or "–"
    first = f"| [{chain}]({chain}/README.md) | [{stage}]({chain}/{file.name}) |"
    if stage not in TRAINING:
        return f"{first} – | – | – | – | – | {figures} |"
    plan = plan_of(file)
    counts = (plan["parameters"][which] for which in ("trained", "all"))
    sizes = " of ".join(f"{n / 1e9:.2f} B" if n >= 1e9 else f"{n / 1e6:.1f} M" for n in counts)
    time = hours(plan["hours"]) if plan["steps"] else "–"
    memory = f"{plan['peak'] / GIB:.1f}" + ("" if plan["fits"] else " (too much)")
    return f"{first} {sizes} | {plan['num_gpus']} | {plan['global_batch_size']} | {memory} | {time} | {figures} |"


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"  # the same text everywhere
    print(table(), end="")
