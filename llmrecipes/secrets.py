"""What must never be written down: tokens, passwords and keys in configs, command lines and texts.

Pure functions. A secret is recognised by its form (`hf_…`, a JWT), by its name (`hub_token`, `WANDB_API_KEY`,
`--model_init_kwargs.token`) or by its position (the password in a URL).
"""

import re
from collections.abc import Iterable, Iterator, Mapping

REMOVED = "[removed]"
# Formats of issuers' tokens, and the prefix of each, which is much faster to search for.
TOKEN_STARTS = (
    "hf_",
    "api_org_",
    "sk-",
    "gsk_",
    "xai-",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "npm_",
    "pypi-",
    "xox",
    "AIza",
    "ya29.",
    "A3T",
    "AKIA",
    "ASIA",
    "ABIA",
    "ACIA",
    "k_live_",
    "k_test_",
    "whsec_",
    "SG.",
    "dop_v1_",
    "wandb_v1_",
    "eyJ",
    "-----BEGIN ",
)
TOKENS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_[A-Za-z0-9]{16,}|api_org_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{16,}|gsk_[A-Za-z0-9]{20,}|xai-[A-Za-z0-9]{20,}"
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|npm_[A-Za-z0-9]{36}|pypi-AgE[\w-]{50,}"
    r"|xox[abeprs]-[\w-]{10,}|AIza[\w-]{35}|ya29\.[\w-]{20,}|(?:A3T[A-Z0-9]|A[KS]IA|A[BC]IA)[0-9A-Z]{16}"
    r"|(?:[sr]k_(?:live|test)|whsec)_[A-Za-z0-9]{16,}|SG\.[\w-]{16,}\.[\w-]{16,}|dop_v1_[0-9a-f]{64}|wandb_v1_[\w-]{20,}"
    r"|eyJ[\w-]{8,500}+\.eyJ[\w-]{8,8000}+\.[\w-]{8,}"  # JWT: two objects in base64 and a signature
    r")(?![A-Za-z0-9])"
    r"|-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?:[^-]*-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----)?"
)
_NAME = re.compile(
    r"(?:^|_)(?:(?:(?:api|access|secret|private|account|signing|encryption|auth|ssh|subscription)_?keys?(?:_id)?)"
    r"|(?:pass(?:word|wd|phrase)?|pwd|secret|credential|authorization|cookie)s?|(?:auth|access|hub|api|bearer|refresh|session|"
    r"sas|hf)_?tokens?|token)$"
)
# Tokens of texts, not credentials.
_SPECIAL_TOKEN = re.compile(
    r"(?:^|_)(?:pad|eos|bos|unk|mask|sep|cls|stop|start|end|eot|eom|begin|image|video|audio|boi|eoi|prefix|suffix|middle|"
    r"special|extra|first|last|next|think|per|by|each|of)_token$"
)
# A special token (<pad>, [PAD]), a placeholder, or nothing.
_NO_SECRET = re.compile(r"<[^>]*>|\[(?:removed|[A-Z]+)\]|\$?\{\w+\}|\$\w+|\*+|(?i:true|false|none|null)|")
_ASSIGNED = re.compile(  # announces a value: --name=, "name": or name=
    r"""(?:(?<![\w.-])--(?P<option>[A-Za-z][\w.-]*+)(?:=|\s+(?!--))"""
    r"""|(?<!\\)\\*+["'](?P<quoted>[A-Za-z_][\w.-]*+)\\*+["']\s*+[:=]\s*+"""
    r"""|(?<![\w.-])(?P<bare>[A-Za-z_][\w.-]*+)(?:\s?=(?!=)\s?|:\s+))(?:(?i:Bearer|Basic|Token)\s+)?"""
)
_VALUE = re.compile(
    r"""(\\+")(?:[^"\\]|\\(?!"))*\\+"|(")(?:[^"\\]|\\.)*"|(')(?:[^'\\]|\\.)*'|\[[^\]]*\]|\{[^}]*\}|[^\s,;&"'})]+"""
)
_BEARER = re.compile(r"(?i)\b((?:bearer|basic)\s+)[\w.~+/=-]{16,}")
_NETRC = re.compile(r"\b(machine\s+\S+\s+login\s+\S+\s+password\s+)\S+")
_USER_OF_URL = re.compile(r"(?<![A-Za-z0-9+.-])([A-Za-z][A-Za-z0-9+.-]*+)://([^/\s?#\"'<>]*)@")


