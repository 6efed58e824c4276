"""The pure parts of the benchmarks, and their slow link. Nothing here depends on timing."""

from __future__ import annotations

import asyncio
import doctest
import json
import os
import random
import socket
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Callable

import pytest

import input_checkpoint as ic
from benchmarks import documentation, fresh_process, report, slow_link, suite
from benchmarks.documentation import (
    DOCUMENTS,
    TABLES,
    DocumentationError,
    Results,
    figures_table,
    filled,
    goals_table,
    short_table,
)
from benchmarks.report import (
    MEASUREMENTS,
    Figure,
    Goal,
    Measured,
    Ratio,
    aligned,
    exponent,
    markdown,
    measured_table,
    number,
    paired,
    ratio_table,
    raw,
    seconds_table,
)
from benchmarks.slow_link import Line, Link, Proxy
from benchmarks.traffic import TrafficBackend
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.format.keys import mark_key

OURS_FASTER = [
    Figure("restore", "pictures", who, "restore [s]", turn, value)
    for who, values in {"ours": (1.0, 4.0, 2.0), "theirs": (4.0, 8.0, 8.0)}.items()
    for turn, value in enumerate(values)
]
MACHINE = {"processors": 2, "architecture": "x86_64", "system": "Linux", "python": "3.11.7"}
HALF = Goal("restore", "restore [s]", "ours", "theirs", bound=0.5)


def test_a_ratio_compares_figures_of_the_same_round() -> None:
    (ratio,) = HALF.ratios(OURS_FASTER)
    assert ratio.values == (0.25, 0.5, 0.25)
    assert ratio.median == 0.25


def test_a_round_that_only_one_candidate_has_is_ignored() -> None:
    assert paired({0: 1.0, 1: 2.0}, {1: 4.0, 2: 1.0}) == (0.5,)


@pytest.mark.parametrize(
    ("bound", "at_most", "verdict"),
    [
        (0.3, True, "met"),
        (0.2, True, "MISSED"),
        (0.2, False, "met"),
        (0.3, False, "MISSED"),
        (None, True, ""),
    ],
)
def test_the_median_decides_whether_a_goal_is_met(bound: float, at_most: bool, verdict: str) -> None:
    (ratio,) = Goal("restore", "restore [s]", "ours", "theirs", bound, at_most).ratios(OURS_FASTER)
    assert ratio.verdict == verdict


def test_a_goal_applies_only_to_its_measurement_quantity_candidates_and_cases() -> None:
    assert Goal("save", "restore [s]", "ours", "theirs").ratios(OURS_FASTER) == []
    assert Goal("restore", "read [bytes]", "ours", "theirs").ratios(OURS_FASTER) == []
    assert Goal("restore", "restore [s]", "ours", "theirs", cases="tokens").ratios(OURS_FASTER) == []
    assert Goal("restore", "restore [s]", "ours", "nobody").ratios(OURS_FASTER) == []


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_function_is_its_power(power: float) -> None:
    sizes = [1.0, 10.0, 100.0, 1000.0]
    assert exponent(sizes, [7 * size**power for size in sizes]) == pytest.approx(power)


def test_tables_have_one_line_per_case_and_aligned_columns() -> None:
    head, ours, theirs = measured_table(OURS_FASTER).splitlines()
    assert ours.split() == ["pictures", "restore", "[s]", "ours", "2", "1", "4", "3"]
    assert theirs.split()[-4:] == ["8", "4", "8", "3"]
    head, row = ratio_table(HALF.ratios(OURS_FASTER)).splitlines()
    assert row.split()[-7:] == ["0.25", "0.25", "0.5", "3", "<=", "0.5", "met"]
    assert head.index("ratio of") == row.index("ours")


def test_numbers_are_aligned_right_and_text_left() -> None:
    assert aligned([("who", "n"), ("a", "1"), ("long", "1 000")]) == "who       n\na         1\nlong  1 000"


def test_markdown_highlights_missed_goals() -> None:
    missed = Goal("restore", "restore [s]", "ours", "theirs", bound=0.1)
    met, row = markdown([*HALF.ratios(OURS_FASTER), *missed.ratios(OURS_FASTER)]).splitlines()[2:]
    assert met.endswith("| 0.25 | 0.25 to 0.5 | 3 | ≤ 0.5 | met |")
    assert row.endswith("| **missed** |")


