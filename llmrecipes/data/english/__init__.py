"""Real English: test items of six abilities and prompts for behaviour, written for this project and drawn with a seed.

Tables of words, facts and sentences stand in the modules of this folder; the files that lm-eval and `evaluate` read are
made from them, and a test keeps them in step:

    python -m llmrecipes.data.english configs/tasks/english        # writes ABILITY.jsonl and questions.jsonl

They test models of any origin; nothing here is for training.
"""

import json
from pathlib import Path
from random import Random

from llmrecipes.data.english.behaviours import question_rows
from llmrecipes.data.english.coding import coding_items
from llmrecipes.data.english.drawing import draw
from llmrecipes.data.english.grammar import grammar_items
from llmrecipes.data.english.knowledge import knowledge_items
from llmrecipes.data.english.reasoning import reasoning_items
from llmrecipes.data.english.semantics import semantics_items
from llmrecipes.data.english.syntax import syntax_items

SEED, NUM_ITEMS = 20260224, 160
WRITERS = {
    "grammar": lambda rng: grammar_items(),
    "syntax": lambda rng: syntax_items(),
    "semantics": semantics_items,
    "reasoning": reasoning_items,
    "coding": coding_items,
    "knowledge": knowledge_items,
}


def ability_rows(ability: str, seed: int = SEED) -> list[dict]:
    """NUM_ITEMS rows `kind`, `context`, `choices`, `label` (index of the right choice) of one of WRITERS.

    Those of `coding` have `delimiter` "" as well: their choices follow the context without a space.
    """
    rng = Random(f"{ability}/{seed}")
    rows = draw(rng, WRITERS[ability](rng), NUM_ITEMS)
    return [row | {"delimiter": ""} for row in rows] if ability == "coding" else rows


def write_files(folder: str | Path, seed: int = SEED) -> dict[str, int]:
    """Write ABILITY.jsonl for each ability and questions.jsonl to `folder`; returns {file name: rows}."""
    tables = {ability: ability_rows(ability, seed) for ability in WRITERS} | {"questions": question_rows()}
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (Path(folder) / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return {f"{name}.jsonl": len(rows) for name, rows in tables.items()}
