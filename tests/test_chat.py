"""The chat page is driven by a browser: a message is answered, and what a model says does nothing but stand there."""

import json
import shlex
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from llmrecipes.chat import build_compare_page, build_page, find_models, league, stream_answer, terminal_lines
from llmrecipes.config import InputError
from llmrecipes.formats import read_growing
from llmrecipes.models import build_policy, train_tokenizer

ROOT = Path(__file__).parent.parent
HOSTILE = '<img src=x onerror="window.hit=1"><script>window.hit=1</script> ![p](http://198.51.100.1/a.png) **bold**'


def test_models_of_a_chain_are_found_and_others_left_out(tmp_path):
    for name, kind, status in (
        ("sft", "LlamaForCausalLM", "finished"),
        ("ppo", "LlamaForCausalLM", "running"),
        ("reward", "LlamaForSequenceClassification", "finished"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"architectures": [kind]}))
        (tmp_path / name / "manifest.json").write_text(json.dumps({"status": status}))
    assert find_models(str(tmp_path)) == {"sft": str(tmp_path / "sft")}
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
    return last


def test_a_lora_adapter_is_found_and_answers_as_itself(adapter):
    assert find_models(str(adapter)) == {"sft": str(adapter / "sft"), "lora": str(adapter / "lora")}
    assert find_models(str(adapter / "lora")) == {"lora": str(adapter / "lora")}
    assert said(adapter / "lora") != said(adapter / "sft")


def test_adapters_of_reward_models_and_unfinished_ones_are_left_out(tmp_path):
    for name, kind, status in (("reward", "SEQ_CLS", "finished"), ("ppo", "CAUSAL_LM", "running")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"task_type": kind}))
        (tmp_path / name / "manifest.json").write_text(json.dumps({"status": status}))
    with pytest.raises(InputError, match="no finished language model"):
        find_models(str(tmp_path))


def test_the_printed_line_merges_an_adapter_into_a_model_that_answers_alike(adapter):
    folder = str(adapter / "lora")
    _, merge, serve, chat = terminal_lines(folder, "transformers").splitlines()
    assert serve == f"In a terminal: transformers serve {folder}-merged --host 127.0.0.1"
    assert chat == f"and in another: transformers chat {folder}-merged"
    subprocess.run(shlex.split(merge), check=True, capture_output=True)
    config = AutoConfig.from_pretrained(f"{folder}-merged")  # what `transformers serve` asks for first
    assert config.architectures == ["LlamaForCausalLM"] and not (Path(f"{folder}-merged") / "adapter_config.json").exists()
    assert said(f"{folder}-merged") == said(folder)


def test_packages_that_the_printed_transformers_lines_need_are_pinned():
    from transformers.utils.import_utils import is_serve_available

    assert is_serve_available(), "pip install -r requirements.txt"


def test_command_prints_the_lines_for_a_terminal_and_serves_the_page(tmp_path):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-u", "recipes/chat.py", "--path", str(tmp_path), "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        lines = []
        while not lines or "Running on" not in lines[-1]:
            lines.append(process.stdout.readline())
            assert lines[-1], "".join(lines)
        said = "".join(lines)
        assert f"transformers serve {tmp_path}/sft --host 127.0.0.1\n" in said
        assert f"transformers chat {tmp_path}/sft\n" in said
        page = f"http://127.0.0.1:{port}/"
        assert urllib.request.urlopen(page).status == 200
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(urllib.request.Request(page, headers={"Host": "evil.example"}))
    finally:
        process.terminate()
        process.wait()


def test_words_of_a_model_stand_there_as_text_in_a_browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (requirements-dev.txt)")
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    asked = []

    def answer(folder, messages, *settings):
        asked.append((folder, messages[-1]["content"]))
        yield HOSTILE[:10]
        yield HOSTILE

    page = build_page({"sft": "folder/sft", "ppo": "folder/ppo"}, answer)
    _, address, _ = page.launch(server_name="127.0.0.1", server_port=None, prevent_thread_lock=True, quiet=True)
    try:
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            tab = browser.new_page()
            requested = []
            tab.on("request", lambda request: requested.append(request.url))
            tab.goto(address)
            box = tab.get_by_placeholder("Type a message...")
            box.fill("hello")
            box.press("Enter")
            tab.get_by_text("bold").first.wait_for(timeout=12_000)
            assert HOSTILE in tab.locator("body").inner_text()
            assert tab.evaluate("window.hit") is None
            tab.get_by_role("tab", name="Side by side").click()
            tab.get_by_label("prompt", exact=True).fill("who are you?")
            tab.get_by_role("button", name="Ask all").click()
            for stage in ("sft", "ppo"):
                box = tab.get_by_label(stage, exact=True).and_(tab.locator("textarea"))
                sync_api.expect(box).to_have_value(HOSTILE, timeout=12_000)
            assert tab.evaluate("window.hit") is None
            assert not [url for url in requested if "198.51.100.1" in url or url.endswith("/x")]
            browser.close()
    finally:
        page.close()
    assert asked == [("folder/ppo", "hello"), ("folder/sft", "who are you?"), ("folder/ppo", "who are you?")]


def test_blind_vote_side_by_side(tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (requirements-dev.txt)")
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("chromium is not installed (apt-get install chromium)")

    def answer(folder, messages, *settings):
        yield "it is"
        yield f"it is {folder} {HOSTILE}"

    votes = tmp_path / "votes.jsonl"
    page = build_compare_page({"sft": "GOOD", "ppo": "BAD"}, votes, answer)
    _, address, _ = page.launch(server_name="127.0.0.1", server_port=None, prevent_thread_lock=True, quiet=True)
    try:
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
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
            browser.close()
    finally:
        page.close()
    rows = read_growing(votes)
    assert len(rows) == 3 and all("GOOD" in row["responses"][row["ranking"][0][0]] for row in rows)
    assert [(row[0], row[4], row[5]) for row in league(rows)] == [("sft", 3, "100 %"), ("ppo", 3, "0 %")]


def test_votes_are_rankings_for_recipes_rank():
    from llmrecipes.formats import rankings_to_pairs

    row = {
        "prompt_id": "1",
        "prompt": [{"role": "user", "content": "q"}],
        "responses": ["a", "b", "c"],
        "models": ["x", "y", "z"],
        "ranking": [[1], [0, 2]],
        "annotator": "me",
    }
    assert len(rankings_to_pairs(row)) == 2
    assert [line[0] for line in league([row])] == ["y", "x", "z"]
