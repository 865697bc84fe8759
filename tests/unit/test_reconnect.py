"""Lasting connections: they come back, until they are no longer wanted."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import pytest

from switchgear.core.clock import SystemClock
from switchgear.core.reconnect import keep_connected


async def test_a_connection_that_breaks_as_it_is_ended_does_not_come_back() -> None:
    connections = 0
    connected = asyncio.Event()

    async def breaks_at_the_end() -> None:
        try:
            connected.set()
            await asyncio.Event().wait()
        finally:
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing)

    async def connect() -> None:
        nonlocal connections
        connections += 1
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(breaks_at_the_end())

    keeping = asyncio.create_task(keep_connected("a connection", connect, SystemClock()))
    await connected.wait()
    keeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(10):
            await keeping
    assert connections == 1


async def test_a_connection_of_which_a_part_fails_while_it_ends_comes_back() -> None:
    """Such a TaskGroup leaves a cancellation of our own task behind that nobody asked for."""
    connections = 0
    third = asyncio.Event()

    async def fails_at_its_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing)

    async def connect() -> None:
        nonlocal connections
        connections += 1
        if connections == 3:
            third.set()
        async with asyncio.TaskGroup() as tasks:
            part = tasks.create_task(fails_at_its_end())
            await asyncio.sleep(0)
            part.cancel()

    keeping = asyncio.create_task(keep_connected("a connection", connect, SystemClock()))
    async with asyncio.timeout(10):
        await third.wait()
    keeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await keeping
