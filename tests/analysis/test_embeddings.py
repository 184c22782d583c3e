"""Representation maps: what they are made of by hand, openTSNE's own transform, neighbours by brute force."""

import numpy as np
import pytest
import torch
from torch import nn

from analysis.array_cache import ArrayCache
from analysis.embeddings import (
    EXAGGERATED,
    ITERATIONS,
    faithfulness,
    joint_tsne,
    nearest_labels,
    placed,
    principal_axes,
    representations,
    tsne,
)
from tests.conftest import random_images, random_model
from workers.errors import WrongInput
from workers.models.null import NullCNN, rejecting


def clusters(count: int, dimensions: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points about three far centres, and which one each is of."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=count)
    centres = 40 * np.eye(3, dimensions)
    return (centres[labels] + rng.standard_normal((count, dimensions))).astype(np.float32), labels


@pytest.mark.parametrize("count", [1, 16, 70])
def test_what_the_last_linear_layer_is_given(count: int) -> None:
    for kind in ("colour", "cnn"):
        model, shape, _ = random_model(kind, 3)
        images = random_images(shape, count, 5)
        inputs = torch.tensor(images).float() / 255
        with torch.no_grad():
            if kind == "colour":
                expected = model.body[:-1](inputs)
            else:
                expected = torch.relu(model.conv3(torch.relu(model.conv2(torch.relu(model.conv1(inputs)))))).flatten(1)
        seen: list[int] = []
        found = representations(model, images, seen.append)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
        assert sum(seen) == count


class Backwards(nn.Module):
    """Its head is defined first and executed last, and given a row of tokens an image."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(4, 2), nn.Linear(6, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images[:, 0])).mean(dim=1)


def test_the_last_executed_one_not_the_last_defined() -> None:
    model, images = Backwards().eval(), random_images((1, 5, 6), 3, 7)
    with torch.no_grad():
        expected = model.body(torch.tensor(images[:, 0]).float() / 255).flatten(1)
    np.testing.assert_allclose(representations(model, images), expected.numpy(), atol=1e-6)


def test_of_a_classifier_behind_a_detector_the_classifier() -> None:
    torch.manual_seed(0)
    network = NullCNN(1, 9, 12, 4).eval()
    images = random_images((1, 9, 12), 5, 8)
    np.testing.assert_array_equal(representations(rejecting(network).eval(), images), representations(network, images))


class Rows(nn.Module):
    """Gives its linear layer one row in all."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(20, 20)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :2] + self.linear(images[:1, 0].flatten(1))[:, :2]


class Infinite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(20, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(images.flatten(1) / 0).nan_to_num()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten()), "executes no nn.Linear"),
        (Rows(), "a row for each of 16 images"),
        (Infinite(), "not finite"),
    ],
)
def test_models_without_a_representation(model: nn.Module, message: str) -> None:
    with pytest.raises(WrongInput, match=message):
        representations(model.eval(), random_images((1, 4, 5), 3, 9))


@pytest.mark.parametrize(("count", "features"), [(40, 7), (300, 120), (20, 90)])
def test_principal_axes_are_those_of_a_singular_value_decomposition(count: int, features: int) -> None:
    rng = np.random.default_rng(count)
    rows = (rng.standard_normal((count, features)) * 0.7 ** np.arange(features) + 3).astype(np.float32)
    found = principal_axes(rows, seed=0)
    centred = rows.astype(np.float64) - rows.mean(axis=0)
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(np.sum(found.axes[:5] * axes[:5], axis=1)), 1, atol=1e-3)
    np.testing.assert_allclose(found.explained[:5], values[:5] ** 2 / np.sum(values**2), rtol=1e-3)
    np.testing.assert_allclose(
        found.coordinates(rows)[:, :5], np.sum((centred[:, None] * found.axes[:5]), axis=2), atol=1e-4
    )
    with pytest.raises(WrongInput, match="that vary"):
        principal_axes(np.ones((count, features), dtype=np.float32), seed=0)
    with pytest.raises(WrongInput, match="two features"):
        principal_axes(rows[:, :1], seed=0)


