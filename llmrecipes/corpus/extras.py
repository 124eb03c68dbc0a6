"""Optional packages: imported when a key needs them, with a one-line error if they are missing."""

import importlib

from llmrecipes.config import InputError


def need(module: str, what: str, extra: str = "data"):
    """`module`, imported; if missing, InputError with the extra that installs it and `what` needs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise InputError(f"{what}: needs {package} ({error}); pip install -e '.[{extra}]', or leave it out") from None
