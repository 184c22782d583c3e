"""Files whole or absent, folders for one process."""

import os
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from workers.errors import WrongInput
from workers.files import exclusive, held, require_place, write_whole


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_writers_of_one_file_never_mix(tmp_path: Path) -> None:
    path, contents = tmp_path / "file", [bytes([number]) * 300_000 for number in range(6)]
    seen: set[bytes] = set()

    def write(content: bytes) -> None:
        for _ in range(20):
            write_whole(path, content)
            seen.add(path.read_bytes())

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen <= set(contents)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_one_holder_at_a_time_and_no_litter(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    assert not held(folder)
    with exclusive(folder):
        assert held(folder)
        with pytest.raises(WrongInput, match="another brittle is writing"), exclusive(folder):
            pass
    assert not held(folder)
    assert not list(tmp_path.iterdir())
    folder.mkdir()
    with exclusive(folder):
        pass
    assert not list(folder.iterdir())


def test_a_lock_that_somebody_removed_takes_no_other_along(tmp_path: Path) -> None:
    with exclusive(tmp_path), ExitStack() as second:
        (tmp_path / ".lock").unlink()
        second.enter_context(exclusive(tmp_path))
        second_holds = second.pop_all()
    with pytest.raises(WrongInput, match="another brittle is writing"), exclusive(tmp_path):
        pass
    second_holds.close()
    assert not list(tmp_path.iterdir())


def test_folders_that_were_made_stay_when_something_is_in_them(tmp_path: Path) -> None:
    with exclusive(tmp_path / "a" / "b"):
        (tmp_path / "a" / "other").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["other"]


def test_places_that_cannot_hold_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WrongInput, match="is not a folder"):
        require_place(tmp_path / "file" / "run")
    require_place(tmp_path / "a" / "b")
