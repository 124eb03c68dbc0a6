"""Merge: an adapter and everything it is based on become one full model, which any library can load.

Launch: python recipes/merge.py --model_name_or_path outputs/finetune/sft --output_dir outputs/finetune/sft-merged
Writes: output_dir, a language model or reward model (whichever the adapter is), with its tokenizer. With load_in_4bit: true
the base's weights are those that QLoRA trained on: rounded to 4 bits, but stored in full precision.
"""

from dataclasses import dataclass, field

from llmrecipes.config import ModelArguments, RunArguments
from llmrecipes.parsing import launch


@dataclass
class MergeArguments:
    output_dir: str = field(default="", metadata={"help": "Folder for the merged model."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code from the model's repository."})
    seed: int = 42


def main(run, merge, model):
    from llmrecipes.models import count_parameters, load_merged, load_tokenizer
    from llmrecipes.run import check_run, finish_run, start_run

    state = check_run("merge", run, merge, (run, merge, model), [model.model_name_or_path])
    tokenizer = load_tokenizer(model, merge.trust_remote_code)
    merged, sources = load_merged(model, tokenizer, merge.trust_remote_code)
    start_run(state)
    if state.is_main:
        merged.save_pretrained(state.output_dir)
        tokenizer.save_pretrained(state.output_dir)
    finish_run(
        state,
        {"parameters": (size := count_parameters(merged))},
        made=f"full model of {size / 1e6:.2f}M parameters from {' and then '.join(sources)}",
        next_steps="any stage or library loads it like any other model",
    )


if __name__ == "__main__":
    launch(main, RunArguments, MergeArguments, ModelArguments, alone=True)
