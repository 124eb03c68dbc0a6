"""Publishing finished runs: one commit per repository, verified on the Hub, and only then tagged."""

import hashlib
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

from httpx2 import TransportError  # the client that huggingface_hub uses
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, constants, get_token
from huggingface_hub.errors import HfHubHTTPError

from llmrecipes.cards.loading import adapter_chain
from llmrecipes.cards.names import hide_paths, is_local, loading_name, repo_name
from llmrecipes.config import InputError
from llmrecipes.durable import read_json
from llmrecipes.leaks import refuse_secrets
from llmrecipes.manifest import MANIFEST_FILE, runs_below
from llmrecipes.preflight.machine import is_hub_id
from llmrecipes.preflight.model_folders import require_whole
from llmrecipes.secrets import known_secrets, scrub_secrets

LEFT_OUT = ("checkpoint-", "logs", ".cache", "__pycache__")
THE_HUBS_OWN = ".gitattributes"  # written by the Hub, which uses it to store large files
SCRUBBED = (MANIFEST_FILE, "README.md")  # these contain paths of the machine they were made on
ATTEMPTS = 5
LONGEST_WAIT = 600.0  # seconds; the Hub's own windows for 429 are five minutes


@dataclass
class Push:
    """One repository to write. files: path in the repository -> local file."""

    repo_id: str
    repo_type: str
    files: dict[str, Path]
    tag: str


def plan_push(path: str, namespace: str, not_secrets: Sequence[str] = ()) -> list[Push]:
    """The run in `path`, or every run below it (a chain, whose report goes with its last run); sends nothing.

    Raises:
        InputError: there is no run, one of them is unfinished, or a file holds a secret and is not excused by `not_secrets`
            (path, or path:line, in a repository); a file of a model is damaged.
    """
    if not is_hub_id(f"{namespace}/x"):
        raise InputError(f"namespace: {namespace!r} is not the name of a user or organisation")
    root = Path(path)
    # In the order they were finished: inputs before what was made from them, the evaluation last.
    runs = [root] if (root / MANIFEST_FILE).exists() else runs_below(root)
    if not runs:
        raise InputError(f"{path}: holds no run (no manifest.json); give a stage's folder or a chain's")
    pushes = []
    for run in runs:
        if not (manifest := read_json(run / MANIFEST_FILE)):
            raise InputError(f"{run / MANIFEST_FILE}: is damaged; run the stage again")
        if manifest.get("status") != "finished":
            raise InputError(f"{run}: is not finished; run its stage to the end before pushing")
        files = {
            str(file.relative_to(run)): file
            for file in sorted(run.rglob("*"))
            if file.is_file() and not str(file.relative_to(run)).startswith(LEFT_OUT) and file.suffix != ".tmp"
        }
        require_whole(run)
        is_model = any((run / name).exists() for name in ("config.json", "adapter_config.json", "tokenizer.json"))
        repo_id = f"{namespace}/{repo_name(run.resolve())}"
        pushes.append(Push(repo_id, "model" if is_model else "dataset", files, f"run-{manifest['fingerprint']}"))
    if root not in runs:
        pushes[-1].files |= {name: root / name for name in ("report.html", "report.md") if (root / name).exists()}
    names = {name for push in pushes for name in push.files}
    for excused in not_secrets:
        if excused not in names and excused.rpartition(":")[0] not in names:
            raise InputError(f"not_secrets: {excused!r} is not one of the files; name one as it is listed, or FILE:LINE")
    for push in pushes:  # files scrubbed on upload need no check
        refuse_secrets({n: f for n, f in push.files.items() if n not in SCRUBBED}, _own_tokens(), not_secrets)
    return pushes


