"""Tokenizer: byte-level BPE learned on the corpus, with chat template and pad != eos.

Paper: Sennrich et al. 2016 (arXiv 1508.07909); byte-level as in GPT-2.
Launch: python recipes/tokenizer.py --config configs/quickstart/tokenizer.yaml
Writes: output_dir, a Hugging Face tokenizer folder.
"""

from dataclasses import dataclass, field

from llmrecipes.config import DataArguments, RunArguments
from llmrecipes.parsing import launch


@dataclass
class TokenizerArguments:
    output_dir: str | None = field(default=None, metadata={"help": "Where the tokenizer goes."})
    vocab_size: int = field(default=32_000, metadata={"help": "Entries, the 256 bytes and special tokens included."})
    max_length: int = field(default=2048, metadata={"help": "Context that the tokenizer announces."})
    seed: int = field(default=42, metadata={"help": "Seed of the mixture."})


def main(run, data, args):
    from llmrecipes.data import load_train_eval
    from llmrecipes.models import train_tokenizer
    from llmrecipes.run import check_run, finish_run, start_run

    state = check_run("tokenizer", run, args, (run, data, args), [s.path for s in data.datasets])
    texts, held_out = load_train_eval(data, args.seed, ("text",))

    tokenizer = train_tokenizer(texts["text"], args.vocab_size, args.max_length)
    start_run(state)
    tokenizer.save_pretrained(args.output_dir)

    sample = held_out["text"] if held_out else texts["text"][:1000]
    num_tokens = sum(len(ids) for ids in tokenizer(sample)["input_ids"])
    num_bytes = sum(len(text.encode()) for text in sample)
    finish_run(
        state,
        {"vocab_size": len(tokenizer), "bytes_per_token": num_bytes / num_tokens},
        made=f"byte-level BPE of {len(tokenizer):,} tokens from {len(texts):,} documents",
        next_steps="python recipes/pretrain.py --config <your experiment>/pretrain.yaml",
    )


if __name__ == "__main__":
    launch(main, RunArguments, DataArguments, TokenizerArguments)
