"""Sampling: the chat model answers each prompt several times, so that the answers can be ranked.

Paper: InstructGPT (arXiv 2203.02155), section 3.2.
Launch: python recipes/sample.py --config configs/quickstart/sample.yaml
Writes: output_dir/samples.jsonl (or .parquet), one row per prompt: prompt_id, prompt, responses, finish_reasons (stop or
length), num_tokens, model (fingerprint), sampling (settings) and the prompt's other columns. Interrupted work resumes.
"""

from dataclasses import dataclass, field

from llmrecipes.config import DataArguments, ModelArguments, RunArguments
from llmrecipes.parsing import launch


@dataclass
class SampleArguments:
    output_dir: str = field(default="", metadata={"help": "Folder for the samples."})
    num_samples: int = field(default=4, metadata={"help": "Responses for each prompt."})
    max_new_tokens: int = field(default=256, metadata={"help": "Longest response in tokens."})
    temperature: float = field(default=1.0, metadata={"help": "0 is greedy: all responses are equal."})
    top_k: int = field(default=0, metadata={"help": "Sample from the k most likely tokens; 0: all."})
    top_p: float = field(default=1.0, metadata={"help": "Sample from the most likely tokens of this total probability."})
    per_device_batch_size: int = field(default=64, metadata={"help": "Responses decoded at once."})
    cache_implementation: str | None = field(
        default=None,
        metadata={
            "help": "'static': on a GPU each step is replayed as a CUDA graph. Default: no graph.",
            "choices": ["static"],
        },
    )
    output_format: str = field(default="jsonl", metadata={"help": "File format.", "choices": ["jsonl", "parquet"]})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code from the model's repository."})
    seed: int = 42


def main(run, data, sample, model):
    import torch

    from llmrecipes.cards.dataset import write_card
    from llmrecipes.data import load_train_eval, true_rows
    from llmrecipes.data.tables import say
    from llmrecipes.decoding import check_static, static_remark
    from llmrecipes.manifest import fingerprint
    from llmrecipes.models import load_policy, load_tokenizer
    from llmrecipes.run import check_run, finish_run, start_run
    from llmrecipes.sampling import PARTIAL, encode_rows, to_parquet, write_samples
    from llmrecipes.templates import row_check

    inputs = [model.model_name_or_path, *(s.path for s in data.datasets)]
    state = check_run("sample", run, sample, (run, data, sample, model), inputs, resumes=True)

    tokenizer = load_tokenizer(model, sample.trust_remote_code)
    prompts = list(load_train_eval(data, sample.seed, ("prompt",), check=row_check(tokenizer))[0])
    policy = load_policy(model, tokenizer, sample.trust_remote_code)
    policy.to("cuda" if torch.cuda.is_available() else "cpu")

    if not state.is_main:
        return
    with true_rows(data, sample.seed, ("prompt",), datasets=prompts):
        encoded = encode_rows(policy, tokenizer, prompts, sample.num_samples, sample.max_new_tokens)
    if sample.cache_implementation == "static":
        check_static(policy)
        if remark := static_remark(policy.device):
            say(remark)
    start_run(state)
    rows = write_samples(
        policy,
        tokenizer,
        prompts,
        encoded,
        state.output_dir,
        num_samples=sample.num_samples,
        sampling={key: getattr(sample, key) for key in ("max_new_tokens", "temperature", "top_k", "top_p")},
        batch_size=sample.per_device_batch_size,
        cache_implementation=sample.cache_implementation,
        seed=sample.seed,
        model_name=fingerprint(model.model_name_or_path),
    )
    if sample.output_format == "parquet":
        to_parquet(state.output_dir)
    write_card(
        state.output_dir,
        "Sampled responses",
        {"default": {"train": f"samples.{sample.output_format}"}},
        f"{sample.num_samples} responses of `{model.model_name_or_path}` to each of {len(rows):,} prompts.",
        state,
    )
    lengths = [n for row in rows for n in row["num_tokens"]]
    cut = [reason == "length" for row in rows for reason in row["finish_reasons"]]
    different = [len({text.strip() for text in row["responses"]}) for row in rows]
    metrics = {"prompts": len(rows), "response_length": sum(lengths) / len(lengths), "cut_off": sum(cut) / len(cut)}
    metrics["different_responses"] = sum(different) / len(different)
    made = f"{sample.num_samples} responses to each of {len(rows):,} prompts"
    finish_run(state, metrics, made, next_steps="recipes/rank.py turns them into preference pairs")
    (state.output_dir / PARTIAL).unlink()


if __name__ == "__main__":
    launch(main, RunArguments, DataArguments, SampleArguments, ModelArguments, alone=True)
