"""Shapes of data set rows: recognise them, convert foreign ones to TRL's standard ones. Pure: a row in, a row out.

| shape | columns | from |
|---|---|---|
| text | text | pretraining |
| messages | messages: [{role, content}] | demonstrations |
| prompt-completion | prompt, completion | demonstrations |
| preference | prompt, chosen, rejected (text or messages) | pairs; a text prompt repeated in them goes |
| implicit preference | chosen, rejected (messages that begin alike) | pairs |
| prompt | prompt (text or messages) | prompts to sample from |
| alpaca | instruction, output, maybe input | -> messages |
| sharegpt | conversations: [{from, value}] | -> messages |
| hh-rlhf | chosen, rejected ("\\n\\nHuman: ... \\n\\nAssistant: ..." transcripts) | -> preference |
| rankings | prompt, responses, ranking | -> preference, one row a pair (rankings_to_pairs) |

Columns that a shape does not use are carried along. What cannot be read raises InputError, naming the row.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from llmrecipes.config import InputError

# In order of recognition: a row is of the first shape all of whose columns it has.
SHAPES: dict[str, tuple[str, ...]] = {
    "rankings": ("prompt", "responses", "ranking"),
    "preference": ("prompt", "chosen", "rejected"),
    "hh-rlhf": ("chosen", "rejected"),  # recognised by its text; otherwise an implicit preference
    "implicit preference": ("chosen", "rejected"),
    "prompt-completion": ("prompt", "completion"),
    "messages": ("messages",),
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
    "text": ("text",),
    "prompt": ("prompt",),
}
# What each foreign shape becomes.
STANDARD = {"alpaca": "messages", "sharegpt": "messages", "hh-rlhf": "preference", "implicit preference": "preference"}
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
         "bing": "assistant", "bard": "assistant", "system": "system", "tool": "tool"}  # fmt: skip
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]?")


def recognise(row: Mapping, where: str = "data set") -> str:
    """Name of the shape of `row`; InputError with its columns if it has none of the known shapes."""
    for shape, columns in SHAPES.items():
        if not all(row.get(column) is not None for column in columns):
            continue
        if shape == "hh-rlhf" and not (isinstance(row["chosen"], str) and TURN.match(row["chosen"])):
            continue
        return shape
    raise InputError(_wrong_columns(row, list(SHAPES), where))


def require_shape(row: Mapping, shapes: Sequence[str], where: str = "data set") -> str:
    """Shape of `row` once converted, one of the standard `shapes`; InputError names columns and shapes."""
    try:
        shape = STANDARD.get(found := recognise(row, where), found)
    except InputError:
        shape = None
    # A row with more than is needed serves as well: a demonstration's or a pair's prompt is a prompt.
    if shape not in shapes:
        shape = next((s for s in shapes if all(row.get(column) is not None for column in SHAPES[s])), None)
    if shape is None:
        raise InputError(_wrong_columns(row, shapes, where))
    return shape


def to_standard(row: Mapping, where: str = "row") -> dict:
    """Row in TRL's standard shape, checked; other columns are carried. `where` ("x.jsonl, row 7") begins each error."""
    shape = recognise(row, where)
    new = dict(row)
    if shape == "alpaca":
        instruction, extra, output = (new.pop(key, None) or "" for key in ("instruction", "input", "output"))
        new.pop("text", None)  # Alpaca's own rendering of the same row
        _require_text([instruction, extra, output], "instruction, input and output", where)
        question = f"{instruction}\n\n{extra}" if extra else instruction
        new["messages"] = [{"role": "user", "content": question}, {"role": "assistant", "content": output}]
    elif shape == "sharegpt":
        new["messages"] = _from_sharegpt(new.pop("conversations"), where)
    elif shape in ("hh-rlhf", "implicit preference") or _repeats_prompt(new):
        chosen, rejected = new["chosen"], new["rejected"]
        if shape == "hh-rlhf":
            chosen, rejected = split_transcript(chosen, where), split_transcript(rejected, where)
        new["prompt"], new["chosen"], new["rejected"] = _split_common_prompt(chosen, rejected, where)
    for column in ("messages", "prompt", "chosen", "rejected", "completion"):
        if new.get(column) is not None:
            check_turns(new[column], f"{where}, column {column}")
    if "text" in SHAPES[shape]:
        _require_text([new["text"]], "text", where)
    return new


def check_turns(value: object, where: str) -> None:
    """InputError unless `value` is a text or a non-empty list of {"role": str, "content": str}."""
    if isinstance(value, str):
        return
    if not isinstance(value, list) or not value:
        raise InputError(f"{where}: expected a text or a list of messages, found {_short(value)}")
    for turn in value:
        if not isinstance(turn, Mapping) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise InputError(f'{where}: expected messages {{"role": ..., "content": ...}}, found {_short(turn)}')


