"""No secret is written down, whatever it looks like and wherever it stands; what is none stays as it is."""

import time

import pytest
from recipe_types import recipe_types

from llmrecipes.config import InputError, one_line
from llmrecipes.parsing import parse
from llmrecipes.secrets import REMOVED, TOKENS, is_secret_name, known_secrets, scrub_secrets

S = "S3cr3t-of-mine"  # no issuer's form: only its name or its place tells
# Written in two parts, or another scanner would take this file for a leak.
FORMS = [
    "hf_" + "aB3d" * 8,
    "sk-" + "proj-" + "a1B2" * 6,
    "AKIA" + "ABCDEFGH12345678",
    "ghp_" + "a" * 36,
    "glpat-" + "x" * 20,
    "sk_" + "live_" + "4eC39HqLyjWDarjtT1zdp7dc",
    "rk_" + "test_" + "4eC39HqLyjWDarjtT1zdp7dc",
    "xoxb-" + "1234567890-ab",
    "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0In0." + "dozjgNryP4J3jVmNHl0w5N_XgL0",
    "AIza" + "x" * 35,
    "-----BEGIN PGP " + "PRIVATE KEY BLOCK-----",
    "-----BEGIN " + "OPENSSH PRIVATE KEY-----",
    "npm_" + "a" * 36,
]


@pytest.mark.parametrize("token", FORMS)
def test_a_token_of_a_known_form_goes_wherever_it_stands(token):
    for text in (token, f"see {token}.", f"a={token}&b=1", f'{{"x": "{token}"}}', f"outputs/{token}/sft", f"x_{token}"):
        assert token not in scrub_secrets(text) and REMOVED in scrub_secrets(text), text
    assert scrub_secrets({token: [token, 1], "note": (token,)}) == {REMOVED: [REMOVED, 1], "note": (REMOVED,)}


@pytest.mark.parametrize(
    "argv",
    [
        ["--hub_token", S],
        [f"--hub_token={S}"],
        ["--hub-token", S],
        ["--model_init_kwargs.token", S],
        ["--model_init_kwargs", f'{{"token": "{S}", "revision": "main"}}'],
        ["--model_init_kwargs", f"{{'token': '{S}'}}"],
        ["--env", f"WANDB_API_KEY={S}"],
        ["--run_name", f"try WANDB_API_KEY={S} again"],
        ["--judge_url", f"https://me:{S}@judge.example/v1"],
        ["--judge_url", f"https://{S}@judge.example/v1"],
        ["--judge_url", f"https://judge.example/v1?api_key={S}&x=1"],
        ["--datasets", f"s3://key:{S}@bucket/rows.jsonl"],
        ["--password", S, S],
        ["--headers", f"Authorization: Bearer {S}-and-more-of-it"],
        ["--x", f'{{"passwords": ["a", "{S}"], "b": 1}}'],
        ["--storage_options", f'{{\\"secret\\": \\"{S}\\"}}'],
    ],
)
def test_no_secret_of_a_command_line_is_written(argv):
    argv = ["python", "recipes/sft.py", "--config", "configs/sft.yaml", *argv, "--seed", "1"]
    for scrubbed in (" ".join(scrub_secrets(argv)), scrub_secrets(" ".join(argv))):
        assert REMOVED in scrubbed and S not in scrubbed.replace(f" {S} --seed", ""), scrubbed
        assert scrubbed.startswith("python recipes/sft.py --config configs/sft.yaml --") and scrubbed.endswith("--seed 1")
        assert scrub_secrets(scrubbed) == scrubbed
    assert S not in " ".join(scrub_secrets(argv)), "word by word a value of several words is known"


def test_no_secret_of_a_config_is_written_and_the_rest_stays():
    config = {
        "hub_token": S,
        "model_init_kwargs": {"token": S, "revision": "main", "nested": [{"apiKey": S}]},
        "env": {"WANDB_API_KEY": S, "OMP_NUM_THREADS": "1", "MY_OWN_KEY": S},
        "password": 123456,
        "passwords": [S],
        "storage_options": {"aws_access_key_id": S, "aws_secret_access_key": S, "anon": False},
        "credentials": {"user": S},
        "datasets": [{"path": f"https://me:{S}@host/rows.jsonl", "weight": 1.0}],
        "text": f'{{"client_secret": "{S}"}}',
    }
    scrubbed = scrub_secrets(config)
    assert S not in str(scrubbed) and "123456" not in str(scrubbed) and scrub_secrets(scrubbed) == scrubbed
    assert scrubbed["env"]["OMP_NUM_THREADS"] == "1" and scrubbed["model_init_kwargs"]["revision"] == "main"
    assert scrubbed["storage_options"]["anon"] is False
    assert scrubbed["datasets"] == [{"path": f"https://{REMOVED}@host/rows.jsonl", "weight": 1.0}]
    assert config["hub_token"] == S, "the config itself is as it was"


