"""A judge model's endpoint on loopback, with faults, shared by the tests of what asks one."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import llmrecipes.judging.endpoint as endpoints

USAGE = {"prompt_tokens": 100, "completion_tokens": 20}


class JudgeServer:
    """reply(question) -> text; faults: statuses to give first, "cut" closes the connection.

    requests: (path, headers, body) of each.
    """

    def __init__(self, reply, faults=()):
        judge, self.requests, self.faults = self, [], list(faults)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                judge.requests.append((self.path, dict(self.headers), body))
                fault = judge.faults.pop(0) if judge.faults else 200
                if fault == "cut":
                    self.connection.close()
                    return
                content = reply(body["messages"][0]["content"]) if fault == 200 else ""
                data = json.dumps({"choices": [{"message": {"content": content}}], "usage": USAGE}).encode()
                self.send_response(fault)
                self.send_header("Retry-After", "0.01")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def questions(self) -> list[str]:
        return [body["messages"][0]["content"] for _, _, body in self.requests]


@contextmanager
def judge_servers(monkeypatch):
    """serve(reply, faults=()) -> JudgeServer; they end with the test, and nobody who asks them waits between two tries."""
    monkeypatch.setattr(endpoints.time, "sleep", lambda seconds: None)
    servers = []

    def serve(reply, faults=()):
        servers.append(JudgeServer(reply, faults))
        return servers[-1]

    yield serve
    for judge in servers:
        judge.server.shutdown()
        judge.server.server_close()


def pair_reply(verdict):
    """A reply to the question which of two answers is better: verdict(answer A, answer B) -> text; "ready" to others."""

    def reply(question):
        if "[Answer A]" not in question:
            return "ready"
        answers = [question.split(f"[Answer {x}]\n")[1].split(f"\n[End of answer {x}]")[0] for x in "AB"]
        return verdict(*answers)

    return reply


def verdict(question):
    """Judges by the answer's words, as JSON; "correct" is said where the question asks for it."""
    if "[Answer]" not in question:
        return "ready"
    answer = question.split("[Answer]\n")[1].split("\n[End of answer]")[0]
    parts = {"refused": "can't help" in answer, "unknown": "not know" in answer, "polite": "fool" not in answer}
    parts |= {"toxic": False, "fluent": True}
    if "[Accepted answers]" in question:
        parts["correct"] = "Paris" in answer
    return json.dumps(parts)
