"""What must not be published: files whose name says that they hold secrets, and secrets inside any file.

Token patterns are those of detect-secrets (in its maintained fork, `bc-detect-secrets`) and of llmrecipes.secrets; the
user's own tokens, from the environment and `hf auth login`, are also found in UTF-16 and base64.
"""

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

from llmrecipes.config import InputError
from llmrecipes.secrets import TOKEN_STARTS, TOKENS, assigned_secrets

SECRET_FILES = re.compile(
    r"(?i)(?:.*/)?(?:"
    r"\.(?:ssh|aws|gnupg|kube|docker|azure|git|config/gcloud)/.*"
    r"|[^/]*\.env(?:\.[\w-]+)*|\.envrc|[^/]*\.(?:pem|key|p8|p12|pfx|ppk|jks|keystore|kdbx|ovpn|tfstate)"
    r"|id_(?:rsa|dsa|ecdsa|ed25519)(?:_sk)?|[._]?netrc|[._]?(?:pypirc|npmrc|pgpass|htpasswd|my\.cnf|boto|s3cfg|vault-token)"
    r"|\.git-credentials|[^/]*credentials?(?:\.\w+)?|(?:client_)?secrets?\.\w+|service[-_]?account[^/]*\.json"
    r"|\.\w+_history|users\.txt|[^/]*\.(?:sqlite3?|db)(?:-wal|-shm|-journal)?)"
)
LOGINS = re.compile(r"(?m)^[\w.@-]{1,40}:scrypt:[0-9a-f]{32}:[0-9a-f]{64}")  # llmrecipes.ranking.users
NETRC = re.compile(r"\bmachine\s+\S+\s+login\s+\S+\s+password\s+\S+")
PLACE = re.compile(r"(?i)example|your|xxxx|placeholder|dummy|1234567890")
BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{24,4096}={0,2}")
NAMED = re.compile(  # matched against lower-case text
    r"(?:token|secret|pass|pwd|key|auth|credential)[\w.-]{0,20}[\"'\\]*\s*[:=\s]\s*[\"'\\]*(?:b\w+\s+)?[\w+/=.~-]{16}"
)
BLOCK, OVERLAP = 1 << 20, 1 << 13
# Detectors of detect-secrets and, for speed, what a text must contain for each to find anything.
DETECTORS = {
    "AWSKeyDetector": ("aws_s", "awss", "aws s", "aws_k", "aws k"),
    "AzureStorageKeyDetector": ("accountkey", "azure"),
    "BasicAuthDetector": ("://",),
    "DiscordBotTokenDetector": ("discord",),
    "JwtTokenDetector": ("eyj",),
    "MailchimpDetector": ("-us",),
    "NpmDetector": ("npm_", "npm token", "npm-token", "_authtoken"),
    "PrivateKeyDetector": ("private key", "putty-user"),
    "SendGridDetector": ("sg.",),
    "SlackDetector": ("xox", "hooks.slack"),
    "SquareOAuthDetector": ("sq0csp",),
    "StripeDetector": ("k_live",),
    "TwilioKeyDetector": ("twilio",),
}
OWN = "your own"


def refuse_secrets(files: Mapping[str, Path], known: Iterable[str] = (), not_secrets: Iterable[str] = ()) -> None:
    """InputError for the first of `files` (path in the repository -> local file) that is a file of secrets or holds one.

    Args:
        known: the user's own tokens, found in plain text, UTF-16 and base64.
        not_secrets: paths, or path:line, of what only looks like a secret; excuses neither a file's name nor a known token.
    """
    excused = set(not_secrets)
    for name, file in files.items():
        if SECRET_FILES.fullmatch(name):
            raise InputError(f"{file}: looks like a file of secrets; take it out of the folder before pushing")
        for line, what in find_secrets(file, known):
            if what == OWN:
                raise InputError(
                    f"{file}: line {line} holds one of your own tokens; take it out before pushing, and renew it"
                )
            if name not in excused and f"{name}:{line}" not in excused:
                raise InputError(
                    f"{file}: line {line} holds what looks like a token ({what}); take it out before pushing, "
                    f"or excuse it if it is none: --not_secrets {name}:{line}"
                )


