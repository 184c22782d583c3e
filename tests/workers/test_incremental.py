"""The incremental evaluator against whole images through the whole model, in every way a chain can be built."""

import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.conftest import ColourNet, random_images
from workers.evaluation.chain import read_chain
from workers.evaluation.dense import DenseEvaluator
from workers.evaluation.few_pixel import FewPixelEvaluator, Neighbourhood, changed_images
from workers.evaluation.incremental import IncrementalEvaluator
from workers.images import Dataset
from workers.models.cnn import CNN
from workers.models.loading import Normalised

SHAPE = (3, 11, 8)


def candidates(count: int, pixels: int, images: int, shape: tuple[int, ...], seed: int) -> tuple[torch.Tensor, ...]:
    rng = np.random.default_rng(seed)
    index = torch.tensor(rng.integers(0, images, count))
    position = torch.tensor(rng.integers(0, shape[1] * shape[2], (count, pixels)))
    return index, position, torch.tensor(rng.integers(0, 256, (count, pixels, shape[0])).astype(np.uint8))


def alike(candidate: tuple[torch.Tensor, ...], runs: np.ndarray, seed: int) -> tuple[torch.Tensor, ...]:
    """Each candidate followed by others that change the same pixels, to other levels, so many in all."""
    index, position, levels = (part.repeat_interleave(torch.tensor(runs), 0) for part in candidate)
    return index, position, torch.tensor(np.random.default_rng(seed).integers(0, 256, levels.shape).astype(np.uint8))