def test_what_is_no_secret_stays():
    config = {
        "max_new_tokens": 64,
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "bos_token": "x",
        "token": True,
        "stop_token": "END",
        "hub_token": "<HUB_TOKEN>",
        "average_tokens_across_devices": True,
        "judge_key_variable": "OPENAI_API_KEY",
        "reward_funcs": ["llmrecipes.secrets:judge", "secret:rule"],
        "path": "pypi:token==1.0",
        "response_token": "<|im_end|>",
        "tokenizer_name": "gpt2",
        "bytes_per_token": 4,
        "learning_rate": 1e-4,
        "none": None,
        "where": "ssh://git@host/x.git",
        "doc": "https://host/a@b?x=1#y",
        "sort_key": "prompt",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "num_tokens": 10,
        "text": "The password is on the desk, said the bearer of news",
        "tokens": ["a", "b"],
        "steps": [1, 2.5, None, {"a": ()}],
        "hf": "hf_model",
        "sk": "a risk-averse-and-careful-person",
    }
    assert scrub_secrets(config) == config
    argv = ["python", "recipes/ppo.py", "--stop_token", "END", "--token", "--seed", "1", "--max_new_tokens", "64", "a=b"]
    assert scrub_secrets(argv) == argv and scrub_secrets(" ".join(argv)) == " ".join(argv)


def test_secrets_of_the_environment_go_whatever_they_look_like():
    environ = {"HF_TOKEN": S, "PATH": "/usr/bin", "OPENAI_API_KEY": "", "X_PASSWORD": "abc", "SECRET": "true"}
    assert known_secrets(environ) == [S, "abc"]
    assert known_secrets({"PWD": "/srv/project", "OLDPWD": "/srv"}) == [], "the current folder is no password"
    scrubbed = scrub_secrets({"a": f"x{S}y abc", "b": [f"{S}"]}, known_secrets(environ))
    assert scrubbed == {"a": f"x{REMOVED}y abc", "b": [REMOVED]}, "what is short would stand in many words"


def test_names():
    assert all(map(is_secret_name, ("token", "HF_TOKEN", "--hub-token", "a.b.api_key", "PASSWD", "clientSecret", "apikey")))
    assert not any(map(is_secret_name, ("tokens", "tokenizer", "image_token", "key", "secretary", "pass_at_k", "passage")))


@pytest.mark.parametrize("word", ["a", "eyJ-", "a://", "--a ", '"', "\\", "token: ", 'token="', "-----BEGIN ", "machine a "])
def test_long_texts_take_no_long_time(word):
    text, start = word * (200_000 // len(word)), time.process_time()
    scrub_secrets(text)
    TOKENS.search(text)
    assert time.process_time() - start < 5


def test_a_line_for_people_holds_no_token_and_stays_readable(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", S)
    said = one_line(f"judge_url: https://me:{S}x@host/v1 refuses {FORMS[0]} and {S}; hub_token: is missing")
    assert said == f"judge_url: https://{REMOVED}@host/v1 refuses {REMOVED} and {REMOVED}; hub_token: is missing"


@pytest.mark.parametrize(
    "line",
    [
        f"hub_token: [{S}]",
        f"hub_token: {{a: {S}}}",
        f"hub_token: {'x' * 60}{S}",
        f"hub_token: ['{'x' * 60}{S}']",
        f"model_init_kwargs: token={S}",
        f"model_init_kwargs: {{token: [{S}]}}",
        f"lr_scheduler_kwargs: {{token: {S}}}",
        f"judge_url: me:{S}@host/v1",
        f"env: {{WANDB_API_KEY: [{S}]}}",
        f'env: {{"MY KEY": {S}}}',
        f'env: {{SERVICE: "{S}\\0"}}',
        f"seed: hub_token={S}",
    ],
)
def test_an_error_on_a_secret_does_not_show_it(line, tmp_path):
    (tmp_path / "sft.yaml").write_text(line + "\n")
    with pytest.raises(InputError) as caught:
        parse(*recipe_types("sft"), argv=["--config", str(tmp_path / "sft.yaml")])
    assert S[:8] not in str(caught.value) and "x" * 9 not in str(caught.value)


@pytest.mark.parametrize("argv", [["--hub_token", S, "b"], [f"WANDB_API_KEY={S}"], ["--seed", f"https://me:{S}@host"]])
def test_an_error_of_the_command_line_shows_no_secret(argv):
    with pytest.raises(InputError) as caught:
        parse(*recipe_types("sft"), argv=argv)
    assert S not in str(caught.value)


def test_a_printed_config_shows_no_secret_and_the_rest_as_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", S)
    text = f"judge_url: http://me:{S}x@host/v1\ndatasets: [{{path: 'https://me:{S}y@host/x.jsonl', max_rows: 2}}]\n"
    text += f"run_name: a-{S}\n"
    (tmp_path / "sft.yaml").write_text(text)
    with pytest.raises(SystemExit):
        parse(*recipe_types("sft"), argv=["--config", str(tmp_path / "sft.yaml"), "--print_config"])
    shown = capsys.readouterr().out
    assert S not in shown and f"judge_url: http://{REMOVED}@host/v1  #" in shown
    assert "max_rows: 2" in shown and "eos_token: null" in shown
