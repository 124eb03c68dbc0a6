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


def published_figures(figures: dict | None) -> list[str]:
    """A line for each figure of others, measure -> [value, source], that a YAML names as `published`."""
    figures = (figures or {}).items()
    return [f"- Published by others, not measured here: {name} {value:g} ({source})" for name, (value, source) in figures]


def write_card(
    output_dir: Path, title: str, configs: dict[str, dict[str, str]], body: str, run=None, limits: str = LIMITS
) -> None:
    """Writes README.md, a data set card in the Hub's form.

    configs: name -> {split: file}; load_dataset uses the one called `default` by default. run: the `Run` that makes the
    data; its licence, stage, command and what others published go on the card. limits: what the data are for, and what is
    wrong with them.
    """
    entries = [
        {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in files.items()]}
        for name, files in configs.items()
    ]
    own = {"license": run.card.license, "tags": ["llmrecipes", run.stage]} if run else {}
    head = DatasetCardData(pretty_name=title, configs=entries, **own).to_yaml()
    text = f"# {title}\n\n{body.strip()}\n"
    if run:
        if figures := published_figures(run.card.published):
            text += "\n" + "\n".join(figures) + "\n"
        name = loading_name(run.manifest.get("config", {}).get("output_dir") or output_dir)
        lines = "\n".join(load_rows(name, configs))
        text += f"\n## How to load\n\n`{name}` is this folder, or its repository on the Hub.\n\n```python\n{lines}\n```\n"
        text += f"\n## Intended use and limits\n\n{limits}\n\n## Reproduce\n\nIn a checkout of llmrecipes:\n\n"
        text += f"```\n{hide_paths(run.manifest['command'])}\n```\n\n`manifest.json` holds every setting.\n"
    write_text(output_dir / "README.md", f"---\n{head}\n---\n\n{text}")
