"""Merge: an adapter and all it rests on become one whole model, which any library loads.

Launch: python recipes/merge.py --model_name_or_path outputs/quickstart/sft --output_dir outputs/quickstart/sft-merged
Writes: output_dir, a language model or reward model, as the adapter is one, with its tokenizer. With load_in_4bit: true the
weights are those that QLoRA trained on, rounded to 4 bits and written in full precision.
"""

from dataclasses import dataclass, field

from llmrecipes.config import ModelArguments, RunArguments
from llmrecipes.parsing import launch


@dataclass
class MergeArguments:
    output_dir: str = field(default="", metadata={"help": "Where the whole model goes."})
    seed: int = 42


def main(run, merge, model):
    from llmrecipes.models import count_parameters, load_merged, load_tokenizer
    from llmrecipes.run import check_run, finish_run, start_run

    state = check_run("merge", run, merge, (run, merge, model), [model.model_name_or_path])
    tokenizer = load_tokenizer(model)
    merged, sources = load_merged(model, tokenizer)
    start_run(state)
    if state.is_main:
        merged.save_pretrained(state.output_dir)
        tokenizer.save_pretrained(state.output_dir)
    finish_run(
        state,
        {"parameters": count_parameters(merged)},
        made=f"whole model from {' and then '.join(sources)}",
        next_steps="any stage, or any library, loads it as a model of its own",
    )


if __name__ == "__main__":
    launch(main, RunArguments, MergeArguments, ModelArguments)
