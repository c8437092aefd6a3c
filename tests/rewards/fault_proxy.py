"""HTTP on loopback for tests: a stub judge whose every answer can be checked, and a proxy that injects faults."""

import asyncio
import hashlib
import json
import random
import socket
import struct
import threading
from collections import Counter
from dataclasses import dataclass, field

FAULTS = ("delay", "reset", "500", "429", "truncated", "schema")


@dataclass
class Request:
    path: str
    headers: dict
    body: bytes


@dataclass
class Response:
    status: int
    body: bytes
    headers: dict = field(default_factory=dict)


def response(status, value, **headers):
    return Response(status, json.dumps(value).encode(), headers)


async def read_request(reader):
    """The next request of a kept connection, or None at its end."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
    return Request(head[0].split()[1], headers, await reader.readexactly(int(headers.get("content-length", 0))))


def encode(reply):
    headers = {"content-type": "application/json", "content-length": len(reply.body)} | reply.headers
    lines = [f"HTTP/1.1 {reply.status} X", *(f"{k}: {v}" for k, v in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + reply.body


class Server:
    """Answers POST requests on loopback from a loop in a thread; `with Server() as url`."""

    def __init__(self):
        self.requests = 0
        self.in_flight = 0
        self.most_in_flight = 0

    async def handle(self, request):
        raise AssertionError("a server says how it answers")

    def __enter__(self):
        started = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._main(started)), daemon=True)
        self.thread.start()
        started.wait()
        return f"http://127.0.0.1:{self.port}/v1"

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join()

    async def _main(self, started):
        self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await self.stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _serve(self, reader, writer):
        try:
            while (request := await read_request(reader)) is not None:
                self.requests += 1
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                try:
                    reply = await self.handle(request)
                finally:
                    self.in_flight -= 1
                if reply is None:  # a reset: unsent data is dropped and the other side sees ECONNRESET
                    linger = struct.pack("ii", 1, 0)
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    writer.transport.abort()
                    return
                writer.write(encode(reply))
                await writer.drain()
                if reply.headers.get("connection") == "close":
                    return
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


def told_by(text, seed):
    """The text and the log-probabilities of yes and no with which the stub answers a question."""
    digest = hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()
    yes = -(int(digest[:6], 16) / 2**24) - 1e-3
    return digest[:12], {"Yes": yes, "No": yes - 1.0}


class StubJudge(Server):
    """Chat completions that are a hash of the question, so that a lost, swapped or torn answer shows."""

    def answer(self, body):
        """The reply to one parsed request; tests override nothing but this."""
        text, top = told_by(body["messages"][-1]["content"][-1]["text"], body["seed"])
        alternatives = [{"token": t, "logprob": v} for t, v in top.items()]
        position = {"token": "Yes", "logprob": top["Yes"], "top_logprobs": alternatives}
        logprobs = {"content": [position]} if body.get("top_logprobs") else None
        message = {"role": "assistant", "content": text}
        return response(200, {"choices": [{"index": 0, "message": message, "logprobs": logprobs}]})

    async def handle(self, request):
        return self.answer(json.loads(request.body))


class FaultProxy(Server):
    """Stands in front of a server and spoils a share of the calls, each kind of fault as often as the others.

    Whether and how a call is spoiled depends on the seed, on what it asks and on how often that was asked, and not on
    the order of arrival: the same run has the same faults.
    """

    def __init__(self, port, rate, seed=0, delay=0.5, faults=FAULTS):
        super().__init__()
        self.upstream, self.rate, self.seed, self.delay, self.faults = port, rate, seed, delay, faults
        self.asked = Counter()
        self.injected = Counter()

    async def handle(self, request):
        name = hashlib.sha256(request.body).hexdigest()
        self.asked[name] += 1
        rng = random.Random(f"{self.seed}:{name}:{self.asked[name]}")
        fault = rng.choice(self.faults) if rng.random() < self.rate else None
        self.injected[fault] += 1
        if fault == "reset" and rng.random() < 0.5:
            return None  # before the server has seen it
        if fault in ("500", "429"):
            return response(int(fault), {"error": "injected"}, **({"retry-after": "0"} if fault == "429" else {}))
        if fault == "delay":
            await asyncio.sleep(self.delay)
        reply = await self.forward(request)
        return self.spoil(reply, fault, rng)

    def spoil(self, reply, fault, rng):
        if fault == "reset":
            return None  # after the server has answered
        if fault == "truncated":
            cut = rng.randrange(len(reply.body))
            honest = rng.random() < 0.5  # the length fits the torn body, or the connection ends too early
            return Response(
                200, reply.body[:cut], {} if honest else {"content-length": len(reply.body), "connection": "close"}
            )
        if fault == "schema":
            return response(
                200, rng.choice([{"choices": []}, {"choices": "0"}, {"score": 0}, [], "0", 0, {"choices": [{}]}])
            )
        return reply

    async def forward(self, request):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        try:
            head = f"POST {request.path} HTTP/1.1\r\nhost: loopback\r\ncontent-type: application/json\r\n"
            length = f"content-length: {len(request.body)}\r\nconnection: close\r\n\r\n"
            writer.write((head + length).encode() + request.body)
            status = int((await reader.readuntil(b"\r\n")).split()[1])
            headers = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
            length = next(int(line.split(":")[1]) for line in headers if line.startswith("content-length"))
            return Response(status, await reader.readexactly(length))
        finally:
            writer.close()
