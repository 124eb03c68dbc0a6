"""What decides on the best model is known before anything is loaded: the table of what evaluations measure is TRL's own."""

import re
import textwrap
from pathlib import Path

import pytest
import trl
from recipe_types import recipe_types
from wrong_configs import make_inputs, write_config

from llmrecipes.config import InputError
from llmrecipes.parsing import parse
from llmrecipes.preflight.best_model import MEASURED

STAGES = {
    "phases": "pretrain",
    "packing": "sft",
    "health_check": "reward",
    "f_divergence_type": "dpo",
    "desirable_weight": "kto",
    "num_ppo_epochs": "ppo",
    "num_iterations": "grpo",
}
DECIDES = "load_best_model_at_end: true; eval_strategy: steps; save_strategy: steps; eval_steps: 1; save_steps: 1"


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "kto", "grpo"])
def test_the_table_is_what_trls_trainers_log(stage):
    source = (Path(trl.__file__).parent / "trainer" / f"{stage}_trainer.py").read_text()
    logged = set(re.findall(r'_metrics\[mode\]\[f?"([^"]+)"\]', source)) - {"entropy_coef"}  # of training alone
    key = next(key for key, name in STAGES.items() if name == stage)
    names = [*MEASURED[key].split()]
    covers = lambda name, metric: metric == name or name.endswith("/") and metric.startswith(name)
    assert all(any(covers(name, metric) for name in names) for metric in logged)
    assert all(any(covers(name, metric) for metric in logged | {"loss"}) for name in names)


@pytest.mark.parametrize("stage", STAGES.values())
def test_what_is_measured_passes(stage, tmp_path):
    paths = make_inputs(tmp_path)
    key = next(key for key, name in STAGES.items() if name == stage)
    for metric in MEASURED[key].split()[:2]:
        lines = [*DECIDES.split("; "), "test_split_size: 0.1", f"metric_for_best_model: eval_{metric}"]
        config = write_config(tmp_path, stage, lines, paths)
        assert parse(*recipe_types(stage), argv=["--config", str(config)], inputs_exist=True)


@pytest.mark.parametrize(
    ("stage", "changes", "told"),
    [
        (
            "sft",
            "metric_for_best_model: eval_bleu",
            "bleu is not measured by this stage's evaluations; choose from loss, ent",
        ),
        ("sft", "~load_best_model_at_end; lr_scheduler_type: greedy; metric_for_best_model: bleu", "bleu is not measured"),
        ("dpo", "metric_for_best_model: kl", "kl is not measured"),
        ("reward", "metric_for_best_model: eval_accuracies", "choose from loss, accuracy, margin"),
        ("reward", "eval_datasets: [{path: {scores}}]; metric_for_best_model: loss", "choose from SET_loss, accuracy"),
        ("reward", "eval_datasets: [{scores}, {rows}]; metric_for_best_model: accuracy", "choose from SET_loss$"),
        ("kto", "metric_for_best_model: rewards/accuracies", "choose from loss, entropy"),
        ("ppo", "", "loss is not measured by this stage's evaluations; choose from score, kl"),
        ("grpo", "metric_for_best_model: score; reward_functions: []; reward_model_name_or_path: {reward}", "score is not"),
        ("pretrain", "metric_for_best_model: perplexity", "perplexity is not measured .* choose from loss$"),
    ],
)
def test_what_is_not_measured_is_refused_before_anything_is_loaded(stage, changes, told, tmp_path):
    changed = changes.split("; ") if changes else []
    held_out = [] if "eval_datasets" in changes else ["test_split_size: 0.1"]
    lines = [line for line in DECIDES.split("; ") if f"~{line.partition(':')[0]}" not in changed]
    config = write_config(tmp_path, stage, [*lines, *held_out, *changed], make_inputs(tmp_path))
    with pytest.raises(InputError, match=told) as caught:
        parse(*recipe_types(stage), argv=["--config", str(config)], inputs_exist=True)
    assert len(caught.value.args) == 1


def test_figures_that_only_reward_functions_could_log_are_refused_where_none_does(tmp_path, monkeypatch):
    rewards = """
        def brief(completions, **columns): return [-len(c) * len(columns["prompts"]) for c in completions]
        def hands_on(completions, **columns): return brief(completions, **columns)
        """
    (tmp_path / "plainrewards.py").write_text(textwrap.dedent(rewards))
    (tmp_path / "loggedrewards.py").write_text("def passes(completions, log_metric): log_metric('passed', 1)\n")
    monkeypatch.chdir(tmp_path)
    paths = make_inputs(tmp_path)

    def told(stage, function, metric="passed"):
        changes = [*DECIDES.split("; "), "test_split_size: 0.1", f"metric_for_best_model: {metric}"]
        config = write_config(tmp_path, stage, [*changes, f"reward_functions: [{function}]"], paths)
        try:
            parse(*recipe_types(stage), argv=["--config", str(config)], inputs_exist=True)
        except InputError as error:
            return str(error)

    for stage in ("grpo", "ppo"):
        assert "passed is not measured" in told(stage, "plainrewards:brief")
        assert not told(stage, "plainrewards:hands_on") and not told(stage, "loggedrewards:passes")
    assert not told("grpo", "plainrewards:brief", "rewards/brief/mean")
