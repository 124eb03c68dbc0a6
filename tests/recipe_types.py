"""Which dataclasses a recipe is launched with, read off its own `launch(main, ...)` line."""

import ast
import importlib.util
import sys
from functools import cache
from pathlib import Path

RECIPES = Path(__file__).parent.parent / "recipes"


@cache
def recipe_types(stage: str) -> list:
    """Classes, and "module:Class" for those that are heavy."""
    path = RECIPES / f"{stage}.py"
    spec = importlib.util.spec_from_file_location(f"recipe_{stage}", path)
    recipe = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    call = next(node for node in calls if getattr(node.func, "id", "") == "launch")
    return [a.value if isinstance(a, ast.Constant) else getattr(recipe, a.id) for a in call.args[1:]]
