"""Who ranks the samples, one function each: a file, simulated raters, people on the page, a model behind an endpoint.

Judgements of people and models are kept in a database next to the output folder (`database`); rankings are built from it.
"""

import ipaddress
import json
import threading
from dataclasses import dataclass, field
from pathlib import Path

from llmrecipes.config import InputError, ModelArguments, load_function
from llmrecipes.judging.endpoint import check_judge, open_endpoint
from llmrecipes.judging.pairwise import check_guidelines, read_guidelines
from llmrecipes.ranking.arguments import RankArguments
from llmrecipes.ranking.items import check_items, to_rankings
from llmrecipes.ranking.rankings import read_rankings
from llmrecipes.ranking.simulated import rank_simulated
from llmrecipes.ranking.store import Store
from llmrecipes.reward_models.scoring import check_reward_path, uncertainty

ANY_HOST = ("0.0.0.0", "::")  # nosec B104


@dataclass
class Ranked:
    """The result of an annotator. `rows`: those of rankings.jsonl, each a sample with its ranking; `numbers`: for the
    manifest; `quality`: the content of quality.json, for judgements kept in a store."""

    rows: list[dict]
    numbers: dict[str, float] = field(default_factory=dict)
    quality: dict | None = None


def rank_samples(rank: RankArguments, samples: list[dict]) -> Ranked:
    """Lets the annotator named by `rank` rank the samples.

    Raises:
        InputError: what the annotator needs is missing or invalid, or nothing was judged.
    """
    return ANNOTATORS[rank.annotator](rank, samples)


def rank_by_file(rank: RankArguments, samples: list[dict]) -> Ranked:
    """The rankings of `rankings_file`."""
    return Ranked(read_rankings(rank.rankings_file, samples))


def rank_by_rule(rank: RankArguments, samples: list[dict]) -> Ranked:
    """Rankings by simulated raters, who see the rule's score with noise."""
    rule = load_function(rank.rule, "rule")
    return Ranked(rank_simulated(samples, rule, rank.rater_noise, rank.rater_tie_width, rank.overlap, rank.seed))


def rank_by_people(rank: RankArguments, samples: list[dict]) -> Ranked:
    """Opens the page until somebody ends the ranking; with `serve: false`, uses what has been judged so far."""
    store = open_store(rank, samples)
    if rank.serve:
        serve_page(store, rank)
    return collect(store, rank)


def rank_by_model(rank: RankArguments, samples: list[dict]) -> Ranked:
    """Lets the judge model rank the items still waiting for it."""
    from llmrecipes.ranking.llm import ModelAnnotator, rank_items

    store = open_store(rank, samples)
    endpoint = open_endpoint(rank, "; what was judged is kept, the same command continues")
    annotator = ModelAnnotator(endpoint, read_guidelines(rank.guidelines))
    numbers = rank_items(store, annotator, tuple(rank.judge_price) or None)
    ranked = collect(store, rank)
    ranked.numbers = numbers | ranked.numbers
    return ranked


ANNOTATORS = {"file": rank_by_file, "simulated": rank_by_rule, "page": rank_by_people, "llm": rank_by_model}
KEPT = ("page", "llm")  # annotators whose judgements are in the database, from which pairs can always be rebuilt


def check_settings(rank: RankArguments) -> None:
    """InputError for keys that are missing or do not go together, before anything is loaded."""
    needed = {"simulated": "rule", "file": "rankings_file"}.get(rank.annotator)
    if needed and not getattr(rank, needed):
        raise InputError(f"{needed}: is missing, which `annotator: {rank.annotator}` needs")
    if rank.annotator not in KEPT:
        return
    from llmrecipes.web import LOOPBACK  # slow: FastAPI

    if rank.order == "uncertain" and not rank.reward_model_name_or_path:
        raise InputError("order: uncertain needs `reward_model_name_or_path`, whose uncertainty decides the order")
    if rank.order == "uncertain":
        check_reward_path(rank.reward_model_name_or_path)
    if rank.host not in (*LOOPBACK, "::1"):
        if not rank.users_file:
            raise InputError(
                f"host: {rank.host} is open to others; set `users_file` (python -m llmrecipes.ranking.users "
                "users.txt NAME), or leave host at 127.0.0.1"
            )
        if rank.host in ANY_HOST and not rank.allowed_hosts:
            raise InputError(
                "allowed_hosts: is missing; give the host names by which the page is opened, e.g. [rank.example.org]"
            )
    for address in rank.trusted_proxies:
        try:
            ipaddress.ip_network(address, strict=False)
        except ValueError:
            raise InputError(
                f"trusted_proxies: {address} is not an address or network, such as 10.0.0.7 or 10.0.0.0/8"
            ) from None
    if rank.annotator == "llm":
        check_judge(rank, "`annotator: llm`")
    check_guidelines(rank.guidelines, "guidelines")


