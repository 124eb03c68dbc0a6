"""Tokenizer: byte-level BPE trained on the corpus, with a chat template and pad != eos.

Paper: Sennrich et al. 2016 (arXiv 1508.07909); byte-level as in GPT-2.
Launch: python recipes/tokenizer.py --config configs/quickstart/tokenizer.yaml
Writes: output_dir, a Hugging Face tokenizer folder; tokenizer_report.json with its fertility by source.
"""

from dataclasses import dataclass, field

from llmrecipes.config import DataArguments, ModelArguments, RunArguments
from llmrecipes.parsing import launch


@dataclass
class TokenizerArguments:
    output_dir: str | None = field(default=None, metadata={"help": "Folder for the tokenizer."})
    vocab_size: int = field(default=32_000, metadata={"help": "Tokens, including the 256 bytes and special tokens."})
    max_length: int = field(default=2048, metadata={"help": "Context length stored in the tokenizer (model_max_length)."})
    sample_bytes: int | None = field(
        default=None, metadata={"help": "Bytes of text to train on, sampled by weight while reading; default: all of it."}
    )
    digits: str = field(
        default="single",
        metadata={
            "help": "How numbers are split: digit by digit, up to three digits, or not at all.",
            "choices": ["single", "three", "none"],
        },
    )
    chat_template_path: str | None = field(
        default=None, metadata={"help": "Jinja file, tokenizer folder or Hub id; default: ChatML."}
    )
    template_tokens: list[str] = field(default_factory=list, metadata={"help": "Special tokens of your own template."})
    base_tokenizer_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Tokenizer to extend up to vocab_size, whose ids stay; default: a new one."},
    )
    compare_tokenizers: list[str] = field(
        default_factory=list, metadata={"help": "Folders or Hub ids of other tokenizers, for comparison in the report."}
    )
    seed: int = field(default=42, metadata={"help": "Seed of the mixture."})


def main(run, data, args):
    from llmrecipes.data import load_train_eval
    from llmrecipes.durable import write_json
    from llmrecipes.run import check_run, finish_run, start_run
    from llmrecipes.templates import CHAT_TEMPLATE, read_template
    from llmrecipes.tokenizers import load_tokenizer, train_tokenizer
    from llmrecipes.tokens import vocabulary
    from llmrecipes.tokens.extension import extend_tokenizer, save_extension

    base_path = args.base_tokenizer_name_or_path
    inputs = [*filter(None, [base_path]), *(s.path for s in data.datasets)]
    state = check_run("tokenizer", run, args, (run, data, args), inputs)
    template = read_template(args.chat_template_path, endings=("",)) if args.chat_template_path else None
    paths = [*filter(None, [base_path]), *args.compare_tokenizers]
    others = {path: load_tokenizer(ModelArguments(tokenizer_name_or_path=path)) for path in paths}
    if args.sample_bytes:
        learned, held_out = vocabulary.draw_sample(data.datasets, args.sample_bytes, args.seed)
        texts = [text for part in learned.values() for text in part]
        sample = [text for part in learned.values() for text in part[: 1000 // len(learned)]]
    else:
        rows, held_out_rows = load_train_eval(data, args.seed, ("text",), name_sources=True)
        texts, sample = rows["text"], list((held_out_rows or rows[:1000])["text"])
        learned, held_out = vocabulary.by_source(rows), vocabulary.by_source(held_out_rows) if data.test_split_size else {}
    learned, held_out = vocabulary.with_eval_sets(data, args.seed, learned, held_out)
    if base_path:
        tokenizer, new = extend_tokenizer(others[base_path], texts, args.vocab_size)
        tokenizer.chat_template = template or tokenizer.chat_template
    else:
        special, template = args.template_tokens, template or CHAT_TEMPLATE
        tokenizer = train_tokenizer(texts, args.vocab_size, args.max_length, args.digits, special, template)
    rows = vocabulary.fertility({"this one": tokenizer, **others}, learned, held_out)
    base = others[base_path] if base_path else None
    round_trips = vocabulary.check_round_trip(tokenizer, sample, base)
    report = {"sources": rows, "round_trips": round_trips, "splits": vocabulary.describe_policy(tokenizer)}
    start_run(state)
    tokenizer.save_pretrained(args.output_dir)
    if base_path:
        save_extension(state.output_dir, base_path, base, new)
    write_json(state.output_dir / "tokenizer_report.json", report)
    for row in rows:
        rates = "{bytes_per_token:6.2f} bytes/token{tokens_per_word:6.2f} a word, {measured_on}"
        print(f"  {{source:<24}} {{tokenizer:<24}} {rates}".format(**row))

    num_tokens = sum(len(ids) for ids in tokenizer(sample)["input_ids"])
    num_bytes = sum(len(text.encode()) for text in sample)
    finish_run(
        state,
        {"vocab_size": len(tokenizer), "bytes_per_token": num_bytes / num_tokens},
        made=f"byte-level BPE of {len(tokenizer):,} tokens from {len(texts):,} documents"
        + (f", {len(new):,} of them new" if base_path else ""),
        next_steps="python recipes/pretrain.py --config <your experiment>/pretrain.yaml",
    )


if __name__ == "__main__":
    launch(main, RunArguments, DataArguments, TokenizerArguments, alone=True)
