"""The report is one self-contained, inert page that holds every number of its figures, and is built in seconds."""

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from forked import run_python

from llmrecipes.config import InputError
from llmrecipes.report import plots, read_history, write_report
from llmrecipes.report.blocks import Heading, Said, Section, Table
from llmrecipes.report.markdown import render_markdown

ROOT = Path(__file__).parent.parent

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "</dd></div><iframe src=//x>",  # noqa: E501
    "<style>@import 'http://x'</style>",
    "[x](javascript:alert(1))",
    "$\\frac{$ & <b>",
]


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen, self.attributes, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.text.append(data)


def parse(page):
    tags = Tags()
    tags.feed(page)
    return tags


def write(folder, stage, **manifest):
    (folder / stage).mkdir(parents=True)
    whole = {
        "status": "finished",
        "stage": stage,
        "wall_seconds": 12.0,
        "made": f"a {stage}",
        "commit": "abc123",
        "command": "python recipes/x.py",
        "fingerprint": "f" * 16,
        "packages": {"torch": "2.13.0"},
        "inputs": {},
        "hardware": {"cpu": "x", "cores": 2, "accelerators": []},
        "metrics": {},
        "expected": {},
        "config": {"output_dir": f"outputs/{stage}"},
    }
    (folder / stage / "manifest.json").write_text(json.dumps(whole | manifest))


@pytest.fixture(scope="module", autouse=True)
def figures_drawn_once():
    """Most figures of these reports are equal, and drawing takes most of a report's time."""
    drawn = {}

    def once(plot):
        def draw(*args, **options):
            key = f"{plot.__name__} {args} {options}"
            if key not in drawn:
                drawn[key] = plot(*args, **options)
            return drawn[key]

        return draw

    with pytest.MonkeyPatch.context() as patch:
        for name in filter(re.compile("plot_").match, dir(plots)):
            patch.setattr(plots, name, once(getattr(plots, name)))
        yield


def page_of(*given):
    """The page without what only says where a line may break."""
    return write_report(*given).read_text().replace("\xa0", " ").replace("<wbr>", "")


def health(verdict="unhealthy"):
    """The check of a reward model that orders three pairs of four right."""
    from llmrecipes.reward_models.health_measures import ScoredPair, measure_pairs

    pairs = [ScoredPair(str(i), 1.0 if i % 4 else -1.0, 0.0, 5 + i % 3, 6, float(i % 2), HOSTILE[i % 2]) for i in range(80)]
    mistake = {
        "prompt": HOSTILE[0],
        "chosen": HOSTILE[1],
        "rejected": HOSTILE[2],
        "chosen_score": -1.0,
        "rejected_score": 0.0,
        "margin": 1.0,
        "category": HOSTILE[3],
    }
    found = measure_pairs(pairs) | {"verdict": verdict, "reasons": [HOSTILE[4]], "left_out": 3, "mistakes": [mistake]}
    invariance = {"max_difference": {"padding": 0.125}, "rows": 64, "score_std": 1.0}
    return found | {"by_set": {"test": found["accuracy"]}, "invariance": invariance}


