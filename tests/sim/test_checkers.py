"""The checkers themselves: they must accept what is right and refuse what is not."""

from wormfs.rpc.etcd_types import put
from wormfs.rpc.v1 import event_pb2, replication_pb2
from wormfs.sim.checks import LogWatcher
from wormfs.sim.etcd_store import EtcdStore
from wormfs.sim.history import Call, History, Operation
from wormfs.sim.linearizable import linearizable
from wormfs.sim.names_model import Names, initial, step
from wormfs.sim.promises import broken_promises

CREATE = Operation("create", (1, b"a", False, True, 0o600))
LOOKUP = Operation("lookup", (1, b"a"))
UNLINK = Operation("unlink", (1, b"a"))
MISSING = ("error", "NotFoundError")


def holds(history: History) -> bool:
    return linearizable(history.calls, initial((1,))).holds


def done(history: History, operation: Operation, *result: object, client: str = "c") -> None:
    history.end(history.begin(client, operation), result)


def test_an_answered_command_must_be_seen_by_what_follows() -> None:
    history = History()
    done(history, CREATE, 7, True)
    done(history, LOOKUP, 7, 0o600, 1)
    assert holds(history)
    done(history, LOOKUP, *MISSING)
    verdict = linearizable(history.calls, initial((1,)))
    assert not verdict.holds
    assert verdict.reached == 2
    assert verdict.stuck == (history.calls[2],)


def test_calls_at_the_same_time_may_have_any_order() -> None:
    for read in (MISSING, (7, 0o600, 1)):
        history = History()
        create = history.begin("one", CREATE)
        lookup = history.begin("two", LOOKUP)
        history.end(create, (7, True))
        history.end(lookup, read)
        assert holds(history)


def test_an_order_seen_by_one_holds_for_the_next() -> None:
    history = History()
    create = history.begin("one", CREATE)
    done(history, LOOKUP, 7, 0o600, 1)
    done(history, LOOKUP, *MISSING)
    history.end(create, (7, True))
    assert not holds(history)


def test_a_call_without_an_answer_was_done_or_not_but_once() -> None:
    history = History()
    history.begin("gone", CREATE)
    done(history, LOOKUP, *MISSING)
    assert holds(history)
    done(history, LOOKUP, 7, 0o600, 1)
    assert holds(history)
    done(history, UNLINK)
    assert holds(history)
    done(history, LOOKUP, 7, 0o600, 1)
    assert not holds(history)


def test_a_command_done_twice_is_seen() -> None:
    history = History()
    done(history, CREATE, 7, True)
    done(history, UNLINK)
    done(history, LOOKUP, 7, 0o600, 1)
    assert not holds(history)


def lost(history: History, *calls: Call, loss: int = 1) -> None:
    for call in calls:
        call.loss = loss


def test_what_is_lost_with_a_client_was_done_or_not_but_in_order() -> None:
    rename = Operation("rename", (1, b"a", 1, b"b", 0))
    moved = Operation("lookup", (1, b"b"))
    for create_seen, rename_seen, sound in (
        ((7, 0o600, 1), MISSING, True),
        (MISSING, (7, 0o600, 1), True),
        (MISSING, MISSING, True),
        ((7, 0o600, 1), (7, 0o600, 1), False),
    ):
        history = History()
        done(history, CREATE, 7, True)
        done(history, rename)
        done(history, moved, 7, 0o600, 1)  # its own look at it may be as lost
        lost(history, *history.calls)
        done(history, LOOKUP, *create_seen, client="other")
        done(history, moved, *rename_seen, client="other")
        assert holds(history) == sound


def test_of_what_is_lost_only_the_last_may_be_missing() -> None:
    other = Operation("create", (1, b"b", False, True, 0o600))
    history = History()
    done(history, CREATE, 7, True)
    done(history, other, 8, True)
    lost(history, *history.calls)
    done(history, Operation("lookup", (1, b"b")), 8, 0o600, 1, client="other")
    assert holds(history)
    done(history, LOOKUP, *MISSING, client="other")
    assert not holds(history)


def test_nobody_sees_what_is_lost_later() -> None:
    history = History()
    done(history, CREATE, 7, True)
    lost(history, *history.calls)
    done(history, LOOKUP, 7, 0o600, 1, client="other")
    done(history, LOOKUP, *MISSING, client="other")
    assert not holds(history)
    history = History()
    done(history, CREATE, 7, True)
    lost(history, *history.calls)
    done(history, LOOKUP, *MISSING, client="other")
    done(history, LOOKUP, 7, 0o600, 1, client="other")  # nor does it come later
    assert not holds(history)


def test_what_was_synced_is_never_lost() -> None:
    history = History()
    done(history, CREATE, 7, True)
    begun = history.begin_sync()
    done(history, UNLINK)
    history.end_sync("c", begun)
    done(history, CREATE, 8, True, client="other")
    history.lose("c")
    assert [call.loss for call in history.calls] == [0, 1, 0]
    done(history, LOOKUP, 9, 0o600, 1)
    history.lose("c")
    assert [call.loss for call in history.calls] == [0, 1, 0, 2]


