"""Settings that choose the best model: whether what they compare is measured, on the same models as are saved."""

import ast

from llmrecipes.code_files import module_file
from llmrecipes.keys.settings import Problems, Settings

WATCHING = ("reduce_lr_on_plateau", "greedy")  # schedules that look at evaluations

# What evaluations measure, by a key that only the stage in question has; some only with certain settings.
_TRL = "loss entropy num_tokens aux_loss"
_SIDES = "logits/chosen logits/rejected logps/chosen logps/rejected rewards/chosen rewards/rejected rewards/margins"
MEASURED = {
    "phases": "loss",
    "packing": f"{_TRL} mean_token_accuracy",
    "health_check": "loss accuracy margin min_reward mean_reward max_reward num_tokens",
    "f_divergence_type": f"{_TRL} {_SIDES} mean_token_accuracy rewards/accuracies",
    "desirable_weight": f"{_TRL} {_SIDES} kl",
    "num_ppo_epochs": "score kl entropy response_length eos_rate score_std scores/",
    "num_iterations": (
        f"{_TRL} reward reward_std frac_reward_zero_std rewards/ kl policy_loss completions/ clip_ratio/ cispo_clip_ratio "
        "vespo/phi_seq_mean sampling/ tools/"
    ),
}


def best_model(s: Settings) -> Problems:
    """Settings of the best model that contradict each other."""
    metric, strategies = s["metric_for_best_model"], (s["eval_strategy"], s["save_strategy"])
    decides = s["load_best_model_at_end"] or s["save_strategy"] == "best" or s["lr_scheduler_type"] in WATCHING
    if s["load_best_model_at_end"]:
        if "best" not in strategies and strategies[0] != strategies[1]:
            text = (
                f"what is evaluated ({strategies[0]}) and what is saved ({strategies[1]}) must be the same models; give "
                "`eval_strategy` and `save_strategy` one value"
            )
            yield "load_best_model_at_end", text
        elif strategies == ("steps", "steps"):
            evaluated, saved = s["eval_steps"] or s["logging_steps"], s["save_steps"]
            if (evaluated < 1) != (saved < 1) or round(saved * 1e6) % round(evaluated * 1e6):
                yield "save_steps", f"{saved} is not a multiple of eval_steps {evaluated}; load_best_model_at_end needs both"
        if "health_check" in s.keys and s["eval_datasets"] and not metric:
            text = (
                "every evaluation set is measured by itself; say which one decides, e.g. `metric_for_best_model: test_loss`"
            )
            yield "load_best_model_at_end", text
    elif metric and not decides:
        yield "metric_for_best_model", "decides nothing; set `load_best_model_at_end: true` or `save_strategy: best`"
    if s["save_strategy"] == "best" and s["eval_strategy"] == "no":
        yield "save_strategy", "best needs evaluations; set `eval_strategy`"
    if decides and isinstance(metric, str | None):
        yield from _unmeasured(s, (metric or "loss").removeprefix("eval_"))


def _unmeasured(s: Settings, metric: str) -> Problems:
    """Trainer would say so at the first evaluation."""
    names = next((names.split() for key, names in MEASURED.items() if key in s.keys), [])
    functions = s["reward_functions"] if "reward_functions" in s.keys else None
    if not names or isinstance(functions, list) and any(_may_log(str(name)) for name in functions):
        return
    sets = s["eval_datasets"] if "health_check" in s.keys else None
    if isinstance(sets, list) and sets:  # Trainer puts the set's name before the loss alone
        if not s.given("metric_for_best_model") or metric.endswith("_loss") or len(sets) == 1 and metric in names[1:]:
            return
        names = ["SET_loss", *(names[1:] if len(sets) == 1 else [])]
    elif any(metric == name or name.endswith("/") and metric.startswith(name) for name in names):
        return
    shown = ", ".join(f"{name}..." if name.endswith("/") else name for name in names)
    yield "metric_for_best_model", f"{metric} is not measured by this stage's evaluations; choose from {shown}"


def _may_log(name: str) -> bool:
    """Whether a reward function may log figures of its own: unless the file that defines it shows that it never calls its
    argument `log_metric` and hands it on to nobody."""
    module, _, function = name.partition(":")
    try:
        source = module_file(module).read_text(encoding="utf-8")
        nodes = [node for node in ast.walk(ast.parse(source)) if getattr(node, "name", None) == function]
    except (AttributeError, OSError, SyntaxError, ValueError):  # none to read, which is told elsewhere
        return True
    if "log_metric" in source or len(nodes) != 1 or not isinstance(nodes[0], ast.FunctionDef | ast.AsyncFunctionDef):
        return True
    others = nodes[0].args.kwarg
    inside = list(ast.walk(nodes[0]))
    used = sum(isinstance(node, ast.Name) and node.id == others.arg for node in inside) if others else 0
    for node in inside:  # columns["answer"] takes one out
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.value, ast.Name):
            used -= bool(others) and node.value.id == others.arg
    return bool(used or nodes[0].decorator_list)
