"""Plan: what a YAML will need, before renting a GPU: memory by part, whether it fits, hours, price, disk. Reads no weights.

Launch: python recipes/plan.py --config configs/llama-3.1-8b/sft.yaml --gpu h100 [--num_gpus 8] [--price 2.5] [--exact]
        [--accelerate_config configs/accelerate/fsdp2.yaml] [--json plan.json]
        [any key of the stage, such as --max_length 1024]
Writes: nothing, or with --json that file.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from llmrecipes.config import InputError
from llmrecipes.parsing import launch
from llmrecipes.plan.reading import read_settings, split_argv


@dataclass
class PlanArguments:
    gpu: str = field(default="h100", metadata={"help": "A name in llmrecipes/plan/gpus.yaml."})
    num_gpus: int | None = field(
        default=None, metadata={"help": "GPUs over all machines; default: the run card's, else accelerate_config's."}
    )
    price: float | None = field(default=None, metadata={"help": "Price of one GPU per hour."})
    mfu: float = field(default=0.4, metadata={"help": "Share of the GPU's bf16 peak that the run is assumed to reach."})
    accelerate_config: str | None = field(default=None, metadata={"help": "Launch config, which says what is sharded."})
    train_rows: int | None = field(
        default=None, metadata={"help": "Number of training examples, of blocks where rows are packed; default: counted."}
    )
    prompt_tokens: int | None = field(
        default=None, metadata={"help": "Tokens of the longest prompt, if no key of the stage limits it (GRPO)."}
    )
    stage: str | None = field(default=None, metadata={"help": "Recipe for the YAML; default: its file name up to a dash."})
    exact: bool = field(
        default=False, metadata={"help": "Also trace a step under torch's memory tracker (seconds to minutes)."}
    )
    json: str | None = field(default=None, metadata={"help": "File to write all figures to."})


def main(plan, words):
    from llmrecipes.plan import make_plan, traced
    from llmrecipes.plan.table import show_plan

    settings, config = read_settings(words, plan.stage, Path(__file__).parent)
    found = make_plan(
        settings,
        config,
        plan.gpu,
        plan.num_gpus,
        plan.price,
        plan.mfu,
        plan.accelerate_config,
        plan.train_rows,
        plan.prompt_tokens,
    )
    if plan.exact:
        found["traced"] = traced(found, settings, plan.accelerate_config, plan.prompt_tokens)
    print(show_plan(found))
    if plan.json is not None:
        try:
            Path(plan.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"json: {plan.json} cannot be written: {error.strerror}") from None


if __name__ == "__main__":
    own, words = split_argv(sys.argv[1:], PlanArguments)
    launch(lambda plan: main(plan, words), PlanArguments, argv=own, alone=True)