def push_run(push: Push, private: bool, api: HfApi, sleep: Callable[[float], None] = time.sleep) -> str:
    """Creates the repository, commits all files at once, verifies what arrived, tags it; returns the repository's URL.

    The same commit deletes files of an earlier push that this run does not have; a tag of this name on another commit is
    moved. A message reports both. Busy or failed requests (429, 5xx, a broken connection) are retried; what was uploaded
    is not sent twice.

    Raises:
        InputError: no permission, a repository with files that are not from a run of ours, a Hub that keeps failing, or
            files that arrived changed. Then nothing is tagged.
    """
    if constants.HF_HUB_OFFLINE:
        raise InputError("HF_HUB_OFFLINE is set, so nothing can be sent; unset it")
    if not re.fullmatch("[!-~]*", get_token() or ""):
        raise InputError("HF_TOKEN: holds a character that no token has, such as a space or an accent; copy it again")
    where = {"repo_id": push.repo_id, "repo_type": push.repo_type}
    content = {name: _content(file, push) for name, file in push.files.items()}
    deleted: dict[str, None] = {}  # over all attempts: a commit whose response was lost deleted files too

    def send() -> str:
        url = api.create_repo(**where, private=private, exist_ok=True)
        is_private = api.repo_info(**where).private
        if private and is_private is False:
            raise InputError(f"{push.repo_id}: exists and is public; make it private on the hub, or pass --private false")
        # If left there, an old model.safetensors would be loaded instead of this run's shards.
        there = _list_files(push, api, "main")
        stale = [name for name in there if name not in content]
        if stale and MANIFEST_FILE not in there:
            raise InputError(
                f"{push.repo_id}: holds {stale[0]} and is not a run of ours; choose another namespace, or empty it"
            )
        deleted.update(dict.fromkeys(stale))
        operations = [CommitOperationAdd(name, data) for name, data in content.items()]
        operations += [CommitOperationDelete(name, is_folder=False) for name in stale]
        commit = api.create_commit(**where, operations=operations, commit_message=f"Upload {push.tag}")
        _verify(push, content, api, commit.oid)
        if deleted:
            print(f"  deleted from the repository, as this run does not hold them: {', '.join(deleted)}", flush=True)
            deleted.clear()
        _tag(push, api, commit.oid)
        for line in _told(content, private, is_private, api):
            print(f"  warning: {line}", flush=True)
        return str(url)

    for attempt in range(1, ATTEMPTS + 1):
        try:
            return send()
        except (HfHubHTTPError, TransportError, OSError, RuntimeError, ValueError) as error:
            again = _refuse_or_wait(push, error, attempt)
        sleep(again)
    raise AssertionError("unreachable")


def _told(content: dict[str, str | bytes], private: bool, is_private: bool | None, api: HfApi) -> Iterator[str]:
    """What the user may not expect of a run that has arrived: it is not public, or nobody can load it."""
    if is_private and not private:
        yield "the repository was private before and still is; make it public on the hub"
    base = json.loads(content.get("adapter_config.json", "{}")).get("base_model_name_or_path") or ""
    if base.startswith("pypi:"):
        yield f"this is an adapter of {base}, which is on no hub; recipes/merge.py makes a model that any library loads"
    elif base and not (is_hub_id(base) and api.repo_exists(base)):
        yield f"this is an adapter of {base}, which is not on the hub; push it too, or push what recipes/merge.py makes"


def _refuse_or_wait(push: Push, error: Exception, attempt: int) -> float:
    """Seconds until the next attempt; InputError if another one would not help, or this was the last."""
    # The client wraps the error of a large file's upload.
    cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error
    if isinstance(cause, HfHubHTTPError):
        response = cause.response
        if response.status_code != 429 and response.status_code < 500 or attempt == ATTEMPTS:
            status = response.status_code
            raise InputError(f"{push.repo_id}: {_advice(status)} (HTTP {status}); nothing was tagged") from None
        return _retry_after(response.headers.get("Retry-After", ""), attempt)
    if not isinstance(cause, (TransportError, OSError, json.JSONDecodeError)):  # the Hub rejects metadata or files
        raise InputError(f"{push.repo_id}: {' '.join(str(cause).split())}; nothing was tagged") from None
    if attempt == ATTEMPTS:
        raise InputError(
            f"{push.repo_id}: the connection broke {ATTEMPTS} times ({type(cause).__name__}); nothing was tagged, "
            "the same command continues"
        ) from None
    return 2.0**attempt


def _retry_after(header: str, attempt: int) -> float:
    """Seconds from a Retry-After header, a number or a date (RFC 9110); without one, longer with each attempt."""
    if header.strip().isdigit():
        return min(float(header), LONGEST_WAIT)
    try:
        return min(max(parsedate_to_datetime(header).timestamp() - time.time(), 0.0), LONGEST_WAIT)
    except (TypeError, ValueError):
        return 2.0**attempt


def _tag(push: Push, api: HfApi, revision: str) -> None:
    """Points the run's tag at `revision`. The Hub cannot move a tag, so one on another commit is deleted and created again;
    an interruption in between leaves no tag, and the next push creates it."""
    where = {"repo_id": push.repo_id, "repo_type": push.repo_type}
    there = {tag.name: tag.target_commit for tag in api.list_repo_refs(**where).tags}
    if there.get(push.tag) == revision:
        return
    if push.tag in there:
        print(f"  {push.tag} moves from commit {there[push.tag][:8]} to {revision[:8]}: the files changed", flush=True)
        api.delete_tag(**where, tag=push.tag)
    api.create_tag(**where, tag=push.tag, revision=revision)


