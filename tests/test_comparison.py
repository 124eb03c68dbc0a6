"""Runs side by side: what differs, seeds as one column, intervals and p-values that are right, mistakes in one line."""

import json
import math
from pathlib import Path

import pytest
from forked import run_python
from scipy.stats import binom, fisher_exact, t, ttest_ind

from llmrecipes.comparison import compare, differences, p_value, read_columns, summarise, write_comparison
from llmrecipes.config import InputError
from llmrecipes.metrics import Estimate, proportion


def run(folder, stage="dpo", status="finished", metrics=None, curve=(), evaluation=None, **config):
    folder.mkdir(parents=True)
    config = {"output_dir": str(folder), "beta": 0.1, "seed": 1, "model_name_or_path": f"{folder.parent}/sft"} | config
    manifest = {
        "stage": stage,
        "status": status,
        "config": config,
        "metrics": metrics or {},
        "output_fingerprint": "f",
        "wall_seconds": 12.0,
        "peak_memory_gib": 1.5,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    if curve:
        logs = [{"step": i, "loss": value} for i, value in enumerate(curve)]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": logs}))
    if evaluation:
        (folder / "evaluation.json").write_text(
            json.dumps({"fingerprint": "f", "evaluations": {"e": {"scores": evaluation}}})
        )
    return str(folder)


def test_keys_that_differ_and_paths_of_the_own_chain_do_not(tmp_path):
    one, other = run(tmp_path / "a" / "dpo"), run(tmp_path / "b" / "dpo", beta=0.5, learning_rate=1e-5, report_to="none")
    assert differences(read_columns([one, other])) == {"beta": [0.1, 0.5], "learning_rate": [None, 1e-5]}


def chain(folder, seed, lr, rows="r"):
    """A dpo run and the sft run that its model came from."""
    sft = run(folder / "sft", stage="sft", seed=seed, learning_rate=lr)
    dpo = run(folder / "dpo", seed=seed)
    for place, inputs in ((sft, {"rows.jsonl": rows, "hub/id": "hub:hub/id"}), (dpo, {sft: "f"})):
        file = Path(place) / "manifest.json"
        manifest = json.loads(file.read_text())
        given = {"learning_rate": lr} if place == sft else {"beta": 0.1}
        file.write_text(json.dumps(manifest | {"given": given, "inputs": inputs}))
    return dpo


def test_what_an_input_was_made_with_is_part_of_the_run(tmp_path):
    one, seed, rate = chain(tmp_path / "a", 1, 1e-4), chain(tmp_path / "b", 2, 1e-4), chain(tmp_path / "c", 3, 3e-4)
    columns = read_columns([one, seed, rate])
    assert [len(column.folders) for column in columns] == [2, 1], "another learning rate of SFT is no third seed"
    assert differences(columns) == {"sft.learning_rate": [1e-4, 3e-4]}
    data = chain(tmp_path / "d", 1, 1e-4, rows="others")
    assert differences(read_columns([one, data])) == {"contents of rows.jsonl": ["r", "others"]}
    (tmp_path / "moved").mkdir()
    (tmp_path / "b").rename(tmp_path / "moved" / "b")
    assert len(read_columns([one, str(tmp_path / "moved" / "b" / "dpo")])) == 1, "a chain may move"
    file = tmp_path / "a" / "sft" / "manifest.json"  # trained again since, so it is not what was read
    file.write_text(json.dumps(json.loads(file.read_text()) | {"output_fingerprint": "g"}))
    assert "contents of CHAIN/sft" in differences(read_columns([one, data]))


def test_seeds_alone_keep_all_their_measures(tmp_path):
    metrics = {"eval_loss": 1.0, "eval_rewards/chosen": 0.1, "eval_logps/chosen": 0.2}
    text = write_comparison([run(tmp_path / f"s{s}" / "dpo", seed=s, metrics=metrics) for s in (1, 2)], None)
    assert all(f"| {name}" in text for name in metrics)


def test_a_measure_of_some_of_the_seeds_says_so(tmp_path):
    scores = {"correct": proportion(50, 100)._asdict()}
    folders = [run(tmp_path / f"s{s}" / "dpo", seed=s, evaluation=scores if s == 1 else None) for s in (1, 2)]
    rows = write_comparison(folders, None).splitlines()
    assert [row.endswith("], 1 of 2 runs |") for row in rows if row.startswith(("| e/correct", "| seconds"))] == [
        True,
        False,
    ]


def test_measures_of_other_evaluations_are_not_mixed(tmp_path):
    folders = [run(tmp_path / name / "dpo", beta=i) for i, name in enumerate("ab")]

    def evaluate(**values):
        for folder, evaluations in zip(folders, values.values(), strict=True):
            found = {name: {"scores": {"correct": proportion(n, 100)._asdict()}} for name, n in evaluations.items()}
            (Path(folder) / "evaluation.json").write_text(json.dumps({"fingerprint": "f", "evaluations": found}))
        return [c.measures for c in read_columns(folders)]

    first, second = evaluate(a={"a-evaluate": 10, "english-evaluate": 90}, b={"b-evaluate": 20})
    assert first["correct"][0].value == 0.1 and second["correct"][0].value == 0.2
    assert first["english-evaluate/correct"][0].value == 0.9 and "english-evaluate/correct" not in second
    first, second = evaluate(a={"a-evaluate": 10, "both": 90}, b={"both": 30, "b-evaluate": 20})
    assert (first["correct"][0].value, second["correct"][0].value) == (0.9, 0.3), "the one that measured both"


def test_perplexities_give_way_to_bits_per_byte_which_other_tokenizers_do_not_change(tmp_path):
    texts = {"perplexity": proportion(60, 100)._asdict(), "bits_per_byte": proportion(9, 10)._asdict()}
    both = run(tmp_path / "a" / "pretrain", metrics={"perplexity": 5.0, "bits_per_byte": 0.5}, evaluation=texts)
    alone = run(tmp_path / "b" / "pretrain", metrics={"perplexity": 5.0}, beta=9)
    first, second = (column.measures for column in read_columns([both, alone]))
    assert [name for name in first if "perplexity" in name] == [] and first["bits_per_byte"][0] == 0.5
    assert second["perplexity"][0] == 5.0


def test_figures_by_another_judge_or_over_another_baseline_stand_apart(tmp_path):
    won = {"judge_win_rate": proportion(60, 100)._asdict(), "bits_per_byte": proportion(9, 10)._asdict()}
    folders = {name: run(tmp_path / name / "dpo", beta=i, evaluation=won) for i, name in enumerate("ab")}

    def measured(**abouts):
        for name, about in abouts.items():
            found = {"evaluate": {"scores": won, "tasks": []} | about}
            (tmp_path / name / "dpo" / "evaluation.json").write_text(json.dumps({"fingerprint": "f", "evaluations": found}))
        text = write_comparison([*folders.values()], None)
        return [row for row in text.splitlines() if row.startswith(("| judge_win", "| bits"))]

    one = {"baseline": "sft", "judged_by": {"judge": "gpt"}}
    assert len(measured(a=one, b=one)) == 2
    for other in ({"baseline": "base"}, {"judged_by": {"judge": "org/llama"}}, {"judged_by": {}}):
        rows = measured(a=one, b=one | other)
        apart = [row.count("0.6 [") for row in rows if row.startswith("| judge_win_rate ↑ (over ")]
        assert len(rows) == 3 and apart == [1, 1], rows


def evaluation(folder, seed=1, rows="q", baseline_lr=1e-4, reward_lr=1e-4, **config):
    """An evaluation of a chain's two models on one file of questions, by one judge."""
    models = {name: run(folder / name, stage=name, seed=seed) for name in ("sft", "dpo", "reward")}
    for name, place in models.items():
        file = Path(place) / "manifest.json"
        rate = {"sft": baseline_lr, "reward": reward_lr}.get(name, 1e-4)
        about = {"given": {"learning_rate": rate, "seed": seed}, "inputs": {}, "output_fingerprint": f"{seed}{name}"}
        file.write_text(json.dumps(json.loads(file.read_text()) | about))
    sources = {"datasets": [{"path": "mine/q.jsonl", "split": "train"}], "eval_datasets": [{"path": "hub/texts"}]}
    keys = {"models": models, "baseline": "sft", "judge": "m:judge"} | sources | config
    keys["reward_model_name_or_path"] = models["reward"]
    place = Path(run(folder / "evaluate", stage="evaluate", seed=seed, **keys))
    manifest = json.loads((place / "manifest.json").read_text())
    about = {
        "inputs": {"mine/q.jsonl": rows, "hub/texts": "hub:hub/texts"}
        | {path: f"{seed}{name}" for name, path in models.items()},
        "given": keys,
    }
    (place / "manifest.json").write_text(json.dumps(manifest | about))
    measures = ("correct", "judge_win_rate", "bits_per_byte", "some_task", "reward")
    scores = {name: {m: proportion(60, 100)._asdict() for m in measures} for name in models}
    (place / "metrics.json").write_text(
        json.dumps({"models": scores, "judged_by": {"judge": "m:judge", "reward_model": "r"}, "tasks": ["some_task"]})
    )
    return str(place)


@pytest.mark.parametrize(
    ("change", "apart"),
    [
        ({}, set()),
        ({"rows": "others"}, {"correct", "judge_win_rate", "reward"}),
        ({"datasets": [{"path": "mine/q.jsonl", "split": "train[:9]"}]}, {"correct", "judge_win_rate", "reward"}),
        ({"eval_datasets": [{"path": "hub/others"}]}, {"bits_per_byte"}),
        ({"task_limit": 9}, {"some_task"}),
        ({"judge_guidelines": "mine.md"}, {"judge_win_rate"}),
        ({"baseline_lr": 3e-4}, {"judge_win_rate"}),
        ({"reward_lr": 3e-4}, {"reward"}),
        ({"max_new_tokens": 9}, set()),
    ],
)
def test_figures_on_other_questions_stand_apart_and_it_is_said(tmp_path, change, apart):
    folders = [evaluation(tmp_path / "a"), evaluation(tmp_path / "b", **{"beta": 9} | change)]
    text = write_comparison(folders, None)
    rows = [row for row in text.splitlines() if row.startswith("| dpo/") and "0.6 [" in row]
    assert {row.split()[1].removeprefix("dpo/") for row in rows if row.count("0.6 [") == 1} == apart
    assert len(rows) == 5 + len(apart) and ("not comparable: each has a row" in text) == bool(apart)
    seeds = [*folders[:1], evaluation(tmp_path / "c", seed=2)]
    assert {len(values) for values in read_columns(seeds)[0].measures.values()} == {2}, "seeds stay one column"


def test_what_a_model_was_evaluated_on_is_kept_beside_it(tmp_path):
    from llmrecipes.cards.evaluations import about_evaluation

    folders = []
    for name, rows in (("a", "q"), ("b", "q"), ("c", "others")):
        place = Path(evaluation(tmp_path / name, rows=rows))
        dpo = place.parent / "dpo"
        found = {
            f"{name}-evaluate": about_evaluation(place)
            | {"scores": json.loads((place / "metrics.json").read_text())["models"]["dpo"]}
        }
        (dpo / "evaluation.json").write_text(json.dumps({"fingerprint": "1dpo", "evaluations": found}))
        folders.append(str(dpo))
    count = lambda some: {c.partition(" ")[0] for col in read_columns(some) for c in col.measures if " (" in c}
    assert count(folders[:2]) == set() and count(folders[1:]) == {"correct", "judge_win_rate", "reward"}
    asked = json.loads((tmp_path / "a" / "dpo" / "evaluation.json").read_text())["evaluations"]["a-evaluate"]["asked"]
    assert asked["questions"].startswith("q.jsonl ") and "/" not in str(asked)


def test_held_out_measures_of_trainings_on_other_rows_stand_apart(tmp_path):
    metrics, held = {"eval_loss": 1.0, "train_loss": 1.0}, [{"path": "org/set", "split": "test"}]
    one = run(tmp_path / "a" / "dpo", metrics=metrics, eval_datasets=held)
    same = run(tmp_path / "b" / "dpo", metrics=metrics, eval_datasets=held, beta=9)
    other = run(tmp_path / "c" / "dpo", metrics=metrics, eval_datasets=[{"path": "org/set", "split": "test[:9]"}])
    share = run(tmp_path / "d" / "dpo", metrics=metrics, datasets=held, test_split_size=0.1)
    names = lambda *folders: sorted({m.split()[0] for c in read_columns(folders) for m in c.measures if " (" in m})
    assert names(one, same) == [] and names(one, other) == names(one, share) == ["eval_loss"]


def test_the_chains_own_reward_model_is_one_judge_for_all_seeds(tmp_path):
    scores = {"reward": Estimate(0.5, 0, 1, 9)._asdict()}
    folders = []
    for seed in (1, 2):
        folders.append(run(tmp_path / f"s{seed}" / "evaluate", stage="evaluate", seed=seed, models={"ppo": "hub/id"}))
        judged = {"reward_model": str(tmp_path / f"s{seed}" / "reward")}
        text = json.dumps({"models": {"ppo": scores}, "judged_by": judged})
        (tmp_path / f"s{seed}" / "evaluate" / "metrics.json").write_text(text)
    assert read_columns(folders)[0].measures["ppo/reward"] == [Estimate(0.5, 0, 1, 9)] * 2


def test_seeds_are_one_column_with_students_interval(tmp_path):
    folders = [run(tmp_path / f"s{s}" / "dpo", seed=s, metrics={"eval_loss": v}) for s, v in ((1, 1.0), (2, 1.2), (3, 1.7))]
    other = [run(tmp_path / f"o{s}" / "dpo", seed=s, beta=9, metrics={"eval_loss": v}) for s, v in ((1, 2.0), (2, 2.1))]
    first, second = read_columns([*folders, *other])
    assert len(first.folders) == 3 and len(second.folders) == 2
    found = summarise(first.measures["eval_loss"])
    low, high = t.interval(0.95, 2, loc=1.3, scale=math.sqrt(0.13 / 3))
    assert found == pytest.approx((1.3, low, high, 3))
    expected = ttest_ind([2.0, 2.1], [1.0, 1.2, 1.7], equal_var=False).pvalue
    assert p_value(second.measures["eval_loss"], first.measures["eval_loss"]) == pytest.approx(expected)


def test_one_run_named_twice_or_copied_is_no_second_seed(tmp_path):
    one = run(tmp_path / "a" / "dpo", metrics={"eval_loss": 1.0})
    with pytest.raises(InputError, match="two folders or more"):
        read_columns([one, f"{one}/", f"{tmp_path}/a/../a/dpo"])
    again = run(tmp_path / "b" / "dpo", metrics={"eval_loss": 1.0})
    assert [len(column.folders) for column in read_columns([one, again])] == [1, 1]
    assert "None, and the seed is the same." in write_comparison([one, again], None)


@pytest.mark.parametrize("key", ["stage", "config", "metrics"])
def test_a_damaged_manifest_is_one_line(tmp_path, key):
    folders = [run(tmp_path / name / "dpo", beta=i) for i, name in enumerate("ab")]
    file = tmp_path / "b" / "dpo" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: None}))
    with pytest.raises(InputError, match=f"is damaged: no {key}"):
        read_columns(folders)


