"""Data set cards: a README.md whose YAML names the files, so that load_dataset(folder) reads them and nothing else."""

import json
from pathlib import Path

from huggingface_hub import DatasetCardData

from llmrecipes.cards.loading import load_rows
from llmrecipes.cards.names import hide_paths, loading_name
from llmrecipes.durable import write_text

LIMITS = (
    "For learning and research on how language models are trained. The responses are a language model's: they can state "
    "falsehoods, be rude or harmful, and repeat what that model's data holds."
)


def write_jsonl(path: Path, rows: list[dict]) -> None:
    """Writes one JSON object per line, in UTF-8."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_card(output_dir: Path, title: str, configs: dict[str, dict[str, str]], body: str, run=None) -> None:
    """Writes README.md, a data set card in the Hub's form.

    configs: name -> {split: file}; load_dataset uses the one called `default` by default. run: the `Run` that makes the
    data; its licence, stage and command go on the card.
    """
    entries = [
        {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in files.items()]}
        for name, files in configs.items()
    ]
    own = {"license": run.card.license, "tags": ["llmrecipes", run.stage]} if run else {}
    head = DatasetCardData(pretty_name=title, configs=entries, **own).to_yaml()
    text = f"# {title}\n\n{body.strip()}\n"
    if run:
        name = loading_name(run.manifest.get("config", {}).get("output_dir") or output_dir)
        lines = "\n".join(load_rows(name, configs))
        text += f"\n## How to load\n\n`{name}` is this folder, or its repository on the Hub.\n\n```python\n{lines}\n```\n"
        text += f"\n## Intended use and limits\n\n{LIMITS}\n\n## Reproduce\n\nIn a checkout of llmrecipes:\n\n"
        text += f"```\n{hide_paths(run.manifest['command'])}\n```\n\n`manifest.json` holds every setting.\n"
    write_text(output_dir / "README.md", f"---\n{head}\n---\n\n{text}")


def describe_pairs(rank, samples: list[dict], metrics: dict) -> str:
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
    lines += [f"| {name} | {metrics[f'{name}_pairs']:,} | {text} |" for name, text in what.items()
              if f"{name}_pairs" in metrics]  # fmt: skip
    if "agreement" in metrics:
        lines += ["", f"On {metrics['prompts_in_common']:.0f} prompts that several annotators ranked, two of them order "
                  f"{100 * metrics['agreement']:.1f} % of response pairs alike (of those both order); Kendall's tau-b "
                  f"{metrics['kendall_tau']:.2f}."]  # fmt: skip
    lines += ["", "`margin`: by how much the chosen response is better (difference of scores, or of places in the ranking). "
              "`weight`: 1 / number of the prompt's pairs in its split, so that each prompt counts once."]  # fmt: skip
    if rank.pair_format == "implicit":
        lines += ["", "There is no `prompt` column: `chosen` and `rejected` are whole conversations that begin alike."]
    return "\n".join(lines)