def test_an_answer_that_is_not_in_the_log_is_a_broken_promise() -> None:
    history = History()
    for number, operation in enumerate((CREATE, UNLINK, CREATE), 1):
        done(history, operation, *((number, True) if operation is CREATE else ()))
        history.calls[-1].key = (5, number)
    done(history, CREATE, "error", "ExistsError")
    history.calls[-1].key = (5, 4)
    every = {(5, 1), (5, 2), (5, 3)}
    assert broken_promises(history.calls, every) == []
    assert broken_promises(history.calls, every - {(5, 3)}) == [
        "c create(1, b'a', False, True, 384) -> (3, True) was answered, and is not in the log"
    ]
    lost(history, *history.calls)
    assert broken_promises(history.calls, set()) == []
    assert broken_promises(history.calls, every - {(5, 3)}) == []
    (problem,) = broken_promises(history.calls, every - {(5, 2)})
    assert problem.startswith("c unlink(1, b'a') -> done is lost, and c create")


def test_an_inode_number_is_given_once() -> None:
    history = History()
    done(history, CREATE, 7, True)
    done(history, UNLINK)
    done(history, CREATE, 7, True)
    assert not holds(history)


def test_a_full_disk_does_nothing() -> None:
    history = History()
    done(history, CREATE, "error", "NoSpaceError")
    done(history, LOOKUP, *MISSING)
    assert holds(history)


def after(state: Names, kind: str, arguments: tuple[object, ...], *told: object) -> Names:
    result = step(state, Operation(kind, arguments), told, "?")
    assert result is not None, (kind, arguments, told)
    return result


def test_names_as_a_file_system_has_them() -> None:
    state = initial((1, 2))
    state = after(state, "create", (1, b"f", False, True, 0o600), 3, True)
    state = after(state, "create", (1, b"f", False, False, 0o644), 3, False)
    state = after(state, "create", (1, b"d", True, True, 0o755), 4, True)
    state = after(state, "link", (3, 2, b"g"), 2)
    state = after(state, "rename", (1, b"f", 2, b"g", 0))  # two names of one inode: nothing happens
    state = after(state, "lookup", (1, b"f"), 3, 0o600, 2)
    state = after(state, "rename", (1, b"f", 1, b"d", 0), "error", "IsADirectoryWormError")
    state = after(state, "rename", (1, b"d", 1, b"f", 0), "error", "NotDirectoryError")
    state = after(state, "rename", (1, b"f", 1, b"d", 1), "error", "ExistsError")
    state = after(state, "rename", (1, b"f", 1, b"d", 2))
    state = after(state, "list", (1,), (b"d", 3), (b"f", 4))
    state = after(state, "unlink", (1, b"f"), "error", "IsADirectoryWormError")
    state = after(state, "rmdir", (1, b"d"), "error", "NotDirectoryError")
    state = after(state, "rmdir", (1, b"f"))
    state = after(state, "unlink", (1, b"d"))
    state = after(state, "getattr", (3,), 0o600, 1)
    state = after(state, "setattr", (3, 0o400), 0o400, 1)
    state = after(state, "lookup", (2, b"g"), 3, 0o400, 1)
    state = after(state, "unlink", (2, b"g"))
    after(state, "link", (3, 1, b"h"), "error", "NotFoundError")
    assert step(state, Operation("getattr", (3,)), (0o400, 1), "?") is None


def watched() -> tuple[LogWatcher, EtcdStore]:
    watcher = LogWatcher()
    store = EtcdStore(lambda: 0.0, lambda events: watcher.revision(store, events))
    return watcher, store


def elect(store: EtcdStore, node: str, epoch: int) -> None:
    leader = replication_pb2.LeaderRecord(name=node, epoch=epoch).SerializeToString()
    store.txn((), (put(b"wormfs/sim/epoch", b"%d" % epoch), put(b"wormfs/sim/leader", leader)), ())


def append(store: EtcdStore, sequence: int, epoch: int, operation: int = 0) -> None:
    entry = event_pb2.LogEntry(sequence=sequence, epoch=epoch)
    if operation:
        entry.operation.session_id, entry.operation.operation = 1, operation
    batch = replication_pb2.LogBatch(first_sequence=sequence, entries=[entry.SerializeToString()])
    head = replication_pb2.LogHead(sequence=sequence, epoch=epoch).SerializeToString()
    key = b"wormfs/sim/log/%016x" % sequence
    store.txn((), (put(key, batch.SerializeToString()), put(b"wormfs/sim/head", head)), ())


def test_the_watcher_accepts_a_sound_history() -> None:
    watcher, store = watched()
    elect(store, "one", 1)
    append(store, 1, 1, operation=1)
    watcher.answered(store, "one", 1)
    elect(store, "two", 2)
    append(store, 2, 2, operation=2)
    watcher.answered(store, "two", 2)
    watcher.finish()
    assert watcher.problems == []
    assert (len(watcher.entries), watcher.epoch_count) == (2, 2)


def test_the_watcher_sees_each_broken_promise() -> None:
    watcher, store = watched()
    elect(store, "one", 1)
    append(store, 1, 1, operation=1)
    elect(store, "two", 2)
    watcher.answered(store, "one", 1)
    append(store, 2, 1, operation=1)
    append(store, 4, 2)
    elect(store, "three", 2)
    watcher.answered(store, "two", 2)
    watcher.finish()
    assert watcher.problems == [
        "one, master of epoch 1, answers in epoch 2",
        "entry 2 of epoch 1 was appended in epoch 2",
        "entry 4 was appended behind 2",
        "three and two are both masters of epoch 2",
        "two, master of epoch 2, answers when its lease is over",
        "operation (1, 1) was done by entries 1 and 2",
        "entry 3 says it is 4",
    ]