@pytest.mark.parametrize("scores", [{"correct": 3}, {"correct": {"value": "x", "low": 1, "high": 2, "n": 3}}])
def test_a_damaged_evaluation_is_one_line(tmp_path, scores):
    folders = [run(tmp_path / name / "dpo", beta=i, evaluation=scores) for i, name in enumerate("ab")]
    with pytest.raises(InputError, match="evaluation.json is damaged"):
        read_columns(folders)


@pytest.mark.parametrize(
    "logs", ['{"loss": 1}', '{"step": "x", "loss": 1}', '{"step": 1, "loss": [2]}', "3", '{"loss": null}']
)
def test_a_damaged_curve_is_one_line_or_none(tmp_path, logs):
    folders = [run(tmp_path / name / "dpo", beta=i) for i, name in enumerate("ab")]
    (tmp_path / "b" / "dpo" / "trainer_state.json").write_text(f'{{"log_history": [{logs}]}}')
    if logs == "3":
        assert read_columns(folders)[1].curves == {}
    else:
        with pytest.raises(InputError, match="trainer_state.json is damaged: `loss`"):
            read_columns(folders)


@pytest.mark.parametrize(("stage", "name"), [("dpo", "trainer_state"), ("dpo", "evaluation"), ("evaluate", "metrics")])
def test_a_file_that_cannot_be_read_is_one_line_and_no_missing_figure(tmp_path, stage, name):
    folders = [run(tmp_path / letter / stage, stage=stage, beta=i) for i, letter in enumerate("ab")]
    (tmp_path / "b" / stage / f"{name}.json").write_text('{"log')
    with pytest.raises(InputError, match=f"b/{stage}/{name}.json is damaged, it is no JSON"):
        read_columns(folders)


