"""The judge model: both orders, ties, retries, resuming, the key goes nowhere; against a server on loopback."""

import pytest
from judge_server import judge_servers, pair_reply
from test_store import samples

import llmrecipes.judging.endpoint as endpoints
from llmrecipes.config import InputError
from llmrecipes.judging.pairwise import read_verdict
from llmrecipes.ranking.items import to_rankings
from llmrecipes.ranking.llm import ModelAnnotator, rank_items
from llmrecipes.ranking.store import Store

KEY = "sk-test-0123456789abcdef"


@pytest.fixture
def endpoint(monkeypatch):
    with judge_servers(monkeypatch) as serve:
        yield lambda verdict, faults=(): serve(pair_reply(verdict), faults)


def judge_of(url, guidelines="", **options):
    hint = "; what was judged is kept, the same command continues"
    return ModelAnnotator(endpoints.Endpoint(url, "m", keep_hint=hint, **options), guidelines)


longer = lambda a, b: "A" if len(a) > len(b) else "B" if len(b) > len(a) else "tie"


def test_order_by_wins_and_every_pair_asked_both_ways(endpoint):
    server = endpoint(longer)
    judge = judge_of(server.url, "Longer is better.", concurrency=2)
    assert judge.rank("q", ["xx", "xxxx", "x", "xx"]) == [[1], [0, 3], [2]]  # equal texts tie, and are asked about once
    assert judge.usage == {"calls": 6, "prompt_tokens": 600, "completion_tokens": 120, "unreadable": 0}
    assert server.requests[0][0] == "/v1/chat/completions" and server.requests[0][2]["model"] == "m"
    assert "Longer is better." in server.requests[0][2]["messages"][0]["content"]


def test_a_judge_who_only_likes_the_first_answer_calls_all_equal(endpoint):
    assert judge_of(endpoint(lambda a, b: "A").url, "").rank("q", ["x", "y", "z"]) == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("B", "B"),
        ("**a**.", "A"),
        ("It's a tie.", "TIE"),
        ("A tie", "TIE"),
        ("There is a clear winner: B", "B"),
        ("Answer A is better than a rude one", "A"),
        ("<think>A is longer, but</think>\n\nB", "B"),
        ("<think>Well, A says a lot", None),
        ("both are a bit rude", None),
        ("", None),
    ],
)
def test_a_verdict_is_no_article_and_no_thought(reply, verdict):
    assert read_verdict(reply) == verdict


def test_talk_is_read_and_nonsense_is_a_tie(endpoint, capsys):
    assert judge_of(endpoint(lambda a, b: f"**{longer(a, b)}** is better").url, "").rank("q", ["xx", "x"]) == [[0], [1]]
    judge = judge_of(endpoint(lambda a, b: "I cannot say").url, "")
    assert judge.rank("q", ["xx", "x"]) == [[0, 1]] and judge.usage["unreadable"] == 2 and judge.usage["calls"] == 4
    said = capsys.readouterr().out
    assert said.count("gave no verdict that can be read in 16 tokens, but 'I cannot say'") == 1


def test_faults_are_tried_again_a_bounded_number_of_times(endpoint):
    assert judge_of(endpoint(longer, [429, 500, "cut", 503]).url, "", concurrency=1).rank("q", ["xx", "x"]) == [[0], [1]]
    always = endpoint(longer, [500] * 50)
    with pytest.raises(InputError, match="answers 500 after 6 tries; what was judged is kept"):
        judge_of(always.url, "", concurrency=1).rank("q", ["xx", "x"])
    assert len(always.requests) <= 12


@pytest.mark.parametrize(("status", "said"), [(401, "is OPENAI_API_KEY set"), (404, "ends in /v1"), (400, "answers 400")])
def test_a_refusal_is_one_line_at_once_and_never_shows_the_key(endpoint, monkeypatch, status, said):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = endpoint(longer, [status] * 9)
    with pytest.raises(InputError, match=said) as error:
        judge_of(server.url, "", concurrency=1).rank("q", ["xx", "x"])
    assert KEY not in str(error.value) and server.requests[0][1]["Authorization"] == f"Bearer {KEY}"
    assert len(server.requests) <= 2


def test_interrupted_work_continues_and_is_marked_as_a_models(endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    rows = samples(4)
    for row in rows:
        row["responses"] = ["a", "aaa", "aa"]
    server = endpoint(longer, [200] * 13 + [401] * 20)
    with pytest.raises(InputError):
        rank_items(Store(tmp_path / "s.sqlite", rows), judge_of(server.url, "", concurrency=1), None)
    store = Store(tmp_path / "s.sqlite", rows)
    assert len(store.judgements()) == 2
    again = endpoint(longer)
    numbers = rank_items(store, judge_of(again.url, ""), (2.0, 10.0))
    assert len(again.requests) == 12 == numbers["judge_calls"]
    assert numbers["judge_dollars"] == pytest.approx((1200 * 2 + 240 * 10) / 1e6)
    rankings = to_rankings(store.judgements())
    assert [row["ranking"] for row in rankings] == [[[1], [2], [0]]] * 4
    assert {row["annotator_kind"] for row in rankings} == {"model"} and {row["annotator"] for row in rankings} == {"model:m"}
    assert KEY.encode() not in (tmp_path / "s.sqlite").read_bytes()


def test_an_error_begins_a_line_of_its_own(endpoint, tmp_path, capsys):
    judge = judge_of(endpoint(longer).url)
    store = Store(tmp_path / "s.sqlite", samples(), repeat_share=0)

    def rank(prompt, answers):
        raise InputError("the judge is away")

    judge.rank = rank
    try:
        rank_items(store, judge, None)
    except InputError:  # the error is still known, as where `leave` prints it
        assert capsys.readouterr().err.endswith("\n")