def whole(model: nn.Module, images: np.ndarray, *candidate: torch.Tensor) -> np.ndarray:
    """Slow and obvious: each image written pixel by pixel, all through the model in double precision."""
    made = images[candidate[0].numpy()].copy()
    width = images.shape[3]
    for row, (position, levels) in enumerate(zip(candidate[1].tolist(), candidate[2].numpy(), strict=True)):
        for pixel, level in zip(position, levels, strict=True):
            made[row, :, pixel // width, pixel % width] = level
    with torch.no_grad():
        return model.double()(torch.tensor(made).double().div(255)).float().numpy()


def incremental(model: nn.Module, images: np.ndarray, *candidate: torch.Tensor, threads: int = 1) -> np.ndarray:
    shape = (images.shape[1], images.shape[2], images.shape[3])
    chain = read_chain(model.float(), shape)
    assert chain is not None
    evaluator = IncrementalEvaluator(chain, shape, threads=threads)
    return evaluator.logits(evaluator.clean_state(torch.tensor(images)), *(part.numpy() for part in candidate))


def sides(side: int) -> Any:
    return st.tuples(st.integers(1, side), st.integers(1, side))


@st.composite
def chains(draw: Any) -> tuple[nn.Module, tuple[int, int, int]]:
    shape = (draw(st.sampled_from([1, 3])), draw(st.integers(6, 12)), draw(st.integers(6, 12)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw(st.integers(0, 1000)))
        layers: list[nn.Module] = []
        size = torch.zeros(1, *shape)
        for _ in range(draw(st.integers(0, 3))):
            kernel, stride, dilation = draw(sides(3)), draw(sides(2)), draw(sides(2))
            padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
            out = draw(st.integers(1, 70))
            layer = nn.Conv2d(size.shape[1], out, kernel, stride, padding, dilation, bias=draw(st.booleans()))
            try:
                size = layer(size).detach()
            except RuntimeError:  # the map is smaller than the kernel
                continue
            layers += [layer, nn.ReLU()]
        layers.append(nn.Flatten())
        features = size.numel()
        if draw(st.booleans()):
            layers += [nn.Linear(features, 13), nn.ReLU(), nn.Dropout()]
            features = 13
        layers.append(nn.Linear(features, draw(st.integers(2, 12))))
        return nn.Sequential(*layers).eval(), shape


@settings(max_examples=40, deadline=None)
@given(chains(), st.sampled_from([1, 2, 5, "all"]), st.sampled_from([1, 3, 9]), st.integers(0, 1000))
def test_equals_the_whole_model(
    chain: tuple[nn.Module, tuple[int, int, int]], pixels: int | str, run: int, seed: int
) -> None:
    model, shape = chain
    images = random_images(shape, 5, seed)
    count = shape[1] * shape[2] if pixels == "all" else int(pixels)
    drawn = candidates(37 // run, count, 5, shape, seed)
    candidate = alike(drawn, np.full(37 // run, run), seed)
    expected = whole(model, images, *candidate)
    found = incremental(model, images, *candidate)
    assert np.abs(found - expected).max() <= 1e-4 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("pixels", [1, 3, 784])
def test_equals_the_seeds_cnn(mnist: Dataset, mnist_model: nn.Module, pixels: int, threads: int) -> None:
    images = mnist.images[:40]
    candidate = candidates(300 if pixels < 9 else 40, pixels, 40, (1, 28, 28), 1)
    found = incremental(mnist_model, images, *candidate, threads=threads)
    dense = DenseEvaluator(mnist_model).logits(changed_images(torch.tensor(images), *candidate)).numpy()
    assert np.abs(found - dense).max() <= 1e-4


def test_borders_overlaps_duplicates_and_no_ops() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = CNN(3, 11, 8, 5).eval()
    images = random_images(SHAPE, 4, 4)
    height, width = SHAPE[1:]
    border = [r * width + c for r in range(height) for c in range(width) if r in (0, height - 1) or c in (0, width - 1)]
    rng = np.random.default_rng(5)
    cases = {
        "borders": rng.choice(border, (60, 4)),
        "overlapping": rng.integers(0, 9, (60, 1)) * width + rng.integers(0, 3, (60, 4)),
        "duplicates": rng.integers(0, 3, (60, 5)),
    }
    for name, positions in cases.items():
        position = torch.tensor(positions)
        index = torch.tensor(rng.integers(0, 4, 60))
        levels = torch.tensor(rng.integers(0, 256, (*positions.shape, 3)).astype(np.uint8))
        expected = whole(model, images, index, position, levels)
        assert np.abs(incremental(model, images, index, position, levels) - expected).max() <= 1e-4, name
    position = torch.tensor(rng.integers(0, height * width, (60, 2)))
    same = torch.tensor(images).flatten(2).transpose(1, 2)[index[:, None], position]
    clean = whole(model, images, index, position[:, :0], same[:, :0])
    assert np.abs(incremental(model, images, index, position, same) - clean).max() <= 1e-4
    assert np.abs(incremental(model, images, index, position[:, :0], same[:, :0]) - clean).max() <= 1e-4


def test_a_candidates_bits_do_not_depend_on_its_neighbours(mnist: Dataset, mnist_model: nn.Module) -> None:
    images = mnist.images[:30]
    candidate = candidates(200, 4, 30, (1, 28, 28), 6)
    together = incremental(mnist_model, images, *candidate)
    order = torch.tensor(np.random.default_rng(7).permutation(200))
    assert np.array_equal(incremental(mnist_model, images, *(part[order] for part in candidate)), together[order])
    for row in (0, 17, 199):
        index, position, levels = (part[row : row + 1] for part in candidate)
        alone = incremental(mnist_model, images[index.numpy()], torch.zeros(1, dtype=torch.int64), position, levels)
        assert np.array_equal(alone[0], together[row])
    assert np.array_equal(incremental(mnist_model, images, *candidate, threads=2), together)


@pytest.mark.parametrize("pixels", [1, 2])
def test_nor_on_how_many_change_the_same_pixels(mnist: Dataset, mnist_model: nn.Module, pixels: int) -> None:
    images = mnist.images[:5]
    runs = np.array([1, 2, 3, 4, 5, 1, 8, 1, 1, 40, 1, 7])
    candidate = alike(candidates(len(runs), pixels, 5, (1, 28, 28), 15), runs, 16)
    together = incremental(mnist_model, images, *candidate)
    order = torch.tensor(np.random.default_rng(17).permutation(len(together)))
    assert np.array_equal(incremental(mnist_model, images, *(part[order] for part in candidate)), together[order])
    chain = read_chain(mnist_model, (1, 28, 28))
    assert chain is not None
    evaluator = IncrementalEvaluator(chain, (1, 28, 28))
    state = evaluator.clean_state(torch.tensor(images))
    for row in range(len(together)):
        alone = evaluator.logits(state, *(part[row : row + 1].numpy() for part in candidate))
        assert np.array_equal(alone[0], together[row])


def test_counts_the_multiply_adds(mnist: Dataset, mnist_model: nn.Module) -> None:
    chain = read_chain(mnist_model, (1, 28, 28))
    assert chain is not None
    evaluator = IncrementalEvaluator(chain, (1, 28, 28), threads=2)
    state = evaluator.clean_state(torch.tensor(mnist.images[:1]))
    centre, none, black = np.array([[14 * 28 + 13]]), np.zeros(1, np.int64), mnist.images[0, 0, 14, 13] < 128
    evaluator.logits(state, none, centre, mnist.images[:1, :, 14, 13][:, None])
    assert evaluator.multiply_adds == 0
    evaluator.logits(state, none, centre, np.full((1, 1, 1), 255 * black, np.uint8))
    # It moves rows 13–15 and columns 12–14 of the first map, which reach rows 6–7 and columns 5–7 of the second
    # through 4·5 taps, and those reach rows and columns 2–3 of the third through 3·4. Logits are padded to 16.
    assert 9 * 16 < evaluator.multiply_adds <= 9 * 16 + 20 * 16 * 32 + 12 * 32 * 64 + 4 * 64 * 16
    done = evaluator.multiply_adds
    evaluator.logits(state, none.repeat(3), centre.repeat(3, axis=0), np.full((3, 1, 1), 255 * black, np.uint8))
    assert done < evaluator.multiply_adds - done <= 4 * done  # a tile of four rows, only with the channels that move


def test_normalisation_is_part_of_the_chain() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        model = Normalised(CNN(3, 11, 8, 5), (0.2, 0.5, 0.7), (0.3, 0.1, 0.9)).eval()
    images = random_images(SHAPE, 3, 9)
    candidate = candidates(50, 3, 3, SHAPE, 10)
    assert np.abs(incremental(model, images, *candidate) - whole(model, images, *candidate)).max() <= 2e-4


def test_what_is_no_chain_is_evaluated_densely() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3 * 11 * 8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear((torch.relu(self.conv(x)) + x).flatten(1))

    without_relu = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(112, 4))
    ends_in_relu = nn.Sequential(nn.Flatten(), nn.Linear(264, 4), nn.ReLU())
    grouped = nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.ReLU(), nn.Flatten(), nn.Linear(162, 4))
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 4))
    images = torch.tensor(random_images(SHAPE, 3, 11))
    for model in (Skip(), without_relu, ends_in_relu, grouped, pooled):
        assert read_chain(model.eval(), SHAPE) is None
        around = Neighbourhood(FewPixelEvaluator(DenseEvaluator(model), SHAPE), images)
        candidate = candidates(20, 2, 3, SHAPE, 12)
        logits, tolerance = around.logits(*candidate)
        assert tolerance is None  # they are the dense ones
        assert np.abs(logits.numpy() - whole(model, images.numpy(), *candidate)).max() <= 1e-4
        model.float()
    assert read_chain(ColourNet().eval(), ColourNet.SHAPE) is None


def test_the_choice_follows_the_operations(mnist_model: nn.Module) -> None:
    evaluator = FewPixelEvaluator(DenseEvaluator(mnist_model), (1, 28, 28))
    one = evaluator.incremental(1)
    assert one is not None
    assert 20_000 < one.operations(1) < 40_000
    assert one.operations(1) < one.operations(3) < one.operations(5) < one.operations(50)
    assert evaluator.incremental(5) is not None
    assert evaluator.incremental(784) is None


@pytest.mark.parametrize(
    ("owner", "position", "levels"),
    [
        (np.array([5]), np.array([[0]]), np.zeros((1, 1, 3), np.uint8)),
        (np.array([-1]), np.array([[0]]), np.zeros((1, 1, 3), np.uint8)),
        (np.array([0]), np.array([[88]]), np.zeros((1, 1, 3), np.uint8)),
        (np.array([0]), np.array([[-1]]), np.zeros((1, 1, 3), np.uint8)),
        (np.array([0]), np.array([[0]]), np.zeros((1, 1, 1), np.uint8)),
        (np.array([0]), np.array([[0]]), np.zeros((1, 1, 3), np.float32)),
        (np.array([0, 0]), np.array([[0]]), np.zeros((1, 1, 3), np.uint8)),
    ],
)
def test_the_door_is_guarded(owner: np.ndarray, position: np.ndarray, levels: np.ndarray) -> None:
    chain = read_chain(CNN(3, 11, 8, 5).eval(), SHAPE)
    assert chain is not None
    evaluator = IncrementalEvaluator(chain, SHAPE)
    state = evaluator.clean_state(torch.tensor(random_images(SHAPE, 2, 13)))
    with pytest.raises(ValueError, match=r"must lie in|do not fit"):
        evaluator.logits(state, owner, position, levels)
    assert evaluator.logits(state, owner[:0], position[:0], np.zeros((0, 1, 3), np.uint8)).shape == (0, 5)


def test_threads_may_share_one_evaluator(mnist: Dataset, mnist_model: nn.Module) -> None:
    chain = read_chain(mnist_model, (1, 28, 28))
    assert chain is not None
    evaluator = IncrementalEvaluator(chain, (1, 28, 28), threads=2)
    state = evaluator.clean_state(torch.tensor(mnist.images[:8]))
    candidate = [part.numpy() for part in candidates(400, 3, 8, (1, 28, 28), 14)]
    expected, same = evaluator.logits(state, *candidate), []

    def call() -> None:
        same.extend(np.array_equal(evaluator.logits(state, *candidate), expected) for _ in range(10))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert same == [True] * 40
