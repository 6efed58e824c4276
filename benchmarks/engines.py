"""How fast the engines of a backend handle the requests of saves, restores and pruning.

Run it with ``python -m benchmarks.engines``. It starts one server of each kind, on which the engines take
turns. Only the ratios to the first engine count, not the absolute times. The processor time is that of the
client, because training loses it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Optional

from input_checkpoint import Backend, BackendError, open_backend
from input_checkpoint.backends.base import Data, ObjectInfo
from input_checkpoint.backends.engines import FSSPEC, OBSTORE
from input_checkpoint.store.pack_writer import CONCURRENCY, PACK_BYTES
from integration.servers.azurite import Azurite
from integration.servers.ceph import Ceph
from integration.servers.fake_gcs import FakeGcs
from integration.servers.server import MissingServerError, Place, Server

ADAPTER = "obstore's fsspec"
SERVERS: dict[str, type[Server]] = {kind.name: kind for kind in (Ceph, FakeGcs, Azurite)}

_WRITERS = 16
_DELETED, _LISTED = "deleted/", "listed/"


@dataclass(frozen=True)
class Load:
    """How much to measure."""

    packs: int
    pack_bytes: int
    deletes: int
    keys: int
    rounds: int


FULL = Load(packs=100, pack_bytes=PACK_BYTES, deletes=1000, keys=10_000, rounds=3)
QUICK = Load(packs=12, pack_bytes=1 << 20, deletes=100, keys=300, rounds=2)


@dataclass(frozen=True)
class Figure:
    """One measurement."""

    server: str
    work: str
    engine: str
    round: int
    seconds: float
    processor_seconds: float


class AdapterBackend(Backend):
    """The fsspec filesystem that comes with obstore, for comparison. Does not meet the backend contract."""

    # `Any`, because FsspecStore has an overload for each protocol.
    def __init__(self, uri: str, protocol: Any, store_options: dict[str, Any]) -> None:
        from obstore.fsspec import FsspecStore

        super().__init__(uri)
        self._fs = FsspecStore(protocol, skip_instance_cache=True, **store_options)
        self._root = uri.partition("://")[2]

    def create(self, key: str, data: Data) -> None:
        """Create the object. Not atomic."""
        self.put(key, data)

    def put(self, key: str, data: Data) -> None:
        """See `Backend.put`."""
        self._fs.pipe_file(f"{self._root}/{key}", bytes(data))

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        """See `Backend.get`."""
        # It accepts either both ends of a range or neither.
        ends = {} if end is None else {"start": start, "end": end}
        return bytes(self._fs.cat_file(f"{self._root}/{key}", **ends))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Backend.list`."""
        found = self._fs.find(f"{self._root}/{prefix}", detail=True)
        return (ObjectInfo(name, details["size"], None) for name, details in found.items())

    def delete(self, keys: Iterable[str]) -> None:
        """See `Backend.delete`."""
        # Not `rm`, which opens a connection per key at the same time, more than a server accepts.
        _run_concurrently(_WRITERS, lambda key: self._fs.rm_file(f"{self._root}/{key}"), list(keys))


def open_engines(place: Place) -> dict[str, Backend]:
    """Return a backend per engine that supports the location, starting with ours over fsspec."""
    engines = {FSSPEC: open_backend(place.uri, place.storage_options)}
    try:
        engines[OBSTORE] = open_backend(place.uri, {**place.storage_options, "engine": OBSTORE})
    except BackendError as error:
        print(f"  Skipping {OBSTORE}: {error}")
        return engines
    engines[ADAPTER] = _open_adapter(place)
    return engines


def _open_adapter(place: Place) -> AdapterBackend:
    options = place.storage_options
    http = {"client_options": {"allow_http": True}}
    if place.uri.startswith("s3:"):
        login = {"access_key_id": options["key"], "secret_access_key": options["secret"]}
        return AdapterBackend(place.uri, "s3", {"endpoint": options["endpoint_url"], **login, **http})
    parts = dict(part.split("=", 1) for part in options["connection_string"].strip(";").split(";"))
    login = {"account_name": parts["AccountName"], "account_key": parts["AccountKey"]}
    return AdapterBackend(place.uri, "az", {"endpoint": parts["BlobEndpoint"], **login, **http})


def upload(backend: Backend, load: Load) -> Callable[[], None]:
    """Return a function that uploads the packs with the concurrency of a save."""
    data = os.urandom(load.pack_bytes)
    return lambda: _run_concurrently(CONCURRENCY, lambda key: backend.put(key, data), _packs(load))


