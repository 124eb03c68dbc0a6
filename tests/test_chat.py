"""The chat page is driven by a browser: a message is answered, and what a model says does nothing but stand there."""

import json
import shlex
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import gradio
import pytest
import torch
from forked import run_python, start_python
from peft import LoraConfig, get_peft_model
from served import served
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from transformers import AutoConfig, AutoModelForCausalLM

from llmrecipes.chat import (
    answered,
    build_page,
    describe_model,
    example_prompts,
    find_models,
    in_lockstep,
    page_error,
    stream_answer,
    terminal_lines,
)
from llmrecipes.config import InputError, ModelArguments
from llmrecipes.formats import rankings_to_pairs, read_growing
from llmrecipes.generation import sample_responses
from llmrecipes.models import build_policy, load_policy, load_tokenizer
from llmrecipes.templates import encode_prompts
from llmrecipes.tokenizers import train_tokenizer
from llmrecipes.tracking import describe_tracking
from llmrecipes.votes import build_compare_page, ratings
from llmrecipes.web import serve_blocks

ROOT = Path(__file__).parent.parent
HOSTILE = '<img src=x onerror="window.hit=1"><script>window.hit=1</script> ![p](http://198.51.100.1/a.png) **bold**'


def test_models_of_a_chain_are_found_and_others_left_out(tmp_path, monkeypatch, capsys):
    for name, kind, status in (
        ("sft", "LlamaForCausalLM", "finished"),
        ("ppo", "LlamaForCausalLM", "running"),
        ("reward", "LlamaForSequenceClassification", "finished"),
        ("gpt2", "GPT2LMHeadModel", "finished"),
        ("gemma", "Gemma3ForConditionalGeneration", "finished"),
        ("t5", "T5ForConditionalGeneration", "finished"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"architectures": [kind]}))
        (tmp_path / name / "manifest.json").write_text(json.dumps({"status": status}))
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"architectures": 3}')
    assert find_models(str(tmp_path)) == {name: str(tmp_path / name) for name in ("sft", "gpt2", "gemma")}
    assert capsys.readouterr().out == f"{tmp_path / 'ppo'}: left out, its run has not finished\n"
    monkeypatch.chdir(tmp_path / "sft")
    assert find_models(".") == {"sft": "."}
    with pytest.raises(InputError, match="no finished language model"):
        find_models(str(tmp_path / "ppo"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A chain's folder with a tiny model `sft` and a LoRA adapter `lora` on it whose answers differ."""
    root = tmp_path_factory.mktemp("chain")
    tokenizer = train_tokenizer(["The cat sat on the mat. A dog ran."] * 5, vocab_size=320, max_length=64)
    shape = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = build_policy(shape | {"intermediate_size": 64, "max_position_embeddings": 64}, tokenizer)
    model.save_pretrained(root / "sft")
    model = AutoModelForCausalLM.from_pretrained(root / "sft")
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(root / "lora")
    for name in ("sft", "lora"):
        tokenizer.save_pretrained(root / name)
        (root / name / "manifest.json").write_text('{"status": "finished"}')
    return root


def said(folder):
    *_, last = stream_answer(str(folder), [{"role": "user", "content": "cat"}], 0, 1, 8)
    with pytest.raises(gradio.Error, match="max_new_tokens is 2097152, but .* reads and writes 64 tokens in all; lower it"):
        next(stream_answer(str(folder), [{"role": "user", "content": "cat"}], 0, 1, 1 << 21))
    return last


def test_a_lora_adapter_is_found_and_answers_as_itself(adapter):
    assert find_models(str(adapter)) == {"sft": str(adapter / "sft"), "lora": str(adapter / "lora")}
    assert find_models(str(adapter / "lora")) == {"lora": str(adapter / "lora")}
    assert said(adapter / "lora") != said(adapter / "sft")


def test_the_page_answers_as_sampling_does_whatever_the_models_own_settings_are(adapter):
    own = shutil.copytree(adapter / "sft", adapter / "own")
    settings = {"repetition_penalty": 9.0, "num_beams": 2, "num_return_sequences": 2, "do_sample": True, "top_k": 1}
    config = json.loads((own / "generation_config.json").read_text())
    (own / "generation_config.json").write_text(json.dumps(config | settings))
    assert said(own) == said(adapter / "sft") and len(set(said(own))) < len(said(own))
    source = ModelArguments(model_name_or_path=str(own))
    tokenizer = load_tokenizer(source)
    prompt = encode_prompts(tokenizer, [[{"role": "user", "content": "cat"}]])
    stops = {"eos_token_ids": [tokenizer.eos_token_id], "pad_token_id": tokenizer.pad_token_id}
    (sampled,) = sample_responses(load_policy(source, tokenizer), prompt, max_new_tokens=8, temperature=0, **stops)
    assert said(own) == tokenizer.decode(sampled.token_ids, skip_special_tokens=True)
    shutil.rmtree(own)


# As Gemma's: a conversation begins with the user's turn, and the turns alternate.
ALTERNATING = (
    "{% for m in messages if m.role != 'system' %}{% if (m.role == 'user') != loop.index0 is divisibleby(2) %}"
    "{{ raise_exception('<b>alternate</b>') }}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
)


@pytest.fixture
def loaded(adapter, monkeypatch):
    """The model and tokenizer that answer for any folder, with an alternating template."""
    source = ModelArguments(model_name_or_path=str(adapter / "sft"))
    tokenizer = load_tokenizer(source)
    tokenizer.chat_template = ALTERNATING
    monkeypatch.setattr("llmrecipes.chat._load", lambda folder, trust_remote_code: (model, tokenizer))
    model = load_policy(source)
    return model, tokenizer


def test_a_conversation_longer_than_the_context_goes_on_from_a_question_and_says_so(loaded, monkeypatch):
    model, tokenizer = loaded
    turn = lambda role, text: {"role": role, "content": text}
    system, last = turn("system", "The cat sat."), turn("user", "A dog ran.")
    talk = [system, *[turn(role, "The mat.") for role in ("user", "assistant")] * 3, last]
    asked = []
    generate = lambda input_ids, **_: asked.append(tokenizer.decode(input_ids[0])) or input_ids
    monkeypatch.setattr(model, "generate", generate)
    with pytest.warns(UserWarning, match="no longer reads the first 4 turns"):
        list(stream_answer("sft", talk, 0, 1, 1))
    assert asked == [tokenizer.apply_chat_template([system, *talk[5:]], tokenize=False, add_generation_prompt=True)]
    with pytest.raises(gradio.Error, match="The message is too long"):  # no answer, which the model would then read
        next(stream_answer("sft", [turn("system", "cat " * 60), last], 0, 1, 1))
    tokenizer.chat_template = ALTERNATING.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
    with pytest.raises(gradio.Error, match="sft, turn 1: the chat template leaves out what the system says"):
        next(stream_answer("sft", [system, last], 0, 1, 1))


def test_the_model_stops_when_the_page_does_and_says_whether_it_was_done(loaded, monkeypatch):
    model, _ = loaded
    drawn, closed = [], threading.Event()

    def draw(*_):
        drawn.append(0)
        assert len(drawn) < 3 or closed.wait(60)

    hook = model.register_forward_hook(draw)
    answer = stream_answer("sft", [{"role": "user", "content": "cat"}], 0, 1, 40)
    next(answer)
    answer.close()
    closed.set()
    [thread.join() for thread in threading.enumerate() if "generate" in thread.name]
    assert len(drawn) <= 3, "the answer that nobody reads is not worked out"
    hook.remove()
    ends = {}
    *_, (shown, same) = in_lockstep(stream_answer, ["sft", "sft"], "cat", "", 0, 1, 4, ends)
    assert ends == {0: "length", 1: "length"} and shown == same
    monkeypatch.setattr("llmrecipes.chat.answer_texts", lambda tokenizer, rows: ["the answer alone"])
    assert list(in_lockstep(stream_answer, ["sft"], "cat", "", 0, 1, 4, ends))[-1] == ["the answer alone"]
    model.generation_config.eos_token_id = list(range(400))  # whatever comes first
    assert list(in_lockstep(stream_answer, ["sft"], "cat", "", 0, 1, 4, ends)) and ends[0] == "stop"


def test_what_goes_wrong_while_answering_stands_on_the_page_as_text(loaded, adapter, monkeypatch):
    def fail(**options):
        raise RuntimeError("<img src=x> no memory")

    monkeypatch.setattr(loaded[0], "generate", fail)
    with pytest.raises(gradio.Error, match="sft failed to answer: RuntimeError: &lt;img src=x&gt; no memory"):
        list(stream_answer("sft", [{"role": "user", "content": "cat"}], 0, 1, 1))
    with pytest.raises(gradio.Error, match="&lt;b&gt;alternate"):
        list(stream_answer("sft", [{"role": "assistant", "content": "cat"}], 0, 1, 1))
    monkeypatch.undo()
    for name, told in (("base", "its tokenizer has no chat template"), ("moved", "is an adapter of outputs/gone/sft")):
        shutil.copytree(adapter / ("lora" if name == "moved" else "sft"), adapter / name)
        (adapter / name / "chat_template.jinja").unlink(missing_ok=True)
        if name == "moved":
            config = json.loads((adapter / name / "adapter_config.json").read_text())
            config["base_model_name_or_path"] = "outputs/gone/sft"
            (adapter / name / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(gradio.Error, match=told):
            list(stream_answer(str(adapter / name), [{"role": "user", "content": "cat"}], 0, 1, 1))
        shutil.rmtree(adapter / name)


def test_a_template_that_refuses_a_question_is_told_before_the_model_loads(adapter, tmp_path):
    shutil.copytree(adapter / "sft", tmp_path / "sft")
    (tmp_path / "sft" / "model.safetensors").unlink()
    (tmp_path / "sft" / "chat_template.jinja").write_text("{{ messages[0].content | upper }}{{ tools[0].name }}")
    with pytest.raises(gradio.Error, match="refuses the conversation .user.: .* it refuses a plain question and answer too"):
        next(stream_answer(str(tmp_path / "sft"), [{"role": "user", "content": "cat"}], 0, 1, 1))


def test_a_question_that_was_not_answered_is_not_part_of_the_conversation():
    turn = lambda role, text: {"role": role, "content": [{"type": "text", "text": text}]}
    history = [turn("user", "1"), turn("user", "2"), turn("assistant", "two"), turn("user", "3")]
    assert answered(history) == [{"role": "user", "content": "2"}, {"role": "assistant", "content": "two"}]
    assert answered([]) == []


def test_what_either_side_says_stands_there_as_it_is_and_is_read_so_later(browser):
    expect = pytest.importorskip("playwright.sync_api").expect
    typed, said, asked = "  <b>x</b> vector<int> &lt; $$x^2$$", "    def f():\n        return '&lt;'\n", []

    def answer(folder, messages, *settings):
        asked.append(messages)
        if len(asked) == 2:
            raise page_error("no <b>room</b>")
        yield said

    with served(serve_blocks(build_page({"sft": "A"}, answer))) as address:
        tab = browser.new_page()
        tab.goto(address)
        box = tab.locator("textarea").first
        for text in (typed, "too long", "next"):
            box.fill(text)
            box.press("Enter")
            expect(tab.get_by_test_id("user").last).to_contain_text(text.strip(), timeout=12_000)
            expect(box).to_be_enabled(timeout=12_000)  # after an error, too
        expect(tab.get_by_test_id("bot")).to_have_count(2, timeout=12_000)
        assert "no <b>room</b>" in tab.locator("body").inner_text()
        assert (
            tab.get_by_test_id("user").first.inner_text() == typed and tab.get_by_test_id("bot").first.inner_text() == said
        )
        assert tab.get_by_role("button", name="copy").count() == 0  # would copy &lt; for <
    first = [{"role": "user", "content": typed}, {"role": "assistant", "content": said}]
    assert asked == [
        first[:1],
        [*first, {"role": "user", "content": "too long"}],
        [*first, {"role": "user", "content": "next"}],
    ]


def test_a_model_says_what_it_is_and_a_chain_what_may_be_asked(tmp_path):
    (tmp_path / "evaluate").mkdir()
    rows = [{"prompt": [{"role": "user", "content": f"{kind} {i}"}], "kind": kind} for i in range(2) for kind in "abcde"]
    (tmp_path / "evaluate" / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "manifest.json").write_text(json.dumps({"made": "chat model of 1M"}))
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 2048}))
    assert len(example_prompts(tmp_path)) == 4 and set(example_prompts(tmp_path)) < {f"{kind} 0" for kind in "abcde"}
    assert describe_model("sft", tmp_path) == "sft · chat model of 1M · context of 2,048 tokens"
    assert describe_model("x", "folder/that/is/not") == "x"


