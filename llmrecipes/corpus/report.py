"""What a build did, as report.json and report.html: shares, lengths, dropped documents with samples, contamination.

The fingerprint is over everything in report.json, including the shards' checksums, and nothing that differs between equal
builds (time, executor, machine).
"""

import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy

from llmrecipes.config import InputError
from llmrecipes.corpus.arguments import STEPS
from llmrecipes.corpus.contamination import item_words, load_about, load_items, spaced
from llmrecipes.corpus.counts import Counts
from llmrecipes.corpus.hashing import as_seen, ngrams, split_words
from llmrecipes.corpus.work import Work
from llmrecipes.durable import file_digest, read_json, write_json, write_text
from llmrecipes.manifest import digest
from llmrecipes.parsing import leave
from llmrecipes.report.blocks import Heading, Said, Section, Table, Text
from llmrecipes.report.markdown import render_markdown
from llmrecipes.report.numbers import size as bytes_of
from llmrecipes.report.page import render_page

COMMON_SHOWN = 20
LIMITS = (
    "For learning and research on how language models are trained. The documents are other people's: each source has a "
    "licence of its own, and they can be false, rude or harmful, and hold personal data that the patterns missed."
)


def collect(work: Work) -> dict:
    """The content of report.json."""
    total, sources = Counts(work.args.report_samples), {}
    for source in work.args.sources:
        sources[source.label] = about = {key: getattr(source, key) for key in ("path", "name", "split", "license")}
        own = [part for part in work.parts if work.source(part) is source]
        counts = Counts(work.args.report_samples)
        for part in own:
            counts.add(read_json(work.written(part)))
        about |= {"revision": next((part.revision for part in own), None) or source.revision, "sha256": source.sha256}
        about |= {"steps": asdict(work.args.steps_of(source)), "shards": _shards(work, own), **_plain(counts)}
        total.add(asdict(counts))
    content = {"sources": sources, "total": _plain(total), "settings": _settings(work)}
    if work.args.decontaminate:
        content["evaluation"] = _evaluation(work)
    return {"fingerprint": digest(content), **content}


def _plain(counts: Counts) -> dict:
    found = asdict(counts)
    found.pop("most")
    found["lengths"] = dict(sorted(found["lengths"].items(), key=lambda entry: int(entry[0])))
    found["samples"] = {
        step: {
            reason: [{"id": name, "text": text} for _, name, text in samples] for reason, samples in sorted(reasons.items())
        }
        for step, reasons in sorted(found["samples"].items())
    }
    return found


def _shards(work: Work, parts: list) -> dict:
    files = [work.shard(part) for part in parts if work.shard(part).exists()]
    return {file.relative_to(work.root.parent).as_posix(): file_digest(file) for file in files}


def _settings(work: Work) -> dict:
    keys = (
        "exact_duplicates",
        "near_duplicates",
        "decontaminate",
        "contamination_ngram",
        "contamination_common",
        "max_document_bytes",
        "shard_bytes",
    )
    return {key: getattr(work.args, key) for key in keys}


def _evaluation(work: Work) -> dict:
    """The evaluation sets, and the phrases ignored because too many documents share them."""
    about, items = load_about(work.root), load_items(work.root)
    common = numpy.load(work.root / "selected" / "common.npy").tolist()
    return {
        "sets": about["sets"],
        "items_too_short": about["short"],
        "common_ngrams": len(common),
        "common_samples": [_phrase(about["texts"][items.owner(number)], items, number) for number in common[:COMMON_SHOWN]],
    }


def _phrase(text: str, items, number: int) -> str:
    """The words of n-gram `number` in the item that contains it."""
    n, place = items.place(number)
    at = numpy.flatnonzero(ngrams(item_words(text), n) == items.tables[n][place])
    words = [found[0] for found in split_words(as_seen(spaced(text)))]
    return " ".join(words[at[0] : at[0] + n]) if len(at) else ""


def write_report(work: Work, title: str) -> dict:
    """Writes report.json and report.html next to the data; returns the content of report.json."""
    content, folder = collect(work), work.root.parent
    write_json(folder / "report.json", content)
    write_text(folder / "report.html", render_page(title, summarise(content), build_sections(content)))
    return content


def summarise(content: dict) -> str:
    """The report's first lines: what was kept, and the fingerprint."""
    documents, words, size = content["total"]["kept"]
    read = content["total"]["read"]
    return (
        f"{documents:,} of {read[0]:,} documents kept: {words:,} words, {bytes_of(size)}. Words are runs of letters and "
        f"digits; in scripts without blanks, characters. Fingerprint {content['fingerprint']}."
    )


