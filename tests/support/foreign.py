"""Things of other people in the place of a store, and all that a store does there."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Callable

from hypothesis import strategies as st

import input_checkpoint as ic
from input_checkpoint.backends.memory import MemoryBackend
from tests.support.planted_files import KINDS
from tests.support.stores import loaded, save, state_of

ID = "0123abcd"
DIGITS = "0123456789abcdef" * 2
THREE_DAYS = 3 * 24 * 3600

NEARLY_OURS = (
    "saves/main/best.ckpt",
    "saves/main/a~",
    f"lineages/main/00000001/000000000010-{ID}~",
    f"lineages/main/00000001/000000000010-{ID}0",
    f"lineages/main/00000001/000000000010-{ID.upper()}",
    f"lineages/main/00000001/00000000010-{ID}",
    f"lineages/main/00000001/0000000000010-{ID}",
    f"lineages/main/0000001/000000000010-{ID}",
    f"lineages/main/00000001/theirs/000000000010-{ID}",
    f"lineages/my worker/00000001/000000000010-{ID}",
    f"packs/main/00000001/000000000010-{ID}-00000.pack~",
    f"packs/main/00000001/000000000010-{ID}-0000.pack",
    f"packs/main/00000001/000000000010-{ID}-000000.pack",
    f"packs/main/00000001/000000000010-{ID}.pack",
    f"packs/main/00000001/\u0660\u0660\u0660000000010-{ID}-00000.pack",
    f"packs/main/00000000/000000000010-{ID}-00000.pack",
    "packs/main/00000001/old copy.pack",
    "packs/main/notes.txt",
    "checkpoints/main/00000001/000000000010.manifest.tmp",
    "checkpoints/main/00000001/00000000010.manifest",
    "checkpoints/main/0000000\u0661/000000000010.manifest",
    "checkpoints/my worker/00000001/000000000010.manifest",
    "checkpoints/main/00000001/000000000025-00000001-000000000020.mark~",
    "checkpoints/main/00000001/000000000025-00000001-000000000020.marks",
    "checkpoints/main/00000001/000000000025-00000001-00000000020.mark",
    "checkpoints/main/00000001/000000000025-00000002-000000000020.mark",
    "checkpoints/main/00000001/000000000025-00000001-000000000026.mark",
    "checkpoints/main/00000001/000000000025-00000000-000000000020.mark",
    "checkpoints/main/00000001/000000000025-000000000020.mark",
    "checkpoints/main/00000001/000000000025.mark",
    "checkpoints/my worker/00000001/000000000025-00000001-000000000020.mark",
    "checkpoints/w\u00f6rker/00000001/000000000010.manifest",
    "lineages/main/00000001.json (conflicted copy)",
    "lineages/main/0000000\u0662.json",
    "lineages/main/000000002.json",
    "lineages/main/00000000.json",
    "pins/main/00000001/000000000010.json.bak",
    "pins/main/00000001/10.json",
    "probe/weights.npy",
    "probe/linear/accuracy.csv",
    f"probe/{DIGITS}.npy",
    f"probe/{DIGITS.upper()}",
    f"probe/{DIGITS}0",
    f"probe/a/{DIGITS}",
    "format.json.orig",
    f".{DIGITS}.aside.txt",
    f".{DIGITS.upper()}.aside",
    f"packs/main/.{DIGITS}.aside",
    f"packs/main/photos/.{DIGITS}.aside",
    f"photos/.{DIGITS}.aside",
    ".aside/thesis.tex",
    "thesis.tex",
)
"""Names that the library does not give, although some come close: docs/format.md has the right ones."""

_words = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Zl", "Zp"), exclude_characters="/\\"),
    min_size=1,
    max_size=12,
).filter(lambda text: text.strip(". ") != "")
_anywhere = st.builds(
    lambda *names: "/".join(names),
    st.sampled_from(["saves", "packs", "checkpoints", "lineages", "pins", "probe", "photos"]),
    st.sampled_from(["main", "worker-1", "my worker"]) | _words,
    _words,
)
foreign_names = st.lists(st.sampled_from(NEARLY_OURS) | _anywhere, min_size=1, max_size=12, unique=True)

obstacles = st.dictionaries(
    st.sampled_from(
        [
            "format.json",
            "saves",
            "saves/main",
            "lineages/main/00000001",
            "packs/main",
            "packs/main/00000002",
            "checkpoints/main",
            "checkpoints/main/00000001/000000000030.manifest",
            "lineages/main",
            "lineages/main/00000002.json",
            "pins/main/00000001",
            "probe",
            ".aside",
            f".{DIGITS}.aside",
            "photos",
        ]
    ),
    st.sampled_from([kind for kind in KINDS if kind not in ("device", "folder")] + ["file"]),
    min_size=1,
    max_size=3,
).map(lambda found: {path: kind for path, kind in found.items() if kind != "file" or "." not in path[1:]})
"""Links, special files and files, by the path where they are put, which is often one that the store needs.

