"""`finallyse serve` as a process: what it answers, under load, to clients of all kinds, and how it ends."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

import finallyse
from finallyse.inference.files import SCRATCH

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
RATE = 16000
ELSEWHERE = """
    /../../../etc/passwd /..%2f..%2fetc/passwd /%2e%2e/serve/app.py /index.html/ //etc/passwd /LICENSES.txt/..
    /enhance/../serve /static/ /.git/config /%00 /docs /openapi.json
"""


@dataclass
class Server:
    """A running server. `temporary`: where it keeps its files."""

    process: subprocess.Popen
    port: int
    temporary: Path

    def ask(self, method: str, path: str, body=None, timeout: float = 120, **headers: str):
        """(status, headers, body)"""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def enhance(self, body, query: str = "", **headers: str):
        return self.ask("POST", f"/enhance{query}", body, **headers)

    def health(self) -> dict:
        return json.loads(self.ask("GET", "/health")[2])

    def children(self) -> list[int]:
        return [
            int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]

    def files(self) -> list[Path]:
        """Temporary files of recordings."""
        return [path for path in self.temporary.glob(f"{SCRATCH}*/*/**/*") if path.is_file()]

    def wait_until(self, true, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, "took too long"
            time.sleep(0.05)


@contextlib.contextmanager
def serving(temporary: Path, *options: str) -> Iterator[Server]:
    environment = {**os.environ, "TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "finallyse.cli", "serve", "--port", "0", "--threads", "1", *options]
    with (
        (temporary / "log").open("w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as process,
    ):
        try:
            line = process.stdout.readline()
            address = re.match(r"http://127\.0\.0\.1:(\d+)/ ", line)
            assert address, (line, Path(log.name).read_text())
            yield Server(process, int(address[1]), temporary)
        finally:
            process.kill()


def wav_bytes(wav: np.ndarray, rate: int = RATE, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    sf.write(file, wav.T, rate, format=kind, subtype="PCM_16")
    return file.getvalue()


def read_all(raw: socket.socket) -> bytes:
    """What arrives until the other side closes."""
    return b"".join(iter(lambda: raw.recv(65536), b""))


def error_of(answer) -> str:
    status, headers, body = answer
    assert status >= 400 and headers["content-type"] == "application/json", answer
    told = json.loads(body)
    assert list(told) == ["error"] and "\n" not in told["error"] and "/tmp" not in told["error"], told
    return told["error"]


def level_of_difference(heard: np.ndarray, wanted: np.ndarray) -> float:
    """dB"""
    assert heard.shape == wanted.shape
    return 10 * np.log10(np.square(heard - wanted).sum() / np.square(wanted).sum() + 1e-30)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("serve")) as running:
        yield running


@pytest.fixture(scope="module")
def strict(tmp_path_factory) -> Iterator[Server]:
    limits = ["--max-mb", "4", "--max-minutes", "0.5", "--queue", "2", "--timeout", "10"]
    with serving(tmp_path_factory.mktemp("strict"), *limits) as running:
        yield running


@pytest.fixture(scope="module")
def enhancer():
    return finallyse.load()


def test_answers_what_enhance_writes(server, speech_16k, enhancer):
    status, headers, body = server.enhance(wav_bytes(speech_16k))
    assert status == 200 and headers["content-type"] == "audio/wav" and float(headers["x-audio-seconds"]) == 4
    heard, rate = sf.read(io.BytesIO(body), dtype="float32")
    assert rate == RATE
    exact = wav_bytes(speech_16k)
    given, _ = sf.read(io.BytesIO(exact), dtype="float32")
    assert level_of_difference(heard, enhancer.enhance(given, RATE)) < -50


@pytest.mark.parametrize(
    ("query", "accept", "kind"),
    [
        ("?format=flac", "*/*", "FLAC"),
        ("", "audio/flac", "FLAC"),
        ("?format=wav", "audio/flac", "WAV"),
        ("", "text/html, */*", "WAV"),
    ],
)
def test_formats_of_the_answer(server, speech_16k, query, accept, kind):
    status, headers, body = server.enhance(wav_bytes(speech_16k[:RATE]), query, Accept=accept)
    assert status == 200 and headers["content-type"] == f"audio/{kind.lower()}"
    assert sf.info(io.BytesIO(body)).format == kind and sf.info(io.BytesIO(body)).frames == RATE


def test_any_format_and_channels_go_in(server, speech_48k):
    stereo = np.stack([speech_48k[:96000], 0.3 * speech_48k[96000:]])
    file = io.BytesIO()
    sf.write(file, stereo.T, 48000, format="MP3")
    status, _, body = server.enhance(file.getvalue(), Content_Type="application/x-www-form-urlencoded")  # curl's
    heard, rate = sf.read(io.BytesIO(body))
    assert status == 200 and rate == 48000 and heard.shape[1] == 2 and abs(len(heard) - 96000) < 4800


def test_describes_itself(server):
    status, _, body = server.ask("GET", "/model")
    told = json.loads(body)
    assert status == 200 and told["input_rate"] == RATE and told["engine"] == "torch" and "small" in told["card"]
    assert told["limits"]["queue"] == 32
    assert server.health()["status"] == "ok"


def test_runs_without_pytorch(tmp_path, speech_16k, enhancer):
    with serving(tmp_path, "--engine", "onnx") as server:
        assert json.loads(server.ask("GET", "/model")[2])["engine"] == "onnx"
        status, _, body = server.enhance(wav_bytes(speech_16k))
        heard, _ = sf.read(io.BytesIO(body), dtype="float32")
        assert status == 200 and level_of_difference(heard, enhancer.enhance(speech_16k, RATE)) < -50


def test_serves_the_page_and_nothing_else(server):
    status, headers, body = server.ask("GET", "/")
    assert status == 200 and body.startswith(b"<!doctype html>") and headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY" and "access-control-allow-origin" not in headers
    assert server.ask("GET", "/", If_None_Match=headers["etag"])[0] == 304
    assert b"Microsoft" in server.ask("GET", "/LICENSES.txt")[2]
    for path in ELSEWHERE.split():
        assert error_of(server.ask("GET", path)) == "no such page", path
    for request in ("GET /enhance", "PUT /enhance", "POST /", "DELETE /model", "OPTIONS /enhance"):
        answer = server.ask(*request.split())
        assert error_of(answer) == "not with this method" and answer[0] == 405, request


def test_other_sites_are_refused(server, speech_16k):
    body = wav_bytes(speech_16k[:RATE])
    assert error_of(server.enhance(body, Origin="https://elsewhere.example")) == "requests of other sites are refused"
    assert server.enhance(body, Origin="null")[0] == 403
    assert server.enhance(body, Origin=f"http://127.0.0.1:{server.port}")[0] == 200
    rebound = server.ask("GET", "/health", Host=f"elsewhere.example:{server.port}")
    assert rebound[0] == 421 and "--name" in error_of(rebound)


@pytest.mark.parametrize(
    ("body", "query", "headers", "status", "told"),
    [
        (b"", "", {}, 400, "the body is empty"),
        (b"no audio at all " * 1000, "", {}, 415, "cannot be decoded"),
        (b"RIFF\xff\xff\xff\xffWAVEfmt ", "", {}, 415, "the recording"),
        (b"x", "?format=exe", {}, 400, "must be wav or flac"),
        (b"x", "?format=../../x", {}, 400, "must be wav or flac"),
        (b"x", "?accept-cut=maybe", {}, 400, "must be 1 or 0"),
        (b"x", "", {"Accept": "image/png"}, 406, "audio/wav or audio/flac"),
        (b"x", "", {"Content_Type": "multipart/form-data; boundary=x"}, 415, "--data-binary"),
    ],
)
def test_what_cannot_be_enhanced_is_told_in_a_line(server, body, query, headers, status, told):
    answer = server.enhance(body, query, **headers)
    assert answer[0] == status and told in error_of(answer)
    assert server.files() == []


def test_a_cut_recording_is_taken_on_request(server, speech_16k):
    whole = wav_bytes(speech_16k, kind="FLAC")
    cut = whole[: len(whole) // 2]
    refused = server.enhance(cut)
    assert refused[0] == 415 and "accept-cut" in error_of(refused)
    status, headers, _ = server.enhance(cut, "?accept-cut")
    assert status == 200 and 1 < float(headers["x-audio-seconds"]) < 3.5


def test_twenty_clients_at_once(server, speech, enhancer):
    """All are answered, each with its own recording, in about the order in which they came, in bounded memory."""
    recordings = [sf.read(path, dtype="float32") for path in (speech * 2)[:20]]
    bodies = [wav_bytes(wav, rate) for wav, rate in recordings]
    started, lock, finished = time.monotonic(), threading.Lock(), []

    def client(index: int):
        answer = server.enhance(bodies[index])
        with lock:
            finished.append(index)
        return answer, time.monotonic() - started

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(client, range(20)))
    assert [answer[0] for answer, _ in answers] == [200] * 20
    for (wav, rate), body, ((_, _, heard), _) in zip(recordings, bodies, answers, strict=True):
        if len(wav) < 3 * rate:  # the others take their time
            given, _ = sf.read(io.BytesIO(body), dtype="float32")
            result, result_rate = sf.read(io.BytesIO(heard), dtype="float32")
            assert level_of_difference(result, enhancer.enhance(given, rate, result_rate)) < -50
        assert sf.info(io.BytesIO(heard)).duration == pytest.approx(len(wav) / rate, abs=1e-3)
    assert len(finished) == 20
    server.wait_until(lambda: server.health()["taken"] == 0)
    assert server.files() == []


def resident_mb(pid: int) -> float:
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1e3


def test_memory_does_not_grow_with_uploads(server):
    garbage = np.random.default_rng(0).bytes(40_000_000)
    server.enhance(garbage[:1000])
    pids = [server.process.pid, *server.children()]
    before = sum(map(resident_mb, pids))
    most, done = before, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.02):
            most = max(most, sum(map(resident_mb, pids)))

    watching = threading.Thread(target=watch)
    watching.start()
    with ThreadPoolExecutor(8) as pool:
        statuses = [answer[0] for answer in pool.map(server.enhance, [garbage] * 8)]  # 320 MB
    done.set()
    watching.join()
    assert statuses == [415] * 8
    assert most - before < 60, (before, most)


def test_an_upload_that_is_too_large(strict):
    answer = strict.enhance(bytes(5_000_000))  # stated in Content-Length
    assert answer[0] == 413 and error_of(answer) == "the upload is larger than 4 MB, which is the limit"
    with socket.create_connection(("127.0.0.1", strict.port), timeout=20) as raw:  # not stated
        raw.sendall(b"POST /enhance HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(80):
                raw.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
        with contextlib.suppress(ConnectionError):
            assert raw.recv(1000).startswith(b"HTTP/1.1 413 ")
    strict.wait_until(lambda: strict.files() == [] and strict.health()["taken"] == 0)


def test_a_recording_that_is_too_long(strict):
    packed = wav_bytes(np.zeros(RATE * 3600, np.float32), kind="FLAC")  # an hour of silence in half a megabyte
    assert len(packed) < 1_000_000
    answer = strict.enhance(packed)
    assert answer[0] == 413 and "longer than 30 s" in error_of(answer)


def test_a_full_queue_says_when_to_try_again(strict, speech_16k):
    body = wav_bytes(speech_16k)

    def client(_index: int):
        for _ in range(200):
            answer = strict.enhance(body)
            if answer[0] != 503:
                return answer[0], waits
            waits.append(int(answer[1]["retry-after"]))
            assert error_of(answer) == "the queue is full"
            time.sleep(0.2)
        return 503, waits

    waits: list[int] = []
    with ThreadPoolExecutor(6) as pool:
        statuses = [status for status, _ in pool.map(client, range(6))]
    assert statuses == [200] * 6
    assert waits and all(1 <= wait <= 300 for wait in waits)


def test_slow_clients_keep_nobody_from_being_served(strict, speech_16k):
    with socket.create_connection(("127.0.0.1", strict.port), timeout=20) as slow:
        slow.sendall(b"POST /enhance HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\nRIFF")
        strict.wait_until(lambda: strict.health()["taken"] == 1)
        assert strict.enhance(wav_bytes(speech_16k[:RATE]))[0] == 200
        assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")
    strict.wait_until(lambda: strict.files() == [] and strict.health()["taken"] == 0)


def begin_long(server: Server, minutes: float) -> socket.socket:
    """A connection on which a long recording is being enhanced."""
    rng = np.random.default_rng(0)
    body = wav_bytes(0.1 * rng.standard_normal(int(RATE * 60 * minutes)).astype(np.float32))
    raw = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    raw.sendall(b"POST /enhance HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    server.wait_until(lambda: server.health()["busy"])
    return raw


def test_a_client_that_leaves_cancels_its_work(server, speech_16k):
    before = server.health()["done"]
    begin_long(server, 20).close()
    started = time.monotonic()
    assert server.enhance(wav_bytes(speech_16k[:RATE]))[0] == 200
    assert time.monotonic() - started < 20  # the recording takes longer
    assert server.health()["done"] == before + 1
    server.wait_until(lambda: server.files() == [] and server.health()["taken"] == 0)


def test_a_limit_of_time(tmp_path, speech_16k):
    with serving(tmp_path, "--timeout", "2") as server, begin_long(server, 10) as raw:
        assert raw.recv(1000).startswith(b"HTTP/1.1 504 ")
        assert server.enhance(wav_bytes(speech_16k[:RATE]))[0] == 200


def test_a_worker_that_dies_is_started_again(server, speech_16k):
    with begin_long(server, 10) as raw:
        (worker,) = [pid for pid in server.children() if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
        os.kill(worker, signal.SIGKILL)
        assert raw.recv(1000).startswith(b"HTTP/1.1 500 ")
    assert server.enhance(wav_bytes(speech_16k[:RATE]))[0] == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ends_on_a_signal_and_leaves_nothing(tmp_path, number):
    with serving(tmp_path) as server, begin_long(server, 20) as raw:
        children = server.children()
        server.process.send_signal(number)
        assert b"the server is stopping" in read_all(raw)
        assert server.process.wait(30) == (143 if number == signal.SIGTERM else 130)
        assert list(tmp_path.glob(f"{SCRATCH}*")) == []
        server.wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
        assert "Traceback" not in (tmp_path / "log").read_text()


def test_after_a_kill_the_next_start_removes_what_was_left(tmp_path):
    with serving(tmp_path) as server, begin_long(server, 20):
        children = server.children()
        server.process.kill()
        server.process.wait()
        server.wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    assert list(tmp_path.glob(f"{SCRATCH}*"))
    with serving(tmp_path) as server:
        assert len(list(tmp_path.glob(f"{SCRATCH}*"))) == 1 and server.files() == []


def test_wrong_command_lines(tmp_path):
    def told(*options: str) -> str:
        command = [sys.executable, "-m", "finallyse.cli", "serve", *options]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, env={**os.environ, "TMPDIR": str(tmp_path)}
        )
        assert done.returncode == 2 and done.stdout == ""
        return done.stderr.splitlines()[-1]

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert told("--port", port).startswith(f"error: --host 127.0.0.1 --port {port}: Address already in use")
    assert "no such checkpoint" in told("--checkpoint", "absent")
    assert told("--port", "0", "--checkpoint", __file__).startswith(f"error: {__file__}")
    assert "--max-mb" in told("--max-mb", "0")
    assert "--host" in told("--host", "300.1.1.1")
    assert list(tmp_path.glob(f"{SCRATCH}*")) == []


def test_missing_packages_are_named(tmp_path):
    code = "import sys; sys.modules['uvicorn'] = None; from finallyse.cli import main; main(['serve', '--port', '0'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr == "error: serving needs uvicorn: pip install 'finallyse[serve]'\n"
