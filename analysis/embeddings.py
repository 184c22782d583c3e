"""Representation maps: what a model's last linear layer is given of images, in two dimensions."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from analysis.statistics import Estimate, by_image
from workers.detectors.guarded import Guarded
from workers.errors import WrongInput
from workers.evaluation.dense import DenseEvaluator

__all__ = ["COMPONENTS", "Axes", "classifier_of", "faithfulness", "joint_tsne", "nearest_labels", "placed",
           "principal_axes", "representations", "tsne"]  # fmt: skip

COMPONENTS = 50
"""Principal components that t-SNE is given instead of all features, as van der Maaten & Hinton (2008) do."""

EXAGGERATED, ITERATIONS = 250, 500
"""Steps of the two phases (Belkina et al., 2019)."""

FINE = 200
"""The last so many of them compute repulsion on a grid of openTSNE's default width, those before on one twice as wide:
three fifths of the time at 10,000 points, and as many neighbours kept."""

OnAmount = Callable[[int], object]


def _ignore(amount: int) -> None:
    pass


def classifier_of(model: nn.Module) -> nn.Module:
    """The classifier itself where a model is one behind a detector."""
    return model.classifier if isinstance(model, Guarded) else model


class _LastLinear:
    """Keeps what the last executed linear layer of a model was given, while it is entered."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
        self._handles: list[Any] = []
        self.given: Tensor | None = None

    def __enter__(self) -> "_LastLinear":
        self._handles = [layer.register_forward_pre_hook(self._keep) for layer in self._layers]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        self.given = arguments[0] if arguments else None


def representations(model: nn.Module, images: np.ndarray, on_images: OnAmount = _ignore) -> np.ndarray:
    """The penultimate representation: what the last linear layer that a model executes is given, flattened.

    Args:
        model: in ``eval()`` mode; of a classifier behind a detector the classifier is looked into.
        images: uint8 ``[n, C, H, W]``, n ≥ 1.
        on_images: called with the number of images just seen.

    Returns:
        float32 ``[n, d]``.

    Raises:
        WrongInput: for a model that executes no ``nn.Linear``, or whose last one is not given a row an image or
            values that are not finite.
    """
    evaluator, found = DenseEvaluator(classifier_of(model)), np.empty((0, 0), dtype=np.float32)
    for start in range(0, len(images), evaluator.batch):
        chunk = torch.tensor(images[start : start + evaluator.batch], device=evaluator.device)
        with _LastLinear(evaluator.model) as last:
            evaluator.logits(chunk)
        padded = len(chunk) + -len(chunk) % evaluator.block
        if last.given is None:
            raise WrongInput(
                "the model executes no nn.Linear, whose input would be its representation of an image (a torch.export "
                "program keeps no modules: give such a model as package.module:function)"
            )
        if last.given.ndim < 2 or len(last.given) != padded:
            raise WrongInput(
                f"the model's last nn.Linear must be given a row for each of {padded} images, "
                f"got {list(last.given.shape)}"
            )
        rows = last.given[: len(chunk)].detach().flatten(1).float().cpu().numpy()
        if not (finite := np.isfinite(rows).all(axis=1)).all():
            first = start + int(finite.argmin())
            raise WrongInput(
                f"the model's last nn.Linear is given values that are not finite: the first by image {first} of "
                f"{len(images)}, counted from 0"
            )
        if not start:
            found = np.empty((len(images), rows.shape[1]), dtype=np.float32)
        found[start : start + len(rows)] = rows
        on_images(len(rows))
    return found


class Axes(NamedTuple):
    """Principal axes of representations.

    Attributes:
        centre: float32 ``[d]``.
        axes: float32 ``[k, d]``, orthonormal, by falling variance.
        explained: float64 ``[k]``, each axis's share of the variance.
    """

    centre: np.ndarray
    axes: np.ndarray
    explained: np.ndarray

    def coordinates(self, rows: np.ndarray) -> np.ndarray:
        """Representations ``[n, d]`` along the axes, float32 ``[n, k]``."""
        return ((rows - self.centre) @ self.axes.T).astype(np.float32)


