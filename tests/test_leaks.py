"""No push publishes a secret: by the file's name, by its content in any encoding; what is none may be pushed."""

import base64
import json

import pytest
import torch
from safetensors.torch import save_file
from test_secrets import FORMS
from test_store import judge, samples

from llmrecipes.config import InputError
from llmrecipes.leaks import OVERLAP, find_secrets, refuse_secrets
from llmrecipes.ranking.store import Store
from llmrecipes.ranking.users import write_user
from llmrecipes.secrets import TOKEN_STARTS

TOKEN = "hf_" + "aB3d" * 8
OWN = "0123456789abcdef" * 2 + "76543210"  # as wandb's keys look: like any commit
RANDOM = "Zk3xQv9LmT2bNw8RyH5cUe7JpA4sGd6F"


NAMES = """
.env prod.env .env.local a/PROD.ENV server.pem Server.PEM x.KEY id_rsa id_ed25519 .ssh/config home/.ssh/known _netrc .netrc
.pypirc .npmrc .aws/credentials credentials.json client_secret.json .git/config .git-credentials users.txt rank.sqlite
rank.sqlite-wal rank.sqlite-shm a.db x.p12 vault.kdbx service-account-1.json .bash_history .htpasswd secrets.yaml
.docker/config.json .kube/config
"""
ORDINARY = "tokenizer.json environment.yaml keys.txt config.json special_tokens_map.json credit.txt secretary.md train.jsonl"


@pytest.mark.parametrize("name", NAMES.split())
def test_files_of_secrets_are_known_by_their_names(tmp_path, name):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(InputError, match="looks like a file of secrets"):
        refuse_secrets({name: file}, not_secrets=[name])


@pytest.mark.parametrize("name", [*ORDINARY.split(), ".gitattributes"])
def test_files_of_a_run_are_not(tmp_path, name):
    (tmp_path / "file").write_text("x")
    refuse_secrets({name: tmp_path / "file"})


CONTENTS = [
    *FORMS,
    f"aws_secret_access_key = '{RANDOM}12345678'",
    f"AWS_SECRET_ACCESS_KEY={RANDOM}+/345678",
    f"WANDB_API_KEY={OWN}",
    f'{{"wandb_api_key": "{OWN}"}}',
    f"machine api.wandb.ai\n  login user\n  password {OWN}",
    "postgres://admin:" + "hunter2pass@db.example/x",
    '{"judge_url": "https://me:' + 'S3cretPw@judge.example/v1"}',
    f"password: {RANDOM}",
    f"Authorization: Bearer {RANDOM}",
    "-----BEGIN PGP " + "PRIVATE KEY BLOCK-----",
    base64.b64encode(f"token={TOKEN}".encode()).decode(),
]


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_secrets_are_found_in_every_encoding(tmp_path, content, encoding):
    file = tmp_path / "notes.txt"
    file.write_text(f"one\nthe text before it\n{content}\nafter", encoding=encoding)
    with pytest.raises(InputError, match="line 3 holds what looks like a token") as error:
        refuse_secrets({"notes.txt": file})
    assert not any(part in str(error.value) for part in (TOKEN, OWN, RANDOM, "hunter2", "S3cret"))


@pytest.mark.parametrize("prefix", ["", "a", "ab", "abc"])
def test_ones_own_token_is_found_whatever_it_looks_like_and_is_never_excused(tmp_path, prefix):
    file = tmp_path / "x.bin"
    forms = [
        OWN.encode(),
        OWN.encode("utf-16"),
        base64.b64encode(f"{prefix}{OWN} and more".encode()),
        base64.urlsafe_b64encode(f"{prefix}\xff\xff{OWN}".encode()),
        b"\x80\x00\xff" * 999 + OWN.encode(),
    ]
    for content in forms:
        file.write_bytes(content)
        with pytest.raises(InputError, match="one of your own tokens"):
            refuse_secrets({"x.bin": file}, known=[OWN], not_secrets=["x.bin"])
    file.write_text("0123456789abcdef")
    refuse_secrets({"x.bin": file}, known=[OWN, ""])


def test_a_secret_across_two_blocks_is_found(tmp_path):
    file = tmp_path / "x.jsonl"
    for shift in (-20, -1, 0, OVERLAP // 2):
        text = "word\n" * 300_000
        at = (1 << 20) + shift
        file.write_text(f"{text[:at]}\n{TOKEN}\n{text[at:]}")
        found = {line for line, _ in find_secrets(file)}
        assert found == {text[:at].count("\n") + 2}, shift


def test_metadata_of_safetensors_are_read_and_its_numbers_are_not(tmp_path):
    save_file({"w": torch.zeros(3)}, tmp_path / "a.safetensors", metadata={"command": f"--hub_token {TOKEN}"})
    with pytest.raises(InputError, match="a.safetensors"):
        refuse_secrets({"a.safetensors": tmp_path / "a.safetensors"})
    save_file({"w": torch.frombuffer(bytearray(TOKEN.encode() * 4), dtype=torch.uint8)}, tmp_path / "b.safetensors")
    refuse_secrets({"b.safetensors": tmp_path / "b.safetensors"})


def test_our_own_files_are_known_by_what_is_in_them(tmp_path):
    write_user(str(tmp_path / "users.txt"), "ann", "correct horse", is_admin=True)
    store = Store(tmp_path / "s.sqlite", samples())
    judge(store, "ann")
    store.close()
    for name in ("users.txt", "s.sqlite"):
        (tmp_path / name).rename(tmp_path / "notes")
        with pytest.raises(InputError, match="notes: line 1"):
            refuse_secrets({"notes": tmp_path / "notes"})


HARMLESS = [
    "The password is on the desk. My token: a ring. Secret: nobody knows.",
    "api_key = os.environ['OPENAI_API_KEY']",
    "export HF_TOKEN=hf_your_token_here",
    'password="password123"',
    "API_KEY=your_api_key_1234567890_here",
    "commit 0123456789abcdef0123456789abcdef01234567",
    "a risk-averse-and-very-careful-person, ask-me-anything-whenever-you-like",
    "https://example.org/a?token=1&x=2 and mailto:ann@example.org",
    json.dumps({"eos_token": "<|im_end|>", "pad_token": "<pad>", "max_new_tokens": 64, "tokens": ["a", "b"]}),
    "aHR0cHM6Ly9leGFtcGxlLm9yZy9oZWxsby13b3JsZA==",
    "eyJ0ZXh0IjogImhlbGxvIn0 and SG.no and AKIA and sk- and hf_",
]


@pytest.mark.parametrize("text", HARMLESS)
def test_ordinary_text_is_pushed(tmp_path, text):
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": text}) + "\n" + text)
    refuse_secrets({"train.jsonl": tmp_path / "train.jsonl"}, known=[OWN])


def test_what_only_looks_like_one_is_excused_by_file_or_line(tmp_path):
    (tmp_path / "train.jsonl").write_text(f"a\n{TOKEN}\nb\n{TOKEN}\n")
    files = {"train.jsonl": tmp_path / "train.jsonl"}
    with pytest.raises(InputError, match="--not_secrets train.jsonl:2"):
        refuse_secrets(files)
    with pytest.raises(InputError, match="--not_secrets train.jsonl:4"):
        refuse_secrets(files, not_secrets=["train.jsonl:2"])
    refuse_secrets(files, not_secrets=["train.jsonl:2", "train.jsonl:4"])
    refuse_secrets(files, not_secrets=["train.jsonl"])


def test_every_form_has_its_start_listed():
    for token in FORMS:
        assert any(start in token for start in TOKEN_STARTS), token
