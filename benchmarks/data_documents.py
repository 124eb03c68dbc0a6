"""Parts of benchmarks/data.py about documents: cleaning, contamination, languages."""

import contextlib
import json
import random
import re
import resource
import tempfile
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet

from llmrecipes.corpus.arguments import CorpusArguments
from llmrecipes.corpus.contamination import build_items, item_words
from llmrecipes.corpus.engine import build
from llmrecipes.corpus.parts import plan_parts
from llmrecipes.corpus.report import write_report
from llmrecipes.corpus.steps import build_steps
from llmrecipes.corpus.work import Work
from llmrecipes.keys.strict_yaml import load_yaml

ROOT = Path(__file__).parent.parent
CHARACTERS = 1500


def real_texts() -> list[str]:
    """Passages of the prose among Smalltalk's sources."""
    from llmrecipes.data.archive import read_rows

    wanted = ("commoncrawl-news", "c4-law", "wikipedia", "books-plots", "arxiv", "stackexchange")
    sources = CorpusArguments(sources=load_yaml(str(ROOT / "configs/smalltalk/corpus.yaml"))["sources"]).sources
    return [row["text"] for source in sources if source.label in wanted for row in read_rows(source)]


def made_documents(count: int, seed: int = 1) -> list[str]:
    """`count` documents of about 1,500 characters, composed of shuffled sentences from real texts."""
    sentences = [s for text in real_texts() for s in re.split(r"(?<=[.!?])\s+", text) if 40 < len(s) < 400]
    rng, found = random.Random(seed), []
    for _ in range(count):
        document, size = [], 0
        while size < CHARACTERS:
            document.append(rng.choice(sentences))
            size += len(document[-1])
        found.append(" ".join(document))
    return found


