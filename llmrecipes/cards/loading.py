"""The lines of a card that load a folder's model or data and use it once; `tests/test_card_snippets.py` runs them."""

import json
import re
from contextlib import suppress
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open

from llmrecipes.cards.names import is_local, loading_name
from llmrecipes.durable import read_json

QUESTION = "Which colour does the sky have?"
# Keys of the input or output embeddings in an adapter's file, whole.
EMBEDDINGS = re.compile(r"\b(embed_tokens|wte|word_embeddings|embed_in|lm_head|embed_out)\.((?!lora)[\w.]+\.)?weight$")


def load_model(folder: Path, name: str, is_classifier: bool, answers_chats: bool) -> list[str]:
    """Lines for a model, an adapter or just a tokenizer; name: the name to load it by."""
    quoted = json.dumps(name)
    if not any(folder.glob("*.safetensors")):
        return [
            "from transformers import AutoTokenizer",
            "",
            f"tokenizer = AutoTokenizer.from_pretrained({quoted})",
            f"print(tokenizer.tokenize({json.dumps(QUESTION)}))",
        ]
    kind = "SequenceClassification" if is_classifier else "CausalLM"
    is_adapter = (folder / "adapter_config.json").exists()
    labels = ", num_labels=1" if is_classifier else ""
    use = _score(folder) if is_classifier else _generate(answers_chats)
    if is_adapter and (len(chain := adapter_chain(folder)) > 2 or chain[0].startswith("pypi:")):
        return _load_chain(kind, quoted, labels, chain[:-1], folder) + use
    if is_adapter:
        code = _own_code(chain[0])
        lines = [
            f"from peft import AutoPeftModelFor{kind}",
            "from transformers import AutoTokenizer",
            "",
            f"tokenizer = AutoTokenizer.from_pretrained({quoted}{code})",
            f"model = AutoPeftModelFor{kind}.from_pretrained({quoted}{labels}{code})",
        ]
    else:
        code = _own_code(str(folder))  # which lies in the folder, too
        lines = [
            f"from transformers import AutoModelFor{kind}, AutoTokenizer",
            "",
            f"tokenizer = AutoTokenizer.from_pretrained({quoted}{code})",
            f"model = AutoModelFor{kind}.from_pretrained({quoted}{code})",
        ]
    return lines + use


def load_rows(name: str, configs: dict[str, dict[str, str]]) -> list[str]:
    """Lines for a data set with these configurations (name -> {split: file})."""
    lines = ["from datasets import load_dataset", ""]
    for config, splits in configs.items():
        chosen = "" if config == "default" else f", {json.dumps(config)}"
        lines += [f"rows = load_dataset({json.dumps(name)}{chosen}, split={json.dumps(split)})" for split in splits]
    return [*lines, "print(rows[0])"]


def adapter_chain(folder: Path) -> list[str]:
    """The full model that the adapter in `folder` is based on, and each adapter on top of it."""
    chain = [str(folder)]
    while base := read_json(Path(chain[0]) / "adapter_config.json").get("base_model_name_or_path"):
        chain.insert(0, base)
    return chain


def _own_code(model: str) -> str:
    """The argument without which a model whose repository has code of its own, a folder or an id on the Hub that has been
    downloaded, does not load."""
    config = Path(model) / "config.json"
    if not is_local(model) and isinstance(cached := try_to_load_from_cache(model, "config.json"), str):
        config = Path(cached)
    return ", trust_remote_code=True" if "auto_map" in read_json(config) else ""


def _load_chain(kind: str, quoted: str, labels: str, bases: list[str], folder: Path) -> list[str]:
    """Lines that load an adapter on top of others; PEFT by itself would load only the last one."""
    whole, *adapters = [json.dumps(loading_name(base)) for base in bases]
    archive = bases[0].startswith("pypi:")
    code = "" if archive else _own_code(bases[0])
    whole = f"local_model({whole})" if archive else whole
    size = next(filter(None, map(_vocabulary, [*bases[1:], folder])), None)
    return [
        *(["from llmrecipes.data.gguf import local_model  # the base is an archive of the package index"] * archive),
        "from peft import PeftConfig, PeftModel",
        f"from transformers import AutoModelFor{kind}, AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({quoted}{code})",
        f"model = AutoModelFor{kind}.from_pretrained({whole}{labels}{code})",
        *([f"model.resize_token_embeddings({size}, mean_resizing=False)"] if size else []),
        "# An adapter on top of adapters: each is merged before the next is loaded.",
        f"for adapter in [{', '.join([*adapters, quoted])}]:",
        "    config = PeftConfig.from_pretrained(adapter)",
        "    config.task_type = None",
        "    model = PeftModel.from_pretrained(model, adapter, config=config).merge_and_unload()",
    ]


def _vocabulary(adapter: str | Path) -> int | None:
    """The number of tokens of an adapter's own embeddings, saved with it where tokens were added; None if it has none."""
    with suppress(OSError, SafetensorError), safe_open(Path(adapter) / "adapter_model.safetensors", "pt") as weights:
        for key in filter(EMBEDDINGS.search, weights.keys()):
            return weights.get_slice(key).get_shape()[0]
    return None  # also for one on the Hub


def _generate(answers_chats: bool) -> list[str]:
    if answers_chats:
        lines = [
            f'chat = [{{"role": "user", "content": {json.dumps(QUESTION)}}}]',
            "inputs = tokenizer.apply_chat_template(",
            '    chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
        ]
    else:
        lines = ['inputs = tokenizer("The sky", return_tensors="pt", return_token_type_ids=False)']
    return [
        *lines,
        "response = model.generate(**inputs, max_new_tokens=40)[0, inputs.input_ids.shape[1] :]",
        "print(tokenizer.decode(response, skip_special_tokens=True))",
    ]


def _score(folder: Path) -> list[str]:
    """Scores a response as every stage reads it: a conversation through the template, EOS after it where the template writes
    no end, and the score at the very last token."""
    if has_template(folder):
        lines = [
            f'chat = [{{"role": "user", "content": {json.dumps(QUESTION)}}},',
            '        {"role": "assistant", "content": "Blue."}]',
            f"text = tokenizer.apply_chat_template(chat, tokenize=False){_end(folder)}",
            'inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")',
        ]
    else:
        lines = [f'inputs = tokenizer({json.dumps(QUESTION + " Blue.")} + tokenizer.eos_token, return_tensors="pt")']
    # With a pad token, transformers' head takes a final token equal to it for padding and reads the one before.
    return [
        *lines,
        "model.config.get_text_config().pad_token_id = None  # the score is read at the last token",
        "print(model(**inputs).logits[0, 0].item())",
    ]


def _end(folder: Path) -> str:
    """What is to be added to a rendered conversation."""
    from transformers import AutoTokenizer

    from llmrecipes.templates import TEMPLATE_ERRORS, ends_turn

    chat = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "Blue."}]
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
    except (*TEMPLATE_ERRORS, OSError):  # refused by the template, or no whole tokenizer
        return ""
    return "" if tokenizer.eos_token_id is None or ends_turn(tokenizer, ids) else " + tokenizer.eos_token"


def has_template(folder: Path) -> bool:
    """Whether the tokenizer in `folder` has a chat template."""
    if (folder / "chat_template.jinja").exists():
        return True
    return bool(read_json(folder / "tokenizer_config.json").get("chat_template"))
