"""Inputs for benchmarks/fuzz.py: configs, command lines, rows, rankings, truncated files; valid, odd and malformed ones."""

import contextlib
import json
from pathlib import Path

from hypothesis import strategies as st

from llmrecipes.keys import recipe_keys

ROOT = Path(__file__).parent.parent
STAGES = ("sft", "dpo", "reward", "ppo", "pretrain", "sample", "rank", "evaluate", "tokenizer")
NASTY_TEXT = """ null ~ true no on 1 -1 0 1e-4 1e999 .nan .inf -.inf 1_000 0x1F 1:30 2026-01-01 2026-02-30
 2026-01-01T25:00:00Z *a << {<<:*a} {} [] [[a]] {a:[1,{b:2}]} "\\ud800" "\\0" %TAG --- ... # @ ` " ' | >- = -- a=b
 a:b ../.. /dev/null /proc/self/mem ~root a/b/c/d""".replace("\n", "").split(" ")  # the first is empty
NASTY_TEXT += ["🙂", "\u2028", "\x85", "\x1b[31m"]
NASTY_TEXT += [
    "9" * 5000,
    "[" * 200,
    "{a: " * 60,
    "x" * 3000,
    "&a [*a]",
    "{<<: *a}",
    "!!binary aGk=",
    "!!set {a}",
    "!!bool x",
]
NASTY_TEXT += ["!!int x", "!!python/object/apply:os.system [ls]", "\ufeff", "\t", "- a", "a: b", "a: b: c"]
DECLARED = {stage: recipe_keys(ROOT / "recipes" / f"{stage}.py") for stage in STAGES}
KEYS = {stage: sorted(keys) for stage, keys in DECLARED.items()}
RIGHT = f"""output_dir: o
datasets: [{{path: tinytown, name: c4}}]
model_name_or_path: people/model
reward_model_name_or_path: people/reward
rankings_file: {__file__}
models: {{sft: people/model}}
"""
WITHOUT = {"rank": {"reward_model_name_or_path"}, "evaluate": {"model_name_or_path"}}  # these stages refuse them
CONFIGS = [path.read_text() for path in sorted((ROOT / "configs").glob("*/*.yaml")) if path.stem in STAGES]

text = st.one_of(st.sampled_from(NASTY_TEXT), st.text(max_size=12))
scalar = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10), st.integers(), st.floats(), text, st.sampled_from([10**300, 2**70, -0.0])
)
value = st.recursive(
    scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=5
)


def plausible(stage: str, key: str) -> st.SearchStrategy:
    """A value that `key` might have."""
    declared = DECLARED[stage][key]
    values = [
        declared.default if isinstance(declared.default, (str, int, float, list, dict)) else None,
        0,
        1,
        2,
        0.5,
        True,
        False,
    ]
    return st.sampled_from([*values, *(declared.choices or []), *(["a", "a:b", ["a"], {"a": 1}])])


def right_lines(stage: str, taken: set[str] = frozenset()) -> list[str]:
    """A config that the stage accepts, without the keys `taken`."""
    keys = set(KEYS[stage]) - WITHOUT.get(stage, set()) - taken
    return [line for line in RIGHT.splitlines() if line.partition(":")[0] in keys]


@st.composite
def yaml_text(draw):
    """(stage, text of a config): a valid, shipped or empty config with some odd lines, or arbitrary text."""
    stage = draw(st.sampled_from(STAGES))
    kind = draw(st.integers(0, 11))
    if kind == 0:
        return stage, draw(st.text(max_size=60))
    if kind == 1:
        return stage, "[" * draw(st.integers(0, 3000)) + draw(text)
    lines = []
    for _ in range(draw(st.integers(0, 3 if kind > 2 else 8))):
        key = draw(st.sampled_from(KEYS[stage]))
        shown = draw(
            plausible(stage, key).map(_as_json) if draw(st.integers(0, 3)) else st.one_of(text, value.map(_as_json))
        )
        lines.append(f"{key if draw(st.integers(0, 15)) else draw(text)}: {shown}")
    if kind == 3:
        lines += draw(st.sampled_from(CONFIGS)).splitlines()
    elif kind > 3:
        taken = {line.partition(":")[0] for line in lines}
        lines += right_lines(stage, taken)
    draw(st.randoms(use_true_random=False)).shuffle(lines)
    return stage, "\n".join(lines) + draw(st.sampled_from(["", "\n", "\n\t", "\r\n"]))