def test_the_raw_figures_can_be_read_back() -> None:
    ratios = HALF.ratios(OURS_FASTER)
    written = raw(OURS_FASTER, ratios, MACHINE, {"restore": Measured("2026-11-26", 12.3)}, quick=True)
    found = Results.from_json(written)
    assert (list(found.figures), list(found.ratios), found.quick) == (OURS_FASTER, ratios, True)
    assert found.measured == {"restore": Measured("2026-11-26", 12.3)}
    assert json.loads(written)["ratios"][0]["met"] is True


def test_a_repeated_measurement_replaces_its_figures_and_keeps_those_of_others(tmp_path: Path) -> None:
    others = [Figure("stall", "pictures", "ours", "stall [s]", 0, 1.0)]
    measured = {name: Measured("2026-11-26", 12.3) for name in ("restore", "stall")}
    file = tmp_path / "raw.json"
    file.write_text(
        raw([*OURS_FASTER, *others], HALF.ratios(OURS_FASTER), suite.machine(), measured, quick=False)
    )
    found = suite.found_earlier(file, without=["restore"])
    assert (found.figures, found.ratios, list(found.measured)) == (others, [], ["stall"])


@pytest.mark.parametrize(("machine", "quick"), [(MACHINE, False), (suite.machine(), True)])
def test_figures_of_another_machine_or_of_a_smoke_run_are_not_mixed_with_new_ones(
    tmp_path: Path, machine: dict[str, Any], quick: bool
) -> None:
    file = tmp_path / "raw.json"
    file.write_text(raw(OURS_FASTER, [], machine, {}, quick=quick))
    with pytest.raises(SystemExit, match="another machine"):
        suite.found_earlier(file, without=[])


def results(*ratios: Ratio, figures: Sequence[Figure] = OURS_FASTER) -> Results:
    return Results(MACHINE, figures, ratios, {"restore": Measured("2026-11-26", 12.3)}, quick=False)


def test_a_marked_table_is_replaced_and_the_text_around_it_is_not() -> None:
    before = "above\n<!-- figures: restore -->\n| old |\n<!-- end of figures -->\nbelow"
    after = filled(before, results())
    assert after.startswith("above\n<!-- figures: restore -->\n\n| restore [s] | ours | theirs |")
    assert after.endswith("\n\n<!-- end of figures -->\nbelow")
    assert "old" not in after
    assert filled(after, results()) == after


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- figures: nonsense -->\n<!-- end of figures -->", "no table 'nonsense'"),
        ("<!-- figures: restore -->\n", "needs its own"),
        ("<!-- end of figures -->\n", "needs its own"),
        ("<!-- figures: restore -->\n<!-- figures: stall -->\n<!-- end of figures -->", "needs its own"),
    ],
)
def test_a_marker_without_a_table_or_an_end_is_an_error(text: str, message: str) -> None:
    with pytest.raises(DocumentationError, match=message):
        filled(text, results())


def test_a_table_gives_median_spread_and_number_of_rounds() -> None:
    _, _, row = figures_table("restore", results()).splitlines()
    assert row == "| pictures | 2 s (1 to 4; 3 rounds) | 8 s (4 to 8; 3 rounds) |"


def test_a_table_of_goals_says_which_were_missed() -> None:
    strict = Goal("restore", "restore [s]", "ours", "theirs", bound=0.1)
    ratios = [*HALF.ratios(OURS_FASTER), *strict.ratios(OURS_FASTER)]
    head, _, row = goals_table("restore", results(*ratios)).splitlines()
    assert head.endswith("| restore [s]: ours / theirs, ≤ 0.5 | restore [s]: ours / theirs, ≤ 0.1 |")
    spread = "0.25 (0.25 to 0.5; 3 rounds)"
    assert row == f"| pictures | {spread} met | {spread} **missed** |"


