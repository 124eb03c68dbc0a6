"""Ranking: annotators order the sampled responses from best to worst, and the rankings become preference pairs.

Paper: InstructGPT (arXiv 2203.02155), sections 3.4 and 3.5.
Launch: python recipes/rank.py --config configs/quickstart/rank.yaml
        python recipes/rank.py --config configs/quickstart/rank.yaml --annotator page --output_dir outputs/mine/rank
Writes: output_dir/rankings.jsonl, and train.jsonl and test.jsonl with pairs (prompt, chosen, rejected, margin) and no
common prompt; with a rule also test_gold.jsonl, the test prompts' pairs as ordered by the rule without noise. With
people also quality.json, quality.html and, next to output_dir, the database with every judgement.
"""

from llmrecipes.config import DataArguments, RunArguments, load_function
from llmrecipes.parsing import launch
from llmrecipes.ranking.arguments import RankArguments


def main(run, data, rank):
    from dataclasses import replace

    from llmrecipes.cards.dataset import write_card, write_jsonl
    from llmrecipes.data import load_train_eval
    from llmrecipes.ranking.annotators import KEPT, check_settings, rank_samples, write_quality
    from llmrecipes.ranking.pairs import agreement, build_splits, check_sample, check_samples, describe_pairs, split_prompts
    from llmrecipes.ranking.simulated import rank_simulated
    from llmrecipes.run import check_run, finish_run, start_run

    check_settings(rank)
    if rank.annotator == "page" and run.expected:
        print("rank: `expected` is not checked, since these figures are for other annotators than people")
        run = replace(run, expected=None)
    inputs = [rank.rankings_file, *(s.path for s in data.datasets)]
    state = check_run("rank", run, rank, (run, data, rank), inputs, rebuilds=rank.annotator in KEPT)

    rule = load_function(rank.rule, "rule") if rank.rule else None
    samples = check_samples(list(load_train_eval(data, rank.seed, ("prompt",), check=check_sample)[0]))
    ranked = rank_samples(rank, samples)
    test_ids = split_prompts(ranked.rows, rank.test_share, rank.seed)
    held_out = [row for row in samples if row["prompt_id"] in test_ids]
    gold = rank_simulated(held_out, rule, [0.0], [rank.gold_tie_width], 0.0, rank.seed) if rule else None
    splits = build_splits(ranked.rows, test_ids, gold, rank.pair_format)

    start_run(state)
    if not state.is_main:
        return
    write_jsonl(state.output_dir / "rankings.jsonl", ranked.rows)
    if ranked.quality:
        write_quality(ranked.quality, state.output_dir)
    for name, pairs in splits.items():
        write_jsonl(state.output_dir / f"{name}.jsonl", pairs)
    files = {"default": {name: f"{name}.jsonl" for name in splits}, "rankings": {"train": "rankings.jsonl"}}
    metrics = {f"{name}_pairs": len(pairs) for name, pairs in splits.items()} | agreement(ranked.rows) | ranked.numbers
    write_card(state.output_dir, "Preference pairs", files, describe_pairs(rank, samples, metrics), state)
    made = f"{len(splits['train']):,} preference pairs from {len(ranked.rows):,} rankings"
    finish_run(state, metrics, made, next_steps="recipes/reward.py (or recipes/dpo.py) learns from them")


if __name__ == "__main__":
    launch(main, RunArguments, DataArguments, RankArguments, alone=True)
