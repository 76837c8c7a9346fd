"""Lists as they are published, one stream a reader: the recommendations topic, handed on by user.

One thread reads the topic's end for all streams. A reader that does not keep up is dropped: what it missed is told by
the list that it asks for when it comes again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterator

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from freshet.client.connection import ClientError
from freshet.client.reader import TopicReader, TopicRecord
from freshet.core.recommendation import Timings
from freshet.http.problems import ProblemError
from freshet.process import metrics
from freshet.settings import Settings

WAITING_LISTS = 16
"""Lists that may wait for a reader; one that is further behind is dropped."""
BEAT_SECONDS = 15.0
"""A silent stream says so often that it is there."""
SEND_SECONDS = 10.0
"""A reader that takes nothing for so long is dropped."""
TIMED_LISTS = 500
"""Lists by which freshness is told."""
POLL_SECONDS = 0.5
RETRY_SECONDS = 1.0
ENDED = b""

log = logging.getLogger(__name__)


class _Timed(msgspec.Struct):
    timings: Timings


class Stream:
    """One reader's waiting lists; `ENDED` comes last."""

    def __init__(self) -> None:
        self.waiting: asyncio.Queue[bytes] = asyncio.Queue(WAITING_LISTS + 1)
        self.dropped = False

    def put(self, message: bytes) -> None:
        """Let a message wait, or drop the reader that is too far behind."""
        if self.dropped:
            return
        if self.waiting.qsize() >= WAITING_LISTS:
            self.dropped = True
            metrics.STREAMS_DROPPED.inc()
            message = ENDED
        self.waiting.put_nowait(message)


class ListStreams:
    """Hands published lists on to whoever follows a user."""

    def __init__(self, settings: Settings, most: int) -> None:
        self._settings = settings
        self._most = most
        self._streams: dict[bytes, set[Stream]] = defaultdict(set)
        self._open = 0
        self._closing = threading.Event()
        self._timings: deque[float] = deque(maxlen=TIMED_LISTS)
        self.lists = 0
        """Lists read since the start."""
        self.verdict = "not started"
        """`ok`, or why no list comes."""

    def connect(self) -> None:
        """Find the end of the topic. Raises `ClientError`."""
        self._reader = TopicReader(self._settings, self._settings.recommendations_topic)
        self._reader.follow()

    def start(self) -> None:
        """Follow the topic from there on, for the running event loop."""
        self._loop = asyncio.get_running_loop()
        self.verdict = "ok"
        self._thread = threading.Thread(target=self._follow, name="read-lists", daemon=True)
        self._thread.start()

    def end_all(self) -> None:
        """End every stream, and take no more."""
        self._most = 0
        for streams in self._streams.values():
            for stream in streams:
                stream.dropped = True
                if not stream.waiting.full():
                    stream.waiting.put_nowait(ENDED)

    def close(self) -> None:
        """Stop reading."""
        self._closing.set()
        self._reader.close()
        self._thread.join()

    def freshness(self) -> tuple[float, float] | None:
        """Median and 99th percentile of the newest lists' time from broker to publishing, ms; None without a list."""
        times = sorted(self._timings)
        return (times[len(times) // 2], times[int(len(times) * 0.99)]) if times else None

    @contextlib.contextmanager
    def follow(self, user_id: str) -> Iterator[Stream]:
        """The stream of a user. Raises `ProblemError` where there are too many."""
        if self._open >= self._most:
            raise ProblemError(503, f"{self._open} streams are open, and no more are served", 5)
        key, stream = user_id.encode(errors="surrogatepass"), Stream()
        self._streams[key].add(stream)
        self._open += 1
        metrics.STREAMS.set(self._open)
        try:
            yield stream
        finally:
            self._open -= 1
            metrics.STREAMS.set(self._open)
            self._streams[key].discard(stream)
            if not self._streams[key]:
                del self._streams[key]

    def _follow(self) -> None:
        while not self._closing.is_set():
            try:
                record = self._reader.next_record(POLL_SECONDS)
            except ClientError as error:
                self.verdict = str(error)
                log.warning("lists cannot be followed", extra={"why": str(error)})
                time.sleep(RETRY_SECONDS)
                continue
            if record is not None:
                self.verdict = "ok"
                self._note(record)
                if record.key in self._streams:
                    self._loop.call_soon_threadsafe(self._hand_on, record)

    def _note(self, record: TopicRecord) -> None:
        self.lists += 1
        if record.value:
            with contextlib.suppress(msgspec.DecodeError, UnicodeError, RecursionError):
                timings = _timed.decode(record.value).timings
                self._timings.append(timings.publish - timings.broker)

    def _hand_on(self, record: TopicRecord) -> None:
        kind, data = ("list", record.value) if record.value else ("erased", b"{}")
        message = server_sent(kind, data, f"{record.partition}-{record.offset}")
        for stream in self._streams.get(record.key or b"", ()):
            stream.put(message)


class StreamResponse(Response):
    """A user's lists as server-sent events: the list as of now, then each that is published, until the stream ends."""

    media_type = "text/event-stream"

    def __init__(self, streams: ListStreams, user_id: str, first: Callable[[], Awaitable[bytes]]) -> None:
        super().__init__(headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self._streams = streams
        self._user_id = user_id
        self._first = first

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Serve. Raises `ProblemError`, before anything is sent, where there are too many streams."""
        with self._streams.follow(self._user_id) as stream:
            first = await self._first()
            parts = [asyncio.create_task(_gone(receive)), asyncio.create_task(self._send(stream, first, send))]
            try:
                done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
                for part in done:
                    part.result()
            except TimeoutError:
                metrics.STREAMS_DROPPED.inc()
            finally:
                for part in parts:
                    part.cancel()

    async def _send(self, stream: Stream, first: bytes, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        message = server_sent("list", first)
        while message != ENDED:
            async with asyncio.timeout(SEND_SECONDS):
                await send({"type": "http.response.body", "body": message, "more_body": True})
            try:
                async with asyncio.timeout(BEAT_SECONDS):
                    message = await stream.waiting.get()
            except TimeoutError:
                message = b": here\n\n"
        await send({"type": "http.response.body", "body": b""})


async def _gone(receive: Receive) -> None:
    """Wait until the reader has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def server_sent(kind: str, data: bytes, number: str | None = None) -> bytes:
    """An event of `text/event-stream`; `data` is JSON in one line, or is put into one."""
    name = f"id: {number}\n" if number is not None else ""
    lines = b"\n".join(b"data: " + line for line in data.splitlines() or [b""])
    return f"{name}event: {kind}\n".encode() + lines + b"\n\n"


_timed = msgspec.json.Decoder(_Timed)