def test_goals_that_differ_only_in_their_cases_share_a_column() -> None:
    tokens = [replace(figure, case="tokens") for figure in OURS_FASTER]
    goals = [replace(HALF, cases=kind) for kind in ("pictures", "tokens")]
    ratios = [ratio for goal in goals for ratio in goal.ratios([*OURS_FASTER, *tokens])]
    spread = "0.25 (0.25 to 0.5; 3 rounds) met"
    assert goals_table("restore", results(*ratios)).splitlines()[2:] == [
        f"| pictures | {spread} |",
        f"| tokens | {spread} |",
    ]


def test_the_short_table_has_the_last_case_of_each_kind_with_its_competitor() -> None:
    figures = [
        Figure("stall", case, who, "stall [s]", turn, value)
        for case in ("pictures 1 000", "pictures 24 000", "cache 10")
        for who, value in (("ours", 0.002), ("TensorFlow's hook", 0.2))
        for turn in range(3)
    ]
    table = short_table(results(figures=figures)).splitlines()
    (row,) = (line for line in table if line.startswith("| training pauses"))
    assert "| pictures 24 000 | 2 ms (3 rounds, all equal) | 200 ms (3 rounds, all equal) | 0.01 " in row


def test_a_measurement_that_is_not_in_the_figures_is_said_to_be_missing() -> None:
    assert figures_table("memory", results()) == "*Not part of this run.*"
    assert goals_table("memory", results()) == "*Not part of this run.*"


def test_every_measurement_can_be_put_into_a_document() -> None:
    assert {*MEASUREMENTS, *(f"goals of {name}" for name in MEASUREMENTS)} <= set(TABLES)


def test_a_value_that_was_noted_twice_in_a_round_counts_as_one_round() -> None:
    twice = [Figure("restore", "pictures", "the state", "read [bytes]", turn, 2e6) for turn in (0, 0, 1, 1)]
    assert figures_table("restore", results(figures=twice)).endswith("| 2 MB (2 rounds, all equal) |")


def test_the_committed_documents_have_the_committed_figures() -> None:
    found = Results.from_json(Path("docs/benchmarks/raw.json").read_text())
    for document in DOCUMENTS:
        text = document.read_text()
        assert filled(text, found) == text, f"run python -m benchmarks.documentation; {document} differs"
    assert Path("docs/benchmarks/ratios.md").read_text() == markdown(found.ratios) + "\n"


def test_every_measurement_is_documented() -> None:
    text = Path("docs/benchmarks.md").read_text()
    assert [name for name in MEASUREMENTS if f"<!-- figures: {name} -->" not in text] == ["growth"]
    assert "<!-- figures: exponents of growth -->" in text


def test_check_fails_if_a_document_differs_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    figures, document = tmp_path / "raw.json", tmp_path / "doc.md"
    monkeypatch.setattr(documentation, "DOCUMENTS", (document,))
    figures.write_text(raw(OURS_FASTER, [], MACHINE, {}))
    outdated = "<!-- figures: restore -->\n<!-- end of figures -->\n"
    document.write_text(outdated)
    assert documentation.main([str(figures), "--check"]) == 1
    assert document.read_text() == outdated
    assert documentation.main([str(figures)]) == 0
    assert documentation.main([str(figures), "--check"]) == 0


def test_the_figures_of_a_quick_run_are_not_put_into_documents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "raw.json"
    figures.write_text(raw(OURS_FASTER, [], MACHINE, {}, quick=True))
    assert documentation.main([str(figures)]) == 1
    assert "quick run" in capsys.readouterr().err


def test_a_run_that_takes_too_long_ends_with_a_warning() -> None:
    measured = {"stall": Measured("2026-11-26", 400.0), "memory": Measured("2026-11-26", 350.0)}
    assert seconds_table(measured, limit=720).splitlines()[-1] == (
        "WARNING: the run took 12.5 minutes, and should take at most 12."
    )
    assert seconds_table(measured, limit=750).splitlines()[-1].split() == ["all", "750"]


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (0.98765, "0.988"), (1234567.8, "1 234 568")])
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_a_line_never_carries_more_than_its_bandwidth() -> None:
    """However the bytes arrive, no more leave by any moment than the bandwidth allows."""
    chance = random.Random(5)
    line = Line(bandwidth=1000)
    now, carried = 0.0, 0
    for _ in range(500):
        now += chance.choice([0.0, 0.0, 0.01, 2.0])
        size = chance.randrange(1, 300)
        carried += size
        departure = line.departure_time(now, size)
        assert departure >= now + size / 1000
        assert carried <= 1000 * departure + 1e-6