def open_store(rank: RankArguments, samples: list[dict]) -> Store:
    """The store, with this round's items in the order in which they are to be shown."""
    items = check_items(samples)
    if len(items) < len(samples):
        print(
            f"rank: {len(samples) - len(items)} of {len(samples)} prompts have the same answer every time and are not asked"
        )
    priority = None
    if rank.order == "uncertain":
        priority = uncertainty(items, ModelArguments(model_name_or_path=rank.reward_model_name_or_path))
    return Store(
        database_path(rank),
        items,
        round=rank.round,
        priority=priority,
        overlap=rank.overlap,
        seed=rank.seed,
        overlap_annotators=rank.overlap_annotators,
        repeat_share=rank.repeat_share,
    )


def database_path(rank: RankArguments) -> Path:
    """The database's path: next to the output folder, so that `--force` never removes people's judgements."""
    return Path(rank.database or f"{str(rank.output_dir).rstrip('/')}.sqlite")


def serve_page(store: Store, rank: RankArguments) -> None:
    """Opens the page and waits until an admin ends the ranking, or Ctrl-C."""
    from llmrecipes.ranking.page import build_app
    from llmrecipes.ranking.users import UsersFile
    from llmrecipes.web import LOOPBACK, bracketed, prepare_server

    stop = []
    app = build_app(
        store,
        read_guidelines(rank.guidelines),
        users=UsersFile(rank.users_file) if rank.users_file else None,
        trusted_proxies=rank.trusted_proxies,
        allowed_hosts=sorted({*LOOPBACK, *rank.allowed_hosts, *([] if rank.host in ANY_HOST else [bracketed(rank.host)])}),
        # The response to "finish" must still reach the browser.
        on_finish=lambda: threading.Timer(0.5, lambda: stop[0]()).start(),
    )
    address, run, stop_server = prepare_server(app, rank.host, rank.port)
    stop.append(stop_server)
    print(
        f"rank: {address} is open; judgements go to {store.path}\n"
        '      "Finish" on the page, or Ctrl-C here, ends the ranking and builds the pairs',
        flush=True,
    )
    run()


def collect(store: Store, rank: RankArguments) -> Ranked:
    """The store's judgements as rankings, with their quality; closes the store.

    Raises:
        InputError: nobody has judged anything, or no item reaches `min_agreement`.
    """
    from llmrecipes.ranking.quality import low_agreement, measure_quality

    store.require_judgements()
    judgements = store.judgements()
    store.close()
    quality = measure_quality(judgements)
    left_out = low_agreement(quality, rank.min_agreement)
    quality |= {"min_agreement": rank.min_agreement, "items_left_out": len(left_out)}
    rows = to_rankings([row for row in judgements if row["item_id"] not in left_out])
    if not rows:
        best = max(value for value in quality["agreement_by_item"].values() if value is not None)
        raise InputError(f"min_agreement: no item reaches {rank.min_agreement}; the highest agreement is {best:.2f}")
    numbers = {
        "judgements": quality["judgements"],
        "judgements_by_a_model": quality["annotator_kinds"].get("model", 0),
        "annotators": len(quality["annotators"]),
        "items_left_out": len(left_out),
    }
    alpha = quality["krippendorff_alpha"]
    return Ranked(rows, numbers | ({"krippendorff_alpha": alpha["value"]} if alpha else {}), quality)


def write_quality(quality: dict, output_dir: Path) -> None:
    """Writes quality.json, and the same as a page."""
    from llmrecipes.ranking.quality_page import quality_page

    (output_dir / "quality.json").write_text(json.dumps(quality, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (output_dir / "quality.html").write_text(quality_page(quality), encoding="utf-8")
