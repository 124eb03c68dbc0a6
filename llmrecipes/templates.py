"""Chat templates: conversations are rendered in one place, and rows that a template cannot show are refused by location.

A template may refuse roles or their order (Gemma has no system turn, Llama 2 requires alternating turns), and it may
silently leave out what it does not know (tool calls, reasoning, tools). The model would be trained as if that were not
there, so such rows are refused as well.
"""

import copy
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from huggingface_hub import snapshot_download
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from llmrecipes.config import InputError
from llmrecipes.data.tables import say
from llmrecipes.template_refusals import ANSWER, QUESTION, TEMPLATE_ERRORS, what_it_takes
from llmrecipes.turns import check_turns, is_conversation, special_finder

# What an assistant's turn may hold besides its content.
SAID = ("tool_calls", "reasoning_content", "reasoning", "thinking")
TOKENIZER_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
# ChatML. The {% generation %} marks tell TRL which tokens are the assistant's and carry loss.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def require_chat_template(tokenizer: PreTrainedTokenizerBase, path: str | None) -> None:
    """InputError unless the tokenizer can format conversations."""
    if not tokenizer.chat_template:
        raise InputError(
            f"{path}: its tokenizer has no chat template, which messages need; set chat_template_path (sft), "
            "start from a chat model, or give prompts as plain text"
        )


def render(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Mapping], where: str, **options) -> str:
    """The conversation as text. options: `tools`, `add_generation_prompt` and whatever else the template reads.

    Raises:
        InputError: the template refuses the conversation; the message begins with `where`.
    """
    return apply(tokenizer, turns, where, tokenize=False, **options)


def apply(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Mapping], where: str, **options):
    """`apply_chat_template` of the turns; see `render`."""
    # Arrow gives every turn the keys of all others, as null; templates test whether a key is present.
    turns = [
        {key: "" if value is None else value for key, value in turn.items() if key == "content" or value is not None}
        for turn in turns
    ]
    try:
        return tokenizer.apply_chat_template(turns, **options)
    except TEMPLATE_ERRORS as error:
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        roles = ", ".join(turn["role"] for turn in turns)
        told = f"the chat template refuses the conversation ({roles}): {reason}"
        raise InputError(f"{where}: {told}; {what_it_takes(tokenizer, turns, options)}") from None


def fix_date(day: str) -> None:
    """From now on chat templates in this process are told that it is midnight of `day` (YYYY-MM-DD), so that a run that goes
    on past midnight, or continues on another day, renders as it began. transformers has no argument for that."""
    began = datetime.fromisoformat(day)

    class FixedDate(datetime):
        @classmethod
        def now(cls, tz=None):
            return began

    chat_template_utils.datetime = FixedDate


def date_written(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The date (YYYY-MM-DD) that the chat template writes into a conversation, as Llama 3.2's does; or None."""
    now = chat_template_utils.datetime.now()
    if "strftime_now" not in str(tokenizer.chat_template):
        return None
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    on = lambda day: render(tokenizer, turns, "", strftime_now=day.strftime)
    try:
        return f"{now:%Y-%m-%d}" if on(datetime(1999, 12, 31)) != on(datetime(2001, 2, 3)) else None
    except InputError:  # the template refuses the test conversation
        return f"{now:%Y-%m-%d}"


def options_of(row: Mapping) -> dict:
    """A row's inputs to the template other than turns: `tools` (a list or its JSON text) and `chat_template_kwargs`."""
    tools = row.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) and tools.strip() else tools
    given = {key: value for key, value in (row.get("chat_template_kwargs") or {}).items() if value is not None}
    return ({"tools": tools} if tools else {}) | given


def set_defaults(tokenizer: PreTrainedTokenizerBase, given: Mapping[str, object]) -> None:
    """Writes `given` (such as enable_thinking: false) into the chat template, so that later stages and users render alike.

    Raises:
        InputError: the template does not read one of the variables.
    """
    if given and not tokenizer.chat_template:
        raise InputError("chat_template_kwargs: the tokenizer has no chat template that could read them")
    for name, value in given.items():
        _require_read(tokenizer, name, "chat_template_kwargs")
        literal = json.dumps(value)
        tokenizer.chat_template = f"{{%- if {name} is not defined %}}{{%- set {name} = {literal} %}}{{%- endif %}}" + (
            tokenizer.chat_template
        )


