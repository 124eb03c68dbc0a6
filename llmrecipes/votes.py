"""The page on which people compare the models of a chain blind, and the ratings that their votes give."""

import itertools
import json
import os
import random
import time
from pathlib import Path

from llmrecipes.chat import in_lockstep, messages_of, page_error, sampling_settings, stream_answer
from llmrecipes.formats import prompt_id, read_growing
from llmrecipes.metrics import bradley_terry
from llmrecipes.web import import_gradio


def build_compare_page(models: dict[str, str], votes_file: Path, answer=stream_answer):
    """A gradio page: one prompt, every model's answer under a number, a vote, and only then the names.

    votes_file: an append-only JSON Lines file of rankings (prompt, responses, ranking, annotator), which recipes/rank.py
    turns into preference pairs like any others.
    """
    gr = import_gradio()
    names, numbers = list(models), range(len(models))

    def ask(prompt, system, temperature, top_p, length):
        if not prompt.strip():
            raise page_error("Write a prompt first.")
        order, shown, ends = random.sample(names, len(names)), [""] * len(names), {}
        folders = [models[name] for name in order]
        for shown in in_lockstep(answer, folders, prompt, system, temperature, top_p, length, ends):
            yield [*shown, None, *[gr.Button(interactive=False)] * (len(names) + 2), ""]
        sampling = {"temperature": temperature, "top_p": top_p, "max_new_tokens": int(length)}
        asked = {"prompt": messages_of(prompt, system), "responses": shown, "models": order, "sampling": sampling}
        asked["finish_reasons"] = [ends[place] for place in numbers]  # an answer that was cut teaches no end
        yield [*shown, asked, *[gr.Button(interactive=True)] * (len(names) + 2), ""]

    def vote(asked, ranking, all_bad):
        if not asked:
            raise page_error("Ask first.")
        _add_vote(votes_file, asked, ranking, all_bad)
        who = ", ".join(f"{number + 1}: {name}" for number, name in enumerate(asked["models"]))
        return [
            None,
            *[gr.Button(interactive=False)] * (len(names) + 2),
            f"Saved. {who}",
            ratings(read_growing(votes_file)),
        ]

    with gr.Blocks(title="llmrecipes compare", analytics_enabled=False) as page:
        gr.HTML(
            f"<h1>Which answer is best?</h1><p>{len(names)} models answer under numbers, in random order; which is which "
            "is shown once you have voted.</p>"
        )
        asked = gr.State()
        prompt = gr.Textbox(label="prompt", lines=2, placeholder="Shift+Enter asks")
        with gr.Accordion("Settings", open=False):
            settings = sampling_settings(gr, temperature=1)
        send = gr.Button("Ask", variant="primary")
        with gr.Row():  # a text area shows text as it is
            boxes = [gr.Textbox(label=f"answer {i + 1}", lines=8, interactive=False) for i in numbers]
        with gr.Row():
            best = [gr.Button(f"{i + 1} is best", interactive=False) for i in numbers]
            tie, bad = gr.Button("All equal", interactive=False), gr.Button("All bad", interactive=False)
        said = gr.Textbox(label="who was who", interactive=False)
        table = gr.Dataframe(ratings(read_growing(votes_file)), headers=COLUMNS, label="Votes so far", interactive=False)
        buttons = [*best, tie, bad]
        gr.on(
            [send.click, prompt.submit], ask, [prompt, *settings], [*boxes, asked, *buttons, said], api_visibility="private"
        )
        together = [list(numbers)]
        votes = [(best[i], [[i], [j for j in numbers if j != i]], False) for i in numbers]
        for button, ranking, is_bad in [*votes, (tie, together, False), (bad, together, True)]:
            cast = lambda row, ranking=ranking, is_bad=is_bad: vote(row, ranking, is_bad)
            button.click(cast, asked, [asked, *buttons, said, table], api_visibility="private")
    return page


def _add_vote(votes_file: Path, asked: dict, ranking: list[list[int]], all_bad: bool) -> None:
    row = {"prompt_id": prompt_id(asked["prompt"]), **asked, "ranking": ranking, "all_bad": all_bad, "annotator": "me"}
    row |= {"annotator_kind": "person", "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    votes_file.parent.mkdir(parents=True, exist_ok=True)
    with votes_file.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


COLUMNS = ["model", "Elo", "low", "high", "comparisons", "won, ties half"]


def ratings(votes: list[dict]) -> list[list]:
    """Rows of COLUMNS, strongest first: Bradley-Terry strengths on Elo's scale with 95 % intervals."""
    results = []
    for row in votes:
        rank = {place: number for number, group in enumerate(row["ranking"]) for place in group}
        for (i, one), (j, other) in itertools.combinations(enumerate(row["models"]), 2):
            # A vote "k is best" says nothing about the order of the others.
            if len(row["ranking"]) == 1 or rank[i] != rank[j]:
                results.append((one, other, 0.5 if rank[i] == rank[j] else float(rank[i] < rank[j])))
    estimates = sorted(bradley_terry(results).items(), key=lambda item: -item[1].value)
    won = {name: sum(r if name == a else 1 - r for a, b, r in results if name in (a, b)) for name, _ in estimates}
    return [
        [name, round(e.value), round(e.low), round(e.high), e.n, f"{100 * won[name] / e.n:.0f} %"] for name, e in estimates
    ]