@st.composite
def command_line(draw):
    """(stage, argv)."""
    stage = draw(st.sampled_from(STAGES))
    start = [word for line in right_lines(stage) for word in _as_option(line)]
    option = st.sampled_from(KEYS[stage]).map(lambda key: f"--{key}")
    word = st.one_of(
        option,
        option,
        text,
        st.builds("{}={}".format, option, text),
        value.map(_as_json),
        st.sampled_from(["--help", "-h", "--config", "--config=", "--no_packing", "---", "----", "--print_config"]),
    )
    words = draw(st.lists(word.filter(lambda w: "\0" not in w), max_size=6))
    for _ in range(draw(st.integers(0, 2))):
        key = draw(st.sampled_from(KEYS[stage]))
        words += [f"--{key}", draw(plausible(stage, key).map(_as_json))]
    return stage, (start if draw(st.booleans()) else []) + words


def _as_option(line: str) -> tuple[str, str]:
    key, _, shown = line.partition(": ")
    return f"--{key}", shown


cell = st.one_of(text, value, st.lists(st.fixed_dictionaries({"role": text, "content": value}), max_size=3))
row = st.dictionaries(
    st.sampled_from(
        "text prompt completion messages chosen rejected instruction output input conversations system responses margin "
        "labels input_ids tools images weight".split()
    ),
    cell,
    max_size=4,
)
good_row = st.sampled_from(
    [
        {"text": "hello world"},
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
    ]
)


@st.composite
def jsonl(draw):
    """(lines, shapes, keys of the source, test_split_size)."""
    lines = draw(
        st.lists(
            st.one_of(
                good_row.map(_as_json),
                row.map(_as_json),
                st.sampled_from(NASTY_TEXT),
                st.text(max_size=20),
                st.sampled_from(["{" * 3000, '{"a":' * 2000, "{}", "[]", "NaN"]),
            ),
            max_size=5,
        )
    )
    shapes = draw(
        st.lists(st.sampled_from(["text", "messages", "prompt-completion", "preference", "prompt"]), min_size=1, max_size=2)
    )
    source = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "max_rows": value,
                "weight": value,
                "split": st.sampled_from(["train", "test", "train[:50%]", "train[", "x[:-1]"]),
                "columns": value,
                "name": text,
            },
        )
    )
    return "\n".join(lines), tuple(shapes), source, draw(st.one_of(st.none(), st.integers(-1, 3), st.floats()))


@st.composite
def rankings(draw):
    """(suffix, text of a rankings file)."""
    ranking = st.one_of(
        text, value, st.sampled_from([[[0], [1]], [1, 0], "A > B", "0 > 1", [[0, 1]], [[1], [1]], [[2**70]]])
    )
    entry = st.fixed_dictionaries(
        {},
        optional={
            "prompt_id": st.one_of(st.just("p0"), value),
            "ranking": ranking,
            "prompt": value,
            "annotator": st.one_of(st.just("ann"), value),
        },
    )
    if draw(st.booleans()):
        good = st.sampled_from([{"prompt_id": f"p{i}", "ranking": [[0], [1]]} for i in range(3)])
        line = st.one_of(good.map(_as_json), entry.map(_as_json), entry.map(_as_json), st.sampled_from(NASTY_TEXT))
        return ".jsonl", "\n".join(draw(st.lists(line, max_size=3)))
    cells = st.lists(st.one_of(text, st.sampled_from(["p0", "A > B", "prompt_id", "ranking"])), max_size=4).map(",".join)
    head = draw(
        st.sampled_from(
            ["prompt_id,ranking", "prompt_id;ranking", "prompt_id,ranking,annotator", "", "\ufeffprompt_id,ranking"]
        )
    )
    return ".csv", "\n".join([head, *draw(st.lists(cells, max_size=4))])


