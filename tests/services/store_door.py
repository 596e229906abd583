"""A door before an S3 server, which can say that the store is full as MinIO says it."""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_FULL = (
    b"<Error><Code>XMinioStorageFull</Code><Message>Storage backend has reached its minimum free "
    b"drive threshold. Please delete a few objects to proceed.</Message></Error>"
)


class StoreDoor:
    """Passes requests on to a server of this machine; a context manager."""

    def __init__(self, port: int) -> None:
        #: Whether whatever is put is refused with 507.
        self.full = False
        #: How many were.
        self.refusals = 0
        door = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if door.full and self.command == "PUT":
                    door.refusals += 1
                    self._answer(507, [("Content-Type", "application/xml")], _FULL)
                    return
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                try:
                    # With the headers as they are: their signature is over them.
                    connection.putrequest(self.command, self.path, True, True)
                    for name, value in self.headers.items():
                        connection.putheader(name, value)
                    connection.endheaders(body or None)
                    answer = connection.getresponse()
                    self._answer(answer.status, answer.getheaders(), answer.read())
                except OSError:
                    self.close_connection = True
                finally:
                    connection.close()

            def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    if self.command == "HEAD" or name.lower() != "content-length":
                        self.send_header(name, value)
                if self.command != "HEAD":
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = pass_on

            def log_message(self, *arguments: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def url(self, bucket: str) -> str:
        return f"s3+http://127.0.0.1:{self._server.server_port}/{bucket}"

    def __enter__(self) -> StoreDoor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
