"""A service on loopback that speaks OpenAI's protocol and judges sheets by planted truth.

It sees: it cuts the sheet into its faces and looks each one up among the faces that it was told the
truth about. How it errs and fails is drawn from what is asked, so it does not depend on the order
of the calls. It takes chat completions and batches of them.
"""

import base64
import contextlib
import email
import hashlib
import io
import json
import math
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import regex
from PIL import Image

KEY = "sk-local-0123456789abcdef"
FAULTS = ("429", "500", "timeout", "truncated", "malformed", "refusal", "unknown_label")
_THUMB, _LABEL = 12, 18


@dataclass
class Behaviour:
    """How it errs.

    Attributes:
        wrong: chance that it says the opposite of the truth about a face.
        faults: kind of fault to the chance that an attempt ends in it.
        delay: seconds until it answers a call.
        polls: how often a batch is said to be in progress.
        expired: share of a batch's requests that are not reached before it expires.
        refusal: why batches fail their validation; none: they do not.
        creations: statuses of the next creations of batches; 0: made, and the answer is lost.
        face, columns: layout of the sheets.
    """

    wrong: float = 0.0
    faults: dict[str, float] = field(default_factory=dict)
    delay: float = 0.0
    polls: int = 0
    expired: float = 0.0
    refusal: str | None = None
    creations: list[int] = field(default_factory=list)
    face: int = 85
    columns: int = 6


