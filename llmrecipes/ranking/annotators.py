"""Ranking by people or a judge model: the page, its store and its quality figures put together for recipes/rank.py."""

import ipaddress
import json
import threading
from pathlib import Path

from llmrecipes.config import InputError, ModelArguments
from llmrecipes.judging.endpoint import check_price
from llmrecipes.judging.pairwise import check_guidelines, read_guidelines
from llmrecipes.ranking.store import Store, check_items, to_rankings
from llmrecipes.reward_models.scoring import check_reward_path, doubts

ANY_HOST = ("0.0.0.0", "::")  # nosec B104


def check_settings(rank) -> None:
    """InputError for keys that do not go together, before anything is loaded."""
    from llmrecipes.web import LOOPBACK

    if rank.order == "uncertain" and not rank.reward_model_name_or_path:
        raise InputError("order: uncertain needs `reward_model_name_or_path`, whose doubts decide what is asked first")
    if rank.order == "uncertain":
        check_reward_path(rank.reward_model_name_or_path)
    if rank.host not in (*LOOPBACK, "::1"):
        if not rank.users_file:
            raise InputError(f"host: {rank.host} is open to others; set `users_file` (python -m llmrecipes.ranking.users "
                             "users.txt NAME), or leave host at 127.0.0.1")  # fmt: skip
        if rank.host in ANY_HOST and not rank.allowed_hosts:
            raise InputError(
                "allowed_hosts: is missing; give the host names by which the page is opened, e.g. [rank.example.org]"
            )
    for address in rank.trusted_proxies:
        try:
            ipaddress.ip_network(address, strict=False)
        except ValueError:
            raise InputError(
                f"trusted_proxies: {address} is no address or network, such as 10.0.0.7 or 10.0.0.0/8"
            ) from None
    for key in ("overlap", "repeat_share", "min_agreement"):
        if not 0 <= getattr(rank, key) <= 1:
            raise InputError(f"{key}: {getattr(rank, key)} is no share between 0 and 1")
    for key in ("round", "overlap_annotators"):
        if getattr(rank, key) < 1:
            raise InputError(f"{key}: {getattr(rank, key)} must be at least 1")
    if rank.annotator == "llm":
        for key in ("judge_url", "judge_model"):
            if not getattr(rank, key):
                raise InputError(f"{key}: is missing, which `annotator: llm` needs")
        check_price(rank.judge_price)
    check_guidelines(rank.guidelines, "guidelines")


def open_store(rank, samples: list[dict]) -> Store:
    """The store with this round's items in it, in the order in which they are to be asked."""
    items = check_items(samples)
    if len(items) < len(samples):
        print(
            f"rank: {len(samples) - len(items)} of {len(samples)} prompts have the same answer every time and are not asked"
        )
    priority = None
    if rank.order == "uncertain":
        priority = doubts(items, ModelArguments(model_name_or_path=rank.reward_model_name_or_path))
    return Store(
        database_path(rank), items, round=rank.round, priority=priority, overlap=rank.overlap, seed=rank.seed,
        overlap_annotators=rank.overlap_annotators, repeat_share=rank.repeat_share,
    )  # fmt: skip


def database_path(rank) -> Path:
    """Beside the output folder, so that `--force` never removes what people have judged."""
    return Path(rank.database or f"{str(rank.output_dir).rstrip('/')}.sqlite")


def serve_page(store: Store, rank) -> None:
    """Open the page and wait until an admin ends the ranking, or Ctrl-C."""
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
        quality_page=lambda: _admin_page(store),
        # The answer to "finish" must still reach the browser.
        on_finish=lambda: threading.Timer(0.5, lambda: stop[0]()).start(),
    )
    address, run, stop_server = prepare_server(app, rank.host, rank.port)
    stop.append(stop_server)
    print(f"rank: {address} is open; judgements go to {store.path}\n"
          "      \"Finish\" on the page, or Ctrl-C here, ends the ranking and builds the pairs", flush=True)  # fmt: skip
    run()


def _admin_page(store: Store) -> str:
    from llmrecipes.ranking.quality import measure_quality, quality_page

    judgements = store.judgements()
    return quality_page(measure_quality(judgements), judgements)


def ask_judge(store: Store, rank) -> dict[str, float]:
    """Let the judge model rank what waits for it; calls, tokens and cost."""
    from llmrecipes.judging.endpoint import Endpoint
    from llmrecipes.ranking.llm import Judge, judge_all

    endpoint = Endpoint(
        rank.judge_url, rank.judge_model, rank.judge_key_variable, rank.judge_concurrency,
        keep_hint="; what was judged is kept, the same command continues",
    )  # fmt: skip
    judge = Judge(endpoint, read_guidelines(rank.guidelines))
    return judge_all(store, judge, tuple(rank.judge_price) or None)


def collect(store: Store, rank, output_dir: Path) -> tuple[list[dict], dict]:
    """(ranked rows to make pairs of, numbers for the manifest); writes quality.json and quality.html.

    Raises:
        InputError: no item reaches `min_agreement`.
    """
    from llmrecipes.ranking.quality import low_agreement, measure_quality, quality_page

    judgements = store.judgements()
    quality = measure_quality(judgements)
    left_out = low_agreement(quality, rank.min_agreement)
    quality |= {"min_agreement": rank.min_agreement, "items_left_out": len(left_out)}
    (output_dir / "quality.json").write_text(json.dumps(quality, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (output_dir / "quality.html").write_text(quality_page(quality), encoding="utf-8")
    ranked = to_rankings([row for row in judgements if row["item_id"] not in left_out])
    if not ranked:
        raise InputError(f"min_agreement: no item reaches {rank.min_agreement}; see {output_dir / 'quality.html'}")
    alpha = quality["krippendorff_alpha"]
    by_model = quality["annotator_kinds"].get("model", 0)
    numbers = {
        "judgements": quality["judgements"],
        "judgements_by_a_model": by_model,
        "annotators": len(quality["annotators"]),
    }
    numbers["items_left_out"] = len(left_out)
    return ranked, numbers | ({"krippendorff_alpha": alpha["value"]} if alpha else {})
