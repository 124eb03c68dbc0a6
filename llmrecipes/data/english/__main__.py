"""python -m llmrecipes.data.english FOLDER: write the items and prompts as JSONL files."""

import sys

from llmrecipes.data.english import write_files

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m llmrecipes.data.english FOLDER")
    for name, count in write_files(sys.argv[1]).items():
        print(f"{name}: {count} rows")
