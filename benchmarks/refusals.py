"""Runs the real command on every wrong config of tests/wrong_configs.py: exit code, seconds, lines.

Launch: python benchmarks/refusals.py [--stages sft,...] [--limit 2.0]
Prints a row for each that does not end with one or two `error:` lines and exit code 2, writes a file, or takes longer; then
a summary. Seconds are wall-clock and CPU time; on a busy machine only the latter is meaningful.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))

from wrong_configs import make_inputs, rows, write_config  # noqa: E402

from llmrecipes.options import OptionParser  # noqa: E402


def main():
    parser = OptionParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stages", help="default: all")
    parser.add_argument("--limit", type=float, default=2.0, help="seconds")
    options = parser.parse_args()
    wanted = [row for row in rows() if not options.stages or row[0] in options.stages.split(",")]
    with tempfile.TemporaryDirectory(prefix="wrong-") as folder:
        paths = make_inputs(Path(folder))
        found = [try_config(Path(folder), paths, *row, options.limit) for row in wanted]
    wall, cpu, wrong = zip(*found, strict=True)
    for what, values in (("wall", wall), ("processor", cpu)):
        print(
            f"{what} seconds: median {statistics.median(values):.2f}, longest {max(values):.2f}, "
            f"{sum(v <= options.limit for v in values)} of {len(values)} within {options.limit:g} s"
        )
    print(f"{len(wrong)} wrong configs: {len(wrong) - sum(wrong)} end with exit code 2 and their line, nothing written")
    sys.exit(any(wrong))


def try_config(tmp: Path, paths: dict[str, Path], stage: str, lines: list[str], part: str, limit: float):
    """(wall seconds, CPU seconds, whether it did not end as it should)."""
    command = [
        sys.executable,
        str(ROOT / "recipes" / f"{stage}.py"),
        "--config",
        str(write_config(tmp, stage, lines, paths)),
    ]
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
    before = set(tmp.iterdir())
    started, used = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, env=environment | {"PYTHONPATH": str(ROOT)}, cwd=tmp)
    wall, now = time.time() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    said = done.stderr.splitlines()
    is_right = done.returncode == 2 and 1 <= len(said) <= 2 and all(line.startswith("error: ") for line in said)
    is_right = is_right and part in done.stderr and not done.stdout and before == set(tmp.iterdir())
    if not is_right or cpu > limit:
        shown = said[0][:160] if said else ""
        print(
            f"{stage:<10}{'; '.join(lines)[:60]:<62} exit {done.returncode}  {wall:5.2f} s  {cpu:5.2f} s  {shown}",
            flush=True,
        )
    return wall, cpu, not is_right


if __name__ == "__main__":
    main()
