"""A web server that costs little: a folder's files from memory, each answer made before it is asked for.

    python -m tests.bench.static_server FOLDER        prints "127.0.0.1:PORT", serves until it is killed

Benchmarks count its time apart, but it runs on the same cores as what they measure: tests/web.py, which
can be hostile and remembers what it was asked, takes a millisecond an answer. A path is a file's name;
what is behind its "?" changes nothing, so one file can have as many URLs as it takes. All else is a 404.
"""

import asyncio
import sys
from pathlib import Path

NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


class Connection(asyncio.Protocol):
    """Answers each request of one connection, which stays open unless the client asks otherwise."""

    def __init__(self, answers: dict[bytes, bytes]) -> None:
        self._answers = answers
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head, self._received = self._received[:end], self._received[end + 4 :]
            path = head.split(b" ", 2)[1].partition(b"?")[0]
            self._transport.write(self._answers.get(path, NOT_FOUND))
            if b"connection: close" in head.lower():
                self._transport.close()  # once all is sent


def answers(folder: Path) -> dict[bytes, bytes]:
    """Path -> the whole answer."""
    made = {}
    for file in sorted(folder.iterdir()):
        body = file.read_bytes()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
        made[f"/{file.name}".encode()] = head.encode() + body
    return made


async def serve(folder: Path) -> None:
    made = answers(folder)
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(made), "127.0.0.1", 0, backlog=4096
    )
    host, port = server.sockets[0].getsockname()
    print(f"{host}:{port}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
