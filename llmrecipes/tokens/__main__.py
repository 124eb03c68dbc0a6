"""Tokenizes the corpus of a pretraining YAML ahead of the training, in little memory: without torch.

    python -m llmrecipes.tokens --config configs/smalltalk/pretrain.yaml [any key of recipes/pretrain.py]

recipes/pretrain.py finds these shards if it is given the same sources, seed, held-out share, tokenizer and `tokens_dir`.
"""

import os
import sys

from llmrecipes.config import DataArguments, InputError, ModelArguments
from llmrecipes.keys import recipe_keys
from llmrecipes.keys.usage import describe
from llmrecipes.manifest import ROOT
from llmrecipes.parsing import build, collect, launch, read_argv, show
from llmrecipes.preflight import contradictions
from llmrecipes.preflight.precedence import let_command_line_win
from llmrecipes.tokens.arguments import TokenArguments


def main() -> None:
    """Reads sys.argv.

    Raises:
        InputError: everything wrong with the keys; or the first source, tokenizer or shard that cannot be used.
    """
    options, keys = read_argv(sys.argv[1:]), recipe_keys(ROOT / "recipes" / "pretrain.py")
    if options.help is not None:
        show(describe(keys, options.help, __doc__))
    settings, environment, problems = collect(options, keys)
    let_command_line_win(settings)
    problems += contradictions(settings)
    if options.print_config:
        problems.append("command line: --print_config has no effect here; recipes/pretrain.py takes it")
    if problems:
        raise InputError(*problems)
    os.environ.update(environment)
    data, model, tokens = build([DataArguments, ModelArguments, TokenArguments], settings)

    from llmrecipes.data.tables import say
    from llmrecipes.tokenizers import load_tokenizer
    from llmrecipes.tokens.sources import load_shards

    shards, _ = load_shards(data, tokens, load_tokenizer(model, settings["trust_remote_code"]), settings["seed"])
    for own in shards:
        say(f"tokens: {own.name}: {own.num_tokens:,} in {own.num_documents:,} documents, at {own.folder}")


if __name__ == "__main__":
    launch(main, argv=[])