def cpu() -> float:
    return sum(
        resource.getrusage(who).ru_utime + resource.getrusage(who).ru_stime
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def write_documents(file: Path, documents: list[str]) -> None:
    rows = [{"text": text, "id": str(i)} for i, text in enumerate(documents)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=1000)


def cleaning(count: int = 5000) -> dict:
    """Documents per CPU second on one core, for each step and for all of them with sketches and files."""
    texts = real_texts()
    random.Random(3).shuffle(texts)
    texts = [text for text in texts if len(text) > 300][:count]
    keys = {"languages": ["en"], "quality": ["gopher_repetition", "gopher", "c4", "fineweb"]}
    with tempfile.TemporaryDirectory() as folder:
        words = Path(folder) / "words.txt"
        words.write_text("\n".join(f"blockedword{i}" for i in range(400)) + "\na phrase of several words\n")
        args = CorpusArguments(sources=["a/b"], blocked_words=str(words), **keys)
        steps = build_steps(args.steps_of(args.sources[0]), Counter())
        found = {"documents": len(texts), "mean characters": sum(map(len, texts)) / len(texts)}
        for name, step in steps:
            before = time.process_time()
            for text in texts:
                step(text)
            found[f"{name}: documents a second"] = len(texts) / (time.process_time() - before)
        write_documents(Path(folder) / "a.parquet", texts)
        args = CorpusArguments(sources=[f"{folder}/a.parquet"], blocked_words=str(words), decontaminate=["given"], **keys)
        work = Work(Path(folder) / "out" / "work", args, plan_parts(args))
        work.save()
        from llmrecipes.corpus.contamination import save_items

        save_items(work.root, {"items": _items(2000)}, args)
        before = cpu()
        build(work)
        found["all steps, duplicates, decontamination, files"] = len(texts) / (cpu() - before)
        found["kept"] = write_report(work, "x")["total"]["kept"][0]
    return found


def _items(count: int) -> list[str]:
    """Evaluation items: questions of two sentences that occur only in documents in which they are planted."""
    rng = random.Random(9)
    sentences = [s for text in real_texts()[::7] for s in re.split(r"(?<=[.!?])\s+", text) if 60 < len(s) < 200]
    shuffled = lambda s: " ".join(rng.sample(s.split(), len(s.split())))
    return [f"Question {i}: {shuffled(rng.choice(sentences))} {shuffled(rng.choice(sentences))}" for i in range(count)]


def contamination(count: int = 20_000) -> dict:
    """Recall on items planted unchanged, with other case and whitespace, and inside longer documents; and false
    positives."""
    items = _items(3000)
    table, short = build_items(items, 13)
    clean = made_documents(count, seed=5)
    rng, found = random.Random(11), {"items": len(items), "too short": short}
    ways = {
        "exact": lambda item, i: item,
        "other case and blanks": lambda item, i: "  \n".join(item.upper().split(" ")),
        "inside of a longer document": lambda item, i: f"{clean[i]} {item} {clean[i + 1]}",
        "other marks": lambda item, i: item.replace(" ", ", ", 3).replace(":", " -"),
    }
    for way, plant in ways.items():
        hits = sum(len(table.hits(item_words(plant(item, rng.randrange(len(clean) - 1))))) > 0 for item in items)
        found[f"found, {way}"] = f"{100 * hits / len(items):.2f} % of {len(items):,}"
    wrong = sum(len(table.hits(item_words(text))) > 0 for text in clean)
    found["false positives on clean documents"] = f"{wrong} of {len(clean):,}"
    real = real_texts()
    wrong = sum(len(table.hits(item_words(text))) > 0 for text in real)
    found["false positives on real texts"] = f"{wrong} of {len(real):,}"
    return found


DJANGO = {"path": "pypi:Django==5.2.8", "files": "django/c*/locale/*/LC_MESSAGES/django*.po"}


def language() -> dict:
    """langid and CLD2 (`pip install pycld2==0.42`) on Django's translations, whose folders say their language: two messages
    each (about 100 characters) and twelve (about 1,100). Some messages are English in every folder."""
    from llmrecipes.corpus.steps.language import load_detector

    detectors = {"langid": load_detector(["en"])}
    with contextlib.suppress(ImportError):
        import pycld2

        detectors["CLD2"] = lambda text: pycld2.detect(UNREADABLE.sub(" ", text))[2][0][1]
    short = labelled_lines()
    lines: dict[str, list[str]] = {}
    for code, text in short:
        lines.setdefault(code, []).append(text)
    long = [(code, "\n".join(own[i : i + 6])) for code, own in lines.items() for i in range(0, len(own) - 5, 6)]
    return {"languages": len(lines)} | _accuracy("short", short, detectors) | _accuracy("long", long, detectors)


UNREADABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")  # CLD2 refuses a text with any of them


def _accuracy(size: str, samples: list[tuple[str, str]], detectors: dict) -> dict:
    found = {f"{size}: documents": len(samples)}
    same = {"nb": "no", "iw": "he", "jw": "jv"}
    for name, detect in detectors.items():
        before = time.process_time()
        said = [detect(text) for _, text in samples]
        seconds = time.process_time() - before
        right = [same.get(s, s) == same.get(wanted, wanted) for s, (wanted, _) in zip(said, samples, strict=True)]
        english = [s == "en" for s in said]
        is_english = [wanted == "en" for wanted, _ in samples]
        found[f"{size}, {name}: accuracy"] = f"{100 * sum(right) / len(right):.1f} %"
        kept = sum(a and b for a, b in zip(english, is_english, strict=True))
        found[f"{size}, {name}: English, recall and precision"] = (
            f"{100 * kept / max(1, sum(is_english)):.1f} %, {100 * kept / max(1, sum(english)):.1f} %"
        )
        found[f"{size}, {name}: documents a second"] = len(said) / seconds
    return found


def labelled_lines() -> list[tuple[str, str]]:
    """(ISO 639-1 code, two or three messages of a translation joined): at most 60 per language."""
    import subprocess
    import sys
    import zipfile

    folder = Path(tempfile.gettempdir()) / "llmrecipes-languages"
    folder.mkdir(exist_ok=True)
    if not list(folder.glob("*.whl")):
        name = DJANGO["path"].removeprefix("pypi:")
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, name], check=True)
    found, archive = {}, zipfile.ZipFile(next(folder.glob("*.whl")))
    for member in archive.namelist():
        match = re.fullmatch(r"django/.*/locale/([a-z]{2})/LC_MESSAGES/django\.po", member)
        if not match:
            continue
        text = archive.read(member).decode()
        pairs = re.findall(r'\nmsgid ((?:".*"\n)+)msgstr ((?:".*"\n)+)', text)
        for source, target in pairs:
            original, line = ("".join(json.loads(part) for part in side.splitlines()) for side in (source, target))
            chosen = original if match[1] == "en" else line
            chosen = re.sub(r"%\(\w+\)[sd]|%[sd]|\{\w*\}|<[^>]+>|\s+", " ", chosen).strip()
            if len(chosen) > 30 and (match[1] == "en" or line != original):
                found.setdefault(match[1], []).append(chosen)
    rng, samples = random.Random(4), []
    for code, lines in sorted(found.items()):
        lines = list(dict.fromkeys(lines))
        rng.shuffle(lines)
        samples += [(code, " ".join(lines[i : i + 2])) for i in range(0, min(120, len(lines) - 1), 2)]
    return samples
