"""The ranking page in a browser: by mouse, by keys, on a phone, by several people; hostile text stays text."""

import re

import pytest
from injections import INJECTIONS, REMOTE
from rank_page_toys import PASSWORD, ann_and_bob
from served import served
from test_store import samples

from llmrecipes.ranking.items import to_rankings
from llmrecipes.ranking.page import build_app
from llmrecipes.ranking.store import Store


@pytest.fixture
def users(tmp_path):
    return ann_and_bob(tmp_path)


# --- in a browser ---------------------------------------------------------------------------------------------------


def serving(store, **options):
    return served(build_app(store, "Be fair.", **options))


def open_page(browser, address, **context):
    page = browser.new_context(**{"viewport": {"width": 1000, "height": 900}} | context).new_page()
    page.remote, page.trouble = [], []
    page.on("request", lambda request: request.url.startswith((address, "data:")) or page.remote.append(request.url))
    page.on("pageerror", lambda error: page.trouble.append(str(error)))
    page.on("dialog", lambda dialog: (page.trouble.append(dialog.message), dialog.dismiss()))
    page.goto(address)
    page.locator(".rank .card, .rank p").first.wait_for(timeout=30_000)
    return page


def labels(page):
    return [card.get_attribute("aria-label") for card in page.locator(".card").all()]


def at_number(page, number):
    page.wait_for_function(f"document.querySelector('.rank strong').textContent.startsWith('{number} of')", timeout=10_000)


def ranked_texts(store):
    """For each judgement the answers' texts as groups."""
    return [[{row["responses"][i] for i in group} for group in row["ranking"]] for row in to_rankings(store.judgements())]


def drag(page, letter, onto, share):
    """Drag the answer by its handle to a height (share) of the element `onto`."""
    handle = page.get_by_role("button", name=re.compile(f"^Answer {letter}[:,]")).bounding_box()
    target = page.locator(onto).bounding_box()
    page.mouse.move(handle["x"] + 9, handle["y"] + 9)
    page.mouse.down()
    page.mouse.move(handle["x"] + 20, handle["y"] + 20, steps=3)
    page.mouse.move(target["x"] + 60, target["y"] + share * target["height"], steps=6)
    page.mouse.up()


def test_by_keys_with_a_tie_a_flag_a_skip_and_undo(tmp_path, browser):
    store = Store(tmp_path / "s.sqlite", samples())
    with serving(store) as address:
        page = open_page(browser, address)
        text = {place: page.locator(f"#answer{place}").inner_text() for place in range(3)}
        for key in ("c", "a", "=", "b", "3"):
            page.keyboard.press(key)
        assert labels(page) == ["Answer C, number 1", "Answer A, number 2", "Answer B, number 2"]
        page.keyboard.press("Enter")
        at_number(page, 1)
        assert ranked_texts(store) == [[{text[2]}, {text[0], text[1]}]]
        row = to_rankings(store.judgements())[0]
        assert {row["responses"][int(i)]: flags for i, flags in row["flags"].items()} == {text[1]: ["rude"]} and row[
            "seconds"
        ] > 0
        page.keyboard.press(".")
        page.get_by_text("Skipped; you can come back").wait_for()
        page.keyboard.press("Control+z")
        page.get_by_text("Back at number 2").wait_for()
        page.keyboard.press("Control+z")
        page.get_by_text("Back at number 1").wait_for()
        assert labels(page)[0] == "Answer C, number 1" and ranked_texts(store) == []
        page.keyboard.press("Backspace")
        page.keyboard.press("Enter")  # not complete: nothing is saved
        assert "Still to rank: B" in page.locator("[role=alert]").inner_text()
        page.keyboard.press("0")
        page.keyboard.press("Enter")
        at_number(page, 1)
        assert to_rankings(store.judgements())[0]["all_bad"] and not page.trouble and not page.remote


