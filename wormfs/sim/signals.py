"""A wake-up call for all who wait for something to change."""

import trio


class Signal:
    """`wait` returns at the next `notify`."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def notify(self) -> None:
        """Wake all who wait now."""
        self._event.set()
        self._event = trio.Event()

    async def wait(self) -> None:
        """Return at the next notify()."""
        await self._event.wait()

    @property
    def event(self) -> trio.Event:
        """What the next notify() sets."""
        return self._event
