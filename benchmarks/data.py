"""Speed, memory and correctness of the way from raw sources to batches.

    python benchmarks/data.py [--only near_duplicates,cleaning,contamination,language] [--json FILE] [--documents N]

Each part runs in its own process; seconds are CPU time, so that other load does not matter, and memory is a process's
peak. Documents are composed of sentences from the archives named in configs/smalltalk/corpus.yaml (32 MB, downloaded once);
what must be found in them is planted.
"""

import argparse
import inspect
import json
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from llmrecipes.options import OptionParser, names_of, result_file

PARTS = {  # name -> module beside this one
    "near_duplicates": "data_duplicates",
    "cleaning": "data_documents",
    "contamination": "data_documents",
    "language": "data_documents",
    "first_step": "data_tokens",
    "memory": "data_tokens",
    "tokenization": "data_tokenization",
    "loader": "data_tokens",
    "shares": "data_tokens",
    "resume": "data_tokens",
    "attention": "data_tokens",
}


def alone(function, *args):
    """The result of `function` in a forked process, so that its memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        return pool.submit(function, *args).result()


def main() -> None:
    parser = OptionParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--documents", type=int, help="in place of the number that a part takes by itself")
    parser.add_argument("--json", type=result_file)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        part = getattr(__import__(PARTS[args.part]), args.part)
        if args.documents and not inspect.signature(part).parameters:
            raise SystemExit(f"{args.part} takes no --documents")
        print(json.dumps(part(args.documents) if args.documents else part()))
        return
    try:
        parts = names_of(args.only, PARTS)
    except ValueError as error:
        parser.error(f"--only: {error}")
    found = {}
    for part in parts:
        command = [sys.executable, __file__, "--part", part]
        command += ["--documents", str(args.documents)] if args.documents else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{part}: {done.stderr[-2000:]}")
        found[part] = json.loads(done.stdout.strip().rsplit("\n", 1)[-1])
        print(f"\n{part}")
        for name, value in found[part].items():
            print(f"  {name:<52}{value if isinstance(value, str) else format(value, ',.4g')}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
