"""Packages of the extras: imported when a key asks for them, named in one line where they are missing."""

import importlib

from llmrecipes.config import InputError


def need(module: str, what: str, extra: str = "data"):
    """`module`, imported; InputError with the extra that brings it and `what` asked for it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise InputError(f"{what}: needs {package} ({error}); pip install -e '.[{extra}]', or leave it out") from None