def test_rows_in_a_step_are_a_difference_also_of_an_input(tmp_path):
    """As after a sweep of per_device_train_batch_size: two sizes with two seeds are no two seeds of one run."""
    folders = [chain(tmp_path / str(seed), seed, 1e-4) for seed in (1, 2, 3)]
    for folder, stage, rows in ((0, "dpo", 4), (1, "dpo", 8), (2, "dpo", 4), (0, "sft", 16), (1, "sft", 16), (2, "sft", 32)):
        file = Path(folders[folder]).parent / stage / "manifest.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"batch": rows}))
    columns = read_columns(folders)
    assert differences(columns) == {"rows in a step": [4, 8, 4], "sft.rows in a step": [16, 16, 32]}


def test_a_figure_that_is_no_number_over_seeds_has_no_interval(tmp_path):
    runs = [
        run(tmp_path / f"{beta}{seed}" / "dpo", beta=beta, seed=seed, metrics={"eval_loss": loss})
        for beta, seed, loss in ((0.1, 1, math.nan), (0.1, 2, 1.0), (0.5, 1, 1.0), (0.5, 2, math.inf))
    ]
    row = next(line for line in write_comparison(runs, None).splitlines() if line.startswith("| eval_loss"))
    assert [cell.strip() for cell in row.strip("|").split("|")][1:] == ["nan", "inf", "–"]


