"""The `minio` client, which signs by the store's clock where that differs from ours.

A server refuses what is signed a quarter of an hour before or after its own time. A trainer whose
clock is wrong has checkpoints to store all the same.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final

from minio import Minio
from minio.error import S3Error
from minio.time import to_amz_date

#: A smaller difference is not why a server refuses a request.
_LEAST_SKEW: Final = timedelta(minutes=5)


class MinioClient(Minio):
    """A client whose requests a server with another time accepts."""

    #: What the store's clock is ahead of ours.
    _skew = timedelta()

    def store_now(self) -> datetime:
        """The time by which requests are signed."""
        return datetime.now(UTC) + self._skew

    def _build_headers(self, *arguments: Any, **options: Any) -> tuple[Any, datetime]:
        headers, date = super()._build_headers(*arguments, **options)
        date += self._skew
        headers["x-amz-date"] = to_amz_date(date)
        return headers, date

    def _url_open(self, *arguments: Any, **options: Any) -> Any:
        # Signing writes into the headers.
        headers = options.get("headers") or {}
        try:
            return super()._url_open(*arguments, **{**options, "headers": dict(headers)})
        except S3Error as error:
            if error.response.status != HTTPStatus.FORBIDDEN or not self._learns_skew(error):
                raise
        return super()._url_open(*arguments, **{**options, "headers": dict(headers)})

    def _learns_skew(self, error: S3Error) -> bool:
        """Takes the store's time from an answer; whether it is not the one that was signed by."""
        try:
            store_time = parsedate_to_datetime(error.response.headers["Date"])
        except (KeyError, TypeError, ValueError):
            return False
        skew = store_time - datetime.now(UTC)
        if abs(skew - self._skew) < _LEAST_SKEW:
            return False
        self._skew = skew
        return True
