"""Web pages on loopback for talking to the models of a chain, one at a time or several side by side.

Answers are shown as plain text, never as markup.
"""

import itertools
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from html import escape, unescape
from pathlib import Path
from threading import Event, Thread

import torch
from transformers import GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llmrecipes import templates
from llmrecipes.adapters import ADAPTER_FILE
from llmrecipes.config import InputError, ModelArguments
from llmrecipes.durable import read_json
from llmrecipes.formats import prompt_text, read_growing
from llmrecipes.generation import answer_texts
from llmrecipes.manifest import MANIFEST_FILE, in_order
from llmrecipes.models import context_length, eos_token_ids, load_policy, load_tokenizer
from llmrecipes.preflight.model_folders import require_whole
from llmrecipes.web import import_gradio

AS_WRITTEN = "[data-testid=bot], [data-testid=user] { white-space: break-spaces !important }"  # an answer's indentation, too
LANGUAGE_MODELS = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def find_models(path: str) -> dict[str, str]:
    """Name -> folder of every finished causal language model in `path` (a chain's folder or one model's), oldest first and
    never before the model it was trained from; LoRA adapters count as models. An unfinished one is named on stdout.

    Raises:
        InputError: there are none, or one has a damaged file.
    """
    root, found = Path(path), {}
    configs = [file for name in ("config.json", ADAPTER_FILE) for file in (root / name, *root.glob(f"*/{name}"))]
    configs = sorted(filter(Path.exists, configs), key=lambda file: file.stat().st_mtime)
    for folder in in_order(dict.fromkeys(config.parent for config in configs)):
        manifest = folder / MANIFEST_FILE
        if manifest.exists() and read_json(manifest).get("status") != "finished":
            print(f"{folder}: left out, its run has not finished", flush=True)
            continue
        about = {k: v for c in configs if c.parent == folder for k, v in read_json(c).items()}
        if not about or _writes_text(about):
            require_whole(folder)  # whose model would otherwise be left out, or fail when it is asked
        if _writes_text(about):
            found[folder.resolve().name] = str(folder)
    if not found:
        raise InputError(
            f"{path}: holds no finished language model (reward models write no text); run the chain first (make quickstart)"
        )
    return found


def _writes_text(about: dict) -> bool:
    """Whether a folder's config.json or adapter_config.json is a causal language model's; one of images, too (Gemma 3)."""
    if "peft_type" in about:
        return about.get("task_type") in ("CAUSAL_LM", None)
    named = about.get("architectures")
    known = isinstance(named, list) and any(name in LANGUAGE_MODELS for name in named)
    known = known or "AutoModelForCausalLM" in (about.get("auto_map") or {})  # of the repository's own code
    return known or "CausalLM" in str(named) or "LMHeadModel" in str(named)  # the latter: GPT-2's


def terminal_lines(folder: str, command: str) -> str:
    """How to talk to the model in `folder` without the page; command: how transformers' own is called."""
    lines, merged, quote = "", folder, shlex.quote
    if (Path(folder) / ADAPTER_FILE).exists():
        # `transformers serve` needs a config.json, which an adapter does not have.
        folder, merged = folder.rstrip("/"), folder.rstrip("/") + "-merged"
        lines = (
            f"{folder} is a LoRA adapter, which `transformers serve` cannot load. Merge it into a copy of its base first:\n"
        )
        lines += f"{sys.executable} recipes/merge.py --model_name_or_path {quote(folder)} --output_dir {quote(merged)}\n"
    served = quote(merged)
    return lines + f"In a terminal: {command} serve {served} --host 127.0.0.1\nand in another: {command} chat {served}"


@lru_cache(maxsize=4)
def _load(folder: str, trust_remote_code: bool):
    source = ModelArguments(model_name_or_path=folder)
    tokenizer = load_tokenizer(source, trust_remote_code)
    templates.require_chat_template(tokenizer, folder)
    templates.render(
        tokenizer, messages_of(templates.QUESTION, ""), folder, add_generation_prompt=True
    )  # refused beforehand
    model = load_policy(source, tokenizer, trust_remote_code).eval()
    # As sampling and evaluation do: none of the model's own settings, such as a repetition penalty or beams, applies.
    ends = eos_token_ids(model, tokenizer)
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    return model, tokenizer


@contextmanager
def _shown() -> Iterator[None]:
    """Shows a user's mistake on the page, which says no more than "Error" of anything else."""
    try:
        yield
    except InputError as error:
        raise page_error(str(error)) from None


def page_error(text: str) -> Exception:
    """What the page shows as an error: gradio would take the text for HTML."""
    return import_gradio().Error(escape(text), print_exception=False)


