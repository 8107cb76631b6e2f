"""Events that keep coming while a test does something to those who read them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaProducer
from events import EventMaker, outgoing
from records import DEADLINE_SECONDS

_PAUSE_SECONDS = 0.05


@asynccontextmanager
async def traffic(servers: str, topic: str, maker: EventMaker, *, at_once: int = 20) -> AsyncIterator[None]:
    """Produce a few events again and again; at the end of the block all of them are acknowledged.

    Those made while no broker answers are sent when one does, in order.
    """
    async with AIOKafkaProducer(bootstrap_servers=servers, enable_idempotence=True) as producer:
        sent: list[asyncio.Future[object]] = []
        stopping = asyncio.Event()

        async def go_on() -> None:
            while not stopping.is_set():
                records = map(outgoing, maker.take(at_once))
                sent.extend([await producer.send(topic, one.value, key=one.key) for one in records])
                await asyncio.sleep(_PAUSE_SECONDS)

        going = asyncio.create_task(go_on())
        try:
            yield
        finally:
            stopping.set()
            await asyncio.wait_for(asyncio.gather(going, *sent), DEADLINE_SECONDS)
