"""Which tokens of a conversation carry loss, for chat templates without {% generation %} marks: the assistant's answers.

An answer's border is read off the template itself: the conversation up to the answer, rendered with the generation prompt,
is what the model is given when it is to answer, so what follows it, up to the end of the turn, is what it has to say.
"""

from collections.abc import Iterable

from datasets import Dataset
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from llmrecipes.config import InputError


def marks_answers(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template marks the assistant's tokens, or TRL knows how to mark them."""
    if has_generation_markers(tokenizer.chat_template):
        return True
    try:
        get_training_chat_template(tokenizer)
    except ValueError:
        return False
    return True


def mask_answers(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Rows {"input_ids", "assistant_masks"} (1: carries loss) of rows of `messages`, which TRL takes as they are.

    Raises:
        InputError: a conversation that the template refuses or renders otherwise as it grows, an answer at whose end
            generation would not stop, or a tokenizer that cannot say where its tokens lie.
    """
    if not tokenizer.is_fast:
        raise InputError("datasets: the tokenizer cannot say where its tokens lie; give rows of prompt and completion")
    return Dataset.from_list([_mask(row["messages"], tokenizer) for row in rows])


def _mask(messages: list[dict], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    where = f"datasets, the conversation that begins {messages[0]['content'][:60]!r}"  # rows are shuffled by now
    try:
        whole, spans = _answer_spans(messages, tokenizer, where)
    except TemplateError as error:
        raise InputError(f"{where}: the chat template refuses it: {error}") from error
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    mask = [int(_carries_loss(offset, spans)) for offset in offsets]
    return {"input_ids": encoded["input_ids"], "assistant_masks": mask}


def _answer_spans(messages: list[dict], tokenizer, where: str) -> tuple[str, list[tuple[int, int]]]:
    """The conversation as text, and where in it each answer begins and ends, its end-of-turn token included."""
    render = lambda turns, **options: tokenizer.apply_chat_template(turns, tokenize=False, **options)
    whole, spans = render(messages), []
    for i, turn in enumerate(messages):
        if turn["role"] != "assistant":
            continue
        before, until = render(messages[:i], add_generation_prompt=True), render(messages[: i + 1])
        if not (until.startswith(before) and whole.startswith(until)):
            raise InputError(f"{where}: the chat template renders turn {i + 1} otherwise once the conversation goes on; put "
                             "{% generation %} and {% endgeneration %} around the assistant's text, or use rows of prompt "
                             "and completion")  # fmt: skip
        end = until.rfind(tokenizer.eos_token, len(before)) if tokenizer.eos_token else -1
        if end < 0:
            raise InputError(f"{where}: the chat template ends an answer without {tokenizer.eos_token!r}, at which "
                             "generation stops; set eos_token to the token that ends a turn, or chat_template_path"
                             )  # fmt: skip
        spans.append((len(before), end + len(tokenizer.eos_token)))
    return whole, spans


def _carries_loss(offset: tuple[int, int], spans: Iterable[tuple[int, int]]) -> bool:
    return any(first <= offset[0] and offset[0] < offset[1] <= last for first, last in spans)