def download(backend: Backend, load: Load) -> Callable[[], None]:
    """Return a function that reads ranges of these packs with the concurrency of a restore."""

    def read(key: str) -> None:
        data = backend.get(key, 1, load.pack_bytes)
        if len(data) != load.pack_bytes - 1:
            raise ValueError(f"{key} is truncated")

    return lambda: _run_concurrently(CONCURRENCY, read, _packs(load))


def delete(backend: Backend, load: Load) -> Callable[[], None]:
    """Create small objects, and return a function that deletes them."""
    keys = [f"{_DELETED}{uuid.uuid4().hex}" for _ in range(load.deletes)]
    _run_concurrently(_WRITERS, lambda key: backend.put(key, b"small"), keys)
    return lambda: backend.delete(keys)


def listing(backend: Backend, load: Load) -> Callable[[], None]:
    """Return a function that lists many keys."""

    def read() -> None:
        found = sum(1 for _ in backend.list(_LISTED))
        if found != load.keys:
            raise ValueError(f"the listing has {found} of {load.keys} keys")

    return read


WORKS = {"upload": upload, "ranged reads": download, "delete": delete, "list": listing}


def measure(server: Server, load: Load) -> list[Figure]:
    """Let the engines take turns. Each one goes first equally often."""
    place = server.place(uuid.uuid4().hex)
    engines = open_engines(place)
    if len(engines) == 1:
        return []
    keys = [f"{_LISTED}{number:06d}" for number in range(load.keys)]
    _run_concurrently(_WRITERS, lambda key: engines[FSSPEC].put(key, b""), keys)
    for backend in engines.values():  # connecting is not part of the measurement
        backend.put("warm", b"")
        backend.get("warm")
    figures = []
    for number in range(load.rounds):
        names = list(engines)
        turn = number % len(names)
        for work, prepare in WORKS.items():
            for name in names[turn:] + names[:turn]:
                run = prepare(engines[name], load)
                processor, started = time.process_time(), time.perf_counter()
                run()
                seconds, processor = time.perf_counter() - started, time.process_time() - processor
                figures.append(Figure(server.name, work, name, number, seconds, processor))
    for backend in engines.values():
        backend.close()
    return figures


def table(figures: Sequence[Figure], load: Load) -> str:
    """Return the medians per operation, and the medians of the per-round ratios to the first engine."""
    lines = [
        f"{load.packs} packs of {load.pack_bytes >> 20} MiB, {CONCURRENCY} at a time; "
        f"{load.deletes} deletes; {load.keys} keys; medians of {load.rounds} rounds (min to max)",
        f"{'server':9s} {'operation':13s} {'engine':17s} {'seconds':>24s} {'fsspec takes':>14s} "
        f"{'processor':>10s}",
    ]
    for server, work, engine in dict.fromkeys(
        (figure.server, figure.work, figure.engine) for figure in figures
    ):
        ours, first = _series(figures, server, work, engine), _series(figures, server, work, FSSPEC)
        seconds = [figure.seconds for figure in ours]
        spread = f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
        slower = statistics.median(a.seconds / b.seconds for a, b in zip(first, ours))
        busier = statistics.median(a.processor_seconds / b.processor_seconds for a, b in zip(first, ours))
        lines.append(f"{server:9s} {work:13s} {engine:17s} {spread:>24s} {slower:13.2f}x {busier:9.2f}x")
    return "\n".join(lines)


def main() -> None:
    """Measure all servers and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller objects")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw figures to this file")
    parser.add_argument(
        "--server", choices=list(SERVERS), action="append", help="measure only this one; repeatable"
    )
    arguments = parser.parse_args()
    load = QUICK if arguments.quick else FULL
    figures: list[Figure] = []
    for name in arguments.server or SERVERS:
        with tempfile.TemporaryDirectory() as folder:
            try:
                with SERVERS[name](Path(folder)).running() as server:
                    print(f"{name}: {server.version()}")
                    figures += measure(server, load)
            except MissingServerError as error:
                print(f"Skipping {name}: {error}")
        if arguments.json:
            rows = [asdict(figure) for figure in figures]
            arguments.json.write_text(json.dumps({"load": asdict(load), "figures": rows}, indent=1))
    print(table(figures, load))


def _packs(load: Load) -> list[str]:
    # The same keys for all engines, so that the server's caches treat them alike.
    return [f"packs/{number:05d}" for number in range(load.packs)]


def _run_concurrently(writers: int, work: Callable[[str], object], keys: Sequence[str]) -> None:
    with ThreadPoolExecutor(writers) as executor:
        for _ in executor.map(work, keys):
            pass


def _series(figures: Sequence[Figure], server: str, work: str, engine: str) -> list[Figure]:
    return [
        figure for figure in figures if (figure.server, figure.work, figure.engine) == (server, work, engine)
    ]


if __name__ == "__main__":
    main()