def find_secrets(file: Path, known: Iterable[str] = ()) -> Iterator[tuple[int, str]]:
    """(line, what it looks like) of each secret in a file. Of a safetensors file only the metadata are read."""
    own = [form.encode() for token in known if len(token) >= 8 for form in _forms(token)]
    before, tail = 0, b""
    for block in _blocks(file):
        block, lines = tail + block, before - tail.count(b"\n")
        if block.startswith(b"SQLite format 3\0") and before == 0:
            yield 1, "a database"
        plain = block.replace(b"\0", b"")  # UTF-16 and UTF-32 are ASCII with zeros between
        yield from ((1 + lines + plain.count(b"\n", 0, plain.index(form)), OWN) for form in own if form in plain)
        is_text = len(plain) == len(block) or _is_written(plain)
        if is_text or any(start.encode() in plain for start in TOKEN_STARTS):
            text = plain.decode("utf-8" if len(plain) == len(block) else "latin-1", "ignore")
            for at, what in _find_in_text(text) if is_text else _find_forms(text):
                yield 1 + lines + text.count("\n", 0, at), what
        before, tail = lines + block.count(b"\n"), block[-OVERLAP:]


def _find_forms(text: str) -> Iterator[tuple[int, str]]:
    if any(start in text for start in TOKEN_STARTS):
        yield from ((match.start(), "a token's form") for match in TOKENS.finditer(text))


def _find_in_text(text: str) -> Iterator[tuple[int, str]]:
    yield from _find_forms(text)
    small = text.encode("utf-8", "replace").lower().decode()  # lower-cases only ASCII, so that offsets stay the same
    for name, needles in DETECTORS.items():
        if any(needle in small for needle in needles):
            kind, detector = _detectors()[name]
            yield from ((max(text.find(found), 0), kind) for found in detector.analyze_string(text))
    if ":scrypt:" in small:
        yield from ((match.start(), "the ranking page's password hashes") for match in LOGINS.finditer(text))
    if "machine" in small:
        yield from ((match.start(), "a line of .netrc") for match in NETRC.finditer(text))
    for candidate in NAMED.finditer(small):
        start = max(text.rfind("\n", 0, candidate.start()) + 1, candidate.start() - 64)
        for at, value in assigned_secrets(text[start : candidate.end() + 256]):
            if _is_random(value):
                yield start + at, "a value that its name calls a secret"
    for match in BASE64.finditer(text):
        if TOKENS.search(_decoded(match[0])):
            yield match.start(), "a token in base64"


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as handle:
        if file.suffix == ".safetensors":
            size = int.from_bytes(handle.read(8), "little")
            yield handle.read(min(size, 100 << 20))  # the header: metadata and tensor names as JSON
            return
        while block := handle.read(BLOCK):
            yield block


def _forms(token: str) -> Iterator[str]:
    """The token itself, and its forms inside base64 of a longer text, at each of the three possible offsets."""
    yield token
    for shift, skipped in ((0, 0), (1, 2), (2, 3)):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(b"\0" * shift + token.encode()).decode().rstrip("=")[skipped:-1]


def _decoded(text: str) -> str:
    text = text.rstrip("=").replace("-", "+").replace("_", "/")
    return base64.b64decode(text[: len(text) // 4 * 4]).decode("latin-1").replace("\0", "")


def _is_written(content: bytes) -> bool:
    sample = content[:4096]
    return sum(32 <= byte < 127 or byte in b"\r\n\t" for byte in sample) > 0.9 * len(sample)


def _is_random(value: str) -> bool:
    """Whether a value looks random, like a key, rather than like a word or a placeholder."""
    if not re.fullmatch(r"[\w+/=.~-]{16,256}", value) or PLACE.search(value):
        return False
    return bool(re.search(r"[0-9]", value) and re.search(r"[A-Za-z]", value)) and len(set(value)) >= 10


@cache
def _detectors() -> dict:
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    return {kind.__name__: (name, kind()) for name, kind in get_mapping_from_secret_type_to_class().items()}
