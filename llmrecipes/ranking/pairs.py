"""Rankings to preference pairs, split by prompt; and how well the annotators agree."""

from itertools import combinations
from random import Random

from llmrecipes import metrics
from llmrecipes.config import InputError
from llmrecipes.data.tables import say
from llmrecipes.formats import prompt_id, rankings_to_pairs, to_implicit, weigh_pairs
from llmrecipes.ranking.arguments import RankArguments
from llmrecipes.turns import short


def check_sample(row: dict, where: str) -> None:
    """InputError unless the row has two responses or more; where: its file and number, which begin the message."""
    responses = row.get("responses")
    if responses is None:
        raise InputError(f"{where}: columns are {', '.join(row)}; expected prompt, responses")
    if not isinstance(responses, list) or not all(isinstance(text, str) for text in responses):
        raise InputError(f"{where}: responses must be a list of texts, found {short(responses)}")
    if len(responses) < 2:
        raise InputError(f"{where}: has {len(responses)} response; ranking needs two or more")


check_sample.key = "two responses"  # of rows that were checked, and lie on disk


def check_samples(rows: list[dict]) -> list[dict]:
    """Rows with `prompt_id` filled in; InputError for one that `check_sample` refuses, and for an id of two prompts, which
    would be ranked and split as one."""
    known, filled = {}, []
    for number, row in enumerate(rows, start=1):
        check_sample(row, f"datasets, row {number}")
        own = prompt_id(row["prompt"])
        given = own if row.get("prompt_id") in (None, "") else row["prompt_id"]
        if known.setdefault(str(given), own) != own:
            raise InputError(
                f"datasets: two prompts have the prompt_id {short(given)}; give each its own, or keep the other columns "
                "with `columns:`, and ids are made"
            )
        filled.append(row | {"prompt_id": given if isinstance(given, (str, int)) else str(given)})
    return filled


def split_prompts(rows: list[dict], test_share: float, seed: int) -> set[str]:
    """prompt_ids of the test split: test_share of all prompts (at least one), independent of the rows' order.

    Raises:
        InputError: test_share leaves one of the splits without a prompt.
    """
    ids = sorted({row["prompt_id"] for row in rows}, key=str)  # some may be numbers
    count = max(1, round(test_share * len(ids))) if test_share > 0 else 0
    if not 0 <= test_share < 1 or count >= len(ids):
        raise InputError(f"test_share: {test_share} of {len(ids)} prompts leaves nothing to train on")
    return set(Random(seed).sample(ids, count))


def build_splits(
    ranked: list[dict], test_ids: set[str], gold: list[dict] | None = None, pair_format: str = "explicit"
) -> dict[str, list[dict]]:
    """Splits `train`, `test` and, from the rankings `gold` of the test prompts, `test_gold`; empty splits are left out, with
    a message.

    pair_format: `explicit` (prompt, chosen, rejected) or `implicit` (chosen and rejected hold the prompt).

    Raises:
        InputError: there is no pair to train on, or the prompts are texts and pair_format is `implicit`.
    """
    train, test = build_pairs(ranked, test_ids)
    if not train:
        raise InputError("rank: no pair to train on; the annotators call all responses equal, or could not be read")
    splits = {"train": train, "test": test, "test_gold": build_pairs(gold or [], test_ids)[1]}
    for name, rankings in (("test", ranked), ("test_gold", gold)):
        if rankings and test_ids and not splits[name]:
            say(
                f"{name}: left out, all responses to the {len(test_ids)} prompts held out are ranked equal; raise "
                f"test_share, or take the split {name} out of the eval_datasets of reward and dpo"
            )
    if pair_format == "implicit":
        splits = {
            name: [to_implicit(pair, f"{name}, pair {i}") for i, pair in enumerate(pairs, 1)]
            for name, pairs in splits.items()
        }
    return {name: pairs for name, pairs in splits.items() if pairs}


def build_pairs(ranked: list[dict], test_ids: set[str]) -> tuple[list[dict], list[dict]]:
    """(train, test) pairs of ranked rows, weighted so that each prompt counts once; no prompt is in both. Ties give no
    pair."""
    train, test = [], []
    for number, row in enumerate(ranked, start=1):
        pairs = rankings_to_pairs(row, f"ranking {number}")
        (test if row["prompt_id"] in test_ids else train).extend(pairs)
    return weigh_pairs(train), weigh_pairs(test)


