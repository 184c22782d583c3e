"""What is frozen in a folder, held against what a start asks for."""

import json
from contextlib import AbstractContextManager
from itertools import zip_longest
from pathlib import Path
from typing import Any

from workers.errors import WrongInput
from workers.files import exclusive, require_place, write_whole
from workers.places import Place

__all__ = ["FrozenFolder", "on_disk", "require_same"]

_LONGEST, _SHOWN = 50, 12


class FrozenFolder:
    """A folder of several runs and what they come to, frozen by its first start.

    Args:
        path: the folder, which need not exist yet.
        what: is frozen there, in ``WHAT.json``.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what = path, what
        self.page = path / "page.html"
        self._frozen = f"{what}.json"

    @property
    def exists(self) -> bool:
        """Whether something is frozen here."""
        return (self.path / self._frozen).is_file()

    def require_usable(self) -> None:
        """Refuses a path that holds something else.

        Raises:
            WrongInput: when it is a file, or a folder with other things in it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise WrongInput(f"--out {self.path}: exists and is not a folder")
        ours = (".lock", f".{self._frozen}.")
        if self.path.exists() and not self.exists and not all(x.name.startswith(ours) for x in self.path.iterdir()):
            article = "an" if self.what[0] in "aeiou" else "a"
            raise WrongInput(f"--out {self.path}: exists and is not {article} {self.what}'s folder")
        require_place(self.path)

    def locked(self) -> AbstractContextManager[None]:
        """Holds the folder for one driver.

        Raises:
            WrongInput: when another driver holds it.
        """
        return exclusive(self.path)

    def create(self, asked: dict[str, Any]) -> None:
        """Freezes what is asked."""
        write_whole(self.path / self._frozen, (json.dumps(asked, indent=1) + "\n").encode())

    def compare(self, asked: dict[str, Any]) -> None:
        """Refuses to go on with something else than what is here.

        Raises:
            WrongInput: naming the field.
        """
        require_same(self.path, self.what, self.read(self._frozen), asked)

    def forget(self) -> None:
        """Takes back what a refused start froze; only for the holder of the lock, which takes the folder back."""
        (self.path / self._frozen).unlink(missing_ok=True)

    def read(self, name: str) -> dict[str, Any]:
        """A JSON object that is here.

        Raises:
            WrongInput: when it is absent or broken.
        """
        try:
            content = json.loads((self.path / name).read_text())
            if not isinstance(content, dict):
                raise ValueError("expected an object")
        except (OSError, ValueError) as error:
            raise WrongInput(f"--out {self.path}: its {name} cannot be read: {error}") from None
        return content


def on_disk(flag: str, folder: str) -> Path:
    """The path of a folder on a disk, which need not exist yet.

    Raises:
        WrongInput: for a file, or a place elsewhere.
    """
    place = Place.of(folder)
    if not place.local or (place.path.exists() and not place.path.is_dir()):
        raise WrongInput(f"{flag} {folder}: expected a folder on a disk")
    return place.path


def require_same(where: object, what: str, have: dict[str, Any], want: dict[str, Any]) -> None:
    """Refuses to go on with something else than what is there.

    Args:
        where: the folder, as ``--out`` names it.
        what: is in the folder: a run, an evaluation.
        have: the fields frozen there; of a field that is a dict itself its own are compared.
        want: the same of this start.

    Raises:
        WrongInput: naming the first field that differs, with both values, long ones cut to where they differ.
    """
    for field in want | have:
        one, other = have.get(field), want.get(field)
        if one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            require_same(where, what, one, other)
        one, other = _shown(str(one), str(other))
        raise WrongInput(f"--out {where}: that {what} has {field} {one}, this start {other}; name another folder")


def _shown(*texts: str) -> tuple[str, ...]:
    """Two values, cut to where they differ when one of them is long."""
    if max(map(len, texts)) < _LONGEST:
        return texts
    at = next((i for i, (one, other) in enumerate(zip_longest(*texts)) if one != other), 0)
    start = 0 if at < _SHOWN else at
    cut = [text[start : start + _SHOWN] + "…" * (len(text) > start + _SHOWN) for text in texts]
    return tuple("…" * (start > 0) + text for text in cut)