def split_transcript(text: str, where: str = "row") -> list[dict]:
    """Messages of an hh-rlhf transcript, "\\n\\nHuman: ...\\n\\nAssistant: ..." (arXiv 2204.05862)."""
    if not isinstance(text, str) or not TURN.match(text):
        raise InputError(f'{where}: expected a transcript that begins with "Human:", found {_short(text)}')
    parts = TURN.split(text)[1:]
    turns = []
    for speaker, content in zip(parts[0::2], parts[1::2], strict=True):
        role = ROLES[speaker.lower()]
        # Two turns of one speaker in a row (an empty answer between them was dropped by the authors) are one turn.
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += "\n\n" + content.strip()
        else:
            turns.append({"role": role, "content": content.strip()})
    return turns


def rankings_to_pairs(row: Mapping, where: str = "row") -> list[dict]:
    """All pairs of a ranking that are not ties: {"prompt", "chosen", "rejected", "margin", ...other columns}.

    row: prompt (text or messages), responses (list of text), ranking (best first, ties together: [[2], [0, 3], [1]];
    responses left out of it give no pair). K responses give up to K(K-1)/2 pairs (Ouyang et al. 2022, section 3.5).
    margin: the difference of `scores` where the row has them, else the number of groups apart. With a prompt of
    messages, chosen and rejected are one assistant message each; with a text prompt they are text. `chosen_finished` and
    `rejected_finished`, where the row has `finish_reasons`: whether the model ended the response itself.
    Responses with equal text are never a pair.
    """
    check_ranking(row, where)
    responses, scores, reasons = row["responses"], row.get("scores"), row.get("finish_reasons")
    carried = {
        k: v for k, v in row.items() if k not in ("responses", "ranking", "scores", *SAMPLE_COLUMNS, *JUDGEMENT_COLUMNS)
    }
    pairs = []
    for (better, high), (worse, low) in combinations(enumerate(row["ranking"]), 2):
        for i in high:
            for j in low:
                if responses[i].strip() == responses[j].strip():
                    continue
                margin = scores[i] - scores[j] if scores else worse - better
                sides = (responses[i], responses[j])
                if not isinstance(row["prompt"], str):
                    sides = tuple([{"role": "assistant", "content": side}] for side in sides)
                pair = {**carried, "chosen": sides[0], "rejected": sides[1], "margin": float(margin)}
                if reasons:
                    pair |= {"chosen_finished": reasons[i] != "length", "rejected_finished": reasons[j] != "length"}
                pairs.append(pair)
    return pairs


def weigh_pairs(pairs: Sequence[Mapping]) -> list[dict]:
    """Pairs with `weight`, 1 / (number of the prompt's pairs), so that each prompt counts once however often it was
    ranked (Ouyang et al. 2022, section 3.5: all pairs of a prompt are one element of a batch)."""
    ids = [pair.get("prompt_id") or prompt_id(pair["prompt"]) for pair in pairs]
    counts = Counter(ids)
    return [{**pair, "weight": 1 / counts[name]} for pair, name in zip(pairs, ids, strict=True)]


def to_implicit(pair: Mapping, where: str = "row") -> dict:
    """The pair without a `prompt` column: chosen and rejected are whole conversations that begin alike."""
    if isinstance(pair["prompt"], str):
        raise InputError(f"{where}: pair_format implicit needs prompts of messages; text prompts have no border to the "
                         "answer, so leave `pair_format: explicit`")  # fmt: skip
    sides = {side: [*pair["prompt"], *pair[side]] for side in ("chosen", "rejected")}
    return {key: value for key, value in pair.items() if key != "prompt"} | sides


# Columns of a samples row that describe its responses, not its prompt.
SAMPLE_COLUMNS = ("finish_reasons", "num_tokens", "sampling", "model", "models")
# Columns of a person's judgement that say nothing of a single pair.
JUDGEMENT_COLUMNS = ("all_bad", "flags", "note", "seconds", "order_shown", "time")


def check_ranking(row: Mapping, where: str) -> None:
    """InputError unless `ranking` orders each of `responses` at most once, best first, ties together."""
    responses, ranking = row.get("responses"), row.get("ranking")
    if not isinstance(responses, list) or not all(isinstance(text, str) for text in responses):
        raise InputError(f"{where}: responses must be a list of texts, found {_short(responses)}")
    if not isinstance(ranking, list) or not all(isinstance(group, list) and group for group in ranking):
        raise InputError(f"{where}: ranking must look like [[2], [0, 3], [1]], best first, found {_short(ranking)}")
    places = [place for group in ranking for place in group]
    if not all(type(place) is int and 0 <= place < len(responses) for place in places):
        raise InputError(f"{where}: ranking names a response that is not there: {_short(ranking)}; "
                         f"responses are numbered 0 to {len(responses) - 1}")  # fmt: skip
    if len(set(places)) < len(places):
        raise InputError(f"{where}: ranking names a response twice: {_short(ranking)}")