def test_an_idle_line_accumulates_no_bandwidth() -> None:
    line = Line(bandwidth=10)
    assert line.departure_time(0.0, 10) == 1.0
    assert line.departure_time(100.0, 10) == 101.0


def test_connections_share_the_bandwidth() -> None:
    line = Line(bandwidth=10)
    assert [line.departure_time(0.0, 10) for _ in range(3)] == [1.0, 2.0, 3.0]


def received(connection: socket.socket) -> Iterator[bytes]:
    while data := connection.recv(1 << 16):
        yield data


class Echo:
    """A server that sends everything back once it has received all of it."""

    def __enter__(self) -> int:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        port: int = self._listener.getsockname()[1]
        return port

    def __exit__(self, *error: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.sendall(b"".join(received(connection)))


async def forwarded(target_port: int, messages: list[bytes]) -> list[bytes]:
    server = await Proxy(target_port, Link(latency=0.0, bandwidth=1e9)).serve(0)
    port = server.sockets[0].getsockname()[1]

    async def send(message: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(message)
        writer.write_eof()
        answer = await reader.read(-1)
        writer.close()
        return answer

    answers = await asyncio.gather(*map(send, messages))
    server.close()
    return answers


def test_the_link_forwards_bytes_unchanged() -> None:
    messages = [random.Random(seed).randbytes(300_000 * seed + 1) for seed in range(4)]
    with Echo() as port:
        assert asyncio.run(forwarded(port, messages)) == messages


@pytest.fixture
def backend() -> TrafficBackend:
    return TrafficBackend(MemoryBackend(f"memory://{uuid.uuid4().hex}"))


def test_traffic_is_counted(backend: TrafficBackend) -> None:
    backend.create("a", b"12345")
    backend.put("b", b"123")
    backend.get("a", 1, 3)
    assert len(list(backend.list())) == 2
    backend.delete(["a", "b"])
    found = backend.take_traffic()
    assert (found.writes, found.reads, found.pages, found.listed, found.deletes) == (2, 1, 1, 2, 1)
    assert (found.uploaded, found.downloaded, found.requests) == (8, 2, 5)
    assert backend.take_traffic().requests == 0


def test_the_bytes_of_marks_are_counted_apart_as_well(backend: TrafficBackend) -> None:
    run = ic.CheckpointStore.open(backend, create=True).begin_run("main")
    base = run.save(1, []).ref
    backend.take_traffic()
    mark = run.mark(2, base, {"one": 1}, {"one": "5f0c"})
    size = len(backend.get(mark_key(mark)))
    found = backend.take_traffic()
    assert (found.marked, found.uploaded) == (size, size)
    run.save(3, [ic.IteratorState("one", [(b"key", b"payload")])])
    found = backend.take_traffic()
    assert (found.marked, found.uploaded > 0) == (0, True)


def die(path: str, kill: Callable[[int], None]) -> None:
    with open(path, "w") as file:
        try:
            kill(os.getpid())
        finally:
            file.write("survived")


def end(path: str, kill: Callable[[int], None]) -> None:
    """Return without a call of ``kill``."""


def test_a_killed_process_returns_its_figures_and_runs_nothing_more(tmp_path: Path) -> None:
    file = tmp_path / "file"
    pid = fresh_process.run_until_killed(die, str(file))
    assert pid != os.getpid()
    assert file.read_text() == ""


def test_a_process_that_should_have_been_killed_and_ended_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="end ended before it was killed"):
        fresh_process.run_until_killed(end, str(tmp_path))


def test_the_time_of_a_commit_is_recorded(backend: TrafficBackend) -> None:
    store = ic.CheckpointStore.open(backend, create=True)
    run = store.begin_run("main")
    assert backend.committed_at == 0
    run.save(1, [ic.IteratorState("one", [(b"key", b"payload")])])
    assert backend.committed_at > 0


@pytest.mark.parametrize("module", [documentation, report, slow_link])
def test_the_doctests_pass(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0
