"""Files of rows, and the one line that a wrong source is refused with."""

import json

import pytest

from llmrecipes.config import DataArguments, InputError
from llmrecipes.data import load_train_eval


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def error_of(*sources, shapes=("text",), **keys):
    with pytest.raises(InputError) as caught:
        load_train_eval(DataArguments(list(sources), **keys), 0, shapes)
    return str(caught.value)
