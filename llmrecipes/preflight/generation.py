"""GRPO's `generation_kwargs`: names that nothing reads, and those that a key of its own gives."""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from llmrecipes.config import nearest
from llmrecipes.keys.settings import Problems, Settings

# Entries that would take the place of a key, which the loss, messages and plans go on reading; and that key.
OWN_KEYS = {
    **{key: key for key in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "cache_implementation")},
    **dict.fromkeys(("max_new_tokens", "max_tokens", "max_length"), "max_completion_length"),
    **dict.fromkeys(("num_return_sequences", "n"), "num_generations"),
}


@cache
def generation_keys() -> frozenset[str]:
    """What transformers' GenerationConfig reads; it keeps any other name, and nothing ever looks at it."""
    package = find_spec("transformers").submodule_search_locations[0]
    source = Path(package, "generation", "configuration_utils.py").read_text(encoding="utf-8")
    return frozenset(re.findall(r'kwargs\.pop\(\s*"([a-z]\w*)"', source))


def generation(s: Settings) -> Problems:
    """Entries of `generation_kwargs` without effect, or with another than a key says."""
    given = s["generation_kwargs"]
    for name, value in given.items() if isinstance(given, dict) else ():
        if name in OWN_KEYS:
            yield "generation_kwargs", f"`{name}` would take the place of the key `{OWN_KEYS[name]}`; give that"
        elif not s["use_vllm"] and name not in generation_keys():  # vLLM refuses what it does not know
            yield "generation_kwargs", f"unknown key `{name}`{nearest(name, generation_keys())}"
        elif name == "do_sample" and not value:
            yield "generation_kwargs", "`do_sample: false` makes all responses to a prompt alike, so nothing is learned"
