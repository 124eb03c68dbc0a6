"""What a chat template raises, and what of a conversation it does not take: found by leaving that out."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

# Raised deliberately, or because a row has an unexpected form.
TEMPLATE_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
QUESTION, ANSWER = "Question?", "Answer!"


def what_it_takes(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Mapping], options: Mapping) -> str:
    """Of a conversation that the template refuses, what it does not take, and what to do; options: as given to it."""
    options = {name: value for name, value in options.items() if name not in ("tokenize", "return_dict", "return_tensors")}

    def fits(turns, **options) -> bool:
        try:
            return bool(tokenizer.apply_chat_template(turns, tokenize=False, **options))
        except TEMPLATE_ERRORS:
            return False

    other, roles = "use another template (`chat_template_path` in sft)", [turn["role"] for turn in turns]
    plain = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    if not fits(plain) and not fits(plain[:1], add_generation_prompt=True):
        return f"it refuses a plain question and answer too, so no row would do: mend it, or {other}"
    if options.get("tools") and fits(turns, **options | {"tools": None}):
        return f"it cannot show these `tools`: leave the column out with `columns:`, or {other}"
    if "system" in roles and fits([turn for turn in turns if turn["role"] != "system"], **options):
        return f"it takes no system turn here: put its text into the first question, or {other}"
    if "tool" in roles or any(turn.get("tool_calls") for turn in turns):
        return f"it may not take calls of tools and their results: {other}"
    if any(one == two for one, two in pairwise(roles)) or next(filter("system".__ne__, roles), "user") != "user":
        return f"it wants the user and the assistant in turns, the user first: join turns of one side, or {other}"
    return f"mend the conversation, or {other}"
