"""The HTTP interface of `vllm serve` (0.30, VLLM_SERVER_DEV_MODE=1) as far as TRL 1.16's client speaks it, over the
stub's engine; weights come over a socket instead of NCCL."""

import json
import math
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from vllm.engine import Engine
from vllm.sampling_params import SamplingParams

REQUEST_FIELDS = {
    "model",
    "prompt",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "n",
    "repetition_penalty",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_tokens",
    "logprobs",
    "structured_outputs",
    "seed",
    "stop",
    "stop_token_ids",
    "skip_special_tokens",
    "spaces_between_special_tokens",
}


class _HTTP(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 128


class Server:
    """Serves `model` at `url` on 127.0.0.1 until `close`.

    `requests` holds the (path, body) received, `completions` the choices sent. health: status of /health;
    weight_transfer_config and logprobs_mode: what /server_info tells; max_model_len: longer requests are refused.
    """

    def __init__(self, model, tokenizer, logprobs_mode="processed_logprobs", weight_transfer_config=True, health=200):
        self.engine = Engine(model, tokenizer)
        self.info = {
            "model_config": {"logprobs_mode": logprobs_mode},
            "weight_transfer_config": {"backend": "nccl"} if weight_transfer_config else None,
        }
        self.health, self.max_model_len = health, model.config.max_position_embeddings
        self.requests: list[tuple[str, dict]] = []
        self.completions: list[tuple[list[int], dict]] = []
        self.connection, self.updating, self.lock = None, False, threading.Lock()
        self.http = _HTTP(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        if self.connection is not None:
            self.connection.close()

    def count(self, path: str) -> int:
        return sum(path == asked for asked, _ in self.requests)

    def _handler(self):
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self._answer({})

            def do_POST(self):
                self._answer(json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}"))

            def _answer(self, body):
                path = self.path.split("?")[0]
                server.requests.append((path, body))
                status, answer = server.answer(path, body)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        return Handler

    def answer(self, path: str, body: dict) -> tuple[int, dict]:
        if path == "/health":
            return self.health, {}
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": "policy", "max_model_len": self.max_model_len}]}
        if path == "/server_info":
            return 200, {"vllm_config": self.info}
        if path == "/get_world_size":
            return 200, {"world_size": 1}
        if path == "/init_weight_transfer_engine":
            self._connect(body["init_info"]["master_address"], body["init_info"]["master_port"])
        elif path == "/start_weight_update":
            self.updating = True
        elif path == "/update_weights":
            assert self.updating
            self._receive(**body["update_info"])
        elif path == "/finish_weight_update":
            self.updating = False
        elif path == "/reset_prefix_cache":
            return 200, {"success": True}
        elif path == "/v1/completions":
            return self._complete(body)
        else:
            return 404, {"detail": "Not Found"}
        return 200, {"message": "done"}

    def _connect(self, address: str, port: int):
        for _ in range(200):  # the trainer may not listen yet
            try:
                self.connection = socket.create_connection((address, port), timeout=20)
                return
            except ConnectionRefusedError:
                time.sleep(0.05)
        raise TimeoutError("the trainer's end of the weight transfer")

    def _receive(self, names, dtype_names, shapes):
        for name, dtype_name, shape in zip(names, dtype_names, shapes, strict=True):
            dtype = getattr(torch, dtype_name)
            data = bytearray()
            while len(data) < math.prod(shape) * dtype.itemsize:
                data += self.connection.recv(math.prod(shape) * dtype.itemsize - len(data))
            self.engine.load_weights([(name, torch.frombuffer(data, dtype=dtype).view(shape))])

    def _complete(self, body: dict) -> tuple[int, dict]:
        unknown = set(body) - REQUEST_FIELDS
        (prompt,), limit = body["prompt"], body["max_tokens"]
        if unknown or self.updating or len(prompt) + limit > self.max_model_len:
            return 400, {"error": {"message": f"refused: {unknown or 'maximum context length'}", "type": "BadRequestError"}}
        params = SamplingParams(**{name: body[name] for name in SamplingParams.__dataclass_fields__ if name in body})
        with self.lock:
            tokens, entries, text, reason = self.engine.generate(prompt, params)
        logprobs = None
        if params.logprobs is not None:
            values = [entry[token].logprob for token, entry in zip(tokens, entries, strict=True)]
            names = [f"token_id:{token}" for token in tokens]
            top = [{name: value} for name, value in zip(names, values, strict=True)]
            logprobs = {"tokens": names, "token_logprobs": values, "top_logprobs": top, "text_offset": [0] * len(names)}
        choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason, "stop_reason": None}
        choice |= {"token_ids": tokens, "prompt_token_ids": prompt}
        self.completions.append((prompt, choice))
        return 200, {"id": "cmpl-0", "object": "text_completion", "model": "policy", "choices": [choice]}