def _list_files(push: Push, api: HfApi, revision: str) -> dict:
    """Path -> the Hub's entry, for each of our files at `revision`."""
    tree = api.list_repo_tree(push.repo_id, repo_type=push.repo_type, revision=revision, recursive=True)
    return {entry.path: entry for entry in tree if hasattr(entry, "blob_id") and entry.path != THE_HUBS_OWN}


def _verify(push: Push, content: dict[str, str | bytes], api: HfApi, revision: str) -> None:
    """Raises InputError unless `revision` holds exactly `content`."""
    there = _list_files(push, api, revision)
    for name, data in content.items():
        if name == THE_HUBS_OWN:
            continue
        entry = there.get(name)
        if entry and entry.lfs:
            same = entry.lfs.sha256 == _digest("sha256", data)
        else:  # git's blob id
            size = len(data) if isinstance(data, bytes) else Path(data).stat().st_size
            same = entry and entry.blob_id == _digest("sha1", data, b"blob %d\0" % size)
        if not same:
            raise InputError(f"{push.repo_id}: {name} arrived changed or not at all; nothing was tagged, push it again")
    if more := sorted(there.keys() - content.keys()):
        raise InputError(f"{push.repo_id}: holds {more[0]}, which is not from this run; nothing was tagged, push it again")


def _digest(name: str, data: str | bytes, head: bytes = b"") -> str:
    """Digest of bytes, or of a file read in blocks: weights may be larger than memory."""
    digest = hashlib.new(name, head)
    with io.BytesIO(data) if isinstance(data, bytes) else open(data, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _content(file: Path, push: Push) -> str | bytes:
    """What to upload for `file`: its path, or bytes if paths of this machine were replaced by names on the Hub."""
    if file.name == "adapter_config.json":
        config = json.loads(file.read_text(encoding="utf-8"))
        base = config.get("base_model_name_or_path")
        if base and is_local(base):  # otherwise nobody else could load the adapter
            config["base_model_name_or_path"] = f"{push.repo_id.split('/')[0]}/{repo_name(base)}"
        return (json.dumps(config, indent=2) + "\n").encode()
    if file.name not in SCRUBBED:
        return str(file)
    text = file.read_text(encoding="utf-8")
    if file.name == "README.md" and push.repo_type == "model":
        text = _with_namespace(text, push)
    elif file.name == "README.md":
        manifest = json.loads(push.files[MANIFEST_FILE].read_text(encoding="utf-8"))
        path = manifest.get("config", {}).get("output_dir") or file.parent
        text = _renamed(text, {form(path): push.repo_id for form in (repo_name, loading_name)})
    return hide_paths(scrub_secrets(text, _own_tokens())).encode()


def _own_tokens() -> set[str]:
    return {*known_secrets(os.environ), get_token() or ""}


def _with_namespace(text: str, push: Push) -> str:
    """The card with this model, its base and its data under their names on the Hub."""
    card, (namespace, name) = ModelCard(text, ignore_metadata_errors=True), push.repo_id.split("/")
    manifest = json.loads(push.files[MANIFEST_FILE].read_text(encoding="utf-8"))
    # What our stages made; what the run read from the Hub is there already under the name in the card.
    own = {repo_name(path) for path, found in manifest.get("inputs", {}).items() if not found.startswith("hub:")}
    full = lambda title: f"{namespace}/{title}" if title in own else title
    if isinstance(card.data.base_model, str):
        card.data.base_model = full(card.data.base_model)
    if card.data.datasets:
        card.data.datasets = [full(title) for title in card.data.datasets]
    folder = push.files[MANIFEST_FILE].parent
    here = {manifest.get("config", {}).get("output_dir") or folder, *filter(is_local, adapter_chain(folder)[:-1])}
    titles = {name: push.repo_id} | {
        form(path): f"{namespace}/{repo_name(path)}" for path in here for form in (repo_name, loading_name)
    }
    card.text = _renamed(card.text, titles)
    return str(card)


def _renamed(text: str, titles: dict[str, str]) -> str:
    """`text` with the names in its lines of loading code replaced by those on the Hub."""
    loads = re.compile(r"from_pretrained\(|load_dataset\(|^for adapter in \[")
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if loads.search(line):
            lines[number] = re.sub(r'"([^"]+)"', lambda m: f'"{titles.get(m[1], m[1])}"', line)
    return "\n".join(lines)


def _advice(status: int) -> str:
    return {
        401: "the hub does not know you; set HF_TOKEN or run `hf auth login`",
        403: "your token may not write here; use one with write permission, or another namespace",
        404: "the hub has no such place; check the namespace",
        409: "somebody else is writing there; try again",
        429: "the hub is still busy after several attempts; try again later",
    }.get(status, "the hub keeps failing; try again later" if status >= 500 else "the hub refused the files")