def complete_template(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Lets a chat template that ignores `add_generation_prompt` write what stands before its answers, so that a
    model is asked as it is trained; a line says so."""
    template = tokenizer.chat_template
    if not isinstance(template, str) or "add_generation_prompt" in template:
        return
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    try:
        asked, whole = render(tokenizer, turns[:1], where), render(tokenizer, turns, where)
    except InputError:  # the template refuses the test conversation
        return
    before = whole.partition(ANSWER)[0]
    header = before.removeprefix(asked) if ANSWER in whole and before.startswith(asked) else ""
    if header.strip():
        shown = json.dumps(header, ensure_ascii=False)
        # Jinja drops one newline at the end of a template.
        tokenizer.chat_template = template.removesuffix("\n") + (
            f"{{% if add_generation_prompt %}}{{{{ {shown} }}}}{{% endif %}}"
        )
        say(
            f"{where}: its chat template ignores add_generation_prompt; when the model is asked, {shown} is written "
            "as before every answer, from now on by the template itself"
        )


def read_template(path: str, endings: tuple[str, ...] = (".jinja", ".j2")) -> str:
    """The chat template of `chat_template_path`: a file with one of `endings` (TRL's), or a tokenizer's folder or Hub id.
    InputError if there is none."""
    if path.endswith(endings) and Path(path).is_file():
        return Path(path).read_text(encoding="utf-8-sig")
    try:
        from transformers import AutoTokenizer  # imports torch

        return AutoTokenizer.from_pretrained(local_template(path)).get_chat_template()
    except (OSError, ValueError) as error:
        raise InputError(f"chat_template_path: {path} cannot be read: {str(error)[:200]}") from None


def local_template(path: str | None) -> str | None:
    """`path` itself, or for `OWNER/NAME@REVISION` the folder of that tokenizer in the Hub library's cache: neither TRL nor
    transformers reads a revision there.

    Raises:
        InputError: there is no such revision.
    """
    if path is None or "@" not in path or Path(path).exists():
        return path
    name, _, revision = path.rpartition("@")
    try:
        return snapshot_download(name, revision=revision, allow_patterns=TOKENIZER_FILES)
    except (OSError, ValueError) as error:  # huggingface_hub's own errors are of these kinds
        raise InputError(f"chat_template_path: {path} cannot be read: {str(error)[:200]}") from None


def row_check(
    tokenizer: PreTrainedTokenizerBase,
    template_path: str | None = None,
    variables: Mapping[str, object] | None = None,
    shows_tools: bool = True,
    tells_special: bool = True,
) -> Callable[[Mapping, str], None]:
    """A function (row, place) that raises InputError if the template does not show all of the row, or its text begins with
    the BOS that the tokenizer puts before every text.

    template_path: a template to check instead of the tokenizer's, with `variables` (`chat_template_kwargs`) as its defaults.
    shows_tools: whether the stage passes the row's `tools` and `chat_template_kwargs` to the template.
    tells_special: say of the first row of all that somebody in it spells out a special token.
    """
    if template_path:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = read_template(template_path)
        set_defaults(tokenizer, variables or {})
    bos = tokenizer.bos_token if puts_bos(tokenizer) else None
    spelled, told = special_finder(tokenizer), [] if tells_special else [True]
    day = date_written(tokenizer)
    if day:
        takes = "date_string" in str(tokenizer.chat_template)
        pin = ", or `chat_template_kwargs: {date_string: ...}` for good" if takes else ""
        say(f"chat template: writes the date into conversations; {day} in all of this run, on whatever day it ends{pin}")

    def check(row: Mapping, where: str) -> None:
        first = row.get("messages") or row.get("prompt")
        text = first or row.get("completion")
        if bos and isinstance(text, str) and text.startswith(bos):
            raise InputError(
                f"{where}: the text begins with {bos}, which the tokenizer itself puts before every text, so "
                "the model would read it twice; leave it out, or give messages"
            )
        if not is_conversation(first) or not tokenizer.chat_template:  # reported elsewhere
            return
        options = options_of(row)
        if options and not shows_tools:
            name = "tools" if row.get("tools") else "chat_template_kwargs"
            raise InputError(
                f"{where}: has `{name}`, which this stage does not show the model; leave the column out with `columns:`"
            )
        answers = [row[column] for column in ("completion", "chosen", "rejected") if isinstance(row.get(column), list)]
        for turns in [[*first, *answer] for answer in answers] or [first]:
            _check_conversation(tokenizer, turns, where, options)
            if not told and any(spelled(turn.get("content") or "") >= 0 for turn in turns):
                told.append(True)
                say(f"{where}: spells out a special token in what somebody says, which is read as that token")

    # What its answers depend on, and with them the tokens that are kept of the rows.
    check.key = [tokenizer.chat_template, tokenizer.special_tokens_map, shows_tools, bos, *([day] if day else [])]
    return check


def puts_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts BOS before a text."""
    return tokenizer.bos_token is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id


def _check_conversation(tokenizer: PreTrainedTokenizerBase, turns: list[dict], where: str, options: dict) -> None:
    asks = turns[-1]["role"] != "assistant"
    whole = render(tokenizer, turns, where, add_generation_prompt=asks, **options)
    for name in options:
        if name != "tools":
            _require_read(tokenizer, name, where)
    bare = {name: value for name, value in options.items() if name != "tools"}
    if "tools" in options and render(tokenizer, turns, where, add_generation_prompt=asks, **bare) == whole:
        raise InputError(f"{where}: has `tools`, which the chat template does not show; use a template that does")
    for i, turn in enumerate(turns):
        own = [key for key in SAID if turn.get(key)] if turn["role"] == "assistant" else []
        if turn["role"] in ("system", "tool"):
            require_shown(tokenizer, turns, i, where, options)
        elif (turn.get("content") or "").rpartition("</think>")[2].strip() not in whole:
            _require_read_out(tokenizer, turns[: i + 1], where, options)
        if not own and "</think>" not in (turn.get("content") or ""):
            continue
        shown = render(tokenizer, turns[: i + 1], where, **options)
        for key in own:
            without = {name: value for name, value in turn.items() if name != key}
            if render(tokenizer, [*turns[:i], without], where, **options) == shown:
                raise InputError(
                    f"{where}, turn {i + 1}: has `{key}`, which the chat template leaves out; use a template "
                    "that shows it, or drop it from the rows"
                )
        thought = _thought_inside(turn)
        if thought and turn["role"] == "assistant" and thought not in shown:
            raise InputError(
                f"{where}, turn {i + 1}: the chat template leaves out the text in <think> ... </think>; "
                "use a template that shows it, or drop it from the rows"
            )


def _thought_inside(turn: Mapping) -> str:
    return (turn.get("content") or "").rpartition("</think>")[0].rpartition("<think>")[2].strip()


def thoughts_of(turn: Mapping) -> list[str]:
    """What a turn says in reasoning, in its content or beside it."""
    beside = [turn.get(key) for key in SAID if key != "tool_calls"]
    return [text.strip() for text in [_thought_inside(turn), *beside] if isinstance(text, str) and text.strip()]


def require_shown(tokenizer: PreTrainedTokenizerBase, turns: list[dict], i: int, where: str, options: dict) -> None:
    """InputError unless the template shows turn `i`, a system or tool turn."""
    # Some templates show a system turn only before another turn; and without a tool's turn nothing may be left to show.
    before, after = turns[:i], turns[i + 1 : i + 2] if i == 0 else []
    if not before and not after:
        return
    shown = render(tokenizer, [*before, turns[i], *after], where, **options)
    if shown == render(tokenizer, [*before, *after], where, **options):
        raise InputError(f"{where}, turn {i + 1}: the chat template leaves out what the {turns[i]['role']} says")


def _require_read_out(tokenizer: PreTrainedTokenizerBase, turns: list[dict], where: str, options: dict) -> None:
    """InputError unless the template shows the content of the last of `turns`. Templates of vision models may leave out
    content that is text rather than a list of parts."""
    asks = {"add_generation_prompt": turns[-1]["role"] != "assistant"} | options
    other = [*turns[:-1], turns[-1] | {"content": turns[-1]["content"] + " X"}]
    if render(tokenizer, other, where, **asks) == render(tokenizer, turns, where, **asks):
        raise InputError(
            f"{where}, turn {len(turns)}: the chat template leaves out what the {turns[-1]['role']} says; use "
            "a template that shows content that is text"
        )


def _require_read(tokenizer: PreTrainedTokenizerBase, name: str, where: str) -> None:
    if not re.search(rf"\b{re.escape(name)}\b", str(tokenizer.chat_template)):
        raise InputError(f"{where}: the chat template does not read `{name}`, so it would change nothing")


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that the chat template writes after an assistant's answer; None if it writes none there, or refuses the test
    conversation."""
    text = _behind_answer(tokenizer)
    behind = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    return behind[0] if behind and behind[0] in tokenizer.added_tokens_decoder else None


def end_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the chat template writes after an answer as ordinary text; empty if that is a token, or nothing."""
    return "" if end_of_turn(tokenizer) is not None else _behind_answer(tokenizer)


def _behind_answer(tokenizer: PreTrainedTokenizerBase) -> str:
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    try:
        text = render(tokenizer, turns, "") if tokenizer.chat_template else ""
    except InputError:
        return ""
    return text.rpartition(ANSWER)[2].strip() if ANSWER in text else ""


def leaves_out_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template writes no BOS, although the tokenizer puts one before every text."""
    try:
        text = render(tokenizer, [{"role": "user", "content": QUESTION}], "")
    except InputError:
        return False
    return puts_bos(tokenizer) and tokenizer.bos_token not in text


def ends_turn(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> bool:
    """Whether a conversation's last token, apart from whitespace, is one that ends an answer."""
    last = next((token for token in reversed(ids) if tokenizer.decode([token]).strip()), None)
    # end_of_turn renders a conversation: asked only where EOS is not the answer
    return last is not None and (last == tokenizer.eos_token_id or last == end_of_turn(tokenizer))


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | list[dict]],
    max_length: int | None = None,
    where: str = "prompts",
    options: Sequence[Mapping] = (),
) -> list[list[int]]:
    """Token ids of each prompt, ready to be continued: messages are rendered by the chat template up to the answer.

    options: each prompt's further inputs to the template (see `options_of`).

    Raises:
        InputError: there are messages but no chat template, or it refuses them; a prompt has no tokens or more than
            max_length. The message names the row.
    """
    texts, plain = [], all(isinstance(prompt, str) for prompt in prompts)
    for number, prompt in enumerate(prompts, start=1):
        check_turns(prompt, f"{where}, row {number}")
        if isinstance(prompt, str):
            texts.append(prompt)
        elif not tokenizer.chat_template:
            raise InputError(
                f"{where}, row {number}: the prompt is a list of messages, but the tokenizer has no chat "
                "template; use a chat model's tokenizer, or give prompts as plain text"
            )
        else:
            own = options[number - 1] if options else {}
            texts.append(render(tokenizer, prompt, f"{where}, row {number}", add_generation_prompt=True, **own))
    # A chat template writes the special tokens itself.
    encoded = tokenizer(texts, add_special_tokens=plain)["input_ids"] if texts else []
    for number, ids in enumerate(encoded, start=1):
        if not ids:
            raise InputError(f"{where}, row {number}: the prompt is empty")
        if max_length is not None and len(ids) > max_length:
            raise InputError(
                f"{where}, row {number}: the prompt has {len(ids)} tokens, but next to the response there is room for "
                f"{max(max_length, 0)} in the model's context; shorten it or lower max_new_tokens"
            )
    return encoded
