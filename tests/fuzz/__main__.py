"""Looks for inputs that break something: ``python -m tests.fuzz --minutes 10``."""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.fuzz.drawing import as_text, draw
from tests.fuzz.memory import limit_memory
from tests.fuzz.mutations import Mutation
from tests.fuzz.session import BrokenError, check, expected

CORPUS = Path(__file__).parent / "corpus"
_ADDRESS_SPACE = 3 << 29
"""Memory in bytes that an input may need in addition to what the process uses before."""


def main() -> int:
    """Run the fuzzer; return its exit code, 1 if something was found."""
    arguments = _arguments()
    logging.disable(logging.CRITICAL)
    faulthandler.enable()
    expected()
    limit_memory(_ADDRESS_SPACE)
    findings = 0
    count = 0
    for name, mutations in _inputs(arguments):
        count += 1
        try:
            check(mutations)
        except BrokenError as finding:
            findings += 1
            print(f"FOUND {name}: {finding}", flush=True)
            if name.startswith("seed"):
                smaller = _reduce(mutations)
                arguments.keep.mkdir(parents=True, exist_ok=True)
                path = arguments.keep / f"{name}.json"
                path.write_text(as_text(smaller, str(finding)))
                print(f"  kept in {path}: {json.dumps(smaller)[:500]}", flush=True)
    print(f"{count} inputs, {findings} findings (seed {arguments.seed})")
    return 1 if findings else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, help="how long to look for new inputs")
    parser.add_argument("--inputs", type=int, help="how many new inputs to try")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of the first input")
    parser.add_argument(
        "--replay", type=Path, nargs="*", metavar="FILE", help="try these instead (default: all)"
    )
    parser.add_argument(
        "--keep", type=Path, default=Path(".fuzz"), help="where to keep what breaks something"
    )
    return parser.parse_args()


def _inputs(arguments: argparse.Namespace) -> Iterator[tuple[str, Sequence[Mutation]]]:
    if arguments.replay is not None:
        for path in arguments.replay or sorted(CORPUS.glob("*.json")):
            yield path.name, json.loads(path.read_text())["mutations"]
        return
    most = arguments.inputs if arguments.inputs is not None else 1 << 62
    minutes = arguments.minutes if arguments.minutes is not None or arguments.inputs is not None else 1
    end = float("inf") if minutes is None else time.monotonic() + 60 * minutes
    for number in range(most):
        if time.monotonic() > end:
            return
        yield f"seed-{arguments.seed + number}", draw(random.Random(arguments.seed + number))


def _reduce(mutations: Sequence[Mutation]) -> Sequence[Mutation]:
    """Return the mutations that suffice to break something."""
    for number in range(len(mutations)):
        fewer = [*mutations[:number], *mutations[number + 1 :]]
        try:
            if fewer:
                check(fewer)
        except BrokenError:
            return _reduce(fewer)
    return mutations


if __name__ == "__main__":
    sys.exit(main())