def principal_axes(rows: np.ndarray, *, seed: int) -> Axes:
    """The first principal axes of representations, `COMPONENTS` at most.

    Args:
        rows: float32 ``[N, d]``.
        seed: of the randomised solver.

    Raises:
        WrongInput: when there are not two dimensions to draw.
    """
    from sklearn.decomposition import PCA

    count = min(COMPONENTS, *rows.shape)
    if count < 2 or not (np.ptp(rows, axis=0) > 0).any():
        raise WrongInput(
            f"a map needs two images and representations of two features that vary, got {len(rows)} images of "
            f"{rows.shape[1]} features"
        )
    solver = "randomized" if count < min(rows.shape) else "full"
    found = PCA(count, svd_solver=solver, random_state=seed).fit(rows)
    return Axes(found.mean_.astype(np.float32), found.components_.astype(np.float32), found.explained_variance_ratio_)


def _index(points: np.ndarray, neighbours: int, jobs: int) -> Any:
    from openTSNE.nearest_neighbors import Sklearn

    # By brute force: exact, the same each time, and in 50 dimensions faster than Annoy up to 60,000 points.
    return Sklearn(points, min(neighbours, len(points) - 1), n_jobs=jobs, knn_kwargs={"algorithm": "brute"})


def tsne(
    points: np.ndarray,
    *,
    perplexity: float,
    seed: int,
    jobs: int = 1,
    on_part: Callable[[str], object] = lambda part: None,
    on_steps: OnAmount = _ignore,
) -> np.ndarray:
    """A t-SNE map (van der Maaten & Hinton, 2008), by openTSNE, with exact neighbours.

    Args:
        points: float32 ``[N, k]``, the first column with the largest spread.
        perplexity: at most (N − 1) / 3.
        seed: of what is drawn.
        jobs: threads.
        on_part: called with ``affinities`` or ``optimisation`` when that begins.
        on_steps: called with the number of steps just made, of `EXAGGERATED` + `ITERATIONS`.

    Returns:
        float64 ``[N, 2]``, the middle of its box at the origin.
    """
    from openTSNE import TSNEEmbedding
    from openTSNE.affinity import PerplexityBasedNN
    from openTSNE.initialization import rescale

    on_part("affinities")
    index = _index(points, int(3 * perplexity), jobs)
    affinities = PerplexityBasedNN(perplexity=perplexity, knn_index=index, n_jobs=jobs)
    on_part("optimisation")
    first = rescale(points[:, :2].astype(np.float64))
    embedding = TSNEEmbedding(first, affinities, n_jobs=jobs, random_state=seed)

    def told(iteration: int, error: float, embedded: np.ndarray) -> bool:
        on_steps(50)
        return False

    how = {"momentum": 0.8, "learning_rate": "auto", "callbacks": told, "callbacks_every_iters": 50}
    embedding.optimize(EXAGGERATED, inplace=True, exaggeration=12, **how)
    embedding.optimize(ITERATIONS - FINE, inplace=True, exaggeration=1, ints_in_interval=2, **how)
    embedding.optimize(FINE, inplace=True, exaggeration=1, **how)
    return _centred(np.asarray(embedding))


def _centred(coordinates: np.ndarray) -> np.ndarray:
    return coordinates - (coordinates.max(axis=0) + coordinates.min(axis=0)) / 2


class _Frozen:
    """What placing needs to know of the points that a map was made of; no affinities among these."""

    def __init__(self, points: np.ndarray, jobs: int) -> None:
        from scipy.sparse import csr_matrix
        from sklearn.neighbors import NearestNeighbors

        self.total, self.jobs, self.P = len(points), jobs, csr_matrix((len(points), len(points)))
        self.index = NearestNeighbors(algorithm="brute", n_jobs=jobs).fit(points)

    def to_new(
        self, data: np.ndarray, perplexity: float, return_distances: bool = False
    ) -> tuple[Any, np.ndarray, np.ndarray]:
        """As of ``openTSNE.affinity.PerplexityBasedNN``, distances always returned."""
        from openTSNE.affinity import joint_probabilities_nn

        count = max(2, min(self.total, int(3 * perplexity)))
        distances, neighbours = self.index.kneighbors(data, count)
        chances = joint_probabilities_nn(
            neighbours,
            distances,
            [min(perplexity, count / 3)],
            symmetrize=False,
            normalization="point-wise",
            n_reference_samples=self.total,
            n_jobs=self.jobs,
        )
        return chances, neighbours, distances


