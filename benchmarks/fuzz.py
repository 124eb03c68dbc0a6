"""Fuzzing of everything that a user writes or a kill may truncate: each input must end in a result or a one-line error.

    python benchmarks/fuzz.py [--examples 20000] [--kinds yaml argv ...] [--seed 0]

Prints for each kind how many inputs were tried and refused with one line, and every place that raised anything else, with an
input that triggers it; exit code 1 if there is one. tests/test_fuzz.py runs a few hundred of them.
"""

import collections
import contextlib
import io
import os
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from unittest.mock import patch

from hypothesis import HealthCheck, Phase, given, seed, settings

from llmrecipes.config import DataArguments, DatasetSource, InputError, RunArguments
from llmrecipes.keys import recipe_keys
from llmrecipes.options import OptionParser

ROOT = Path(__file__).parent.parent
sys.path += [str(Path(__file__).parent), str(ROOT / "tests")]

from fuzz_inputs import command_line, jsonl, manifests, model_files, old_config, pipeline, rankings, yaml_text  # noqa: E402
from recipe_types import recipe_types  # noqa: E402

# ---- How an input is processed: returns, or raises InputError or SystemExit (0 or 2) ----


def read_config(example) -> None:
    """Parses a config as its recipe does, except for what needs torch; then prints it."""
    stage, content = example
    Path(f"{stage}.yaml").write_bytes(content.encode("utf-8", "surrogatepass"))
    _check_only(stage, ["--config", f"{stage}.yaml"])


def read_options(example) -> None:
    _check_only(*example)


def _check_only(stage: str, argv: list[str]) -> None:
    from llmrecipes import parsing
    from llmrecipes.keys.usage import describe

    options, keys = parsing.read_argv(argv), recipe_keys(ROOT / "recipes" / f"{stage}.py")
    if options.help is not None:
        describe(keys, options.help)
        return
    found, _, problems = parsing.collect(options, keys)
    parsing.let_command_line_win(found)
    problems += parsing.contradictions(found)
    problems += parsing.check_machine(found, parsing.read_given(options))
    if problems:
        raise InputError(*problems)
    parsing.remarks(found)
    parsing.build([config_type for config_type in recipe_types(stage) if not isinstance(config_type, str)], found)


def read_rows(example) -> None:
    from llmrecipes.data import load_train_eval
    from llmrecipes.keys import keys_of
    from llmrecipes.keys.values import check_value

    lines, shapes, source, test_size = example
    Path("rows.jsonl").write_bytes(lines.encode("utf-8", "surrogatepass"))
    keys = keys_of(DataArguments)
    given = {"datasets": check_value("datasets", [{"path": "rows.jsonl", **source}], keys["datasets"], "fuzz")}
    if test_size is not None:
        given["test_split_size"] = check_value("test_split_size", test_size, keys["test_split_size"], "fuzz")
    data = DataArguments(**given)
    assert isinstance(data.datasets[0], DatasetSource)
    load_train_eval(data, 0, shapes)


def read_ranking_file(example) -> None:
    from llmrecipes.ranking.pairs import build_splits, split_prompts
    from llmrecipes.ranking.rankings import read_rankings

    suffix, content = example
    Path(f"rankings{suffix}").write_bytes(content.encode("utf-8", "surrogatepass"))
    samples = [{"prompt_id": f"p{i}", "prompt": f"hi {i}", "responses": ["a", "b"]} for i in range(3)]
    ranked = read_rankings(f"rankings{suffix}", samples)
    build_splits(ranked, split_prompts(ranked, 0.0, 0), None, "explicit")


def read_run_folder(files: dict[str, bytes]) -> None:
    from llmrecipes import provenance
    from llmrecipes.manifest import fingerprint
    from llmrecipes.run import check_run

    _write(files, Path("out"))
    fingerprint("out")
    run, args = RunArguments(), _Arguments("out")
    # Facts about this checkout and machine, which take a second to find and are the same for every input.
    facts = {"_commit": lambda: None, "_hardware": dict, "code_digest": lambda *_: "code"}
    with patch.multiple(provenance, **facts):
        check_run("sample", run, args, (run, args), resumes=True)


