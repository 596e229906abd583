"""What an S3 server or the way to it may answer, in Everstep's words."""

from __future__ import annotations

import re
from typing import Final
from xml.etree.ElementTree import ParseError

from minio.error import InvalidResponseError, S3Error, ServerError
from urllib3.exceptions import HTTPError, LocationParseError, SSLError

from checkpoint_store.blobs import blob_not_found, store_full
from everstep.errors import EverstepError, Reason

NO_OBJECT: Final = frozenset({"NoSuchKey", "NoSuchObject", "ResourceNotFound"})
#: Somebody aborted the upload; a put then begins anew.
NO_UPLOAD: Final = "NoSuchUpload"
_DENIED: Final = frozenset(
    {
        "AccessDenied", "AllAccessDisabled", "AccountProblem", "InvalidAccessKeyId",
        "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "XMinioInvalidIAMCredentials",
    }
)  # fmt: skip
_FULL: Final = frozenset(
    {
        "XMinioStorageFull", "StorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded",
        "XAmzQuotaExceeded", "InsufficientStorage", "XMinioStorageQuotaExceeded",
    }
)  # fmt: skip
_MAY_GET_BETTER: Final = frozenset(
    {
        "SlowDown", "SlowDownRead", "SlowDownWrite", "InternalError", "ServiceUnavailable",
        "RequestTimeout", "RequestTimeoutException", "Throttling", "TooManyRequests",
        "IncompleteBody", "OperationAborted", NO_UPLOAD, "ServerBusy", "XMinioServerNotInitialized",
    }
)  # fmt: skip
_HTTP_TOO_MANY: Final = 429
_HTTP_SERVER_ERROR: Final = 500
_HTTP_NOT_IMPLEMENTED: Final = 501
_HTTP_INSUFFICIENT_STORAGE: Final = 507


class IncompletePutError(Exception):
    """The server took an object and then showed none, or one of another size."""


def store_error(error: Exception, url: str, key: str) -> EverstepError:
    """An error of minio or urllib3 as ours.

    Args:
        error: What ended the last try.
        url: Of the store.
        key: The object that had to be there; empty: none had to.
    """
    if _is_full(error):
        return store_full(url, _summary(error))
    if isinstance(error, S3Error):
        if error.code in NO_OBJECT and key:
            return blob_not_found(key, url)
        if error.code == "NoSuchBucket":
            return _misconfigured(url, "there is no such bucket; start the service again")
        if error.code in _DENIED:
            return EverstepError(
                Reason.STORE_ACCESS_DENIED,
                f"{url} refuses the credentials ({error.code}); check "
                "EVERSTEP_STORE_ACCESS_KEY, EVERSTEP_STORE_SECRET_KEY and the bucket's policy",
            )
        if not may_get_better(error):
            return _misconfigured(url, f"{error.code}: {error.message}")
    if isinstance(error, SSLError | ParseError) or not may_get_better(error):
        return _misconfigured(url, str(error))
    return EverstepError(
        Reason.STORE_UNAVAILABLE,
        f"the object store {url} does not answer as it should "
        f"({_summary(error)}); check that it runs and that EVERSTEP_STORE_URL is right",
    )


def _misconfigured(url: str, detail: str) -> EverstepError:
    line = " ".join(detail.split())[:200]
    return EverstepError(
        Reason.STORE_MISCONFIGURED,
        f"the object store {url} cannot be used ({line}); check EVERSTEP_STORE_URL and "
        "EVERSTEP_STORE_REGION",
    )


def may_get_better(error: BaseException) -> bool:
    """Whether another try makes sense: not for what the caller or the settings got wrong."""
    if _is_full(error):
        return False
    if isinstance(error, S3Error):
        status = error.response.status
        return error.code in _MAY_GET_BETTER or (
            status >= _HTTP_SERVER_ERROR and status != _HTTP_NOT_IMPLEMENTED
        )
    if isinstance(error, ServerError):
        return _is_server_error(error.status_code)
    if isinstance(error, InvalidResponseError):
        return _is_server_error(error._code)
    if isinstance(error, SSLError | LocationParseError):
        return False
    return isinstance(error, HTTPError | OSError | IncompletePutError)


def _is_full(error: BaseException) -> bool:
    if isinstance(error, S3Error):
        return error.code in _FULL or error.response.status == _HTTP_INSUFFICIENT_STORAGE
    if isinstance(error, ServerError):
        return error.status_code == _HTTP_INSUFFICIENT_STORAGE
    return isinstance(error, InvalidResponseError) and error._code == _HTTP_INSUFFICIENT_STORAGE


def _is_server_error(status: int) -> bool:
    return status >= _HTTP_SERVER_ERROR or status == _HTTP_TOO_MANY


def _summary(error: Exception) -> str:
    """One short line, without the names of Python objects that urllib3 puts before it."""
    text = " ".join(str(error).split())
    return re.split(r"[>)]: ", text)[-1][:160] or type(error).__name__