@pytest.fixture
def chain(tmp_path):
    sources = [{"path": "web", "weight": 3.0}, {"path": HOSTILE[6], "name": HOSTILE[0], "weight": 1.0}]
    expected = {"loss": {"expected": 1.0, "tolerance": 0.1, "got": 2.0, "verdict": "missed"}}
    write(tmp_path, "sft", expected=expected, config={"output_dir": "outputs/sft", "datasets": sources})
    log = [{"step": step, "loss": 1 / step, "grad_norm": float("nan")} for step in (1, 2, 4)]
    (tmp_path / "sft" / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    write(tmp_path, "reward", inputs={"outputs/sft": "x"}, metrics={"eval_accuracy": 0.8125, "eval_margin": 1.5})
    (tmp_path / "reward" / "health.json").write_text(json.dumps(health()))
    hardware = {"cpu": HOSTILE[2], "cores": 2, "accelerators": [HOSTILE[1]]}
    write(
        tmp_path,
        "evaluate",
        inputs={"outputs/sft": "x"},
        made=HOSTILE[1],
        packages={HOSTILE[0]: HOSTILE[2]},
        command=HOSTILE[0],
        commit=HOSTILE[1],
        hardware=hardware,
    )
    estimate = {"value": 0.625, "low": 0.5, "high": 0.75, "n": 160}
    scores = {
        "models": {HOSTILE[0]: {"grammar": estimate, "correct": estimate}, "sft": {"grammar": estimate}},
        "tasks": ["grammar"],
        "skipped": {"kl": HOSTILE[1]},
    }
    (tmp_path / "evaluate" / "metrics.json").write_text(json.dumps(scores))
    rows = [
        {"prompt": [{"role": "user", "content": text}], "kind": text, "answers": {text: text, "sft": ""}} for text in HOSTILE
    ]
    (tmp_path / "evaluate" / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_words_of_a_model_never_become_markup(chain):
    page = page_of(chain, HOSTILE[2], ["sft", "reward", "evaluate"])
    tags = parse(page)
    assert not {"script", "img", "iframe", "object", "link", "embed"} & set(tags.seen) and tags.seen.count(
        "style"
    ) <= 1 + page.count("<defs>")
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    text = "".join(tags.text)
    assert all(words in text for words in HOSTILE), "shown as it was said"


def test_page_asks_for_nothing(chain):
    page = page_of(chain, "chain")
    assert "default-src 'none'" in page
    addresses = [v for k, v in parse(page).attributes if k in ("src", "href", "xlink:href") and not v.startswith("#")]
    styles = re.findall(r"<style.*?</style>", page, flags=re.S) + [value for _, value in parse(page).attributes]
    assert not addresses and not [style for style in styles if re.search(r"url\((?!#)|@import", style)]


def test_every_figure_has_its_numbers_as_a_table(chain):
    page = page_of(chain, "chain", ["sft", "reward", "evaluate"])
    # loss, perplexity, abilities, behaviour, data shares; of the check: four groups, calibration, scores
    assert page.count("<svg") == 5 + 6
    for number in ("62.5 % [50.0, 75.0]", "0.25", "75.0 %", "0.8125", "1 ± 0.1", "missed", "75.0 % [64.1, 84.0]", "12 %"):
        assert f">{number}<" in page, number


def test_what_differs_from_the_baseline_is_marked_and_the_mark_explained(chain):
    file = chain / "evaluate" / "metrics.json"
    scores = json.loads(file.read_text())
    page = page_of(chain, "chain")
    assert "McNemar" not in page and "75.0] *" not in page
    p_values = {HOSTILE[0]: {"grammar": 0.6, "correct": 0.01}}
    file.write_text(json.dumps(scores | {"baseline": HOSTILE[1], "p_values": p_values}))
    page, text = page_of(chain, "chain"), (chain / "report.md").read_text()
    assert page.count('class="n">62.5 % [50.0, 75.0] *<') == 1 and text.count("62.5 % [50.0, 75.0] \\*") == 1
    assert page.count("2 comparisons, not corrected") == text.count("2 comparisons, not corrected") == 2
    assert HOSTILE[1] not in page


def evaluated(folder, base, tuned, p_values=None, **config):
    """A chain of two models, `tuned` trained from `base`, and their evaluation."""
    write(folder, "pretrain", config={"output_dir": "outputs/pretrain"})
    write(
        folder,
        "tune",
        inputs={"outputs/pretrain": "x"},
        config={"output_dir": "outputs/tune", "model_name_or_path": "outputs/pretrain"},
    )
    models = {"first": "outputs/pretrain", "second": "outputs/tune"}
    write(folder, "evaluate", inputs=dict.fromkeys(models.values(), "x"), config={"models": models} | config)
    spread = lambda v: {"value": v, "low": v - 0.05, "high": v + 0.05, "n": 100}
    scores = {m: {k: spread(v) for k, v in s.items()} for m, s in (("first", base), ("second", tuned))}
    metrics = {"models": scores, "tasks": ["syntax"], "baseline": "first", "p_values": {"second": p_values or {}}}
    (folder / "evaluate" / "metrics.json").write_text(json.dumps(metrics))


def test_opening_names_every_loss_and_says_what_was_tested(tmp_path):
    base = {"syntax": 0.8, "correct": 0.5, "rude": 0.2, "over_refusal": 0.3, "fluent": 0.5, "response_length": 9.0}
    tuned = {"syntax": 0.77, "correct": 0.9, "rude": 0.4, "over_refusal": 0.32, "fluent": 0.5, "response_length": 20.0}
    evaluated(tmp_path, base, tuned, {"syntax": 0.01, "over_refusal": 0.6})
    page, text = page_of(tmp_path, "chain"), (tmp_path / "report.md").read_text()
    opening = text.split("## ")[0]
    assert "**second** (from first) won correct 50.0 → 90.0 %; it lost rude 20.0 → 40.0 %, syntax" in (opening), (
        "a tested loss counts within the intervals, an untested one only beyond them; less rude is better"
    )
    assert "syntax 80.0 → 77.0 % \\*." in opening and "**first**" not in opening
    assert "<b>second</b> (from first) won" in page and page.count(">lost<") == 2 and page.count(">won<") == 1
    assert ">syntax ↑<" in page and ">rude ↓<" in page and ">response_length<" in page, "no better way, no arrow"


def test_opening_says_when_nothing_changed_or_nothing_was_measured(tmp_path):
    evaluated(tmp_path, {"correct": 0.5}, {"correct": 0.52})
    write_report(tmp_path, "chain")
    assert "no model differs" in (tmp_path / "report.md").read_text()
    write_report(tmp_path, "chain", ["tune"])
    assert "not measured" in (tmp_path / "report.md").read_text()


def test_history_is_the_newest_checkpoints_whatever_the_clock_said(tmp_path):
    for step, time in ((9, 2e9), (10, 1e9)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        state = tmp_path / f"checkpoint-{step}" / "trainer_state.json"
        state.write_text(json.dumps({"log_history": [{"step": step, "loss": 1.0}]}))
        os.utime(state, (time, time))
    for torn in (b"[]", b"\xff", b""):
        (tmp_path / "trainer_state.json").write_bytes(torn)
        assert read_history(tmp_path) == [{"step": 10, "loss": 1.0}]


def test_win_rates_are_held_against_even_odds(tmp_path):
    evaluated(tmp_path, {"correct": 0.5}, {"correct": 0.5, "rule_win_rate": 0.3})
    write_report(tmp_path, "chain")
    assert "lost rule_win_rate 50.0 → 30.0 %." in (tmp_path / "report.md").read_text()


def test_opening_tells_what_was_missed_the_reward_models_health_and_cost(chain):
    write_report(chain, "chain", ["sft", "reward", "evaluate"])
    opening = (chain / "report.md").read_text().split("## ")[0]
    assert "0 of 1 figures met; missed: sft loss 2 (expected 1 ± 0.1)." in opening
    assert "reward is unhealthy;" in opening and "orders 75.0 % [64.1, 84.0]" in opening and "3 stages took 36 s" in opening


def test_a_stage_stands_after_what_it_reads_whatever_the_times_of_the_files(tmp_path):
    write(tmp_path, "b", inputs={"outputs/a": "x"})
    write(tmp_path, "a")
    page = page_of(tmp_path, "chain")
    assert page.index("<b>a</b>") < page.index("<b>b</b>") and "<small>from a</small>" in page


def test_what_is_not_about_results_is_folded(chain):
    page = page_of(chain, "chain", ["sft", "reward", "evaluate"])
    folded = re.findall("<details class=section><summary><h2>(.*?)</h2>", page)
    shown = re.findall("<section>.*?<h2>(.*?)</h2>", page)
    assert shown == ["The stages", "Expected against got", "Abilities by stage", "Behaviour by stage"]
    assert "How each stage learned" in folded and "Where the data came from" in folded
    assert set(re.findall('href="#(.*?)"', page)) <= set(re.findall('id="(.*?)"', page)), "links lead into what is folded"


def test_figures_say_what_they_compare_with_and_who_judged(chain):
    file = chain / "evaluate" / "metrics.json"
    estimate = {"value": 0.625, "low": 0.5, "high": 0.75, "n": 160}
    scores = json.loads(file.read_text()) | {"judged_by": {"judge": "rules:judge", "rule": "gold:score"}}
    scores["models"]["sft"] |= {"win_rate": estimate, "kl": estimate}  # as an older version called them
    file.write_text(json.dumps(scores | {"baseline": HOSTILE[0]}))
    lines = (
        "rule_win_rate, kl_from_baseline: compared with {}; answers judged by rules:judge; rule_score and rule_win_rate by "
        "the rule gold:score."
    )
    assert lines.format(HOSTILE[0]) in "".join(parse(page_of(chain, "chain")).text)
    file.write_text(json.dumps(scores))  # as where nothing was tested; the manifest has the setting
    manifest = json.loads((chain / "evaluate" / "manifest.json").read_text())
    manifest["config"]["baseline"] = "sft"
    (chain / "evaluate" / "manifest.json").write_text(json.dumps(manifest))
    assert lines.format("sft") in "".join(parse(page_of(chain, "chain")).text)


def test_two_evaluations_are_told_apart(chain):
    headed = lambda: [line for line in (chain / "report.md").read_text().splitlines() if line.startswith("### ev")]
    write_report(chain, "chain")
    assert not headed(), "one needs no heading"
    shutil.copytree(chain / "evaluate", chain / "evaluate-again")
    write_report(chain, "chain")
    assert headed() == ["### evaluate", "### evaluate-again"] * 3, "abilities, behaviour, answers"


def test_number_of_items_is_a_range_where_models_differ_in_it(chain):
    file = chain / "evaluate" / "metrics.json"
    scores = json.loads(file.read_text())
    scores["models"]["sft"]["grammar"]["n"] = 93
    file.write_text(json.dumps(scores))
    page = page_of(chain, "chain")
    assert '<td class="n">93–160</td>' in page and '<td class="n">160</td>' in page


def test_check_that_ended_early_still_shows_its_verdict(chain):
    early = {"verdict": "unhealthy", "reasons": ["some scores are not finite"], "num_pairs": 4}
    (chain / "reward" / "health.json").write_text(json.dumps(early))
    page = page_of(chain, "chain")
    assert "some scores are not finite" in page and '<span class="missed">unhealthy</span>' in page


def test_not_a_number_in_a_history_is_left_out(chain):
    assert read_history(chain / "sft")[0] == {"step": 1, "loss": 1.0}


def test_history_of_the_last_checkpoint_serves_where_the_run_kept_none(chain):
    (chain / "sft" / "checkpoint-4").mkdir()
    (chain / "sft" / "trainer_state.json").rename(chain / "sft" / "checkpoint-4" / "trainer_state.json")
    assert [entry["step"] for entry in read_history(chain / "sft")] == [1, 2, 4]


def test_stages_that_are_not_finished_are_left_out_and_none_at_all_is_one_line(chain, tmp_path):
    write(chain, "ppo", status="running")
    assert ">ppo<" not in page_of(chain, "chain")
    with pytest.raises(InputError, match="holds no finished stage"):
        write_report(tmp_path / "sft" / "nothing", "chain")


def test_time_of_building_and_both_files_are_said(chain, capsys):
    page = write_report(chain, "chain")
    said = capsys.readouterr().out
    assert re.match(r"Report built in [\d.]+ s; .*report.md\nAs a page: ", said) and said.endswith(f"{page}\n")


def test_long_histories_are_lines_without_markers(chain):
    log = [{"step": step, "loss": 1 / step} for step in range(1, 400)]
    (chain / "sft" / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    assert page_of(chain, "chain", ["sft"]).count("<use") < 100


def test_loss_of_a_policy_has_no_perplexity(chain):
    log = [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.2, "score": 1.0}]
    (chain / "sft" / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    assert "perplexity" not in page_of(chain, "chain", ["sft"])


def test_watch_shows_abilities_with_intervals_and_answers_over_time(chain):
    rows = [
        {"step": step, "answers": {HOSTILE[0]: f"{HOSTILE[1]} {step}"}, "scores": {"win_rate": score}}
        for step, value in ((0, 0.3), (10, 0.6), (20, 0.8))
        for score in [{"value": value, "low": 0.2, "high": 0.9, "n": 50}]
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 30, "ans'
    (chain / "sft" / "watch.jsonl").write_text(text)
    page = page_of(chain, "chain", ["sft"])
    assert (
        ">60.0 % [20.0, 90.0]<" in page and page.count("<svg") == 4 and "win_rate: `watch_questions` answered better" in page
    )
    assert [f"{HOSTILE[1]} {step}" in "".join(parse(page).text) for step in (0, 10, 20)] == [True] * 3


def test_markdown_holds_the_same_and_a_models_words_stay_words(chain):
    sections = re.findall("<h2[^>]*>(.*?)</h2>", page_of(chain, HOSTILE[2], ["sft", "reward", "evaluate"]))
    text = (chain / "report.md").read_text()
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == sections
    for number in ("62.5 % [50.0, 75.0]", "75.0 %", "0.8125", "1 ± 0.1", "missed", "█", "| sft "):
        assert number in text, number
    unfenced = "".join(text.split("```")[::2])
    assert not re.search(r"(?<!\\)<|(?<!\\)\]\(", unfenced), "no tag and no link outside fences"


@pytest.mark.parametrize("words", ["```\n# out", "a\x1b[2Jb\x9bc", "| a | b |", "@everyone", "\u202etxt", "````"])
def test_words_that_would_leave_their_fence_or_move_a_cursor(words):
    section = Section("s", "s", [Said(words, [(words, words, words)], words), Table([words], [[words]]), Heading(words)])
    text = render_markdown(words, words, [section])
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    fence = max(re.findall("^`+", text, flags=re.M), key=len)
    inside = text.split(f"{fence}text\n")[1].split(f"\n{fence}\n")[0]
    assert fence not in inside
    outside = text.replace(inside, "")
    assert "@everyone" not in outside and not re.search("^# out", outside, flags=re.M)
    assert all(line.count("|") - line.count("\\|") in (0, 2) for line in outside.splitlines())


def test_report_of_stages_that_were_run_one_by_one(chain):
    result = run_python("-m", "llmrecipes.report", "--path", chain)
    assert result.returncode == 0 and (chain / "report.html").exists() and (chain / "report.md").exists(), result.stderr
    result = run_python("-m", "llmrecipes.report", "--path", chain / "sft")
    assert result.returncode == 2 and "holds no finished stage" in result.stderr and result.stderr.count("\n") == 1


def test_page_in_a_browser_runs_nothing_and_prints_its_numbers(chain, browser):
    checked = health()
    checked["by_category"] = {f"category {i}": checked["accuracy"] for i in range(60)}
    (chain / "reward" / "health.json").write_text(json.dumps(checked))
    page = write_report(chain, HOSTILE[2], ["sft", "reward", "evaluate"])
    tab = browser.new_page(viewport={"width": 390, "height": 844})
    requested, dialogs = [], []
    tab.on("request", lambda request: requested.append(request.url))
    tab.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    tab.goto(page.as_uri())
    assert requested == [page.as_uri()] and not dialogs
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390, "a phone scrolls down only"
    cell = tab.locator("details td").first
    assert not cell.is_visible()
    tab.emulate_media(media="print")
    assert cell.is_visible(), "on paper nothing is folded"
    tab.set_viewport_size({"width": 794, "height": 1123})
    heights = "[...document.querySelectorAll('svg')].map(svg => svg.getBoundingClientRect().height)"
    assert 800 < max(tab.evaluate(heights)) < 1123 - 2 * 76, "a tall figure fits A4 within margins of 2 cm"