def test_single_runs_are_tested_by_the_intervals_of_their_evaluation(tmp_path):
    wide, narrow = proportion(50, 100), proportion(90, 100)
    assert p_value([narrow], [wide]) < 1e-6 and p_value([wide], [wide]) == 1.0
    assert p_value([1.0], [2.0]) is None and p_value([1.0, 1.0], [1.0, 1.0]) is None
    folders = [
        run(tmp_path / n / "dpo", beta=i, evaluation={"correct": e._asdict()})
        for i, (n, e) in enumerate((("a", wide), ("b", narrow)))
    ]
    text = write_comparison(folders, str(tmp_path / "out"))
    assert "| correct ↑" in text and "0.5 [" in text and "< 0.001" in text
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "Keys that differ" in page and (tmp_path / "out" / "compare.md").read_text() == text


def test_single_runs_differ_as_surely_as_fishers_test_says():
    """Also near 0 and 1, where intervals are lopsided; and in at most 5 of 100 comparisons of what is equal."""
    for ours, others, n in ((0, 10, 10), (1, 9, 10), (0, 4, 10), (90, 98, 100), (2, 9, 100)):
        exact = fisher_exact([[ours, n - ours], [others, n - others]])[1]
        found = p_value([proportion(ours, n)], [proportion(others, n)])
        assert exact / 2 < found < exact * 2 and found == p_value([proportion(others, n)], [proportion(ours, n)])
    for n, share in ((10, 0.5), (20, 0.2), (40, 0.5)):
        runs = [(proportion(k, n), binom.pmf(k, n, share)) for k in range(n + 1)]
        assert sum(p * q for one, p in runs for other, q in runs if p_value([one], [other]) < 0.05) < 0.05


