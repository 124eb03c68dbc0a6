"""A chat page on loopback with the models of a chain; what a model says is shown as plain text, never as markup."""

import json
import os
from collections.abc import Iterator
from functools import lru_cache
from html import escape, unescape
from pathlib import Path
from threading import Thread

from llmrecipes.config import InputError, ModelArguments
from llmrecipes.models import context_length, load_policy, load_tokenizer


def find_models(path: str) -> dict[str, str]:
    """Name -> folder of every finished causal language model in `path`, a chain's folder or one model's, oldest first.

    Raises:
        InputError: there is none.
    """
    root, found = Path(path), {}
    configs = [root / "config.json", *root.glob("*/config.json")]
    for config in sorted(filter(Path.exists, configs), key=lambda file: file.stat().st_mtime):
        folder, manifest = config.parent, config.parent / "manifest.json"
        if not manifest.exists() or json.loads(manifest.read_text())["status"] == "finished":
            if any("CausalLM" in name for name in json.loads(config.read_text()).get("architectures") or []):
                found[folder.name] = str(folder)
    if not found:
        raise InputError(f"{path}: holds no finished language model; run the chain first (make quickstart)")
    return found


@lru_cache(maxsize=4)
def _load(folder: str):
    source = ModelArguments(model_name_or_path=folder)
    tokenizer = load_tokenizer(source)
    return load_policy(source, tokenizer).eval(), tokenizer


def stream_answer(folder: str, messages: list[dict], temperature: float, top_p: float, max_new_tokens: int) -> Iterator[str]:
    """The answer of the model in `folder`, growing; greedy at temperature 0. Old turns go where the context is full."""
    from transformers import TextIteratorStreamer

    model, tokenizer = _load(folder)
    room = (context_length(model) or 1 << 20) - max_new_tokens
    messages = list(messages)
    ids = _encode(tokenizer, messages)
    while ids.shape[1] > room and len(messages) > 1:
        messages.pop(1 if messages[0]["role"] == "system" and len(messages) > 2 else 0)
        ids = _encode(tokenizer, messages)
    if ids.shape[1] > room:
        yield f"(The message is too long: {ids.shape[1]} tokens, there is room for {room}.)"
        return
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature else {"do_sample": False}
    inputs = {"input_ids": ids.to(model.device), "attention_mask": ids.new_ones(ids.shape).to(model.device)}

    def generate():
        try:
            model.generate(**inputs, **sampling, max_new_tokens=max_new_tokens, streamer=streamer)
        finally:
            streamer.end()  # or a failure would leave the page waiting for ever

    thread = Thread(target=generate)
    thread.start()
    text = ""
    for piece in streamer:
        text += piece
        yield text
    thread.join()


def _encode(tokenizer, messages: list[dict]):
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)[
        "input_ids"
    ]


def build_page(models: dict[str, str], answer=stream_answer):
    """The gradio page. answer: (folder, messages, temperature, top_p, max_new_tokens) -> growing texts."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr

    def reply(message, history, model, system, temperature, top_p, length):
        messages = [{"role": "system", "content": system}] if system.strip() else []
        messages += [{"role": turn["role"], "content": unescape(_plain(turn["content"]))} for turn in history]
        messages.append({"role": "user", "content": message})
        for text in answer(models[model], messages, temperature, top_p, int(length)):
            yield escape(text, quote=False)  # the Chatbot takes even plain text for HTML, and keeps its images

    names = list(models)
    with gr.Blocks(title="llmrecipes chat", analytics_enabled=False) as page:
        # No Markdown: gradio's Markdown would load images that a model names.
        chatbot = gr.Chatbot(render_markdown=False, sanitize_html=True, height="60vh", label="chat")
        gr.ChatInterface(
            reply,
            chatbot=chatbot,
            additional_inputs=[
                gr.Dropdown(names, value=names[-1], label="stage"),
                gr.Textbox("", label="system prompt"),
                gr.Slider(0, 2, 0, label="temperature (0: greedy)"),
                gr.Slider(0.05, 1, 1, label="top_p"),
                gr.Slider(1, 1024, 64, step=1, label="max_new_tokens"),
            ],
        )
    return page


def _plain(content) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
