"""The chat page is driven by a browser: a message is answered, and what a model says does nothing but stand there."""

import json
import shutil

import pytest

from llmrecipes.chat import build_page, find_models
from llmrecipes.config import InputError

HOSTILE = '<img src=x onerror="window.hit=1"><script>window.hit=1</script> ![p](http://198.51.100.1/a.png) **bold**'


def test_models_of_a_chain_are_found_and_others_left_out(tmp_path):
    for name, kind, status in (("sft", "LlamaForCausalLM", "finished"), ("ppo", "LlamaForCausalLM", "running"),
                               ("reward", "LlamaForSequenceClassification", "finished")):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"architectures": [kind]}))
        (tmp_path / name / "manifest.json").write_text(json.dumps({"status": status}))
    assert find_models(str(tmp_path)) == {"sft": str(tmp_path / "sft")}
    with pytest.raises(InputError, match="no finished language model"):
        find_models(str(tmp_path / "ppo"))


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
            assert not [url for url in requested if "198.51.100.1" in url or url.endswith("/x")]
            browser.close()
    finally:
        page.close()
    assert asked == [("folder/ppo", "hello")]
