"""Users of the ranking page: a text file of names and salted scrypt hashes (RFC 7914), with `:admin` for admins.

python -m llmrecipes.ranking.users users.txt ANNA [--admin]      # asks for the password; again to change it
"""

import getpass
import hashlib
import hmac
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from llmrecipes.config import InputError
from llmrecipes.options import OptionParser
from llmrecipes.parsing import leave

NAME = re.compile(r"[\w.@-]{1,40}")
COST = {"n": 2**14, "r": 8, "p": 1}  # 16 MiB and about 50 ms per attempt


@dataclass(frozen=True)
class User:
    """An annotator who can log in; `digest` is of the salted password."""

    name: str
    salt: bytes
    digest: bytes
    is_admin: bool

    @property
    def credential(self) -> str:
        """Distinguishes this password from an earlier one of the same user without revealing it."""
        return hashlib.sha256(self.salt + self.digest).hexdigest()[:32]


class UsersFile(Mapping):
    """Name -> user, following the file: changed passwords and removed users take effect at the next request.

    If the file becomes invalid or disappears while the page is open, the users stay as they were, with a message.
    """

    def __init__(self, path: str):
        self.path, self._users = path, read_users(path)
        self._state = self._stat()

    def _stat(self):
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _now(self) -> dict[str, User]:
        state = self._stat()
        if state != self._state:
            try:
                self._users = read_users(self.path)
            except InputError as error:
                print(f"rank: {error}; the users stay as they were", file=sys.stderr, flush=True)
            self._state = state
        return self._users

    def __getitem__(self, name: str) -> User:
        return self._now()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())


def read_users(path: str) -> dict[str, User]:
    """Name -> user; InputError for a missing file or a malformed line, whose content is never printed."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(
            f"users_file: {path} cannot be read ({error.strerror}); make it with "
            "python -m llmrecipes.ranking.users FILE NAME"
        ) from None
    users = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"([\w.@-]{1,40}):scrypt:([0-9a-f]{32}):([0-9a-f]{64})(:admin)?", line.strip())
        if not match or match[1] in users:
            what = "its name occurs twice" if match else "is not NAME:scrypt:SALT:HASH"
            raise InputError(f"{path}, line {number}: {what}; write users with python -m llmrecipes.ranking.users")
        users[match[1]] = User(match[1], bytes.fromhex(match[2]), bytes.fromhex(match[3]), bool(match[4]))
    if not users:
        raise InputError(f"{path}: has no user; add one with python -m llmrecipes.ranking.users {path} NAME")
    return users


def is_password(user: User | None, password: str) -> bool:
    """Whether it is the user's password; takes as long for a user who does not exist."""
    salt, digest = (user.salt, user.digest) if user else (b"\0" * 16, b"")
    return hmac.compare_digest(_digest(password, salt), digest)


def write_user(path: str, name: str, password: str, is_admin: bool) -> None:
    """Adds a user to the file, or changes one; the file is readable only by its owner."""
    if not NAME.fullmatch(name):
        raise InputError(f"{name!r}: a name has 1 to 40 letters, digits or . _ @ -")
    if len(password) < 8:
        raise InputError("password: use 8 characters or more")
    kept = Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []
    salt = secrets.token_bytes(16)
    line = f"{name}:scrypt:{salt.hex()}:{_digest(password, salt).hex()}" + (":admin" if is_admin else "")
    lines = [other for other in kept if other.split(":")[0] != name] + [line]
    temporary = Path(f"{path}.tmp")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    temporary.replace(path)


def _digest(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode("utf-8", "surrogatepass"), salt=salt, dklen=32, **COST)


def main() -> None:
    """Adds a user to a file, or changes a password: `python -m llmrecipes.ranking.users FILE NAME [--admin]`."""
    parser = OptionParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("name")
    parser.add_argument("--admin", action="store_true", help="sees everybody's work and may end the ranking")
    options = parser.parse_args()
    try:
        password = (
            getpass.getpass(f"password of {options.name}: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
        )
        write_user(options.file, options.name, password, options.admin)
    except InputError as error:
        leave(*error.args)
    print(f"{options.name} is in {options.file} now")


if __name__ == "__main__":
    main()