class LocalJudge:
    """The service; `with LocalJudge(faces, strangers) as judge: judge.base_url`.

    Args:
        faces: uint8 (H, W, 3) each.
        strangers: whether each of them shows somebody else than its identity.

    Attributes:
        answered: how often each question was answered well, by the digest of the request.
        tokens: sent and received, as billed.
        headers: authorisation of all requests.
        files: what was uploaded and what batches brought, by id.
        batches: as their creator sees them, by id; the oldest first.
    """

    def __init__(
        self, faces: list[np.ndarray], strangers: list[bool], behaviour: Behaviour | None = None
    ) -> None:
        self.behaviour = behaviour or Behaviour()
        self._known = np.stack([_thumb(face) for face in faces])
        self._strangers = strangers
        self._lock = threading.Lock()
        self._attempts: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.headers: set[str] = set()
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self._polls: Counter[str] = Counter()
        self.largest = self._open = 0

    def __enter__(self) -> "LocalJudge":
        judge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                judge._serve(self)

            do_GET = do_POST  # noqa: N815

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        class Server(ThreadingHTTPServer):
            request_queue_size = 512
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        raw = handler.rfile.read(int(handler.headers["Content-Length"] or 0))
        with self._lock:
            self.headers.add(handler.headers.get("Authorization", ""))
            self._open += 1
            self.largest = max(self.largest, self._open)
        try:
            self._answer(handler, raw)
        finally:
            with self._lock:
                self._open -= 1

    def _answer(self, handler: BaseHTTPRequestHandler, raw: bytes) -> None:
        if handler.headers.get("Authorization") != f"Bearer {KEY}":
            return _send(handler, 401, {"error": {"message": "wrong key"}})
        address = urlsplit(handler.path)
        match handler.command, *address.path.removeprefix("/v1/").split("/"):
            case "POST", "chat", "completions":
                return self._chat(handler, raw)
            case "POST", "files":
                return _send(handler, 200, self._upload(handler.headers["Content-Type"], raw))
            case "GET", "files", name, "content" if name in self.files:
                return _send(handler, 200, self.files[name])
            case "POST", "batches":
                status = self.behaviour.creations.pop(0) if self.behaviour.creations else 200
                if status >= 400:
                    return _send(handler, status, {"error": {"message": "not now"}})
                batch = self._create(json.loads(raw))
                handler.close_connection = not status
                return _send(handler, 200, batch) if status else None
            case "GET", "batches":
                return _send(handler, 200, self._list(parse_qs(address.query)))
            case "GET", "batches", name if name in self.batches:
                return _send(handler, 200, self._look(name))
        return _send(handler, 404, {"error": {"message": "no such path"}})

    def _chat(self, handler: BaseHTTPRequestHandler, raw: bytes) -> None:
        digest = hashlib.sha256(raw).hexdigest()
        fault = self._draw(digest)
        time.sleep(self.behaviour.delay)
        if fault == "429":
            return _send(
                handler, 429, {"error": {"message": "slow down"}}, {"retry-after-ms": "50"}
            )
        if fault == "500":
            return _send(handler, 500, {"error": {"message": "oops"}})
        if fault == "timeout":
            time.sleep(3)
            handler.close_connection = True
            return None
        answer = self._complete(json.loads(raw), digest, fault)
        return _send(handler, 200, answer, cut=fault == "truncated")

    def _complete(self, body: dict[str, Any], digest: str, fault: str | None) -> dict[str, Any]:
        content, refusal, reason = self._judge(body), None, "stop"
        if fault == "malformed":
            content, reason = content[: len(content) // 2], "length"
        elif fault == "unknown_label":
            content = json.dumps(
                {"outliers": [{"label": 99999, "confidence": 1.0, "reason": "made up"}]}
            )
        elif fault == "refusal":
            content, refusal = "", "I cannot help with that."
        usage = {"prompt_tokens": _billed(body), "completion_tokens": len(content) // 4 + 1}
        with self._lock:
            self.tokens["sent"] += usage["prompt_tokens"]
            self.tokens["received"] += usage["completion_tokens"]
            self.answered[digest] += fault not in FAULTS
        return {
            "id": "chatcmpl-local",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": reason,
                    "message": {"role": "assistant", "content": content, "refusal": refusal},
                }
            ],
            "usage": {**usage, "total_tokens": sum(usage.values())},
        }

    def _upload(self, kind: str, raw: bytes) -> dict[str, Any]:
        form = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + raw)
        parts = {
            part.get_param("name", header="content-disposition"): part
            for part in form.get_payload()
        }
        data = parts["file"].get_payload(decode=True)
        return {
            "id": self._store(data),
            "object": "file",
            "bytes": len(data),
            "created_at": int(time.time()),
            "filename": parts["file"].get_filename(),
            "purpose": parts["purpose"].get_payload(),
            "status": "processed",
        }

    def _store(self, data: bytes) -> str:
        with self._lock:
            name = f"file-{len(self.files)}"
            self.files[name] = data
        return name

    def _create(self, wanted: dict[str, Any]) -> dict[str, Any]:
        lines = self.files[wanted["input_file_id"]].splitlines()
        why = self.behaviour.refusal
        with self._lock:
            name = f"batch_{len(self.batches)}"
            batch = self.batches[name] = {
                **wanted,
                "id": name,
                "object": "batch",
                "created_at": int(time.time()),
                "status": "failed" if why else "in_progress",
                "errors": {"object": "list", "data": [{"code": "invalid", "message": why}]}
                if why
                else None,
                "output_file_id": None,
                "error_file_id": None,
                "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
            }
        if not why:
            threading.Thread(target=self._work, args=(batch, lines), daemon=True).start()
        return batch

    def _list(self, query: dict[str, list[str]]) -> dict[str, Any]:
        """The newest first, `limit` at a time."""
        names = list(reversed(self.batches))
        first = names.index(query["after"][0]) + 1 if "after" in query else 0
        last = first + int(query["limit"][0])
        data = [self.batches[name] for name in names[first:last]]
        return {"object": "list", "data": data, "has_more": last < len(names)}

    def _look(self, name: str) -> dict[str, Any]:
        with self._lock:
            self._polls[name] += 1
            early = self._polls[name] <= self.behaviour.polls
        batch = self.batches[name]
        return {**batch, "status": "in_progress"} if early and not batch["errors"] else batch

    def _work(self, batch: dict[str, Any], lines: list[bytes]) -> None:
        """Answers the requests of a batch, the last one first."""
        good, bad = [{"custom_id": "never-asked", "response": None, "error": None}], []
        cut = []
        late = round(self.behaviour.expired * len(lines))
        for k, line in reversed(list(enumerate(map(json.loads, lines)))):
            back = {"id": f"batch_req_{k}", "custom_id": line["custom_id"], "error": None}
            if k < late:
                error = {"code": "batch_expired", "message": "not reached before it expired"}
                bad.append({**back, "response": None, "error": error})
                continue
            digest = hashlib.sha256(json.dumps(line["body"]).encode()).hexdigest()
            fault = self._draw(digest)
            if fault == "timeout":
                error = {"code": "request_timeout", "message": "no answer in time"}
                bad.append({**back, "response": None, "error": error})
            elif fault in ("429", "500"):
                body = {"error": {"message": "oops"}}
                place = bad if fault == "429" else good
                place.append({**back, "response": {"status_code": int(fault), "body": body}})
            else:
                body = self._complete(line["body"], digest, fault)
                place = cut if fault == "truncated" else good
                place.append({**back, "response": {"status_code": 200, "body": body}})
        files = [[*map(_dump, good), *(_dump(line)[:80] for line in cut)], list(map(_dump, bad))]
        output, errors = (self._store(b"\n".join(file) + b"\n") if file else None for file in files)
        counts = {"total": len(lines), "completed": len(good) - 1, "failed": len(bad)}
        ended = {"status": "expired" if late else "completed", "request_counts": counts}
        with self._lock:
            batch |= {**ended, "output_file_id": output, "error_file_id": errors}

    def _draw(self, digest: str) -> str | None:
        """The fault that the next attempt at a question ends in; it is counted."""
        with self._lock:
            attempt = self._attempts[digest]
            self._attempts[digest] += 1
        fault = self._fault(digest, attempt)
        if fault:
            with self._lock:
                self.faults[fault] += 1
        return fault

    def _fault(self, digest: str, attempt: int) -> str | None:
        drawn = np.random.default_rng(int(digest[:12], 16) + attempt).random()
        for name, chance in self.behaviour.faults.items():
            if drawn < chance:
                return name
            drawn -= chance
        return None

    def _judge(self, body: dict[str, Any]) -> str:
        text, image = body["messages"][1]["content"]
        data = base64.b64decode(image["image_url"]["url"].split(",")[1])
        sheet = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        face, columns = self.behaviour.face, self.behaviour.columns
        numbers = text["text"].split("numbers on this sheet are ")[1].split(". ")[0]
        outliers = []
        for place, label in enumerate(numbers.split(", ")):
            row, column = divmod(place, columns)
            y, x = row * (face + _LABEL), column * face
            thumb = _thumb(sheet[y : y + face, x : x + face])
            found = int(((self._known - thumb) ** 2).sum(axis=1).argmin())
            drawn = np.random.default_rng(int(hashlib.sha256(thumb).hexdigest()[:12], 16)).random()
            if self._strangers[found] != (drawn < self.behaviour.wrong):
                outliers.append(
                    {"label": int(label), "confidence": 0.9, "reason": "another face shape"}
                )
        if len(outliers) == len(numbers.split(", ")):
            outliers = outliers[1:]
        return json.dumps({"outliers": outliers})


