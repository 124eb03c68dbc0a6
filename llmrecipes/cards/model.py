"""Model cards: a run's manifest in the Hub's form (YAML metadata and text)."""

import ast
from pathlib import Path, PurePath

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from llmrecipes.cards.dataset import published_figures
from llmrecipes.cards.evaluations import (
    EARLIER,
    RESULTS_FILE,
    about_evaluation,
    describe_evaluation,
    is_comparison,
    stored_evaluations,
)
from llmrecipes.cards.loading import has_template, load_model
from llmrecipes.cards.names import hide_paths, is_local, loading_name, repo_name
from llmrecipes.durable import read_json, write_json, write_text
from llmrecipes.formats import prompt_text, read_growing
from llmrecipes.manifest import MANIFEST_FILE, ROOT
from llmrecipes.measures import BOOKKEEPING, meaning, with_arrow

RISKS = {
    "language": "It can state falsehoods, obey harmful requests and repeat what its data holds",
    "reward": "It scores an answer as its raters would rank it, which makes the answer neither true nor harmless",
}
SHOWN = (
    "learning_rate",
    "lr_scheduler_type",
    "optimizer",
    "optim",
    "max_steps",
    "num_train_epochs",
    "max_length",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "warmup_steps",
    "weight_decay",
    "beta",
    "total_episodes",
    "num_ppo_epochs",
    "kl_coef",
    "temperature",
    "max_completion_length",
    "bf16",
    "use_peft",
    "lora_r",
    "seed",
)


def write_model_card(
    folder: str | Path,
    scores: dict[str, dict] | None = None,
    evaluation: str | Path | None = None,
    manifest: dict | None = None,
) -> Path | None:
    """Writes README.md of the finished run in `folder`, if it holds a model, an adapter or a tokenizer.

    scores: measure -> {"value", "low", "high", "n"} of an evaluation; they are kept for later cards of this run, together
    with those of other evaluations.
    evaluation: its folder, whose metrics.json and manifest.json say what it compared with and who judged.
    manifest: the run's, if it is not yet written.

    Returns the card's path; None for a folder that is not a finished run of ours (such as a Hub id) or holds no model.
    """
    folder = Path(folder)
    manifest = manifest or read_json(folder / MANIFEST_FILE)
    kinds = [n for n in ("adapter_config.json", "config.json", "tokenizer.json") if (folder / n).exists()]
    if manifest.get("status") != "finished" or not kinds:
        return None
    found = stored_evaluations(folder, manifest)
    if scores:
        name = repo_name(Path(evaluation).resolve()) if evaluation else EARLIER
        # The earlier one may be this evaluation; do not show it twice.
        earlier = {m: e for m, e in found.pop(EARLIER, {}).get("scores", {}).items() if m not in scores}
        found = ({EARLIER: {"scores": earlier}} if earlier else {}) | found
        found[name] = {"scores": scores} | (about_evaluation(Path(evaluation)) if evaluation else {})
        write_json(folder / RESULTS_FILE, {"fingerprint": manifest["output_fingerprint"], "evaluations": found})
    if not found and (checked := _checked(folder)):
        found = {"": {"scores": checked}}
    card = ModelCard(f"---\n{_metadata(folder, manifest, found).to_yaml()}\n---\n\n{_text(folder, manifest, found)}")
    write_text(folder / "README.md", str(card))
    return folder / "README.md"


def _metadata(folder: Path, manifest: dict, found: dict) -> ModelCardData:
    config, is_classifier = manifest["config"], _is_classifier(folder)
    base, is_adapter = config.get("model_name_or_path"), (folder / "adapter_config.json").exists()
    on_hub = base and not base.startswith("pypi:")  # the Hub refuses a card that names anything else
    # Generators and archives are not data sets on the Hub; the text names all sources.
    data = [s["path"] for s in config.get("datasets") or [] if ":" not in s["path"]]
    data = {
        repo_name(path) for path in data if Path(path).is_dir() or (is_local(path) or "/" in path) and not _is_file(path)
    }
    task = "text-classification" if is_classifier else "text-generation"
    results = [
        _result(task, name, measure, estimate, about)
        for name, about in found.items()
        for measure, estimate in about["scores"].items()
    ] or [
        EvalResult(task, "llmrecipes", "held out by this recipe", name, round(value, 6))
        for name, value in _measured(manifest).items()
    ]
    return ModelCardData(
        model_name=repo_name(config.get("output_dir") or folder),
        base_model=repo_name(base) if on_hub else None,
        base_model_relation=("adapter" if is_adapter else "finetune") if on_hub else None,
        datasets=sorted(data) or None,
        eval_results=results or None,
        library_name="peft" if is_adapter else "transformers",
        license=config.get("license"),
        pipeline_tag=task if (folder / "tokenizer_config.json").exists() and _has_weights(folder) else None,
        tags=["llmrecipes", manifest["stage"]],
    )