def test_curves_are_overlaid_where_all_runs_have_them(tmp_path):
    folders = [run(tmp_path / name / "dpo", beta=i, curve=(3, 2, 1)) for i, name in enumerate("ab")]
    assert [section.key for section in compare(read_columns(folders))] == ["runs", "keys", "measures", "curves"]


def test_seeds_of_one_evaluation_are_a_column_for_each_model_with_its_cost(tmp_path):
    folders = []
    for seed, value in ((1, 0.5), (2, 0.7)):
        trained = run(tmp_path / f"c{seed}" / "ppo", stage="ppo")
        folder = run(
            tmp_path / f"c{seed}" / "evaluate", stage="evaluate", seed=seed, models={"ppo": trained, "sft": "hub/id"}
        )
        scores = {name: {"correct": Estimate(v, 0, 1, 9)._asdict()} for name, v in (("ppo", value), ("sft", 0.1))}
        (tmp_path / f"c{seed}" / "evaluate" / "metrics.json").write_text(json.dumps({"models": scores}))
        folders.append(folder)
    text = write_comparison(folders, None)
    head = next(line for line in text.splitlines() if line.startswith("| measure"))
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["measure", "ppo", "sft"]
    row = next(line for line in text.splitlines() if line.startswith("| correct"))
    assert "0.6 [" in row and "0.1 [" in row and any(line.startswith("| peak_memory_gib") for line in text.splitlines())


