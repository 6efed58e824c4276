"""What this run knows to be stored already, and what of it is better stored anew."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Optional

import numpy as np

from input_checkpoint.manifest import Manifest
from input_checkpoint.table import Location

LEAST_LIVE_SHARE = 0.25
"""Below this share of live bytes a pack is given up. The chunks still needed are written again, which adds a
third to what a save uploads in the long run; and no pack is read of which less is needed."""


class ChunkIndex:
    """Chunks of committed checkpoints by digest.

    Holds only what this run has itself restored or committed, so that a new checkpoint never rests on bytes
    that nobody has checked.
    """

    def __init__(self) -> None:
        self._found: dict[bytes, Location] = {}

    def __len__(self) -> int:
        return len(self._found)

    def add(self, manifest: Manifest) -> None:
        """Learn the chunks of a committed checkpoint. The newest place of a chunk counts."""
        self._found.update(manifest.table.locations(manifest.pack_keys))

    def find(self, digest: bytes) -> Optional[Location]:
        """Return where a chunk is stored, or None."""
        return self._found.get(digest)

    def forget_packs(self, packs: Collection[str]) -> None:
        """Forget everything in these packs: they are removed, or to be given up."""
        if packs:
            self._found = {name: place for name, place in self._found.items() if place.pack not in packs}


@dataclass(frozen=True)
class PackUse:
    """How much of a pack the newest checkpoint needs."""

    live: int
    """Bytes needed, each counted once."""
    size: int
    """Bytes of the whole pack."""


def pack_uses(manifest: Manifest) -> dict[str, PackUse]:
    """Return how much of each of its packs a checkpoint needs."""
    table = manifest.table
    live = np.zeros(len(manifest.header.packs), np.int64)
    places = np.stack((table.pack, table.offset, table.stored), axis=1)
    for pack, _, stored in np.unique(places, axis=0):
        live[pack] += stored
    return {pack.key: PackUse(int(used), pack.size) for pack, used in zip(manifest.header.packs, live)}


def packs_to_give_up(uses: Mapping[str, PackUse], pack_bytes: int) -> set[str]:
    """Decide which packs the next save should no longer rely on.

    A pack is given up when less than `LEAST_LIVE_SHARE` of it is needed; and beyond three times as many packs
    as a fresh full save would make, those of which the fewest bytes are needed. So a restore after any number
    of saves opens few objects and reads little that it does not need.

    Args:
        uses: of every pack of the newest checkpoint.
        pack_bytes: the size at which packs are closed.
    """
    worn = {key for key, use in uses.items() if use.live < LEAST_LIVE_SHARE * use.size}
    good = sorted((use.live, key) for key, use in uses.items() if key not in worn)
    fresh = -(-sum(live for live, _ in good) // pack_bytes)
    most = 3 * fresh + 2
    if len(good) <= most:
        return worn
    # Down to well under the limit, so that the next saves need not do this again.
    return worn | {key for _, key in good[: len(good) - (2 * fresh + 1)]}
