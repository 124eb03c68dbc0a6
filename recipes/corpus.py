"""Corpus: raw sources become cleaned, deduplicated, decontaminated documents in Parquet shards, with a report.

Papers: C4 (arXiv 1910.10683), Gopher (arXiv 2112.11446), near-duplicates (arXiv 2107.06499), FineWeb (arXiv 2406.17557).
Launch: python recipes/corpus.py --config configs/smalltalk/corpus.yaml
        python recipes/corpus.py --config configs/llama1-mixture/corpus.yaml --plan 15TB
Writes: output_dir/data/<source>/<shard>.parquet (text, source, id), report.html, report.json, README.md.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from llmrecipes.config import InputError, RunArguments
from llmrecipes.corpus.arguments import CorpusArguments, is_local, with_named_sets
from llmrecipes.parsing import launch


def main(run, corpus):
    from llmrecipes.corpus.contamination import evaluation_texts, save_items
    from llmrecipes.corpus.engine import build, require_documents, tidy
    from llmrecipes.corpus.parts import plan_parts
    from llmrecipes.corpus.plan import print_plan
    from llmrecipes.corpus.report import write_corpus_card, write_report
    from llmrecipes.corpus.steps import build_steps
    from llmrecipes.corpus.work import Work, load_work
    from llmrecipes.run import check_run, finish_run, start_run

    if not corpus.sources:
        raise InputError("`sources` is missing; give at least one {path: ...}")
    if corpus.plan:
        with TemporaryDirectory() as folder:
            return print_plan(corpus, Path(folder))
    run.given = with_named_sets(run.given)
    remote = [source.path for source in corpus.sources if not is_local(source.path)]
    state = check_run("corpus", run, corpus, (run, corpus), remote, resumes=True)
    if state.is_foreign and (state.output_dir / "data").exists():  # --force keeps it, and its files would be shards
        raise InputError(f"{state.output_dir / 'data'}: was not written by a build; choose another output_dir, or remove it")
    for source in corpus.sources:
        build_steps(corpus.steps_of(source), {})  # reports missing packages and files before anything is read
    root = state.output_dir / "work"
    found = load_work(root) if state.goes_on else None
    work = Work(root, corpus, found.parts if found else plan_parts(corpus))
    sets = evaluation_texts(corpus.decontaminate) if corpus.decontaminate and not found else {}

    start_run(state)
    if sets:
        save_items(root, sets, corpus)
    work.save()  # last: a build with this file can be continued
    if not build(work):
        return
    content = write_report(work, f"Corpus {state.output_dir}")
    require_documents(content)
    write_corpus_card(state.output_dir, content, state)
    tidy(work)
    read, (documents, words, size) = content["total"]["read"][0], content["total"]["kept"]
    metrics = {"documents_read": read, "documents": documents, "words": words, "bytes": size}
    metrics |= {f"dropped_{step}": sum(n for n, _ in own.values()) for step, own in content["total"]["dropped"].items()}
    state.manifest["corpora"] = {str(state.output_dir): content["fingerprint"]}
    finish_run(
        state,
        metrics,
        made=f"{documents:,} of {read:,} documents from {len(corpus.sources)} sources, {words:,} words",
        next_steps="recipes/tokenizer.py and recipes/pretrain.py read its data/<source> folders",
    )


if __name__ == "__main__":
    launch(main, RunArguments, CorpusArguments, alone=True)
