"""When the write lease waits for the rest of an append, and for how long."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from wormfs.client.append_rest import REST_WAIT_MAX_S, REST_WAIT_S, AppendRest, rest_may_follow

pytestmark = pytest.mark.timeout(20)


@pytest.mark.parametrize(
    ("offset_bytes", "length_bytes", "may_follow"),
    [
        (300, 3796, True),  # the head, up to the page's border
        (300, 3795, False),
        (4096, 4096, False),  # page aligned and shorter than a request: all there was
        (4096, 1 << 20, True),
        (0, 5000, False),
        (100, (1 << 20) - 100, True),
    ],
)
def test_only_a_piece_that_ends_on_a_page_border_can_have_a_rest(
    offset_bytes: int, length_bytes: int, may_follow: bool
) -> None:
    assert rest_may_follow(offset_bytes, length_bytes) is may_follow


async def _wait_s(rest: AppendRest) -> float:
    begun_s = trio.current_time()
    await rest.wait_ended()
    return trio.current_time() - begun_s


async def test_the_wait_ends_with_the_rest(autojump_clock: MockClock) -> None:
    rest, handle = AppendRest(), object()
    rest.taken(handle, 4000, 96)
    waited: list[float] = []

    async def wait() -> None:
        waited.append(await _wait_s(rest))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        await trio.sleep(REST_WAIT_S / 2)
        assert not rest.is_rest(object(), 4096)
        assert rest.is_rest(handle, 4096)
        await trio.sleep(2 * REST_WAIT_S)  # taking it may last longer than waiting for it
        assert not waited
        rest.taken(handle, 4096, 50)
    assert waited == [pytest.approx(2.5 * REST_WAIT_S)]
    assert not rest.is_rest(handle, 4146)


@pytest.mark.parametrize("ended_by", ["end", "another offset", "time"])
async def test_the_wait_ends_without_a_rest(autojump_clock: MockClock, ended_by: str) -> None:
    rest, handle = AppendRest(), object()
    rest.taken(handle, 4000, 96)
    rest.end(object())
    assert rest.expected
    if ended_by == "end":
        rest.end(handle)
    elif ended_by == "another offset":
        assert not rest.is_rest(handle, 8192)
    assert await _wait_s(rest) == pytest.approx(REST_WAIT_S if ended_by == "time" else 0.0)
    assert not rest.is_rest(handle, 4096)  # it comes too late: the lease is given back


async def test_a_rest_that_is_never_taken_ends_too(autojump_clock: MockClock) -> None:
    rest, handle = AppendRest(), object()
    rest.taken(handle, 4000, 96)
    assert rest.is_rest(handle, 4096)
    assert await _wait_s(rest) == pytest.approx(REST_WAIT_MAX_S)
    assert not rest.expected