def _result(task: str, evaluation: str, measure: str, e: dict, about: dict) -> EvalResult:
    against = f" against {about['baseline']}" if about.get("baseline") and is_comparison(measure) else ""
    # The Hub shows all results of one type and config under the name of the first.
    kind, title = "llmrecipes", "held-out questions and texts of this recipe"
    if measure in about.get("tasks", []):
        kind, title = measure, f"{measure} (a task in lm-eval's format)"
    return EvalResult(
        task_type=task,
        dataset_type=kind,
        dataset_name=title,
        dataset_config=evaluation or None,
        metric_type=measure,
        metric_name=f"{measure}{against} (n = {e['n']}, 95 % interval {e['low']:.4g} to {e['high']:.4g})",
        metric_value=round(e["value"], 6),
    )


def _text(folder: Path, manifest: dict, found: dict) -> str:
    config, path = manifest["config"], manifest["config"].get("output_dir") or folder
    what, paper = _recipe(manifest["stage"])
    sources = [
        " ".join(filter(None, [s["path"], s.get("name"), s.get("split")]))
        + (f" (weight {s['weight']})" if s.get("weight") else "")
        for s in config.get("datasets") or []
    ]
    hardware = manifest.get("hardware", {})
    lines = [f"# {repo_name(path)}", "", what, "", f"Made: {manifest['made']}.", "", "## Training data", ""]
    lines += [f"- {source}" for source in sources] or ["None of its own."]
    corpora = manifest.get("corpora") or {}
    lines += [f"- Report of the corpus `{repo_name(path)}`: fingerprint `{mark}`" for path, mark in corpora.items()]
    source = [f"Its settings follow {config['source'].rstrip('.')}."] if config.get("source") else []
    lines += ["", "## Procedure", "", " ".join([paper, *source, *_lineage(config)]), "", "| setting | value |", "|---|---|"]
    unused = {"num_train_epochs"} if (config.get("max_steps") or 0) > 0 else {"max_steps"}
    unused |= set() if config.get("use_peft") else {"lora_r"}
    lines += [f"| {key} | {config[key]} |" for key in SHOWN if key not in unused and config.get(key) not in (None, False)]
    accelerators = ", ".join(hardware.get("accelerators") or []) or "no accelerator"
    versions = ", ".join(f"{k} {v}" for k, v in manifest.get("packages", {}).items() if v)
    lines += [
        "",
        f"{manifest['wall_seconds']:.0f} s on {hardware.get('cores')} cores, {accelerators}; {versions}; commit "
        f"{manifest.get('commit')}.",
    ]
    lines += _planned(manifest)
    lines += ["", "## Evaluation", "", *_figures(manifest, found), *_compared(manifest)]
    if verdict := read_json(folder / "health.json").get("verdict"):
        lines += [
            "",
            f"Health check: **{verdict}**; `health.md` has the calibration, the length bias and the worst mistakes.",
        ]
    lines += _answers(folder)
    risks = RISKS["reward" if _is_classifier(folder) else "language"]
    lines += [
        "",
        "## Intended use and limits",
        "",
        f"For learning and research on how language models are trained. {risks}; it has been measured on nothing but "
        "the figures above, and is not meant to advise people or to act on its own.",
    ]
    name = loading_name(path)
    loading = load_model(folder, name, _is_classifier(folder), _answers_chats(folder, config))
    lines += ["", "## How to load", "", f"`{name}` is this folder, or its repository on the Hub.", ""]
    lines += ["```python", *loading, "```", "", "## Reproduce", ""]
    lines += ["In a checkout of llmrecipes:", "", "```", manifest["command"], "```", ""]
    lines += [f"`manifest.json` holds every setting; run `{manifest['fingerprint']}`."]
    return hide_paths("\n".join(lines)) + "\n"


def _figures(manifest: dict, found: dict) -> list[str]:
    """What evaluations have `found`, with intervals; else what the training measured itself."""
    lines = []
    for evaluation, about in found.items():
        lines += [f"### {evaluation}", ""] if len(found) > 1 else []
        lines += ["| measure | value | 95 % interval | n | what |", "|---|---|---|---|---|"]
        lines += [
            f"| {with_arrow(m)} | {e['value']:.4g} | {e['low']:.4g} to {e['high']:.4g} | {e['n']} | {meaning(m)} |"
            for m, e in about["scores"].items()
        ]
        line = describe_evaluation(about["scores"], about)
        lines += [*(["", line] if line else []), ""]
    if measured := {} if found else _measured(manifest):
        lines += ["| measure | value |", "|---|---|", *(f"| {m} | {v:.4g} |" for m, v in measured.items())]
        lines += ["", "Measured at the end of training, without intervals; `recipes/evaluate.py` adds them."]
    elif not found:
        lines += ["Not measured yet; `recipes/evaluate.py` does it."]
    return lines


