"""GRPO's `generation_kwargs`: names that nothing reads, and those that a key of its own gives."""

from llmrecipes.config import nearest
from llmrecipes.keys.mappings import OWN_KEYS, generation_keys
from llmrecipes.keys.settings import Problems, Settings


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
