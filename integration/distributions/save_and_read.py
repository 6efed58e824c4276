"""Saves to a store and reads it again, in an environment that has only what a user has installed.

Usage: python save_and_read.py URI STORAGE_OPTIONS. The options are JSON.
"""

from __future__ import annotations

import importlib.util
import json
import sys

from input_checkpoint import CheckpointStore, IteratorState, KeepLast


def main(uri: str, options: str) -> None:
    """Save three checkpoints, prune to two, open the store anew, and read the newest."""
    assert importlib.util.find_spec("tensorflow") is None
    content = [(b"key-%d" % number, bytes([number]) * 2000) for number in range(50)]
    with CheckpointStore.open(uri, json.loads(options), create=True) as store:
        run = store.begin_run("main")
        for step in (10, 20, 30):
            run.save(step, [IteratorState("Iterator", content)])
        run.prune(KeepLast(2))
    with CheckpointStore.open(uri, json.loads(options)) as store:
        assert [info.step for info in store.checkpoints()] == [20, 30]
        assert [state.in_order() for state in store.load(store.newest("main"))] == [content]
        assert store.verify().problems == {}
    print("saved and read")


if __name__ == "__main__":
    main(*sys.argv[1:])