def prompt_id(prompt: str | list[dict]) -> str:
    """Name of a prompt: the first 16 hexadecimal digits of the SHA-256 of its text or of its messages as JSON."""
    text = prompt if isinstance(prompt, str) else json.dumps(
        [{"role": turn["role"], "content": turn["content"]} for turn in prompt], ensure_ascii=False
    )  # fmt: skip
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prompt_text(prompt: str | list[dict]) -> str:
    """The prompt to read: a text as it is, one message as its content, a conversation with its roles."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def encode_prompts(
    tokenizer, prompts: Sequence[str | list[dict]], max_length: int | None = None, where: str = "prompts"
) -> list[list[int]]:
    """Token ids of each prompt, ready to be continued: messages through the chat template, up to the answer.

    Raises:
        InputError: messages but no chat template; a prompt without tokens or with more than max_length, with its row.
    """
    texts, plain = [], all(isinstance(prompt, str) for prompt in prompts)
    for number, prompt in enumerate(prompts, start=1):
        check_turns(prompt, f"{where}, row {number}")
        if isinstance(prompt, str):
            texts.append(prompt)
        elif not tokenizer.chat_template:
            raise InputError(f"{where}, row {number}: the prompt is a list of messages, but the tokenizer has no chat "
                             "template; use a chat model's tokenizer, or give prompts as plain text")  # fmt: skip
        else:
            texts.append(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))
    # A chat template writes the special tokens itself.
    encoded = tokenizer(texts, add_special_tokens=plain)["input_ids"] if texts else []
    for number, ids in enumerate(encoded, start=1):
        if not ids:
            raise InputError(f"{where}, row {number}: the prompt is empty")
        if max_length is not None and len(ids) > max_length:
            raise InputError(
                f"{where}, row {number}: the prompt has {len(ids)} tokens, but beside the response there is room for "
                f"{max_length} in the model's context; shorten it or lower max_new_tokens"
            )
    return encoded


def parse_jsonl(lines: Iterable[str], where: str) -> Iterator[dict]:
    """Rows of JSON Lines; InputError "where, line 3: ..." for a broken one. Empty lines are skipped."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}, line {number}: not valid JSON ({error.msg} at column {error.colno})") from None
        if not isinstance(row, dict):
            raise InputError(f"{where}, line {number}: expected an object {{...}}, found {_short(row)}")
        yield row


def read_growing(path: Path) -> list[dict]:
    """Rows of a JSON Lines file that grows as work goes on; a line that a kill cut off is passed over. [] without it."""
    rows = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def _from_sharegpt(turns: object, where: str) -> list[dict]:
    """Messages of ShareGPT's conversations [{"from": "human", "value": ...}, ...]."""
    if not isinstance(turns, list) or not turns:
        raise InputError(f"{where}: conversations must be a non-empty list, found {_short(turns)}")
    messages = []
    for turn in turns:
        speaker, content = (turn.get("from"), turn.get("value")) if isinstance(turn, Mapping) else (None, None)
        if speaker not in ROLES or not isinstance(content, str):
            raise InputError(f'{where}: expected {{"from": "human" or "gpt", "value": ...}}, found {_short(turn)}')
        messages.append({"role": ROLES[speaker], "content": content})
    return messages


def _split_common_prompt(chosen: object, rejected: object, where: str) -> tuple[list, list, list]:
    """(prompt, chosen, rejected): the turns both conversations begin with, and the rest of each, at least one."""
    check_turns(chosen, f"{where}, column chosen")
    check_turns(rejected, f"{where}, column rejected")
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise InputError(f"{where}: chosen and rejected are texts without a prompt; add a prompt column")
    common = 0
    while common < min(len(chosen), len(rejected)) - 1 and chosen[common] == rejected[common]:
        common += 1
    if common == 0:
        raise InputError(f"{where}: chosen and rejected do not begin with the same message, so they have no prompt")
    return chosen[:common], chosen[common:], rejected[common:]


def _repeats_prompt(row: Mapping) -> bool:
    """Whether `prompt` is a text and both answers are whole conversations, as in UltraFeedback's binarized forms."""
    answers = [row.get("chosen"), row.get("rejected")]
    return isinstance(row.get("prompt"), str) and all(
        isinstance(turns, list) and turns and isinstance(turns[0], Mapping) and turns[0].get("role") != "assistant"
        for turns in answers
    )


def _require_text(values: Sequence[object], what: str, where: str) -> None:
    for value in values:
        if not isinstance(value, str):
            raise InputError(f"{where}: {what} must be text, found {_short(value)}")


def _wrong_columns(row: Mapping, shapes: Sequence[str], where: str) -> str:
    expected = " | ".join(dict.fromkeys(", ".join(SHAPES[shape]) for shape in shapes))
    empty = [column for column, value in row.items() if value is None]
    note = f" (empty: {', '.join(empty)})" if empty else ""
    return f"{where}: columns are {', '.join(row) or 'none'}{note}; expected {expected}. Rename with `columns:`"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def is_conversation(prompt: object) -> bool:
    """Whether a prompt is a list of chat messages."""
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], dict) and "role" in prompt[0]
