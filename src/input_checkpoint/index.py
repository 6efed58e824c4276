"""What this run knows to be stored already, and what of it is better stored anew."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Optional

import numpy as np

from input_checkpoint.manifest import Manifest
from input_checkpoint.table import Location

LEAST_LIVE_SHARE = 0.25
"""Below this share of live bytes a pack is worn: the chunks still needed are better written again, which adds
a third to what saves upload in the long run."""

REWRITE_SHARE = 0.025
"""Live bytes of worn packs that one save writes again at most, as a share of the state, so that no save pays
for all the packs that have become worn at the same time."""


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

    Worn packs are given up, those with the fewest live bytes first, as far as `REWRITE_SHARE` goes. And
    beyond three times as many packs as a fresh full save would make, those with the fewest live bytes are
    given up in any case. So a restore after any number of saves opens few objects and reads little that it
    does not need.

    Args:
        uses: of every pack of the newest checkpoint.
        pack_bytes: the size at which packs are closed.
    """
    total = sum(use.live for use in uses.values())
    fewest_first = sorted(uses, key=lambda key: (uses[key].live, key))
    most = 3 * -(-total // pack_bytes) + 2
    given_up = set(fewest_first[: max(0, len(uses) - most)])
    budget = REWRITE_SHARE * total
    for key in fewest_first:
        use = uses[key]
        if key in given_up or use.live >= LEAST_LIVE_SHARE * use.size:
            continue
        budget -= use.live
        if budget < 0:
            break
        given_up.add(key)
    return given_up
