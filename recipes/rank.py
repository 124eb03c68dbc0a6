"""Ranking: somebody orders the sampled responses from best to worst, and the orders become preference pairs.

Paper: InstructGPT (arXiv 2203.02155), sections 3.4 and 3.5.
Launch: python recipes/rank.py --config configs/quickstart/rank.yaml
        python recipes/rank.py --config configs/quickstart/rank.yaml --annotator page --output_dir outputs/mine/rank
Writes: output_dir/rankings.jsonl, and train.jsonl and test.jsonl of pairs (prompt, chosen, rejected, margin) that share
no prompt; with a rule also test_gold.jsonl, the test prompts' pairs as the rule without noise orders them. With
people also quality.json, quality.html and, beside output_dir, the database that holds every judgement.
"""

from dataclasses import dataclass, field

from llmrecipes.config import DataArguments, InputError, RunArguments, launch, load_function


@dataclass
class RankArguments:
    output_dir: str = field(default="", metadata={"help": "Where rankings and pairs go."})
    annotator: str = field(
        default="file", metadata={"help": "Who ranks: a file's rankings, a rule with noise, people on a page, a model.",
                                  "choices": ["file", "simulated", "page", "llm"]}
    )  # fmt: skip
    rankings_file: str | None = field(default=None, metadata={"help": "JSONL or CSV: prompt_id, ranking, annotator."})
    rule: str | None = field(default=None, metadata={"help": "module:function (row, response) -> score."})
    rater_noise: list[float] = field(
        default_factory=lambda: [0.03, 0.05, 0.08], metadata={"help": "Noise of each simulated rater's scores."}
    )
    rater_tie_width: list[float] = field(
        default_factory=lambda: [0.07, 0.12, 0.18], metadata={"help": "Below it, a rater sees no difference."}
    )
    overlap: float = field(default=0.2, metadata={"help": "Share of prompts that several annotators rank."})
    gold_tie_width: float = field(default=0.04, metadata={"help": "The same for the pairs without noise."})
    test_share: float = field(default=0.1, metadata={"help": "Share of prompts whose pairs are held out."})
    database: str | None = field(default=None, metadata={"help": "Judgements of people; default: output_dir + .sqlite."})
    round: int = field(default=1, metadata={"help": "Answers of a newer policy are a new round in the same database."})
    overlap_annotators: int = field(default=3, metadata={"help": "How many people rank each prompt of the overlap."})
    repeat_share: float = field(default=0.05, metadata={"help": "Share of items asked again, for self-consistency."})
    order: str = field(
        default="random", metadata={"help": "What people are asked first.", "choices": ["random", "uncertain"]}
    )
    reward_model_name_or_path: str | None = field(default=None, metadata={"help": "Whose doubts `uncertain` follows."})
    min_agreement: float = field(
        default=0.0, metadata={"help": "Leave out items whose annotators order a smaller share of pairs alike."}
    )
    guidelines: str | None = field(default=None, metadata={"help": "Markdown shown beside the task; default: ours."})
    serve: bool = field(default=True, metadata={"help": "False: pairs of what was judged so far, without the page."})
    host: str = field(default="127.0.0.1", metadata={"help": "Another address needs users_file."})
    port: int = field(default=7860, metadata={"help": "The next free one if it is in use."})
    allowed_hosts: list[str] = field(default_factory=list, metadata={"help": "Host names the page answers to."})
    users_file: str | None = field(default=None, metadata={"help": "Names and password hashes; see README."})
    judge_url: str | None = field(default=None, metadata={"help": "OpenAI-compatible endpoint, ends in /v1."})
    judge_model: str | None = field(default=None, metadata={"help": "Its name there."})
    judge_key_variable: str = field(default="OPENAI_API_KEY", metadata={"help": "Environment variable with its key."})
    judge_concurrency: int = field(default=4, metadata={"help": "Questions asked at once."})
    judge_price: list[float] = field(
        default_factory=list, metadata={"help": "Dollars for a million prompt tokens and for a million answered ones."}
    )
    pair_format: str = field(
        default="explicit", metadata={"help": "explicit: prompt, chosen, rejected; implicit: the prompt stands in both.",
                                      "choices": ["explicit", "implicit"]}
    )  # fmt: skip
    seed: int = 42


def main(run, data, rank):
    needed = {"simulated": "rule", "file": "rankings_file"}.get(rank.annotator)
    if needed and not getattr(rank, needed):
        raise InputError(f"{needed}: is missing, which `annotator: {rank.annotator}` needs")

    from llmrecipes.data import load_train_eval
    from llmrecipes.ranking import people
    from llmrecipes.ranking.card import describe_pairs, write_card, write_jsonl
    from llmrecipes.ranking.pairs import agreement, build_splits, check_samples, split_prompts
    from llmrecipes.ranking.rankings import read_rankings
    from llmrecipes.ranking.simulated import rank_simulated
    from llmrecipes.run import check_run, finish_run, read_manifest, start_run

    load_samples = lambda: check_samples(list(load_train_eval(data, rank.seed, ("prompt",))[0]))
    samples, numbers = None, {}
    if rank.annotator in ("page", "llm"):
        people.check_settings(rank)
        samples = load_samples()
        store = people.open_store(rank, samples)
        if rank.annotator == "llm":
            numbers = people.ask_judge(store, rank)
        elif rank.serve:
            people.serve_page(store, rank)
        store.require_judgements()
        # The judgements are kept in the database: what is built from them may always be built anew.
        run.force = run.force or (read_manifest(rank.output_dir) or {}).get("stage") == "rank"
    inputs = [rank.rankings_file, *(s.path for s in data.datasets)]
    state = check_run("rank", run, rank, (run, data, rank), inputs)

    samples = samples or load_samples()
    rule = load_function(rank.rule, "rule") if rank.rule else None
    if rank.annotator == "simulated":
        ranked = rank_simulated(samples, rule, rank.rater_noise, rank.rater_tie_width, rank.overlap, rank.seed)
    elif rank.annotator == "file":
        ranked = read_rankings(rank.rankings_file, samples)
    start_run(state)
    if rank.annotator in ("page", "llm"):
        ranked, quality = people.collect(store, rank, state.output_dir)
        numbers |= quality
        store.close()
    test_ids = split_prompts(ranked, rank.test_share, rank.seed)
    held_out = [row for row in samples if row["prompt_id"] in test_ids]
    gold = rank_simulated(held_out, rule, [0.0], [rank.gold_tie_width], 0.0, rank.seed) if rule else None
    splits = build_splits(ranked, test_ids, gold, rank.pair_format)

    if not state.is_main:
        return
    write_jsonl(state.output_dir / "rankings.jsonl", ranked)
    for name, pairs in splits.items():
        write_jsonl(state.output_dir / f"{name}.jsonl", pairs)
    files = {"default": {name: f"{name}.jsonl" for name in splits}, "rankings": {"train": "rankings.jsonl"}}
    metrics = {f"{name}_pairs": len(pairs) for name, pairs in splits.items()} | agreement(ranked) | numbers
    write_card(state.output_dir, "Preference pairs", files, describe_pairs(rank, samples, metrics), state)
    made = f"{len(splits['train']):,} preference pairs from {len(ranked):,} rankings"
    finish_run(state, metrics, made, next_steps="recipes/reward.py (or recipes/dpo.py) learns from them")


if __name__ == "__main__":
    launch(main, RunArguments, DataArguments, RankArguments)
