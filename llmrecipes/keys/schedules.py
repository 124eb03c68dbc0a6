"""The arguments of each learning-rate schedule of transformers, read from its source without importing it."""

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

GIVEN = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}  # passed by Trainer


@cache
def _schedules() -> dict[str, dict[str, bool]]:
    folder = Path(find_spec("transformers").submodule_search_locations[0])
    enum = ast.parse((folder / "trainer_utils.py").read_text(encoding="utf-8"))
    names = next(node for node in enum.body if isinstance(node, ast.ClassDef) and node.name == "SchedulerType")
    value_of = {node.targets[0].id: node.value.value for node in names.body if isinstance(node, ast.Assign)}
    tree = ast.parse((folder / "optimization.py").read_text(encoding="utf-8"))
    functions = {node.name: node.args for node in tree.body if isinstance(node, ast.FunctionDef)}
    table = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TYPE_TO_SCHEDULER_FUNCTION"
    )
    return {
        value_of[key.attr]: _arguments(functions[function.id])
        for key, function in zip(table.keys, table.values, strict=True)
        if functions[function.id].kwarg is None  # with **kwargs the arguments are unknown
    }


def _arguments(arguments: ast.arguments) -> dict[str, bool]:
    names = [argument.arg for argument in [*arguments.args, *arguments.kwonlyargs]]
    required = len(arguments.args) - len(arguments.defaults)
    found = {name: i < required for i, name in enumerate(names)} | (
        {a.arg: default is None for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)}
    )
    return {name: needed for name, needed in found.items() if name not in GIVEN}


def schedule_arguments(name: str) -> dict[str, bool] | None:
    """Argument -> whether it is required, for the `lr_scheduler_kwargs` of `lr_scheduler_type: name`; None if there is no
    such schedule or its function takes arbitrary arguments."""
    return _schedules().get(name)


def all_schedule_arguments() -> set[str]:
    """The names of the arguments of all schedules."""
    return {name for arguments in _schedules().values() for name in arguments}
