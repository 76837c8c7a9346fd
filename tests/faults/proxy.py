"""A TCP proxy that can delay what passes, or let nothing pass."""

from __future__ import annotations

import asyncio
import threading

CHUNK = 1 << 16


class Proxy:
    """Listens on a loopback port for another one. `delay` is in s, each way; `blocked` swallows everything."""

    def __init__(self, port: int, target: int) -> None:
        self.delay = 0.0
        self.blocked = False
        self._port, self._target = port, target
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        threading.Thread(target=self._run, name="proxy", daemon=True).start()
        self._listening.wait()

    def close(self) -> None:
        """Stop listening."""
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", self._port))
        self._listening.set()
        self._loop.run_forever()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pass(reader, there_writer), self._pass(there_reader, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass bytes on, each after the delay, in order."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        sending = asyncio.create_task(self._send(queue, writer))
        try:
            while data := await reader.read(CHUNK):
                queue.put_nowait((self._loop.time() + self.delay, data))
        except OSError:
            pass
        queue.put_nowait((self._loop.time() + self.delay, b""))
        await sending

    async def _send(self, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        try:
            while (entry := await queue.get())[1]:
                await asyncio.sleep(max(0.0, entry[0] - self._loop.time()))
                while self.blocked:  # noqa: ASYNC110 - set by another thread
                    await asyncio.sleep(0.1)
                writer.write(entry[1])
                await writer.drain()
        except OSError:
            pass
        finally:
            if not self._loop.is_closed():
                writer.close()