class _Arguments(dict):
    """A stage's own arguments, as a mapping for the manifest."""

    def __init__(self, output_dir: str):
        super().__init__(output_dir=output_dir, seed=1)
        self.output_dir, self.seed = output_dir, 1


def read_chain(example) -> None:
    from llmrecipes import parsing
    from llmrecipes.pipeline import PipelineArguments, plan_stages, summarise_chain

    chain, stages, files = example
    Path("pipeline.yaml").write_text(chain)
    for name, content in stages.items():
        Path(f"{name}.yaml").write_text(content)
    _write(files, Path())
    found, _, problems = parsing.collect(
        parsing.Options({}, config="pipeline.yaml"), recipe_keys(ROOT / "recipes" / "pipeline.py")
    )
    if problems:
        raise InputError(*problems)
    run, arguments = parsing.build([RunArguments, PipelineArguments], found)
    summarise_chain(plan_stages(arguments, "pipeline.yaml", force=run.force), "pipeline.yaml", 0.0)


def migrate_config(content: str) -> None:
    from llmrecipes.migrate import main

    Path("old.yaml").write_text(content)
    main(["old.yaml"])


def look_at_model(files: dict[str, bytes]) -> None:
    _write(files, Path("model"))
    Path("model").mkdir(exist_ok=True)
    config = "model_name_or_path: model\noutput_dir: o\ndatasets: [tinytown]\neos_token: a\nmax_length: 9\n"
    config += "watch_reward_model: model\n"
    read_config(("sft", config))


def _write(files: dict[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


KINDS = {
    "yaml": (yaml_text(), read_config),
    "argv": (command_line(), read_options),
    "jsonl": (jsonl(), read_rows),
    "rankings": (rankings(), read_ranking_file),
    "manifest": (manifests, read_run_folder),
    "pipeline": (pipeline(), read_chain),
    "migrate": (old_config(), migrate_config),
    "model": (model_files, look_at_model),
}


def outcome(kind: str, example) -> str:
    """ "fine" or "refused"; raises anything else, including an InputError that is not one short line per mistake."""
    environment, here = dict(os.environ), os.getcwd()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        os.chdir(folder)
        try:
            KINDS[kind][1](example)
            return "fine"
        except InputError as error:
            for line in error.args:
                assert 0 < len(line) <= 600 and line.isprintable()
            return "refused"
        except SystemExit as left:
            assert left.code in (0, None, 2), f"exit code {left.code}"
            return "refused" if left.code == 2 else "fine"
        finally:
            os.chdir(here)
            os.environ.clear()
            os.environ.update(environment)


def fuzz(kind: str, examples: int, start: int) -> tuple[collections.Counter, dict[str, object]]:
    """(outcomes, place -> an input that raised there) for `examples` inputs of a kind, from the seed `start`."""
    counts, broken = collections.Counter(), {}

    @seed(start)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(KINDS[kind][0])
    def run(example):
        try:
            counts[outcome(kind, example)] += 1
        except Exception as error:
            counts["broken"] += 1
            frames = [
                f for f in traceback.extract_tb(error.__traceback__) if "llmrecipes" in f.filename or "fuzz" in f.filename
            ]
            broken.setdefault(
                f"{type(error).__name__} at {Path(frames[-1].filename).name}:{frames[-1].lineno}: {str(error)[:150]}",
                example,
            )

    run()
    return counts, broken


def main() -> None:
    parser = OptionParser(description=__doc__.split("\n")[0])
    parser.add_argument("--examples", type=int, default=20_000, help="of all kinds together")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    total, places = collections.Counter(), 0
    for kind in options.kinds:
        started = time.time()
        counts, broken = fuzz(kind, -(-options.examples // len(options.kinds)), options.seed)
        total += counts
        places += len(broken)
        print(
            f"{kind:<10}{sum(counts.values()):>7} inputs  {counts['fine']:>6} fine  {counts['refused']:>6} refused  "
            f"{counts['broken']:>4} broken  {time.time() - started:5.0f} s",
            flush=True,
        )
        for place, example in broken.items():
            print(f"    {place}\n      {str(example)[:300]!r}")
    print(f"seed {options.seed}: {sum(total.values())} inputs, {total['broken']} tracebacks at {places} places")
    sys.exit(places > 0)


if __name__ == "__main__":
    main()
