"""A process that saves or restores a state of a given size.

``python -m tests.support.large_state save|restore STORE MEGABYTES [OPTIONS_JSON]`` prints the next
elements of the iterator, and the peak memory in MB beyond what the process used before.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

import tensorflow as tf

from input_checkpoint import CheckpointStore
from input_checkpoint.tensorflow.iterators import GraphIterators, external_state_policy_number

v1 = tf.compat.v1
ELEMENT_BYTES = 1 << 20


def build(megabytes: int) -> tuple[Any, Any]:
    """Return an iterator over a shuffle buffer of incompressible 1 MB elements, and the next first number."""

    def element(seed: Any) -> Any:
        return tf.random.stateless_uniform([ELEMENT_BYTES // 8], [seed, 1], None, None, tf.int64)

    dataset = tf.data.Dataset.range(10 * megabytes).map(element).shuffle(megabytes, seed=5)
    iterator = v1.data.make_initializable_iterator(dataset)
    return iterator, iterator.get_next()[0]


def peak_mb() -> float:
    """Return the peak resident set size of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    mode, uri, megabytes = sys.argv[1], sys.argv[2], int(sys.argv[3])
    options = json.loads(sys.argv[4]) if len(sys.argv) > 4 else None
    store = CheckpointStore.open(uri, options, create=True)
    with v1.Graph().as_default() as graph:
        iterator, next_number = build(megabytes)
        iterators = GraphIterators(graph, external_state_policy_number("fail"))
        with v1.Session() as session:
            session.run(iterator.initializer)
            if mode == "save":
                session.run(next_number)
                snapshot = iterators.snapshot(session)
                before = peak_mb()
                run = store.begin_run("main")
                info = run.save(1, snapshot.states())
                snapshot.release()
                assert info.logical_bytes > megabytes * ELEMENT_BYTES
            else:
                before = peak_mb()
                iterators.restore(session, store.load(store.newest("main")))
            extra = peak_mb() - before
            found = [int(session.run(next_number)) for _ in range(5)]
    print(json.dumps({"next": found, "extra_mb": extra}))


if __name__ == "__main__":
    main()