def test_adapters_of_reward_models_and_unfinished_ones_are_left_out(tmp_path):
    for name, kind, status in (("reward", "SEQ_CLS", "finished"), ("ppo", "CAUSAL_LM", "running")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "task_type": kind}))
        (tmp_path / name / "manifest.json").write_text(json.dumps({"status": status}))
    with pytest.raises(InputError, match="no finished language model"):
        find_models(str(tmp_path))
    (tmp_path / "ppo" / "manifest.json").unlink()  # somebody else's, of whom many name no task
    (tmp_path / "ppo" / "adapter_config.json").write_text('{"peft_type": "LORA", "task_type": null}')
    assert find_models(str(tmp_path)) == {"ppo": str(tmp_path / "ppo")}


def test_the_printed_line_merges_an_adapter_into_a_model_that_answers_alike(adapter):
    folder = str(adapter / "lora")
    _, merge, serve, chat = terminal_lines(folder, "transformers").splitlines()
    assert serve == f"In a terminal: transformers serve {folder}-merged --host 127.0.0.1"
    assert chat == f"and in another: transformers chat {folder}-merged"
    assert run_python(*shlex.split(merge)[1:]).returncode == 0
    config = AutoConfig.from_pretrained(f"{folder}-merged")  # what `transformers serve` asks for first
    assert config.architectures == ["LlamaForCausalLM"] and not (Path(f"{folder}-merged") / "adapter_config.json").exists()
    assert said(f"{folder}-merged") == said(folder)


