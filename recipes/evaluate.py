"""Evaluation: several models side by side on held-out text, abilities and behaviour, each figure with its interval.

Papers: lm-eval (Gao et al. 2021), InstructGPT (arXiv 2203.02155) for win rates.
Launch: python recipes/evaluate.py --config configs/quickstart/evaluate.yaml
Writes: output_dir/metrics.json (`models`: value, low, high, n of each measure; `p_values`: each model against the baseline,
McNemar's exact test), answers.jsonl (every answer with its judgement, if there are questions), table.txt.
"""

from llmrecipes.config import DataArguments, ModelArguments, RunArguments
from llmrecipes.parsing import launch


def main(run, data, evaluate, model):
    from llmrecipes.cards.dataset import write_card
    from llmrecipes.cards.model import write_model_card
    from llmrecipes.data import true_rows
    from llmrecipes.evaluation import evaluate_models, load_parts, write_results
    from llmrecipes.judging.judges import VERDICTS_FILE
    from llmrecipes.processes import processes
    from llmrecipes.run import check_run, finish_run, start_run

    processes()  # joins the processes of a launch before the first one writes
    inputs = [*evaluate.models.values(), *(s.path for s in data.datasets + data.eval_datasets)]
    state = check_run("evaluate", run, evaluate, (run, data, evaluate, model), inputs, keep=(VERDICTS_FILE,))

    parts = load_parts(data, evaluate, model)
    start_run(state)
    with true_rows(data, evaluate.seed, ("prompt",), questions=parts.questions):
        scores, rows, answers = evaluate_models(model, evaluate, parts)
    flat = {}
    if state.is_main:
        flat = write_results(state.output_dir, scores, rows, answers, parts, evaluate.show_answers, evaluate.judge_price)
        for name, folder in evaluate.models.items():  # update each model's card
            write_model_card(folder, {m: e._asdict() for m, e in scores[name].items()}, state.output_dir)
        if rows:
            table = (state.output_dir / "table.txt").read_text(encoding="utf-8")
            body = f"Held-out questions and each model's answers. `metrics.json` holds the figures.\n\n```\n{table}```"
            write_card(state.output_dir, "Answers, judged", {"default": {"test": "answers.jsonl"}}, body, state)

    finish_run(state, flat, made=f"{len(scores)} models compared", shown=run.expected or ())


if __name__ == "__main__":
    # `datasets` are the questions (prompt, kind, ...), `eval_datasets` the held-out text.
    launch(main, RunArguments, DataArguments, "llmrecipes.evaluation.arguments:EvaluateArguments", ModelArguments)