def agreement(ranked: list[dict]) -> dict[str, float]:
    """How similarly annotators rank prompts that several of them ranked, over pairs of annotators and prompts:

    `agreement` (share of response pairs ordered alike, among those both order), `kendall_tau` (tau-b, mean),
    `prompts_in_common`. Empty if no prompt has two annotators.
    """
    by_prompt: dict[str, dict[str, dict]] = {}
    for row in ranked:
        by_prompt.setdefault(row["prompt_id"], {})[row["annotator"]] = row
    alike, taus, common = [], [], 0
    for rows in by_prompt.values():
        common += len(rows) > 1
        for first, second in combinations(rows.values(), 2):
            ranks = [_ranks(row["ranking"]) for row in (first, second)]
            both = sorted(set(ranks[0]) & set(ranks[1]))
            order = [[rank[i] for i in both] for rank in ranks]
            alike.append(metrics.pair_agreement(*order))
            taus.append(metrics.kendall_tau(*order))
    alike, taus = ([value for value in values if value is not None] for values in (alike, taus))
    if not alike or not taus:
        return {}
    return {
        "agreement": sum(alike) / len(alike),
        "kendall_tau": sum(taus) / len(taus),
        "prompts_in_common": float(common),
    }


def _ranks(ranking: list[list[int]]) -> dict[int, int]:
    return {place: rank for rank, group in enumerate(ranking) for place in group}


def describe_pairs(rank: RankArguments, samples: list[dict], metrics: dict) -> str:
    """Text of the pairs' card: who ranked, how well they agree, what each split is."""
    if rank.annotator == "simulated":
        who = (
            f"**Simulated raters, no people.** {len(rank.rater_noise)} seeded raters ranked the responses: each sees the "
            f"score of the rule `{rank.rule}` with its own noise (standard deviations {rank.rater_noise}) and "
            f"calls responses equal if their scores differ by less than its tie width ({rank.rater_tie_width}: the "
            "smaller, the stricter). What a model learns from these pairs is that rule, not anybody's preference."
        )
    elif rank.annotator in ("page", "llm"):
        by_model, total = metrics["judgements_by_a_model"], metrics["judgements"]
        kind = "**A language model, no people.**" if by_model == total else "**People ranked the responses.**"
        if 0 < by_model < total:
            kind = f"**People and a language model ranked the responses**; {by_model:,} judgements are the model's."
        who = (
            f"{kind} {metrics['annotators']} annotators, {total:,} judgements; `annotator_kind` marks each of them. "
            "Agreement, time and position bias are in `quality.json`, every ranking with its flags and notes in "
            "`rankings.jsonl`."
        )
    else:
        who = f"Rankings read from `{rank.rankings_file}`."
    lines = [who, "", f"{len(samples):,} prompts with {len(samples[0]['responses'])} responses each."]
    lines += ["", "| split | pairs | what |", "|---|---|---|"]
    if metrics.get("items_left_out"):
        lines[2] += (
            f" {metrics['items_left_out']} were left out: less than {rank.min_agreement:.0%} of pairs are ordered alike."
        )
    what = {
        "train": "to learn from",
        "test": "prompts that are not in train",
        "test_gold": f"the same prompts, ordered by `{rank.rule}` itself, without noise",
    }
    lines += [
        f"| {name} | {metrics[f'{name}_pairs']:,} | {text} |" for name, text in what.items() if f"{name}_pairs" in metrics
    ]
    if "agreement" in metrics:
        lines += [
            "",
            f"On {metrics['prompts_in_common']:.0f} prompts that several annotators ranked, two of them order "
            f"{100 * metrics['agreement']:.1f} % of response pairs alike (of those both order); Kendall's tau-b "
            f"{metrics['kendall_tau']:.2f}.",
        ]
    lines += [
        "",
        "`margin`: by how much the chosen response is better (difference of scores, or of places in the ranking). "
        "`weight`: 1 / number of the prompt's pairs in its split, so that each prompt counts once.",
    ]
    if rank.pair_format == "implicit":
        lines += ["", "There is no `prompt` column: `chosen` and `rejected` are whole conversations that begin alike."]
    return "\n".join(lines)