def test_the_same_answer_twice_is_ranked_once_and_keys_work_after_a_name(tmp_path, browser):
    rows = [row | {"responses": ["same", "other", "same"]} for row in samples(3)]
    store = Store(tmp_path / "s.sqlite", rows)
    with serving(store) as address:
        page = open_page(browser, address)
        page.get_by_label("Your name").fill("ANNA")
        page.keyboard.press("Enter")  # the page is drawn anew, with the items of that name
        page.wait_for_function("document.querySelector('[data-key=name]').getAttribute('value') === 'ANNA'", timeout=10_000)
        twins = [place for place in range(3) if page.locator(f"#answer{place}").inner_text() == "same"]
        for place in (*twins[:1], *{0, 1, 2}.difference(twins)):
            page.keyboard.press("abc"[place])
        assert sorted(label.partition(",")[2] for label in labels(page)) == [" number 1", " number 1", " number 2"]
        page.keyboard.press("Enter")
        at_number(page, 1)
    assert ranked_texts(store) == [[{"same"}, {"other"}]] and to_rankings(store.judgements())[0]["annotator"] == "ANNA"


@pytest.mark.long
def test_by_keyboard_alone_through_the_buttons(tmp_path, browser):
    """What a screen reader's user does: Tab to a button, Enter; the focus stays, the status speaks."""
    store = Store(tmp_path / "s.sqlite", samples())
    with serving(store) as address:
        page = open_page(browser, address)
        for place in (1, 0, 2):
            page.locator(f"[data-key=handle{place}]").focus()
            page.keyboard.press("Enter")
        page.locator("[data-key=up2]").focus()
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.dataset.key") == "up2"
        assert page.locator(".rank [aria-live=polite]").inner_text() == "C is number 2"
        assert labels(page) == ["Answer B, number 1", "Answer C, number 2", "Answer A, number 3"]
        page.locator("[data-key=save]").focus()
        page.keyboard.press("Enter")
        at_number(page, 1)
        unnamed = page.evaluate(
            "[...document.querySelectorAll('.rank button, .rank input, .rank textarea')]"
            ".filter(e => !(e.textContent.trim() || e.ariaLabel || e.closest('label'))).length"
        )
        assert unnamed == 0


def test_by_mouse(tmp_path, browser):
    store = Store(tmp_path / "s.sqlite", samples())
    with serving(store) as address:
        page = open_page(browser, address)
        text = {place: page.locator(f"#answer{place}").inner_text() for place in range(3)}
        drag(page, "B", ".divider", 0.5)
        assert labels(page) == ["Answer B, number 1", "Answer A, not ranked", "Answer C, not ranked"]
        drag(page, "C", "[data-place='1']", 0.1)
        assert labels(page)[:2] == ["Answer C, number 1", "Answer B, number 2"]
        drag(page, "A", "[data-place='2']", 0.5)  # onto another: a tie
        assert labels(page) == ["Answer C, number 1", "Answer A, number 1", "Answer B, number 2"]
        page.get_by_role("button", name="Save and next").click()
        at_number(page, 1)
        assert ranked_texts(store) == [[{text[2], text[0]}, {text[1]}]]
        page.get_by_role("button", name="Back").click()
        page.get_by_role("button", name="To the open one").wait_for()
        page.get_by_role("button", name="Take B out of the ranking").click()
        page.get_by_role("button", name="Rank B next").click()
        page.get_by_role("button", name="Move B up").click()
        page.get_by_role("button", name="Save and next").click()
        page.get_by_text("Saved").wait_for()
        assert ranked_texts(store) == [[{text[1]}, {text[2], text[0]}]] and store.count() == 2


def test_a_reload_in_the_middle_keeps_what_was_begun(tmp_path, browser):
    with serving(Store(tmp_path / "s.sqlite", samples())) as address:
        page = open_page(browser, address)
        page.keyboard.press("b")
        page.locator("textarea").fill("half way")
        page.reload()
        page.locator(".card").first.wait_for()
        assert labels(page)[0] == "Answer B, number 1" and page.locator("textarea").input_value() == "half way"