def placed(points: np.ndarray, coordinates: np.ndarray, new: np.ndarray, *, seed: int, jobs: int = 1) -> np.ndarray:
    """Places new points, each by itself, on a t-SNE map that stays as it is (Poličar et al., 2019).

    The map is given by its coordinates alone, so one that was read from a file places the same points at the same
    places.

    Args:
        points: float32 ``[N, k]``, what the map was made of.
        coordinates: float64 ``[N, 2]``, from `tsne`.
        new: float32 ``[m, k]``.
        seed: of what is drawn.
        jobs: threads.

    Returns:
        float64 ``[m, 2]``.
    """
    from openTSNE import TSNEEmbedding

    if not len(new):
        return np.empty((0, 2))
    # The grid of the frozen points is computed once; Barnes-Hut goes through all of them at each step.
    frozen = TSNEEmbedding(
        coordinates, _Frozen(points, jobs), n_jobs=jobs, random_state=seed, negative_gradient_method="fft"
    )
    return np.array(frozen.transform(new))


def joint_tsne(points: np.ndarray, new: np.ndarray, **how: Any) -> tuple[np.ndarray, np.ndarray]:
    """The seed's map: t-SNE of old and new points together, the new ones as free to move the old as these are.

    Args:
        points: float32 ``[N, k]``.
        new: float32 ``[m, k]``.
        how: of `tsne`.

    Returns:
        float64 ``[N, 2]`` and ``[m, 2]``.
    """
    both = tsne(np.concatenate([points, new]), **how)
    return both[: len(points)], both[len(points) :]


def nearest_labels(reference: np.ndarray, labels: np.ndarray, rows: np.ndarray, k: int, *, jobs: int = 1) -> np.ndarray:
    """The labels of the k nearest of some points (L2, exact), int64 ``[n, k]``, the nearest first.

    Args:
        reference: ``[N, d]``, N ≥ k.
        labels: int64 ``[N]``.
        rows: ``[n, d]``.
        k: how many.
        jobs: threads.
    """
    return labels[_nearest(reference, rows, k, jobs)]


def _nearest(reference: np.ndarray, rows: np.ndarray, k: int, jobs: int) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    if not len(rows):
        return np.empty((0, k), dtype=np.int64)
    found = NearestNeighbors(algorithm="brute", n_jobs=jobs).fit(reference)
    return np.asarray(found.kneighbors(rows, k, return_distance=False))


def faithfulness(
    full: np.ndarray, maps: Mapping[str, np.ndarray], k: int, *, seed: int, jobs: int = 1, points: int = 1000
) -> dict[str, Estimate]:
    """How much of a neighbourhood a map keeps: the share of a point's k nearest that are its k nearest on the map too.

    Args:
        full: ``[N, d]``, N > k.
        maps: ``[N, 2]`` by name.
        k: neighbours, the point itself not counted.
        seed: of the choice of points.
        jobs: threads.
        points: how many are looked at.

    Returns:
        The mean over points, by the map's name.
    """
    some = np.random.default_rng(seed).permutation(len(full))[:points]

    def others(space: np.ndarray) -> np.ndarray:
        near = _nearest(space, space[some], k + 1, jobs)
        own = near == some[:, None]
        own[~own.any(axis=1), -1] = True  # one of more than k points at the same place: it may not be among the nearest
        return near[~own].reshape(len(some), k)

    truth = others(full)
    found = {}
    for name, coordinates in maps.items():
        kept = [np.isin(one, other).mean() for one, other in zip(truth, others(coordinates), strict=True)]
        found[name] = by_image(np.array(kept), some, seed=seed)
    return found
