"""An S3 server that keeps nothing: what is left is what the clients cost.

The real server of this benchmark takes the cores that the training needs. This one throws away what
comes without looking at it, so that it is as if the server were somewhere else, and very fast. It
knows as much of S3 as the ways to save ask for.

`python -m benchmarks.checkpoint.sink PORT`
"""

from __future__ import annotations

import os
import re
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final
from urllib.parse import parse_qs, urlsplit

_PIECE_BYTES: Final = 4 * 1024 * 1024
_ETAG: Final = '"d41d8cd98f00b204e9800998ecf8427e"'
_MODIFIED: Final = "Thu, 01 Jan 2026 00:00:00 GMT"
#: Lengths of the objects that were put, and of the parts of those that are not complete yet.
_lengths: dict[str, int] = {}
_parts: dict[str, dict[str, int]] = {}


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    #: Bodies are read from the socket itself.
    rbufsize = 0

    def do_PUT(self) -> None:
        length = self._discard()
        query = self._query()
        if "partNumber" in query:
            _parts.setdefault(query["uploadId"][0], {})[query["partNumber"][0]] = length
        else:
            _lengths[self._key()] = length
        self._answer(200, {"ETag": _ETAG})

    def do_POST(self) -> None:
        query, body = self._query(), self._body()
        key = self._key()
        if "uploads" in query:
            upload = os.urandom(8).hex()
            self._answer_result("InitiateMultipartUpload", f"<UploadId>{upload}</UploadId>")
        elif "uploadId" in query:
            _lengths[key] = sum(_parts.pop(query["uploadId"][0], {}).values())
            self._answer_result("CompleteMultipartUpload", f"<ETag>{_ETAG}</ETag>")
        else:
            for name in re.findall(r"<Key>(.*?)</Key>", body):
                _lengths.pop(name, None)
            self._answer_xml("<DeleteResult></DeleteResult>")

    def do_HEAD(self) -> None:
        key = self._key()
        if key.count("/") < 2:
            self._answer(200, {})
        elif key in _lengths:
            headers = {"ETag": _ETAG, "Last-Modified": _MODIFIED}
            self._answer(200, headers, length=_lengths[key])
        else:
            self._answer(404, {})

    def do_GET(self) -> None:
        self._answer_xml("<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")

    def do_DELETE(self) -> None:
        if self._key().count("/") < 2:
            _lengths.clear()
        _lengths.pop(self._key(), None)
        self._answer(204, {})

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def _key(self) -> str:
        return urlsplit(self.path).path

    def _query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query, keep_blank_values=True)

    def _body(self) -> str:
        length, body = int(self.headers.get("Content-Length", 0)), b""
        while len(body) < length:
            body += self.rfile.read(length - len(body))
        return body.decode()

    def _discard(self) -> int:
        """Drops the body where it stands, in the kernel; how long it was."""
        left = length = int(self.headers.get("Content-Length", 0))
        piece = bytearray(_PIECE_BYTES)
        while left:
            count = self.connection.recv_into(piece, min(left, len(piece)), socket.MSG_TRUNC)
            if not count:
                raise ConnectionResetError
            left -= count
        return int(self.headers.get("x-amz-decoded-content-length", length))

    def _answer_result(self, name: str, content: str) -> None:
        self._answer_xml(f"<{name}Result><Bucket>b</Bucket><Key>k</Key>{content}</{name}Result>")

    def _answer_xml(self, content: str) -> None:
        body = content.encode()
        self._answer(200, {"Content-Type": "application/xml"}, length=len(body))
        self.wfile.write(body)

    def _answer(self, status: int, headers: dict[str, str], length: int = 0) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(length))
        self.end_headers()


def main(port: int) -> None:
    """Serves until it is killed."""
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]))