def build_sections(content: dict) -> list[Section]:
    """The report's sections, from the content of report.json."""
    total, sources = content["total"], content["sources"]
    found = (
        [Section("evaluation", "Evaluation sets", _contamination(content["evaluation"]))] if "evaluation" in content else []
    )
    return [
        Section("sources", "Sources", [_source_table(sources, total)]),
        Section("drops", "What was dropped", _drops(sources, total)),
        Section("changes", "What was changed", [_changes(sources)]),
        *found,
        Section("lengths", "Lengths of what is kept", [_lengths(total)]),
        Section("samples", "Samples of what is kept", _samples(total["samples"].get("kept", {}))),
        Section("settings", "Settings", [_settings_table(content)]),
    ]


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _source_table(sources: dict, total: dict) -> Table:
    head = ["source", "path", "licence", "read", "kept", "words kept", "share of words", "bytes kept"]
    rows = []
    for label, about in [*sources.items(), ("all", total)]:
        where = " ".join(filter(None, (about.get("path"), about.get("name"), about.get("revision"))))
        read, (documents, words, size) = about["read"][0], about["kept"]
        rows.append(
            [
                label,
                where,
                about.get("license") or "",
                f"{read:,}",
                f"{documents:,}",
                f"{words:,}",
                _percent(words, total["kept"][1]),
                bytes_of(size),
            ]
        )
    return Table(head, rows)


def _drops(sources: dict, total: dict) -> list:
    blocks, order = [], ["read", *STEPS]
    head = ["step", "reason", "documents", "words", "of all words read", "mostly from"]
    rows = []
    for step in sorted(total["dropped"], key=lambda s: order.index(s) if s in order else len(order)):
        for reason, (documents, words) in sorted(total["dropped"][step].items(), key=lambda entry: -entry[1][0]):
            own = {label: about["dropped"].get(step, {}).get(reason, [0])[0] for label, about in sources.items()}
            rows.append(
                [step, reason, f"{documents:,}", f"{words:,}", _percent(words, total["read"][1]), max(own, key=own.get)]
            )
    blocks.append(Table(head, rows) if rows else Text("Nothing was dropped."))
    for step, reasons in total["samples"].items():
        if step != "kept":
            blocks += [Heading(step), *_samples(reasons)]
    return blocks


def _samples(reasons: dict) -> list:
    return [
        Said(reason, [(sample["id"], sample["text"], "") for sample in samples], columns=False)
        for reason, samples in reasons.items()
    ]


def _changes(sources: dict) -> Table | Text:
    kinds = sorted({kind for about in sources.values() for kind, count in about["changed"].items() if count})
    if not kinds:
        return Text("No document was changed.")
    rows = [[label, *(f"{about['changed'].get(kind, 0):,}" for kind in kinds)] for label, about in sources.items()]
    return Table(["source", *kinds], rows)


def _contamination(evaluation: dict) -> list:
    rows = [[name, f"{count:,}"] for name, count in evaluation["sets"].items()]
    text = (
        f"{evaluation['items_too_short']:,} items are too short to be looked for inside of documents; they are found where "
        f"they are a document. {evaluation['common_ngrams']:,} runs of words stand in so many documents that they are "
        "common phrases and drop none, unless the rest of their item is there too."
    )
    blocks = [Table(["set", "items"], rows), Text(text)]
    if evaluation["common_samples"]:
        blocks.append(Said("Common phrases", [("", text, "") for text in evaluation["common_samples"]], columns=False))
    return blocks


def _lengths(total: dict) -> Table:
    rows = [
        [f"up to {int(bound):,}", f"{count:,}", _percent(count, total["kept"][0])]
        for bound, count in total["lengths"].items()
    ]
    return Table(["words", "documents", "share"], rows)


def _settings_table(content: dict) -> Table:
    rows = [["all", key, str(value)] for key, value in content["settings"].items()]
    rows += [
        [label, key, str(value)] for label, about in content["sources"].items() for key, value in about["steps"].items()
    ]
    return Table(["source", "key", "value"], rows)


def to_markdown(folder: Path) -> str:
    """The report in `folder` as Markdown: the tables, without sample documents, which belong to other people.

    Raises:
        InputError: there is no report.
    """
    content = read_json(folder / "report.json")
    if "sources" not in content:
        raise InputError(f"{folder}: holds no report of a corpus; recipes/corpus.py writes one")
    sections = [
        replace(section, blocks=[block for block in section.blocks if isinstance(block, (Table, Text))])
        for section in build_sections(content)
        if section.key not in ("samples", "settings")
    ]
    return render_markdown(f"The corpus in {folder}", summarise(content), sections)


def write_corpus_card(folder: Path, content: dict, state) -> None:
    """Writes README.md, so that `load_dataset` reads the folder, and each source as a configuration."""
    from llmrecipes.cards.dataset import write_card

    labels = [label for label, about in content["sources"].items() if about["kept"][0]]
    files = {"default": {"train": "data/*/*.parquet"}} | {label: {"train": f"data/{label}/*.parquet"} for label in labels}
    lines = [summarise(content), "", "| source | from | licence | documents | words |", "|---|---|---|---|---|"]
    for label, about in content["sources"].items():
        where = " ".join(filter(None, (about["path"], about["name"], about["revision"])))
        lines.append(
            f"| {label} | {where} | {about['license'] or 'not stated'} | {about['kept'][0]:,} | {about['kept'][1]:,} |"
        )
    lines += [
        "",
        "`report.html` shows what was dropped and why, with samples. Personal data were looked for by patterns alone.",
    ]
    write_card(folder, "Corpus", files, "\n".join(lines), state, LIMITS)


if __name__ == "__main__":
    try:
        print(to_markdown(Path(sys.argv[1])), end="")
    except InputError as error:
        leave(error)
    except IndexError:
        leave("usage: python -m llmrecipes.corpus.report FOLDER")
