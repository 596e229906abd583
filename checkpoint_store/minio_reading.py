"""Reading an object of an S3 server from its first byte to its last, over broken connections."""

from __future__ import annotations

from minio import Minio
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import IncompleteRead


class ObjectReader:
    """An object's bytes in order; a call that fails may be made again, and goes on where it was."""

    def __init__(self, client: Minio, bucket: str, key: str) -> None:
        self._client = client
        self._bucket = bucket
        self._key = key
        self._response: BaseHTTPResponse | None = None
        self._position = 0
        self._size: int | None = None

    def read_into(self, target: memoryview) -> int:
        """Fills the target, or as much of it as there is left; 0: that was all."""
        count = 0
        try:
            while count < len(target):
                response = self._open()
                if self._position == self._size:
                    break
                with target[count:] as rest:
                    read = response.readinto(rest)
                if read == 0:
                    raise IncompleteRead(self._position, (self._size or 0) - self._position)
                count += read
                self._position += read
        except BaseException:
            self._position -= count
            self.close()
            raise
        return count

    def close(self) -> None:
        """Lets the connection go; used again only when all of the object was read."""
        response, self._response = self._response, None
        if response is not None:
            if self._position != self._size:
                response.close()
            response.release_conn()

    def _open(self) -> BaseHTTPResponse:
        if self._response is None:
            self._response = self._client.get_object(self._bucket, self._key, offset=self._position)
            self._size = self._position + int(self._response.headers["Content-Length"])
        return self._response
