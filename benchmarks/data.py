"""Speed, memory and correctness of the way from raw sources to batches.

    python benchmarks/data.py [--only near_duplicates,cleaning,contamination,language] [--json FILE] [--documents N]

Each part runs in its own process; seconds are CPU time, so that other load does not matter, and memory is that process's
peak. Documents are composed of sentences from the archives named in configs/smalltalk/corpus.yaml (32 MB, downloaded once);
what must be found in them is planted.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

PARTS = {  # name -> module beside this one
    "near_duplicates": "data_documents",
    "cleaning": "data_documents",
    "contamination": "data_documents",
    "language": "data_documents",
    "first_step": "data_tokens",
    "memory": "data_tokens",
    "tokenization": "data_tokens",
    "loader": "data_tokens",
    "shares": "data_tokens",
    "resume": "data_tokens",
    "attention": "data_tokens",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--json")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        module = __import__(PARTS[args.part])
        print(json.dumps(getattr(module, args.part)(args.documents)))
        return
    found = {}
    for part in args.only.split(","):
        command = [sys.executable, __file__, "--part", part, "--documents", str(args.documents)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{part}: {done.stderr[-2000:]}")
        found[part] = json.loads(done.stdout.strip().rsplit("\n", 1)[-1])
        print(f"\n{part}")
        for name, value in found[part].items():
            print(f"  {name:<52}{value if isinstance(value, str) else format(value, ',.4g')}", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