def stream_answer(
    folder: str,
    messages: list[dict],
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    trust_remote_code: bool = False,
) -> Iterator[str]:
    """Streams the answer of the model in `folder`; greedy at temperature 0. Where the context is full, the first turns are
    left out, with a notice. Returns why the answer ended, "stop" or "length". Closed earlier, it ends the model's work.

    Raises:
        gradio.Error: the model cannot be loaded or asked, or fails.
    """
    from transformers import TextIteratorStreamer

    with _shown():
        model, tokenizer = _load(folder, trust_remote_code)
    ids = _prompt(model, tokenizer, messages, max_new_tokens, folder)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {}
    inputs = {"input_ids": ids.to(model.device), "attention_mask": ids.new_ones(ids.shape).to(model.device)}

    closed, made, failed = Event(), [], []

    def is_closed(ids, scores, **kwargs):
        return torch.full(ids.shape[:1], closed.is_set(), device=ids.device)

    def generate():
        options = sampling | {"max_new_tokens": max_new_tokens, "stopping_criteria": [is_closed]}
        try:
            made.append(model.generate(**inputs, **options, streamer=streamer))
        except Exception as error:  # in a thread nobody would see it
            failed.append(error)
        finally:
            streamer.end()  # otherwise a failure would leave the page waiting forever

    thread = Thread(target=generate)
    thread.start()
    text = ""
    try:
        for piece in streamer:
            text += piece
            yield text
    finally:
        closed.set()  # the page's stop button: the model would go on computing an answer that nobody reads
    thread.join()
    if failed:
        raise page_error(f"{folder} failed to answer: {type(failed[0]).__name__}: {failed[0]}")
    answer = made[0][0, ids.shape[1] :].tolist()
    [whole] = answer_texts(tokenizer, [answer])
    if whole != text:  # what led into the answer was streamed, too
        yield whole
    return "stop" if answer[-1:] and answer[-1] in eos_token_ids(model, tokenizer) else "length"


def _prompt(model, tokenizer, messages: list[dict], max_new_tokens: int, folder: str) -> torch.Tensor:
    """Token ids (1, T) of what the model is asked: the conversation, or its last turns and a notice."""
    context = context_length(model) or 1 << 20
    room = context - max_new_tokens
    if room < 1:
        raise page_error(
            f"max_new_tokens is {max_new_tokens}, but {folder} reads and writes {context} tokens in all; lower it."
        )
    with _shown():
        if messages[0]["role"] == "system":
            templates.require_shown(tokenizer, [messages[0], messages[-1]], 0, folder, {"add_generation_prompt": True})
        ids, left_out = _last_turns(tokenizer, messages, room)
    if ids.shape[1] > room:
        raise page_error(f"The message is too long: {ids.shape[1]} tokens; {folder} has room for {room}.")
    if left_out:
        import_gradio().Warning(f"The model no longer reads the first {left_out} turns: its context holds {context} tokens.")
    return ids


def _last_turns(tokenizer, messages: list[dict], room: int):
    """(token ids (1, T) of as many of the last turns as have room, and at least the last one; how many are left out). A
    system prompt stays, and what is left begins with a question: many templates refuse anything else."""
    options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    system = messages[:1] if messages[0]["role"] == "system" else []
    questions = [i for i, turn in enumerate(messages) if turn["role"] == "user"]
    for start in (len(system), *questions[1:]):
        ids = templates.apply(tokenizer, [*system, *messages[start:]], "chat", **options)["input_ids"]
        if ids.shape[1] <= room:
            break
    return ids, start - len(system)


def describe_model(name: str, folder: str) -> str:
    """`name`, a description from its run, and its context length."""
    manifest, config = (read_json(Path(folder) / file) for file in (MANIFEST_FILE, "config.json"))
    context = config.get("max_position_embeddings")
    known = f"context of {context:,} tokens" if isinstance(context, int) else ""
    return " · ".join(filter(None, [name, str(manifest.get("made") or ""), known]))


def example_prompts(path: str) -> list[str]:
    """One question of each kind that an evaluation in the chain at `path` asked, at most four."""
    rows = [row for file in sorted(Path(path).glob("*/answers.jsonl")) for row in read_growing(file)]
    first = {str(row.get("kind")): row["prompt"] for row in reversed(rows)}
    return list(dict.fromkeys(map(prompt_text, first.values())))[:4]


