"""A YAML of SFT and what is said of it, shared by the tests of parsing."""

import textwrap

import pytest

from llmrecipes.config import DataArguments, InputError, ModelArguments, RunArguments
from llmrecipes.parsing import parse

SFT = (RunArguments, DataArguments, "trl.trainer.sft_config:SFTConfig", ModelArguments)


def write(tmp_path, text):
    path = tmp_path / "sft.yaml"
    path.write_text(textwrap.dedent(text))
    return str(path)


def error_of(tmp_path, text="", *argv, types=SFT):
    config = ["--config", write(tmp_path, text)] if text else []
    with pytest.raises(InputError) as caught:
        parse(*types, argv=[*config, *argv])
    assert "\n" not in str(caught.value)
    return str(caught.value)
