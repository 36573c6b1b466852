"""What W&B's files hold, read as its own server process does, and a server that W&B takes for its own."""

import gzip
import json
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32768, 7  # of LevelDB's log format; W&B puts a header of the same length before the first record
FULL, FIRST, LAST = 1, 2, 4


@dataclass
class Segment:
    """One start of a run.

    Attributes:
        rounds: the numbers by round, under the names that they have at W&B.
        summary: by name, as the run ended.
        config: by key.
        about: group, name, tags and the like.
        defined: the definitions of metrics.
        exit_code: None where the record was torn.
    """

    path: Path
    rounds: dict[int, dict[str, float]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    about: Any = None
    defined: list[Any] = field(default_factory=list)
    exit_code: int | None = None


def read_segments(run_dir: Path) -> list[Segment]:
    """Every segment that `wandb sync` would send from a run directory."""
    return [read_segment(path) for path in sorted(run_dir.rglob("*.wandb")) if not path.parent.is_symlink()]


def read_segment(path: Path) -> Segment:
    segment = Segment(path)
    for record in _records(path.read_bytes()):
        if record.HasField("history"):
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            if "round" in row:  # the last one has the table and the pictures too
                numbers = {
                    name: value for name, value in row.items() if not name.startswith(("_", "round", "summary", "figures"))
                }
                segment.rounds.setdefault(int(row["round"]), {}).update(numbers)
        elif record.HasField("run"):
            segment.about = record.run
            segment.config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif record.HasField("summary"):
            updates = record.summary.update
            segment.summary |= {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}
        elif record.HasField("metric"):
            segment.defined.append(record.metric)
        elif record.HasField("exit"):
            segment.exit_code = record.exit.exit_code
    return segment


def _records(content: bytes) -> Iterator[Record]:
    """The records of a `.wandb` file, in LevelDB's log format, up to a torn one."""
    assert content[:4] == b":W&B"
    place, parts = HEADER, b""
    while place + HEADER <= len(content):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + HEADER])
        data = content[place + HEADER : place + HEADER + length]
        if len(data) < length or not kind:
            return
        place += HEADER + length
        parts = data if kind in (FULL, FIRST) else parts + data
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(parts)
            yield record


class Server(ThreadingHTTPServer):
    """Takes runs as W&B's server does, until it is `dead`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.dead, self.sent = False, ""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path.endswith("file_stream"):
            self.server.sent += body.decode()
        self._answer({} if self.path != "/graphql" else {"data": _answer(json.loads(body))})

    do_PUT = do_POST  # noqa: N815 as the base class calls it

    def do_GET(self) -> None:
        self._answer({})

    def _answer(self, content: dict[str, Any]) -> None:
        data = b"" if self.server.dead else json.dumps(content).encode()
        self.send_response(503 if self.server.dead else 200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    query, given = request["query"], request.get("variables") or {}
    if "upsertBucket" in query:
        project = {"id": "P", "name": given.get("project") or "p", "entity": {"id": "E", "name": "e"}}
        bucket = {
            "id": "R",
            "name": given.get("name"),
            "displayName": "d",
            "config": None,
            "sweepName": None,
            "historyLineCount": 0,
        }
        return {"upsertBucket": {"bucket": bucket | {"description": None, "project": project}, "inserted": True}}
    if "createRunFiles" in query:
        return {"createRunFiles": {"runID": "R", "uploadHeaders": [], "files": []}}
    if "viewer" in query:
        return {"viewer": {"id": "V", "entity": "e", "username": "u", "flags": "{}", "teams": {"edges": []}}}
    return {}