def test_two_annotators_at_once(tmp_path, browser, users):
    store = Store(tmp_path / "s.sqlite", samples(2))
    with serving(store, users=users) as address:
        pages = []
        for name, password in (("ann", PASSWORD), ("bob", PASSWORD + "2")):
            page = browser.new_context().new_page()
            page.goto(address)
            page.get_by_label("Name").fill(name)
            page.get_by_label("Password").fill("wrong")
            page.get_by_role("button", name="Log in").click()
            page.get_by_text("do not belong together").wait_for()
            page.get_by_label("Name").fill(name)
            page.get_by_label("Password").fill(password)
            page.get_by_role("button", name="Log in").click()
            page.locator(".card").first.wait_for(timeout=30_000)
            pages.append(page)
        prompts = [page.locator(".turn .text").inner_text() for page in pages]
        assert len(set(prompts)) == 2  # no overlap: each has an item of his own
        for page in pages:
            for key in ("a", "b", "c", "Enter"):
                page.keyboard.press(key)
            page.get_by_text("That was all there is for you").wait_for()
        assert (
            pages[0].get_by_role("link", name="Quality").count() == 1
            and pages[1].get_by_role("link", name="Quality").count() == 0
        )
    assert sorted(row["annotator"] for row in store.judgements()) == ["ann", "bob"]


@pytest.mark.long
def test_on_a_phone(tmp_path, browser):
    rows = samples(3)
    rows[0]["responses"] = rows[1]["responses"] = rows[2]["responses"] = [
        "```python\nfor word in a_very_long_function_name(with_many, arguments_that, never_end):\n    print(word)\n```",
        "unbreakable" * 40,
        "line\n" * 40,
    ]
    with serving(Store(tmp_path / "s.sqlite", rows)) as address:
        page = open_page(browser, address, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.evaluate("getComputedStyle(document.querySelector('pre')).whiteSpace") == "pre"
        save = page.get_by_role("button", name="Save and next").bounding_box()
        assert 0 < save["y"] and save["y"] + save["height"] <= 740, "in view without scrolling"
        fold = page.get_by_role("button", name="Show all").first
        assert fold.get_attribute("aria-expanded") == "false"
        fold.tap()
        assert page.get_by_role("button", name="Fold").count() == 1
        for letter in "BCA":
            page.get_by_role("button", name=f"Rank {letter} next").tap()
        assert labels(page) == ["Answer B, number 1", "Answer C, number 2", "Answer A, number 3"]
        sizes = page.evaluate(
            "[...document.querySelectorAll('.rank .actions button')].map(b => b.getBoundingClientRect().height)"
        )
        assert min(sizes) >= 30
        page.get_by_role("button", name="Save and next").tap()
        at_number(page, 1)


def test_right_to_left_text_reads_right(tmp_path, browser):
    rows = samples(1)
    rows[0]["responses"] = ["مرحبا بالعالم", "hello", "שלום"]
    with serving(Store(tmp_path / "s.sqlite", rows)) as address:
        page = open_page(browser, address)
        directions = page.evaluate(
            "[...document.querySelectorAll('.card .text')].map(e => [e.textContent, getComputedStyle(e).direction])"
        )
        assert dict(directions) == {"مرحبا بالعالم": "rtl", "hello": "ltr", "שלום": "rtl"}


def test_injected_text_is_only_read(tmp_path, browser):
    """Prompts and answers: none runs, none loads anything, all come back byte for byte."""
    rows = [
        {
            "prompt_id": f"p{i}",
            "prompt": [{"role": f"user{INJECTIONS[i]}", "content": INJECTIONS[i]}],
            "responses": [INJECTIONS[(i + k) % 60] for k in range(1, 7)],
        }
        for i in range(0, 60, 6)
    ]
    store = Store(tmp_path / "s.sqlite", rows)
    with serving(store) as address:
        page = open_page(browser, address)
        for number in range(1, 11):
            shown = page.evaluate("[...document.querySelectorAll('.card .text')].map(e => e.textContent)")
            assert set(shown) <= set(INJECTIONS) and len(shown) == 6
            page.locator("textarea").fill(INJECTIONS[number])
            page.get_by_text("Answers", exact=True).click()
            for key in "abcdef":
                page.keyboard.press(key)
            page.keyboard.press("Enter")
            at_number(page, number)
        assert page.evaluate("window.hit") is None and not page.trouble and not page.remote
        page.goto(f"{address}/admin")
        assert page.evaluate("window.hit") is None and not [url for url in page.remote if REMOTE in url]
    exported = {row["prompt_id"]: row for row in to_rankings(store.judgements())}
    for row in rows:
        assert (
            exported[row["prompt_id"]]["prompt"] == row["prompt"]
            and exported[row["prompt_id"]]["responses"] == row["responses"]
        )
    assert {row["note"] for row in exported.values()} == set(INJECTIONS[1:11])
