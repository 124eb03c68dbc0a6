"""The ranking page under load: annotators judge concurrently over HTTP while the server is killed repeatedly.

Launch: python benchmarks/ranking.py [--annotators 20] [--judgements 500] [--kills 10]
Prints: latency of a confirmed save (median, p95, slowest), judgements per second, and whether each confirmed judgement is
in the database exactly once, and no others. Exits with 1 if one is missing, duplicated or invented.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from llmrecipes.options import OptionParser  # noqa: E402


def serve(database: str, port: int, items: int) -> None:
    """The server process: the real page on the real store."""
    from llmrecipes.ranking.page import build_app
    from llmrecipes.ranking.store import Store
    from llmrecipes.web import prepare_server

    samples = [
        {
            "prompt_id": f"p{i}",
            "prompt": [{"role": "user", "content": f"Question {i}"}],
            "responses": [f"answer {k} to {i} " + "word " * 60 for k in range(4)],
        }
        for i in range(items)
    ]
    store = Store(database, samples, overlap=0.2, repeat_share=0.05)
    prepare_server(build_app(store, "Be fair."), "127.0.0.1", port)[1]()


def annotate(name: str, address: str, count: int, pace: float, results) -> None:
    """One annotator: asks for an item, ranks it, repeats a request that was not answered; reports what was confirmed."""
    import httpx

    rng, confirmed, latencies, retries = random.Random(name), [], [], 0
    with httpx.Client(base_url=address, cookies={"llmrecipes_annotator": name}, timeout=10) as client:

        def ask(method, path, **body):
            nonlocal retries
            while True:
                started = time.perf_counter()
                try:
                    response = client.request(method, path, **body)
                    if response.status_code == 200:
                        return response.json(), time.perf_counter() - started
                    if response.status_code not in (429, 503):
                        raise SystemExit(f"{name}: {response.status_code} {response.text[:200]}")
                except httpx.TransportError:
                    pass  # the server is down: send the same judgement, with the same id, again
                retries += 1
                time.sleep(0.1)

        item, _ = ask("GET", "/api/item")
        for number in range(count):
            if item.get("finished"):
                break
            ranking = [[place] for place in rng.sample(range(4), 4)]
            body = {
                "id": f"{name}-{number:06}",
                "position": item["position"],
                "kind": "rank",
                "ranking": ranking,
                "seconds": 5,
            }
            item, seconds = ask("POST", "/api/judgement", json=body)
            confirmed.append(body["id"])
            latencies.append(seconds)
            if pace:
                time.sleep(rng.expovariate(1 / pace))
    results.put((name, confirmed, latencies, retries))


def start(database: str, port: int, items: int) -> subprocess.Popen:
    command = [sys.executable, __file__, "--serve", database, str(port), str(items)]
    process = subprocess.Popen(command, env=os.environ | {"GRADIO_ANALYTICS_ENABLED": "False"})
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.1)
    raise SystemExit("the server does not start")


def put_under_load(options: argparse.Namespace, database: str) -> tuple[list, Counter, int, float]:
    """(what each annotator reports, how often each judgement is in the database, kills, seconds)."""
    from llmrecipes.ranking.store import Store

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    wanted = options.annotators * options.judgements
    server, items = start(database, port, wanted), wanted
    results, began, kills = multiprocessing.Queue(), time.perf_counter(), 0
    people = [
        multiprocessing.Process(
            target=annotate,
            args=(f"annotator{n}", f"http://127.0.0.1:{port}", options.judgements, options.pace, results),
        )
        for n in range(options.annotators)
    ]
    for person in people:
        person.start()
    done, rng, written = [], random.Random(0), 0
    reader = Store(database)
    # Each kill comes at a random moment in its own section of the work.
    moments = [(k + rng.random()) / (options.kills + 1) * wanted for k in range(options.kills)]
    while len(done) < len(people):
        while not results.empty():
            done.append(results.get())
        if kills < len(moments) and (written := reader.count()) >= moments[kills]:
            server.send_signal(signal.SIGKILL)
            server.wait()
            kills += 1
            print(f"killed the server at {written} judgements ({kills} of {options.kills})", flush=True)
            server = start(database, port, items)
        if not any(person.is_alive() for person in people) and results.empty() and len(done) < len(people):
            raise SystemExit("an annotator gave up; the reason is above")
        time.sleep(0.05)
    seconds = time.perf_counter() - began
    stored = Counter(row["id"] for row in reader.judgements())
    server.terminate()
    server.wait()
    return done, stored, kills, seconds


def main() -> None:
    parser = OptionParser(description=__doc__.splitlines()[0])
    parser.add_argument("--annotators", type=int, default=20)
    parser.add_argument("--judgements", type=int, default=500, help="of each annotator")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--pace", type=float, default=0.0, help="mean seconds that an annotator reads before answering")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.serve[0], int(options.serve[1]), int(options.serve[2]))

    with tempfile.TemporaryDirectory() as folder:
        done, stored, kills, seconds = put_under_load(options, f"{folder}/judgements.sqlite")
    confirmed = Counter(judgement for _, ids, _, _ in done for judgement in ids)
    latencies = sorted(value for _, _, values, _ in done for value in values)
    report = {
        "annotators": options.annotators,
        "confirmed": sum(confirmed.values()),
        "stored": sum(stored.values()),
        "missing": len(confirmed - stored),
        "doubled": sum(count > 1 for count in stored.values()),
        "invented": len(stored - confirmed),
        "kills": kills,
        "requests_repeated": sum(retries for *_, retries in done),
        "judgements_per_second": round(sum(confirmed.values()) / seconds, 1),
        "save_ms_median": round(1000 * latencies[len(latencies) // 2], 1),
        "save_ms_p95": round(1000 * latencies[int(0.95 * len(latencies))], 1),
        "save_ms_max": round(1000 * latencies[-1], 1),
    }
    print(json.dumps(report, indent=2))
    sys.exit(any(report[key] for key in ("missing", "doubled", "invented")))


if __name__ == "__main__":
    main()
