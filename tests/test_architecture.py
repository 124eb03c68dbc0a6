"""Imports point down, none in a circle; README's file map equals the tree."""

import ast
import re
import subprocess
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
LAYERS = {
    0: {
        "config",
        "parsing",
        "options",
        "keys",
        "preflight",
        "migrate",
        "memory",
        "manifest",
        "locks",
        "checkpoints",
        "code_files",
        "durable",
        "signals",
        "formats",
        "rows",
        "shapes",
        "turns",
        "intervals",
        "measures",
        "metrics",
        "secrets",
        "threads",
        "tracking",
        "web",
    },
    1: {
        "batch_size",
        "random_states",
        "adapters",
        "lora_targets",
        "answer_masks",
        "attention",
        "encoders",
        "head_sizes",
        "cpu",
        "template_refusals",
        "templates",
        "tokenizers",
        "data",
        "models",
        "training",
        "sft",
        "dpo",
        "pacing",
        "pretraining",
        "muon",
        "logs",
        "reward_models",
        "judging",
        "ppo",
        "grpo",
        "kto",
        "tokens",
        "generation",
        "decoding",
        "sampling",
        "sharding",
        "processes",
        "leaks",
    },
    2: {
        "corpus",
        "run",
        "provenance",
        "resume",
        "plan",
        "comparison",
        "rounds",
        "sweep",
        "evaluation",
        "ranking",
        "pipeline",
        "report",
        "hub",
        "cards",
        "chat",
        "votes",
        "hf_metrics",
    },
}
LAYER_OF = {module: layer for layer, modules in LAYERS.items() for module in modules}


def files():
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return [ROOT / name for name in names if (ROOT / name).exists()]


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def imports(file):
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ([f"llmrecipes.{a.name}" for a in node.names] if node.module == "llmrecipes" else [node.module])


def room_imports():
    """Room of the library -> rooms that it imports."""
    found = {}
    for file in (ROOT / "llmrecipes").rglob("*.py"):
        room = file.relative_to(ROOT / "llmrecipes").with_suffix("").parts[0]
        if room == "__init__":
            continue
        names = set(imports(file))
        assert not any(name.split(".")[0] == "recipes" for name in names), f"{file} imports a recipe"
        others = {name.split(".")[1] for name in names if name.startswith("llmrecipes.")}
        found.setdefault(room, set()).update(others - {room})
    return found


def test_imports_point_down_and_never_in_a_circle():
    found = room_imports()
    assert set(found) == set(LAYER_OF), "LAYERS names every module of the library"
    for room, others in found.items():
        for other in others:
            assert LAYER_OF[other] <= LAYER_OF[room], f"{room} imports {other}, which lies above it"
    try:
        list(TopologicalSorter(found).static_order())
    except CycleError as error:
        raise AssertionError(f"a circle of imports: {' -> '.join(error.args[1])}") from None


def test_layer_0_and_recipes_import_nothing_heavy_at_the_top():
    heavy = {"torch", "transformers", "datasets", "accelerate", "peft", "lm_eval"}
    layer_0 = [
        p
        for p in (ROOT / "llmrecipes").rglob("*.py")
        if LAYER_OF.get(p.relative_to(ROOT / "llmrecipes").with_suffix("").parts[0]) == 0
    ]
    for file in [*(ROOT / "recipes").glob("*.py"), *layer_0]:
        assert not heavy & {name.split(".")[0] for name in imported_at_the_top(file)}, file


def test_tokens_are_made_without_torch():
    """`python -m llmrecipes.tokens` in little memory: what it imports, and what that imports."""
    for name in ("tokens/__main__.py", "tokens/sources.py", "tokenizers.py"):
        found = {module.split(".")[0] for module in imported_at_the_top(ROOT / "llmrecipes" / name)}
        assert not found & {"torch", "accelerate", "peft"}, name


def imported_at_the_top(file: Path) -> set[str]:
    """Modules that are imported when `file` is, also by what it imports of this project and by the packages above that."""
    found, todo = set(), [file]
    while todo:
        top = {node for node in parsed(todo.pop()).body if isinstance(node, (ast.Import, ast.ImportFrom))}
        names = {a.name for n in top if isinstance(n, ast.Import) for a in n.names}
        for node in top:
            if isinstance(node, ast.ImportFrom):
                names |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
        names |= {name.rpartition(".")[0] for name in names if name.startswith("llmrecipes.")}
        for name in names - found:
            path = ROOT.joinpath(*name.split("."))
            todo += [p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file() and "llmrecipes" in name]
        found |= names
    return found


def test_reading_data_loads_no_world():
    """A training on anybody's text imports the readers of data and none of the generated or curated sets."""
    worlds = {file.parent.name for file in (ROOT / "llmrecipes" / "data").glob("*/__init__.py")}
    for file in (ROOT / "llmrecipes" / "data").glob("*.py"):
        found = {name.split(".")[2] for name in imports(file) if name.startswith("llmrecipes.data.")}
        assert not found & worlds, f"{file.name} imports {found & worlds}"


def test_no_function_and_no_file_is_long_and_every_public_one_has_a_docstring():
    for file in [file for file in files() if file.suffix == ".py"]:
        text, tree, name = file.read_text(), parsed(file), file.relative_to(ROOT)
        long = name.parts[0] not in ("tests", "benchmarks") and text.count("\n") > 400
        assert not long, f"{name}: {text.count(chr(10))} lines; split it"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= 60, f"{name}: {node.name} has {length} lines; split it"
        for node in tree.body if name.parts[0] == "llmrecipes" else ():
            is_public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            assert not is_public or ast.get_docstring(node), f"{name}: {node.name} has no docstring"


def test_no_file_is_called_utils():
    assert not [f for f in files() if re.fullmatch(r"(utils|common|misc|helpers)(\.py)?", f.name)]


def test_readme_file_map_equals_the_tree():
    """Each line of the map is a path, then what it is for; a folder ends in a slash and stands for its content."""
    text = (ROOT / "README.md").read_text()
    block = text.split("## File map")[1].split("```")[1]
    mapped = [line.split()[0] for line in block.splitlines() if line.strip()]
    for path in mapped:
        assert (ROOT / path).exists(), f"README maps {path}, which is not there"
    for file in files():
        name = str(file.relative_to(ROOT))
        assert any(name == path or (path.endswith("/") and name.startswith(path)) for path in mapped), f"{name} is unmapped"


def test_no_path_of_a_machine_stands_in_the_project():
    for file in files():
        if file.suffix in (".py", ".yaml", ".md", ".toml", ".txt") and file != Path(__file__):
            assert not re.search(r"(?<![\w.])/(home|work|root|Users)/", file.read_text()), file
