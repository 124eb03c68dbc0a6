"""Carries benchmarks/gpu.py to a GPU machine without a network: wheels of what is missing there, and two scripts to run.

    python benchmarks/gpu_offline.py [FOLDER] [--has FILE] [--python 3.12] [--machine x86_64] [--text FILE]

FOLDER (outputs/gpu-offline if not given) gets wheels/, trl/ (trl 1.12.0, for the comparison), input.txt (Shakespeare's text,
fetched unless --text names it; without it the part is left out) and run-1.sh and run-2.sh. Copy the repository with it to
the machine; each script takes at most eight minutes there: `bash FOLDER/run-1.sh` (pretrain, shakespeare, ppo), `bash
FOLDER/run-2.sh` (decode, the smoke chain, sft); `--smoke` behind it tries it on tiny models, on a CPU too. Figures are
written as they are found, into FOLDER or $RESULTS.

--has: what `python -m pip list --format=freeze` prints on that machine. Taken along is what its list lacks, or has older
than requirements.txt pins it; torch, a CUDA build, is the machine's own. Without a list: all but torch and what torch needs.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from llmrecipes.options import OptionParser

ROOT = Path(__file__).parent.parent
TEXT = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
# What the benchmark and the smoke chain without `evaluate` import, by the names of requirements.txt.
NEEDED = (
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "numpy",
    "scipy",
    "matplotlib",
    "PyYAML",
    "xxhash",
    "httpx",
)
STAGES = "tokenizer pretrain sft sample rank reward dpo ppo"
SECONDS = 480
GLIBC = (39, 35, 34, 31, 28, 27, 24, 17)  # pip takes no older version's wheels for a newer one by itself
RUN = """#!/bin/bash
# {what}; at most {minutes} minutes. Figures: in $RESULTS, else here. By benchmarks/gpu_offline.py
cd "$(dirname "$0")" && here=$PWD && cd {root} && site=$(mktemp -d) || exit
trap 'rm -rf "$site"' EXIT
install() {{ python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$@"; }}
install "$site/wheels" "$here"/wheels/*.whl && install "$site/trl" "$here"/trl/*.whl || exit
export PYTHONPATH=$site/wheels:$PWD HF_HUB_OFFLINE=1 results=${{RESULTS:-$here}} here site
run() {{
gpu() {{
  name=$1 parts=$2; shift 2
  python3 benchmarks/gpu.py --parts $parts --json "$results/gpu-$name.json" "$@" $smoke || failed=1
}}
{commands}
return ${{failed:-0}}
}}
export smoke=$1 && export -f run
timeout {seconds} bash -c run &
trap "kill $!" INT TERM  # timeout hands it on to all that it has started; Ctrl-C itself does not reach them
until wait $!; code=$?; ! kill -0 $! 2> /dev/null; do :; done
exit $code
"""
CHAIN = """for stage in STAGES; do
  [ $stage != pretrain ] || tasks="--watch_tasks []"  # they need lm_eval
  python3 recipes/$stage.py --config configs/smoke/$stage.yaml $tasks --force || failed=1
  tasks=
done"""
COMMANDS = {
    1: ("pretrain, shakespeare, ppo", ['gpu 1 pretrain{shakespeare},ppo --trl "$site/trl"{text}']),
    2: ("decode, the smoke chain, sft", ["gpu decode decode", CHAIN.replace("STAGES", STAGES), "gpu sft sft,lora"]),
}


def pins() -> dict[str, Version]:
    """The packages of requirements.txt and their versions."""
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines())
    return {canonicalize_name(line.split("==")[0]): Version(line.split("==")[1]) for line in lines if "==" in line}


def read_list(path: Path) -> dict[str, Version | None]:
    """Package -> version of a list of `name==version`; None, which counts as new enough, where the version is not there."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([\w.-]+)(?:==([\w.+!-]+))?", line.strip()):
            found[canonicalize_name(match[1])] = Version(match[2]) if match[2] else None
    return found


def requirements(name: str, python: str, machine: str) -> list[Requirement]:
    """What the installed package `name` needs there, without its extras."""
    there = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "extra": "",
        "platform_system": "Linux",
        "platform_machine": machine,
        "os_name": "posix",
    }
    asked = map(Requirement, metadata.requires(name) or ())
    return [need for need in asked if need.marker is None or need.marker.evaluate(there)]


def missing(has: dict[str, Version | None], python: str, machine: str) -> dict[str, str]:
    """Package -> the version to take along, that of this environment."""
    pinned, found, looked = pins(), {}, set()
    waiting = [Requirement(name) for name in NEEDED]
    while waiting:
        need = waiting.pop()
        name = canonicalize_name(need.name)
        if name == "torch":
            continue
        there, version = has.get(name), metadata.version(name)
        older = there and name in pinned and there < pinned[name]
        if name not in has or older or there and not need.specifier.contains(there, prereleases=True):
            found[name] = version
        if name not in looked:
            looked.add(name)
            waiting += requirements(name, python, machine)
    return found


def of_torch(python: str, machine: str) -> dict[str, None]:
    """Names of the packages that torch needs, which a machine with torch has."""
    found, waiting = {}, ["torch"]
    while waiting:
        for need in requirements(waiting.pop(), python, machine):
            name = canonicalize_name(need.name)
            if name not in found:
                found[name] = None
                waiting += [name] if importable(name) else []
    return found


def importable(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:  # CUDA's, where torch is a build for CPUs
        return False


def download(folder: Path, packages: list[str], python: str, machine: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in GLIBC] + [f"manylinux2014_{machine}", f"linux_{machine}"]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--implementation", "cp"]
    command += [
        "--python-version",
        python,
        *(word for name in platforms for word in ("--platform", name)),
        "-d",
        str(folder),
    ]
    if subprocess.run([*command, *packages]).returncode:
        sys.exit(f"error: pip could not download {' '.join(packages)}")


def fetch_text(given: Path | None, path: Path) -> bool:
    """Whether Shakespeare's text is at `path` now."""
    if given:
        shutil.copy(given, path)
    elif not path.exists():
        try:
            with urllib.request.urlopen(TEXT, timeout=20) as answer:  # nosec B310
                path.write_bytes(answer.read())
        except OSError as error:
            print(f"no Shakespeare: {TEXT} is out of reach ({error}); fetch it elsewhere and give --text FILE")
    return path.exists()


def write_runs(folder: Path, has_text: bool) -> None:
    parts = {"shakespeare": ",shakespeare" if has_text else "", "text": ' --text "$here/input.txt"' if has_text else ""}
    root = os.path.relpath(ROOT, folder)
    for number, (what, commands) in COMMANDS.items():
        joined = "\n".join(commands).replace("{shakespeare}", parts["shakespeare"]).replace("{text}", parts["text"])
        values = {"what": what, "root": f"'{root}'", "seconds": SECONDS, "minutes": SECONDS // 60, "commands": joined}
        (folder / f"run-{number}.sh").write_text(RUN.format(**values), encoding="utf-8")
        print(f"bash {folder}/run-{number}.sh   # {what}")


def main() -> None:
    parser = OptionParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "outputs" / "gpu-offline", metavar="FOLDER")
    parser.add_argument("--has", type=Path, metavar="FILE")
    parser.add_argument("--python", default="3.12")
    parser.add_argument("--machine", default="x86_64")
    parser.add_argument("--text", type=Path, metavar="FILE")
    parser.add_argument("--limit", type=float, default=60, metavar="MIB", help="for all of it; 60 if not given")
    args = parser.parse_args()
    for name in ("has", "text"):
        if (path := getattr(args, name)) and not path.is_file():
            parser.error(f"--{name}: {path} is not a file")
    if not re.fullmatch(r"3\.\d+", args.python) or int(args.python[2:]) < 11:
        parser.error(f"--python: {args.python} is not a version from 3.11 on, such as 3.12")
    try:
        has = read_list(args.has) if args.has else of_torch(args.python, args.machine)
        packages = missing(has, args.python, args.machine)
        args.folder.mkdir(parents=True, exist_ok=True)
    except metadata.PackageNotFoundError as error:
        parser.error(f"{error.name} is needed there and not installed here; pip install {error.name}")
    except OSError as error:
        parser.error(f"{args.folder}: {error.strerror}")
    download(args.folder / "wheels", [f"{name}=={version}" for name, version in packages.items()], args.python, args.machine)
    download(args.folder / "trl", ["trl==1.12.0"], args.python, args.machine)
    has_text = fetch_text(args.text, args.folder / "input.txt")
    sizes = {path: path.stat().st_size / 2**20 for path in args.folder.rglob("*") if path.is_file()}
    for path, size in sorted(sizes.items(), key=lambda item: -item[1]):
        print(f"{size:6.2f} MiB  {path.relative_to(args.folder)}")
    print(f"{sum(sizes.values()):6.2f} MiB")
    if sum(sizes.values()) > args.limit:
        sys.exit(f"error: more than --limit {args.limit:g} MiB; --has FILE leaves out what the machine has")
    write_runs(args.folder, has_text)


if __name__ == "__main__":
    main()