@pytest.mark.parametrize(
    ("change", "message"),
    [({"stage": "sft"}, "only runs of one stage"), ({"status": "running"}, "is running; finish it first")],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, change, message):
    folders = [run(tmp_path / "a" / "dpo"), run(tmp_path / "b" / "dpo", **change)]
    with pytest.raises(InputError, match=message):
        read_columns(folders)
    with pytest.raises(InputError, match="it is a chain, name one of its stages: dpo"):
        read_columns([folders[0], str(tmp_path / "b")])


def test_command_takes_folders_as_words(tmp_path):
    folders = [run(tmp_path / name / "dpo", beta=i) for i, name in enumerate("ab")]
    done = run_python("recipes/compare.py", *folders)
    assert done.returncode == 0 and "| beta" in done.stdout, done.stderr
    alone = run_python("recipes/compare.py", folders[0])
    assert alone.returncode == 2 and "needs two folders" in alone.stderr and alone.stderr.count("\n") == 1


def test_an_output_folder_that_is_a_file_is_one_line(tmp_path):
    runs = [run(tmp_path / name / "dpo", beta=beta) for name, beta in (("a", 0.1), ("b", 0.5))]
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="output_dir: .* cannot be written"):
            write_comparison(runs, str(place))
    assert (tmp_path / "file").read_text() == "mine"


def test_an_empty_output_folder_is_a_mistake(tmp_path):
    runs = [run(tmp_path / name / "dpo", beta=beta) for name, beta in (("a", 0.1), ("b", 0.5))]
    with pytest.raises(InputError, match="output_dir: .*dpo is a run's folder; name another"):
        write_comparison(runs, str(runs[0]))
    with pytest.raises(InputError, match="output_dir: is empty; name a folder"):
        write_comparison(runs, "")


def test_what_is_true_or_false_is_no_number(tmp_path):
    runs = [
        run(tmp_path / f"{beta}{seed}" / "dpo", beta=beta, seed=seed, metrics={"healthy": healthy})
        for beta, seed, healthy in ((0.1, 1, True), (0.1, 2, False), (0.5, 1, True), (0.5, 2, True))
    ]
    row = next(line for line in write_comparison(runs, None).splitlines() if line.startswith("| healthy"))
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["healthy", "true in 1 of 2", "true", "–"]


def test_losses_per_token_of_other_tokenizers_have_rows_of_their_own(tmp_path):
    def sft(name, seed, words, made_by=None, **keys):
        """An SFT run whose tokenizer has these words; made_by: keys of the run of its own chain that trained it."""
        metrics, curve = {"eval_loss": 1.0 + seed}, (2.0, 1.0)
        folder = Path(run(tmp_path / name / "sft", "sft", seed=seed, metrics=metrics, curve=curve, packing=True, **keys))
        (folder / "tokenizer.json").write_text(json.dumps({"model": words, "truncation": seed}))
        if made_by:
            maker = Path(run(folder.parent / "tokenizer", "tokenizer", seed=seed)) / "manifest.json"
            maker.write_text(json.dumps(json.loads(maker.read_text()) | {"given": made_by}))
            about = json.loads((folder / "manifest.json").read_text())
            about["config"]["tokenizer_name_or_path"] = f"{folder.parent}/tokenizer"
            (folder / "manifest.json").write_text(json.dumps(about))
        return str(folder)

    def names(*folders):
        columns = read_columns(list(folders))
        return [{name for name in (*column.measures, *column.curves) if "loss" in name} for column in columns]

    one, same, other = sft("a", 1, ["x"]), sft("b", 2, ["x"], beta=2), sft("c", 3, ["y"], beta=3)
    assert names(one, same) == [{"eval_loss", "loss"}] * 2
    found = names(one, other)
    assert found[0].isdisjoint(found[1]) and "'eval_loss (per token of tokenizer " in str(found[1])
    first, second = sft("d", 4, ["z"], {"vocab_size": 9}), sft("e", 5, ["w"], {"vocab_size": 9})
    assert names(first, second) == [{"eval_loss", "loss"}], "tokenizers that two seeds of one chain trained"
    assert len(names(first, sft("f", 6, ["v"], {"vocab_size": 8}))[0]) > 2