def _planned(manifest: dict) -> list[str]:
    """The memory that one GPU would need for the same run, and what this run used."""
    plan = manifest.get("plan")
    if not plan:
        return []
    here = "a GPU's" if (manifest.get("hardware") or {}).get("accelerators") else "main memory, on CPUs"
    flops = f", at most {plan['flops']:.2e} FLOPs in all" if plan["flops"] else ""
    lines = [
        "",
        "## Memory",
        "",
        f"According to `recipes/plan.py`, on a GPU in bfloat16, at the peak of the "
        f"{plan['phase']}{flops}. Measured: {manifest['peak_memory_gib']:.2f} GiB ({here}).",
    ]
    lines += ["", "| part | GiB |", "|---|---|", *(f"| {part} | {gib:.3g} |" for part, gib in plan["memory_gib"].items())]
    lines += [f"| all | {plan['peak_gib']:.3g} |"]
    return lines + (["", *(f"- Not known: {text}" for text in plan["unknown"])] if plan["unknown"] else [])


def _compared(manifest: dict) -> list[str]:
    """What the recipe expected against what it got, and others' figures with their sources."""
    expected = manifest.get("expected") or {}
    lines = [
        f"- The recipe expects {name} {v['expected']:g} ± {v['tolerance']:g}; "
        + (f"{v['got']:.4g}: {v['verdict']}" if v["got"] is not None else v["verdict"])
        for name, v in expected.items()
    ]
    lines += published_figures(manifest["config"].get("published"))
    return ["", *lines] if lines else []


def _answers_chats(folder: Path, config: dict) -> bool:
    """Whether the model was trained to answer: one trained from scratch only continues text, whatever its tokenizer
    knows."""
    return bool(config.get("model_name_or_path")) and has_template(folder)


def _lineage(config: dict) -> list[str]:
    """The reward model, value model and reward functions of the run, and a base that is no model of a hub, one line each."""
    named = {"reward_model_name_or_path": "Reward model", "value_model_name_or_path": "Value model started from"}
    named = {"model_name_or_path": "Base model"} | named if "pypi:" in str(config.get("model_name_or_path")) else named
    lines = [f"{title}: `{repo_name(config[key])}`." for key, title in named.items() if config.get(key)]
    functions = config.get("reward_functions") or []
    return lines + ([f"Reward functions: {', '.join(f'`{name}`' for name in functions)}."] if functions else [])


def _answers(folder: Path) -> list[str]:
    """One answer of the model: from the last evaluation or rollout that kept responses, else from the end of watch.jsonl."""
    files = sorted((folder / "completions").glob("*.jsonl"), key=lambda file: (file.name != "train.jsonl", file.name))
    rows = read_growing(files[-1]) if files else []
    if rows:  # any row of an evaluation will do; training's newest is the last
        row = rows[-1] if files[-1].name == "train.jsonl" else rows[0]
        return _quoted(prompt_text(row["prompt"]), row["completion"])
    watched = read_growing(folder / "watch.jsonl")
    said = list(watched[-1].get("answers", {}).items()) if watched else []
    return _quoted(*said[0]) if said else []


def _quoted(prompt: str, response: str) -> list[str]:
    """Prompt and answer as indented code, which no model output can end."""
    text = f"> {prompt}\n{response}"
    return ["", "## It says", "", *(f"    {line}" for line in text.splitlines())]


def _recipe(stage: str) -> tuple[str, str]:
    """First paragraph and `Paper:` lines of the recipe's docstring."""
    path = ROOT / "recipes" / f"{stage.split('-')[0]}.py"
    text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "") if path.exists() else ""
    paper = next((line.removeprefix("Paper: ") for line in text.splitlines() if line.startswith("Paper: ")), "")
    return text.split("\n\n")[0], f"After {paper}" if paper else "As the recipe says."


def _measured(manifest: dict) -> dict[str, float]:
    metrics = manifest.get("metrics", {}).items()
    return {k: float(v) for k, v in metrics if isinstance(v, (int, float)) and not BOOKKEEPING.search(k)}


def _checked(folder: Path) -> dict[str, dict]:
    """Accuracy on each held-out set of pairs, with its interval, from the reward model's health check."""
    sets = read_json(folder / "health.json").get("by_set", {})
    return {f"pair_accuracy_{name}".replace(" ", "_"): estimate for name, estimate in sets.items()}


def _is_classifier(folder: Path) -> bool:
    config, adapter = (read_json(folder / name) for name in ("config.json", "adapter_config.json"))
    names = config.get("architectures") or [adapter.get("task_type")]
    return any("SequenceClassification" in str(name) or name == "SEQ_CLS" for name in names)


def _is_file(path: str) -> bool:
    return Path(path).is_file() or PurePath(path).name.endswith((".jsonl", ".json", ".gz", ".csv", ".parquet", ".txt"))


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))