def test_printed_lines_can_be_pasted_whatever_the_folder_is_called(tmp_path, monkeypatch):
    folder = tmp_path / "my models é"
    folder.mkdir()
    assert shlex.split(terminal_lines(str(folder), "transformers").splitlines()[1])[-1] == str(folder)
    (folder / "adapter_config.json").write_text("{}")
    merge = terminal_lines(str(folder), "transformers").splitlines()[1]
    assert shlex.split(merge)[2:] == ["--model_name_or_path", str(folder), "--output_dir", f"{folder}-merged"]
    monkeypatch.setenv("TRACKIO_DIR", str(folder))
    shown = shlex.split(describe_tracking({"report_to": ["trackio"], "project": "my project"}))
    assert shown == [f"TRACKIO_DIR={folder}", "trackio", "show", "--project", "my project"]


def test_packages_that_the_printed_transformers_lines_need_are_pinned():
    from transformers.utils.import_utils import is_serve_available

    assert is_serve_available(), "pip install -r requirements.txt"


def test_command_prints_the_lines_for_a_terminal_and_serves_the_page(tmp_path):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "log.txt"
    process = start_python("recipes/chat.py", "--path", tmp_path, "--port", port, output=log)
    try:
        while "Running on" not in (said := log.read_text() if log.exists() else ""):
            assert process.poll() is None, said
            time.sleep(0.02)
        assert f"transformers serve {tmp_path}/sft --host 127.0.0.1\n" in said
        assert f"transformers chat {tmp_path}/sft\n" in said
        page = f"http://127.0.0.1:{port}/"
        assert urllib.request.urlopen(page).status == 200
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(urllib.request.Request(page, headers={"Host": "evil.example"}))
    finally:
        process.terminate()
        process.wait()


