"""Compare: finished runs of one stage side by side: keys that differ, measures with intervals and p-values, curves.

Launch: python recipes/compare.py outputs/quickstart/ppo outputs/mine/ppo [--output_dir outputs/compare]
Writes: with --output_dir, compare.html and compare.md there. Runs that differ only in their seed form one column.
"""

import sys

from llmrecipes.comparison import CompareArguments, write_comparison
from llmrecipes.parsing import launch


def main(comparison):
    print(write_comparison(comparison.runs, comparison.output_dir), end="")
    if comparison.output_dir:
        print(f"\nread {comparison.output_dir}/compare.html")


if __name__ == "__main__":
    argv = sys.argv[1:]
    words = next((i for i, word in enumerate(argv) if word.startswith("--")), len(argv))
    launch(main, CompareArguments, argv=[*(["--runs", *argv[:words]] if words else []), *argv[words:]], alone=True)