def test_a_map_places_new_points_as_opentsne_does() -> None:
    from openTSNE import TSNEEmbedding
    from openTSNE.affinity import PerplexityBasedNN
    from openTSNE.nearest_neighbors import Sklearn

    points, labels = clusters(150, 6, 1)
    new, theirs = clusters(30, 6, 2)
    steps: list[int] = []
    parts: list[str] = []
    found = tsne(points, perplexity=10, seed=0, on_part=parts.append, on_steps=steps.append)
    assert (sum(steps), parts) == (EXAGGERATED + ITERATIONS, ["affinities", "optimisation"])
    np.testing.assert_array_equal(found, tsne(points, perplexity=10, seed=0))
    assert (nearest_labels(found, labels, found, 10) == labels[:, None]).mean() > 0.95

    kept = found.copy()
    positions = placed(points, found, new, seed=0)
    np.testing.assert_array_equal(found, kept)
    assert (nearest_labels(found, labels, positions, 5) == theirs[:, None]).all()
    index = Sklearn(points, 30, knn_kwargs={"algorithm": "brute"})
    affinities = PerplexityBasedNN(perplexity=10, knn_index=index)
    whole = TSNEEmbedding(found, affinities, random_state=0, negative_gradient_method="fft")
    np.testing.assert_allclose(positions, np.asarray(whole.transform(new)), atol=1e-9)
    assert placed(points, found, new[:0], seed=0).shape == (0, 2)


def test_the_joint_map_holds_old_and_new_points() -> None:
    points, labels = clusters(100, 5, 3)
    new, theirs = clusters(20, 5, 4)
    old, other = joint_tsne(points, new, perplexity=8, seed=0)
    assert (old.shape, other.shape) == ((100, 2), (20, 2))
    assert (nearest_labels(old, labels, other, 5) == theirs[:, None]).mean() > 0.9


def brute_force(reference: np.ndarray, row: np.ndarray, k: int) -> list[int]:
    apart = [(sum((a - b) ** 2 for a, b in zip(row, other, strict=True)), n) for n, other in enumerate(reference)]
    return [n for _, n in sorted(apart)[:k]]


def test_neighbours_by_brute_force() -> None:
    rng = np.random.default_rng(11)
    reference, rows = rng.standard_normal((40, 3)), rng.standard_normal((9, 3))
    labels = rng.integers(5, size=40)
    expected = [[labels[n] for n in brute_force(reference, row, 7)] for row in rows]
    np.testing.assert_array_equal(nearest_labels(reference, labels, rows, 7), expected)
    assert nearest_labels(reference, labels, rows[:0], 7).shape == (0, 7)


def test_how_much_of_a_neighbourhood_a_map_keeps() -> None:
    rng = np.random.default_rng(12)
    full, k = rng.standard_normal((50, 4)), 6
    maps = {"itself": full, "part": full[:, :2], "noise": rng.standard_normal((50, 2))}
    found = faithfulness(full, maps, k, seed=0)
    assert found["itself"].value == 1
    for name, coordinates in maps.items():
        kept = [
            len(set(brute_force(full, full[n], k + 1)) & set(brute_force(coordinates, coordinates[n], k + 1)) - {n}) / k
            for n in range(50)
        ]
        assert found[name].value == pytest.approx(np.mean(kept))
        low, high = found[name].interval
        assert low <= found[name].value <= high
    assert found["part"].value > found["noise"].value
    assert 0 <= faithfulness(np.zeros((30, 2)), {"same": np.zeros((30, 2))}, 3, seed=0)["same"].value <= 1


def test_arrays_are_made_once_for_the_same_inputs(tmp_path) -> None:  # type: ignore[no-untyped-def]
    cache, made = ArrayCache(tmp_path / "cache"), []

    def make() -> dict[str, np.ndarray]:
        made.append(1)
        return {"a": np.arange(3) + len(made), "names": np.array(["x", "yy"])}

    first = cache.get("thing", {"seed": 1}, make)
    again = ArrayCache(tmp_path / "cache").get("thing", {"seed": 1}, make)
    assert len(made) == 1
    for name, values in first.items():
        np.testing.assert_array_equal(again[name], values)
    assert cache.get("thing", {"seed": 2}, make)["a"][0] == 2
    (file, _) = sorted((tmp_path / "cache").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    file.write_bytes(file.read_bytes()[:100])  # broken: made again, and whole
    assert cache.get("thing", {"seed": 1}, make)["a"][0] == 3
    assert cache.get("thing", {"seed": 1}, make)["a"][0] == 3
    assert len(made) == 3