manifest_value = st.fixed_dictionaries(
    {},
    optional={
        "status": st.one_of(st.sampled_from(["running", "finished", "interrupted"]), value),
        "fingerprint": st.one_of(text, value),
        "config": value,
        "given": value,
        "files": value,
        "launch": value,
        "previous_seconds": value,
        "started": value,
        "stage": value,
        "inputs": value,
        "metrics": value,
        "expected": value,
        "code": value,
        "clearing": value,
        "wall_seconds": value,
        "output_fingerprint": value,
    },
)
torn = st.one_of(
    manifest_value.map(_json := lambda v: _as_json(v).encode("utf-8", "surrogatepass")),
    st.binary(max_size=30),
    st.sampled_from([b"", b"{}", b"[]", b"null", b"[" * 2000, b"\xff\xfe{", b'{"status": "runn']),
)
SMALL_FILES = (
    "manifest.json",
    "manifest.tmp",
    "checkpoint-3/trainer_state.json",
    "checkpoint-3/checksums.json",
    "checkpoint-x/a",
    "checkpoint-3/seal.json",
    "model.safetensors",
    "health.json",
    ".lock",
)
manifests = st.dictionaries(st.sampled_from(SMALL_FILES), torn, max_size=4)


@st.composite
def pipeline(draw):
    """(text of pipeline.yaml, texts of its stages' YAMLs, small files of the chain)."""
    names = st.lists(st.sampled_from(["sft", "tokenizer"]), min_size=1, unique=True)
    stage = st.one_of(st.sampled_from(["sft", "sft-a", "tokenizer", "evaluate", "rank-round2"]), value)
    keys = {
        "stages": names | names | names | st.lists(stage, max_size=3) | value,
        "output_dir": st.one_of(st.just("home"), value),
        "rounds": st.one_of(st.integers(0, 3), value),
        "loop": value,
        "only": value,
        "seed": value,
        "accelerate_config": value,
        "from_stage": value,
    }
    chain = {"stages": draw(keys["stages"]), "output_dir": draw(keys["output_dir"])}
    for key in draw(st.lists(st.sampled_from(sorted(keys)), max_size=2)):
        chain[key] = draw(keys[key])
    stages = {
        name: draw(
            st.fixed_dictionaries(
                {"output_dir": st.one_of(st.just(f"home/{name}"), value)},
                optional={
                    "datasets": value,
                    "model_name_or_path": st.one_of(st.just("home/tokenizer"), value),
                    "models": value,
                    "seed": value,
                },
            )
        )
        for name in ("sft", "tokenizer")
    }
    files = draw(
        st.dictionaries(
            st.sampled_from(
                [
                    "home/sft/manifest.json",
                    "home/tokenizer/manifest.json",
                    "home/reward/health.json",
                    "home/pipeline_keys.json",
                ]
            ),
            torn,
            max_size=3,
        )
    )
    return _as_json(chain), {name: _as_json(values) for name, values in stages.items()}, files


@st.composite
def old_config(draw):
    """A config of another tool."""
    from llmrecipes.keys.renamed import GONE, RENAMES
    from llmrecipes.migrate.translations import OF_TOOL, TRANSLATIONS

    names = sorted(
        {*RENAMES, *GONE, *TRANSLATIONS, *(key for table in OF_TOOL.values() for key in table), "base_model", "cutoff_len"}
    )
    return _as_json(draw(st.dictionaries(st.sampled_from(names), value, max_size=7)))


model_files = st.dictionaries(
    st.sampled_from(["config.json", "tokenizer.json", "model.safetensors", "adapter_config.json"]),
    st.one_of(
        torn,
        value.map(_json),
        st.dictionaries(
            st.sampled_from(["architectures", "model_type", "id2label", "n_positions", "model", "added_tokens", "vocab"]),
            value,
            max_size=4,
        ).map(_json),
    ),
    max_size=3,
)


def _as_json(entry) -> str:
    with contextlib.suppress(ValueError):  # an integer of thousands of digits
        return json.dumps(entry)
    return json.dumps(str(type(entry)))
