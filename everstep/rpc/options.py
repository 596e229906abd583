"""Channels and servers with the settings that were found to work."""

from __future__ import annotations

from collections.abc import Sequence

import grpc

Option = tuple[str, int | str]
Options = list[Option]

#: Seconds a unary call may take when the caller names no deadline.
UNARY_DEADLINE_SECONDS = 10.0

#: Messages are small: bytes of checkpoints never travel over gRPC.
MAX_MESSAGE_BYTES = 4 * 1024 * 1024

#: A keepalive timeout alone never fires: the HTTP/2 ping timeout stands beside it.
CHANNEL_OPTIONS: Options = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]

SERVER_OPTIONS: Options = [
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_concurrent_streams", 256),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.max_connection_age_ms", 30 * 60 * 1000),
    ("grpc.max_connection_age_grace_ms", 30_000),
    ("grpc.so_reuseport", 0),
]


def open_channel(address: str, more: Sequence[Option] = ()) -> grpc.aio.Channel:
    """An asyncio channel to `host:port`; it connects at the first call."""
    return grpc.aio.insecure_channel(address, options=[*CHANNEL_OPTIONS, *more])


def open_sync_channel(address: str, more: Sequence[Option] = ()) -> grpc.Channel:
    """A blocking channel to `host:port`; it connects at the first call."""
    return grpc.insecure_channel(address, options=[*CHANNEL_OPTIONS, *more])