def scrub_secrets(value, known: Iterable[str] = ()):
    """`value` with every secret in it replaced by REMOVED; idempotent.

    Args:
        value: a text, or a config of nested dicts, lists and tuples. A list of texts may be a command line, where the value
            of `--hub_token` is the next item. Anything else is returned unchanged.
        known: texts that are secrets whatever they look like, e.g. `known_secrets(os.environ)`.
    """
    return _scrub(value, list(known))


def known_secrets(environ: Mapping[str, str]) -> list[str]:
    """Values of the environment variables whose names mark them as secrets."""
    found = {name: value for name, value in environ.items() if name not in ("PWD", "OLDPWD")}  # folders
    return [value for name, value in found.items() if is_secret_name(name) and not _NO_SECRET.fullmatch(value)]


def is_secret_name(name: str) -> bool:
    """Whether a key, option or variable of this name holds a secret: hub_token, apiKey, HF_TOKEN, but not pad_token or
    max_new_tokens. In a dotted name, the last part counts."""
    last = name.lstrip("-").rpartition(".")[2]
    if re.fullmatch(r"[A-Z0-9_]+_(?:KEY|PAT)", last):  # environment variables
        return True
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", last).replace("-", "_").lower()
    return bool(_NAME.search(snake)) and not _SPECIAL_TOKEN.search(snake)


def _scrub(value, known: list[str]):
    if isinstance(value, Mapping):
        return {
            _scrub(key, known): REMOVED if isinstance(key, str) and _is_secret(key, item) else _scrub(item, known)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        items = _scrub_items(value, known)
        return tuple(items) if isinstance(value, tuple) else list(items)
    return _scrub_text(value, known) if isinstance(value, str) else value


def _scrub_items(items: Iterable, known: list[str]) -> Iterator:
    is_value = False  # of the option before it
    for item in items:
        if isinstance(item, str) and item.startswith("--"):
            name, equals, value = item.partition("=")
            is_value = is_secret_name(name) and not equals
            yield f"{name}={REMOVED}" if equals and _is_secret(name, value) else _scrub_text(item, known)
        elif is_value and isinstance(item, str) and not _NO_SECRET.fullmatch(item):
            yield REMOVED
        else:
            yield _scrub(item, known)


def hide_secrets(text: str, known: Iterable[str] = ()) -> str:
    """`text`, a message for people, without secrets recognised by form or position and without `known` ones. Unlike
    `scrub_secrets` it keeps what follows a name: "hub_token: is missing" contains no secret."""
    for secret in sorted((text for text in known if len(text) >= 6), key=len, reverse=True):
        text = text.replace(secret, REMOVED)
    text = TOKENS.sub(REMOVED, text)
    text = _USER_OF_URL.sub(lambda m: m[0] if m[1] == "ssh" and ":" not in m[2] else f"{m[1]}://{REMOVED}@", text)
    return _NETRC.sub(rf"\1{REMOVED}", _BEARER.sub(rf"\1{REMOVED}", text))


def _scrub_text(text: str, known: list[str]) -> str:
    text = hide_secrets(text, known)
    parts, start = [], 0
    for at, secret in assigned_secrets(text):
        parts += [text[start:at], REMOVED]
        start = at + len(secret)
    return "".join([*parts, text[start:]])


def assigned_secrets(text: str) -> Iterator[tuple[int, str]]:
    """(position, value) of each value given under a secret's name: `token=…`, `"password": "…"`, `--api_key …`."""
    start = 0
    while head := _ASSIGNED.search(text, start):
        start = head.end()
        name = head["option"] or head["quoted"] or head["bare"]
        value = _VALUE.match(text, start) if is_secret_name(name) else None
        if value:
            quote = value[1] or value[2] or value[3] or ""
            inner = value[0][len(quote) : len(value[0]) - len(quote)]
            if _is_secret(name, inner):
                yield start + len(quote), inner
            start = value.end()


def _is_secret(name: str, value) -> bool:
    if isinstance(value, (bool, float)) or not value or not is_secret_name(name):
        return False
    if isinstance(value, int):  # a password may be a number; a numeric "token" is a count of tokens
        return not name.lower().endswith("token")
    return not isinstance(value, str) or not _NO_SECRET.fullmatch(value)