A file with exactly the name of an object is the library's own.
"""


def check_objects_stay(
    open_backend: Callable[[], ic.Backend],
    plant: Callable[[str, bytes], None],
    stored: Callable[[], Mapping[str, object]],
    names: Iterable[str],
) -> None:
    """Check that a store works among foreign objects, and that they are unchanged afterwards.

    Args:
        open_backend: opens a backend without objects.
        plant: stores an object without the backend.
        stored: returns everything that is stored.
        names: of the foreign objects.
    """
    for name in names:
        plant(name, b"weeks of work: " + name.encode())
    before = stored()
    for action in ACTIONS:
        action(open_store(open_backend))
    after = stored()
    assert {name: after.get(name) for name in before} == before
    store = open_store(open_backend)
    assert [(info.worker, info.lineage, info.step) for info in store.checkpoints()] == [("main", 2, 50)]
    assert store.marks() == []
    assert store.verify().ok
    assert loaded(store, store.newest("main")) == [("Iterator", state_of(b"50"))]


def check_files_stay(
    root: Path, open_backend: Callable[[], ic.Backend], names: Iterable[str], found: Mapping[str, str]
) -> None:
    """Check that foreign files, links and special files are unchanged, whatever is done with a store there.

    Args:
        root: the folder of the backend, which does not exist yet.
        open_backend: opens it.
        names: of foreign files.
        found: links and special files: what is at which path, see `KINDS`.
    """
    theirs = root.with_name(root.name + "-theirs")
    theirs.mkdir()
    for name in ("file", "object", *NEARLY_OURS[:3]):
        plant_file(theirs, name, b"theirs")
    for path, kind in found.items():
        plant_obstacle(root / path, kind, theirs)
    for name in names:
        plant_file(root, name, b"weeks of work")
    before, before_theirs = files(root), files(theirs)
    for action in ACTIONS:
        # A link or a named pipe in place of a folder or an object is a clear error.
        with contextlib.suppress(ic.InputCheckpointError):
            action(open_store(open_backend))
    after = files(root)
    assert {name: after.get(name) for name in before} == before
    assert files(theirs) == before_theirs


def open_store(open_backend: Callable[[], ic.Backend]) -> ic.CheckpointStore:
    return ic.CheckpointStore.open(open_backend(), create=True, probe=True, retry=None)


def save_and_prune(store: ic.CheckpointStore) -> None:
    run = store.begin_run("main")
    first, second, _ = save(run, 10, 20, 30)
    store.pin(first, "best")
    run.mark(25, second, {"Iterator": 5}, {"Iterator": "9f3c"})
    run.prune(ic.KeepLast(1), orphan_age=0)
    store.unpin(first)


def resume_and_prune(store: ic.CheckpointStore) -> None:
    run = store.begin_run("main", parent=store.newest("main").ref)
    save(run, 40, 50)
    run.prune(ic.KeepLast(1), orphan_age=0)


def read(store: ic.CheckpointStore) -> None:
    store.workers()
    store.checkpoints()
    store.history("main")
    store.pins()
    store.marks()
    store.verify()


def prune_from_elsewhere(store: ic.CheckpointStore) -> None:
    store.prune(ic.KeepLast(1), orphan_age=0)


def copy(store: ic.CheckpointStore) -> None:
    """Copy it away, and back from there."""
    other = ic.CheckpointStore.open(MemoryBackend(f"memory://{uuid.uuid4().hex}"), create=True)
    store.copy_to(other)
    other.copy_to(store)


ACTIONS = (save_and_prune, read, resume_and_prune, prune_from_elsewhere, copy)


def plant_file(root: Path, name: str, data: bytes) -> None:
    """Write an old file, unless something else is in the way."""
    path = root / name
    if any(above.is_symlink() for above in (path, *path.parents) if root in above.parents):
        return
    with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "xb") as file:
            file.write(data)
        then = time.time() - THREE_DAYS
        os.utime(path, (then, then))


def plant_obstacle(path: Path, kind: str, theirs: Path) -> None:
    """Make a link or a special file, unless something else is in the way."""
    with contextlib.suppress(FileExistsError, NotADirectoryError, FileNotFoundError, OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "file":
            plant_file(path.parent, path.name, b"theirs")
        elif path.parent.resolve() == path.parent:
            KINDS[kind](path, theirs)


def files(root: Path) -> dict[str, object]:
    """Return what is below a folder, without following links: where a link leads to, what a file holds."""
    found: dict[str, object] = {}
    for folder, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = Path(folder, name)
            if path.is_symlink():
                found[str(path.relative_to(root))] = os.readlink(path)
            elif path.is_file():
                found[str(path.relative_to(root))] = path.read_bytes()
            elif not path.is_dir():
                found[str(path.relative_to(root))] = path.lstat().st_mode
    return found


def empty_folder() -> Path:
    """Return the path of a folder that does not exist yet, in one that will not be used again."""
    return Path(tempfile.mkdtemp()).resolve() / "store"