def build_page(
    models: dict[str, str], answer=stream_answer, title: str = "Talk to your models", examples: Sequence[str] = ()
):
    """The gradio page: a conversation with one stage, and one prompt answered by several side by side.

    answer: (folder, messages, temperature, top_p, max_new_tokens) -> the answer so far, repeatedly. examples: prompts to
        click on.
    """
    gr = import_gradio()
    names = list(models)

    def reply(message, history, model, system, temperature, top_p, length):
        *asked, question = messages_of(message, system)
        messages = [*asked, *answered(history), question]
        try:
            yield from answer(models[model], messages, temperature, top_p, int(length))
        except gr.Error as error:  # raised, it would leave the page without a field to type in
            gr.Warning(error.message, duration=None)

    def ask_all(prompt, chosen, *sampling):
        if not prompt.strip() or not chosen:
            raise page_error("Write a prompt and pick a stage first.")
        chosen = [name for name in names if name in chosen]
        for texts in in_lockstep(answer, [models[name] for name in chosen], prompt, *sampling):
            yield [gr.Textbox(texts[chosen.index(n)] if n in chosen else "", visible=n in chosen) for n in names]

    with gr.Blocks(title="llmrecipes chat", analytics_enabled=False) as page:
        gr.HTML(f'<h1 style="overflow-wrap:anywhere">{escape(title)}</h1><style>{AS_WRITTEN}</style>')
        with gr.Tab("Talk"):
            system, temperature, top_p, length = sampling_settings(gr, render=False)
            with gr.Row():
                about = [(describe_model(name, folder), name) for name, folder in models.items()]
                stage = gr.Dropdown(about, value=names[-1], label="stage", scale=3, min_width=320)
                temperature.render()
            chatbot = _plain_chatbot(gr)
            asked = [stage, system, temperature, top_p, length]
            talk = gr.ChatInterface(reply, chatbot=chatbot, additional_inputs=asked, additional_inputs_accordion="Settings")
            if examples:
                gr.Examples([[text] for text in examples], talk.textbox, label="Examples", api_visibility="private")
        with gr.Tab("Side by side"):
            chosen = gr.CheckboxGroup(names, value=names[-4:], label="stages")
            prompt = gr.Textbox(label="prompt", lines=2, placeholder="Shift+Enter asks")
            send = gr.Button("Ask all", variant="primary")
            with gr.Row():  # a text area shows text as it is
                boxes = [gr.Textbox(label=n, lines=8, interactive=False, visible=n in names[-4:]) for n in names]
            with gr.Accordion("Settings", open=False):
                settings = sampling_settings(gr)
            asked = [prompt, chosen, *settings]
            gr.on([send.click, prompt.submit], ask_all, asked, boxes, api_visibility="private")
    return page


def sampling_settings(gr, temperature: float = 0, render: bool = True) -> list:
    """The page\'s fields for the system prompt, temperature, top_p and the number of new tokens."""
    return [
        gr.Textbox("", label="system prompt", render=render),
        gr.Slider(0, 2, temperature, label="temperature (0: greedy)", render=render),
        gr.Slider(0.05, 1, 1, label="top_p", render=render),
        gr.Slider(1, 1024, 64, step=1, label="max_new_tokens", render=render),
    ]


def _plain_chatbot(gr):
    """A Chatbot that shows what either side says as it is: gradio's takes even plain text for HTML, and dedents it."""
    # No Markdown, whose images would be loaded; no button `share`, which would send the conversation to a third party;
    # and none to copy a turn or all, for they copy it as it is escaped.
    bot = gr.Chatbot(render_markdown=False, sanitize_html=True, latex_delimiters=[], height="45vh", label="chat", buttons=[])
    shows, reads = bot.postprocess, bot.preprocess
    part = lambda text: [{"type": "text", "text": text}]
    # Not a subclass: of that, gradio would write a file of type hints beside this one.
    other = lambda turns, change: [turn | {"content": part(change(_said(turn)))} for turn in turns or []]
    bot.postprocess = lambda turns: shows(other(turns, partial(escape, quote=False)))
    bot.preprocess = lambda payload: other(reads(payload), unescape)
    return bot


def in_lockstep(
    answer, folders: list[str], prompt: str, system, temperature, top_p, length, ends: dict | None = None
) -> Iterator[list[str]]:
    """Streams the answers of several models in lockstep, so that none can be recognised by its speed.

    ends: is given why each answer ended, by its place.
    """
    ends = {} if ends is None else ends

    def stream(place):
        messages = messages_of(prompt, system)
        ends[place] = yield from answer(folders[place], messages, temperature, top_p, int(length))

    shown = [""] * len(folders)
    for texts in itertools.zip_longest(*map(stream, range(len(folders)))):
        shown = [old if new is None else new for old, new in zip(shown, texts, strict=True)]
        yield shown


def messages_of(prompt: str, system: str) -> list[dict]:
    """The conversation that asks `prompt`, after the system prompt if there is one."""
    messages = [{"role": "system", "content": system}] if system.strip() else []
    return [*messages, {"role": "user", "content": prompt}]


def answered(history: list[dict]) -> list[dict]:
    """gradio's history as messages, without questions that were never answered: many templates refuse two in a row."""
    turns = [{"role": turn["role"], "content": _said(turn)} for turn in history]
    pairs = itertools.pairwise([*turns, {"role": "user"}])
    return [turn for turn, then in pairs if turn["role"] != then["role"]]


def _said(turn: dict) -> str:
    """The text of a turn of gradio's."""
    content = turn["content"] if isinstance(turn["content"], list) else [turn["content"]]
    return "".join(part if isinstance(part, str) else part.get("text", "") for part in content)