def silent(folder, messages, *settings):
    yield ""


@pytest.fixture(scope="module", params=["chat", "compare"])
def client(request, tmp_path_factory):
    votes = tmp_path_factory.mktemp("votes") / "votes.jsonl"
    models = {"sft": "A", "ppo": "B"}
    page = build_page(models, silent) if request.param == "chat" else build_compare_page(models, votes, silent)
    return TestClient(serve_blocks(page), "http://127.0.0.1:7860", client=("127.0.0.1", 1))


def test_other_sites_cannot_upload_ask_or_show_the_page_in_a_frame(client, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "http://localhost:9"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        for path in ("/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/run/predict"):
            assert client.post(path, json={}, headers=headers).status_code == 403, (path, headers)
        assert client.get("/gradio_api/queue/data?session_hash=x", headers=headers).status_code == 403
    assert client.post("/gradio_api/upload", files={"files": b"x" * 1000}).status_code == 404
    assert client.post("/gradio_api/queue/join", content=b"x" * (2 << 20)).status_code == 413
    assert client.post("/gradio_api/queue/join", content=(b"x" for _ in range(9))).status_code == 411
    assert client.put("/", content=b"").status_code == 405
    assert not list(tmp_path.iterdir())
    page = client.get("/", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})  # a link may lead here
    assert page.status_code == 200 and page.headers["x-frame-options"] == "DENY"
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy and "frame-ancestors 'none'" in policy


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[", "127.0.0.1@evil.example", "a/?x="])
def test_only_names_of_this_machine_open_the_page(client, host):
    assert client.get("/", headers={"Host": host}).status_code == 400
    assert (
        client.get("/", headers={"Host": "[::1]:7860"}).status_code
        == client.get("/", headers={"Host": "LOCALHOST"}).status_code
    )
    assert client.get("/", headers={"Host": "localhost:1"}).status_code == 200


def test_nothing_of_gradio_is_served_but_what_the_page_needs(client):
    for path in (
        "run-history/buckets?x=1",
        "runs",
        "file=/etc/passwd",
        "upload_progress",
        "info",
        "openapi.json",
        "token",
        "component_server",
        "proxy=http://x",
        "stream/x",
        "deep_link",
        "vibe-code",
        "dev/reload",
    ):
        assert client.get(f"/gradio_api/{path}").status_code == 404, path
    for path in ("/monitoring", "/monitoring/summary", "/docs", "/openapi.json", "/assets/../x", "/manifest.json"):
        assert client.get(path).status_code == 404, path
    assert client.get("/config").json()["run_history"] is False
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/gradio_api/queue/join"):
        pass


@pytest.mark.parametrize("body", [b'{"x": NaN}', b'{"x": 1e999}', b'{"x": "\\ud800"}', b'{"data": [], "fn_index": 1000000}'])
def test_what_gradio_cannot_read_is_a_line_in_the_terminal(client, body, capsys):
    for route in ("queue/join", "run/predict", "cancel", "reset"):
        path = f"/gradio_api/{route}"
        answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
        said = capsys.readouterr().err.splitlines()
        assert 400 <= answer.status_code < 500 and not said or answer.status_code == 500 and len(said) == 1, (path, said)
        assert not said or said[0].startswith(f"POST {path}: gradio raises ")


def test_run_history_is_off_however_a_page_is_launched():
    page = build_page({"sft": "A"}, silent)
    page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    page.close()
    assert page.run_history is False


def test_words_of_a_model_stand_there_as_text_in_a_browser(browser):
    expect = pytest.importorskip("playwright.sync_api").expect
    asked = []

    def answer(folder, messages, *settings):
        asked.append((folder, messages[-1]["content"]))
        yield HOSTILE[:10]
        yield HOSTILE

    page = build_page({"sft": "folder/sft", "ppo": "folder/ppo"}, answer, "Talk", [HOSTILE, "hello"])
    with served(serve_blocks(page)) as address:
        tab = browser.new_page()
        requested = []
        tab.on("request", lambda request: requested.append(request.url))
        tab.goto(address)
        box = tab.get_by_placeholder("Type a message...")
        expect(tab.get_by_text("temperature (0: greedy)").first).to_be_visible()
        tab.get_by_role("button", name="hello").click()  # an example
        expect(box).to_have_value("hello")
        box.press("Enter")
        tab.get_by_text("bold").first.wait_for(timeout=12_000)
        assert HOSTILE in tab.locator("body").inner_text()
        assert tab.evaluate("window.hit") is None
        tab.get_by_role("tab", name="Side by side").click()
        tab.get_by_label("prompt", exact=True).fill("who are you?")
        tab.get_by_role("button", name="Ask all").click()
        for stage in ("sft", "ppo"):
            box = tab.get_by_label(stage, exact=True).and_(tab.locator("textarea"))
            expect(box).to_have_value(HOSTILE, timeout=12_000)
        assert tab.evaluate("window.hit") is None
        assert not [url for url in requested if "198.51.100.1" in url or url.endswith("/x")]
    assert asked == [("folder/ppo", "hello"), ("folder/sft", "who are you?"), ("folder/ppo", "who are you?")]


def test_blind_vote_side_by_side(tmp_path, browser):

    def answer(folder, messages, *settings):
        yield "it is"
        yield f"it is {folder} {HOSTILE}"
        return "length" if folder == "BAD" else "stop"

    votes = tmp_path / "votes.jsonl"
    page = build_compare_page({"sft": "GOOD", "ppo": "BAD"}, votes, answer)
    with served(serve_blocks(page)) as address:
        tab = browser.new_page()
        tab.goto(address)
        for number in range(1, 4):
            tab.get_by_label("prompt", exact=True).fill(f"question {number}")
            tab.get_by_role("button", name="Ask").click()
            tab.wait_for_function(
                "[...document.querySelectorAll('button')].find(b => b.textContent.includes('1 is best')) && "
                "![...document.querySelectorAll('button')].find(b => b.textContent.includes('1 is best')).disabled"
            )
            first = tab.get_by_label("answer 1").input_value()
            assert HOSTILE in first and "sft" not in tab.locator("body").inner_text().split("Votes so far")[0]
            tab.get_by_role("button", name="1 is best" if "GOOD" in first else "2 is best").click()
            tab.wait_for_function(f"document.querySelectorAll('table').length && {number} > 0")
            tab.wait_for_function(
                "[...document.querySelectorAll('textarea, input')].some(b => b.value.startsWith('Saved.'))"
            )
        assert tab.evaluate("window.hit") is None
    rows = read_growing(votes)
    assert len(rows) == 3 and all("GOOD" in row["responses"][row["ranking"][0][0]] for row in rows)
    pairs = [pair for row in rows for pair in rankings_to_pairs(row)]
    assert [(pair["chosen_finished"], pair["rejected_finished"]) for pair in pairs] == [(True, False)] * 3
    assert [(row[0], row[4], row[5]) for row in ratings(rows)] == [("sft", 3, "100 %"), ("ppo", 3, "0 %")]


def test_votes_are_rankings_for_recipes_rank():
    row = {
        "prompt_id": "1",
        "prompt": [{"role": "user", "content": "q"}],
        "responses": ["a", "b", "c"],
        "models": ["x", "y", "z"],
        "ranking": [[1], [0, 2]],
        "annotator": "me",
    }
    assert len(rankings_to_pairs(row)) == 2
    assert [line[0] for line in ratings([row])] == ["y", "x", "z"]
