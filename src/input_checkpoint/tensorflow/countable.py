"""Whether the draws of a graph can be counted and its batches have digests, as far as the graph tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

from input_checkpoint.tensorflow.batch_digest import BatchDigests, is_own
from input_checkpoint.tensorflow.dataset_graph import is_alias
from input_checkpoint.tensorflow.draws import readers_of, why_uncertain


def why_not_countable(graph: Any, digests: BatchDigests) -> Optional[str]:
    """Return why no mark can be written for the iterators of a graph, or None if that is not known yet.

    What depends on the fetches of a run is known only later, from `draws_between`.

    Args:
        graph: with the iterators.
        digests: of the graph.
    """
    resources = [resource for resource in graph.get_collection("iterators") if not is_alias(resource)]
    readers = [(reader, sources) for reader, sources in readers_of(graph) if not is_own(reader)]
    # A handle may stand for any iterator.
    by_handle = [
        reader for reader, sources in readers if any(is_alias(source.outputs[0]) for source in sources)
    ]
    for resource in resources:
        reason = _why_shared(resource, resources) or _why_not(
            resource, [reader for reader, sources in readers if resource.op in sources], by_handle, digests
        )
        if reason is not None:
            return f"iterator {resource.op.name!r}: {reason}"
    return None


def _why_shared(resource: Any, resources: Sequence[Any]) -> Optional[str]:
    shared_name = _shared_name(resource)
    others = [
        other.op.name for other in resources if other is not resource and _shared_name(other) == shared_name
    ]
    if shared_name and others:
        return f"it shares its state with iterator {others[0]!r}, so its draws cannot be counted"
    return None


def _shared_name(resource: Any) -> bytes:
    return bytes(resource.op.get_attr("shared_name"))


def _why_not(
    resource: Any, readers: Sequence[Any], by_handle: Sequence[Any], digests: BatchDigests
) -> Optional[str]:
    possible = [*readers, *by_handle]
    certain = [reader for reader in possible if why_uncertain(reader) is None]
    if possible and not certain:
        return f"{why_uncertain(possible[0])}, so its draws cannot be counted"
    if certain and not any(digests.tensor(reader.name) is not None for reader in certain):
        return digests.why_not(certain[0].name)
    return None