def _thumb(face: np.ndarray) -> np.ndarray:
    small = Image.fromarray(face).convert("L").resize((_THUMB, _THUMB), Image.Resampling.BOX)
    return np.asarray(small, np.float32).ravel()


def _billed(body: dict[str, Any]) -> int:
    """Tokens of a request, counted without raypipe's own code: OpenAI's published rules."""
    total = 3
    for message in body["messages"]:
        parts = message["content"]
        parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
        total += 4
        for part in parts:
            if part["type"] == "text":
                pieces = _CUT.findall(part["text"])
                total += sum(1 + (len(piece) > 13) for piece in pieces)
            else:
                data = base64.b64decode(part["image_url"]["url"].split(",")[1])
                width, height = Image.open(io.BytesIO(data)).size
                if max(width, height) > 2048:
                    width, height = (v * 2048 / max(width, height) for v in (width, height))
                if min(width, height) > 768:
                    width, height = (v * 768 / min(width, height) for v in (width, height))
                total += 85 + 170 * math.ceil(width / 512) * math.ceil(height / 512)
    return total


# How tiktoken's cl100k_base cuts a text; nearly all English words of up to 12 letters are a token.
_CUT = regex.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _dump(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()


def _send(
    handler: BaseHTTPRequestHandler,
    status: int,
    body: dict[str, Any] | bytes,
    headers: dict[str, str] | None = None,
    *,
    cut: bool = False,
) -> None:
    data = body if isinstance(body, bytes) else _dump(body)
    handler.send_response(status)
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        handler.wfile.write(data[: len(data) // 2] if cut else data)
    if cut:
        handler.close_connection = True
