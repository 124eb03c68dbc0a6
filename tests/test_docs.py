"""README and docs: links lead somewhere, commands name recipes, configs and modules that are there."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest

from llmrecipes import measures
from llmrecipes.evaluation.behaviours import JUDGED
from llmrecipes.keys import recipe_keys
from llmrecipes.parsing import collect, read_argv
from llmrecipes.preflight import contradictions
from llmrecipes.preflight.precedence import let_command_line_win

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "LOG.md", *sorted((ROOT / "docs").glob("*.md")), *ROOT.glob("CONTRIBUTING.md")]


def anchors(page):
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text()) + re.findall(r'src="([^"]+)"', page.read_text())
    for target in targets:
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), f"{page.name} links to {target}, which is not there"
        assert not anchor or anchor in anchors(found), f"{page.name} links to {target}, which has no such heading"


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "LOG.md"], ids=lambda page: page.name)
def test_commands_name_what_is_there(page):
    for block in re.findall(r"```\w*\n(.*?)```", page.read_text(), flags=re.S):
        for path in re.findall(r"(?<![\w/])(?:recipes|benchmarks|configs)/[\w/.-]+\.(?:py|yaml)", block):
            is_readers = "/X/" in path or path.startswith("configs/mine/")  # a placeholder, or what the page has had copied
            assert (ROOT / path).exists() or is_readers, f"{page.name}: {path} is not there"
        for module in re.findall(r"python -m (llmrecipes[\w.]*)", block):
            assert importlib.util.find_spec(module), f"{page.name}: {module} is not there"
        for target in re.findall(r"^make (\w+)", block, flags=re.M):
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.M), f"{page.name}: make {target}"


def recipe_commands(page):
    """(recipe, words after it) of every command in the page's blocks that starts a recipe and holds no placeholder."""
    for block in re.findall(r"```\w*\n(.*?)```", page.read_text(), flags=re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith(("python ", "accelerate ", "$ python ")) and "recipes/" in line and "…" not in line:
                words = shlex.split(line.removeprefix("$ "), comments=True)
                at = next(i for i, word in enumerate(words) if word.startswith("recipes/"))
                yield Path(words[at]).stem, words[at + 1 :]


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "LOG.md"], ids=lambda page: page.name)
def test_commands_have_keys_and_values_that_their_recipes_take(page):
    """Each would pass all checks that need neither the machine nor a run before it."""
    for recipe, words in recipe_commands(page):
        keys, words = (
            recipe_keys(ROOT / "recipes" / f"{recipe}.py"),
            [re.sub("^--(from|to)$", r"--\1_stage", w) for w in words],
        )
        options = read_argv(["--runs", *words] if recipe == "compare" else words)
        config = options.config and ROOT / options.config
        if config and not config.exists():
            continue  # the reader's own, or another placeholder
        if recipe == "plan":
            keys |= recipe_keys(ROOT / "recipes" / f"{config.stem.partition('-')[0]}.py")
        options.config = config and str(config)
        settings, _, problems = collect(options, keys)
        let_command_line_win(settings)
        wrong = problems + contradictions(settings)
        if line := next((line for line in page.read_text().splitlines() if line.startswith("error: command line")), None):
            wrong = [problem for problem in wrong if f"error: {problem}" != line]  # shown for its error
        assert not wrong, f"{page.name}: recipes/{recipe}.py {' '.join(words)}: {wrong}"


def test_the_documented_measures_are_the_table():
    text = (ROOT / "docs" / "evaluation.md").read_text()
    part = text.split("<!-- measures -->")[1].split("<!-- /measures -->")[0]
    assert part.strip() == measures.to_markdown().strip(), "python -m llmrecipes.measures prints what belongs there"
    assert set(JUDGED) < set(measures.EVALUATION)


def test_every_page_is_in_the_index_and_in_the_sites_menu():
    index, menu = (ROOT / "docs" / "index.md").read_text(), (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index, f"docs/index.md does not list {page.name}"
        assert f": {page.name}\n" in menu, f"mkdocs.yml does not list {page.name}"


def test_a_new_ability_task_and_a_new_reader_need_what_contributing_says(tmp_path, monkeypatch):
    """One YAML for the task, one function for the rows."""
    from llmrecipes.config import DatasetSource
    from llmrecipes.data import load_source
    from llmrecipes.evaluation.abilities import load_tasks

    items = [{"context": "The cat", "choices": ["sits", "sit"], "label": 0}]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    shared = (ROOT / "configs" / "tasks" / "tinytown" / "_items.yaml").read_text()
    task = f"task: mine\ndataset_kwargs:\n  source: {{path: {tmp_path / 'items.jsonl'}}}\n"
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text(shared + task)
    assert list(load_tasks(["mine"], str(tmp_path / "tasks"))["tasks"]) == ["mine"]

    (tmp_path / "myreader.py").write_text(
        "def pairs(rows):\n    return [{'prompt': r['q'], 'chosen': r['a'], 'rejected': r['b']} for r in rows]\n"
    )
    (tmp_path / "rows.jsonl").write_text(json.dumps({"q": "2 + 2 = ", "a": "4", "b": "5"}) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    rows = load_source(DatasetSource(str(tmp_path / "rows.jsonl"), reader="myreader:pairs"), seed=0)
    assert rows[0] == {"prompt": "2 + 2 = ", "chosen": "4", "rejected": "5"}
