"""What a call is filled up with, and what an answer depends on beside its image: models and detectors of every kind."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import random_images
from workers.attacks import PGD, attack_named
from workers.detectors.detector import Detector
from workers.detectors.scoring import score_images
from workers.evaluation.calls import filled_call
from workers.evaluation.dense import DenseEvaluator, batch_that_fits
from workers.evaluation.own_answer import STRANGERS, asked_about, depends_on
from workers.models.cnn import CNN
from workers.models.foreign import given_copies, writes_to_input
from workers.remedies.checks import State
from workers.remedies.probe import probe

SHAPE = (1, 8, 8)


def energy(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels: a score that is each image's own."""
    return images.diff(dim=3).abs().flatten(1).mean(dim=1)


class Running:
    """Scores less their running mean, which moves at every call."""

    def __init__(self, share: float) -> None:
        self.share, self.mean = share, torch.zeros(())

    def __call__(self, images: Tensor) -> Tensor:
        scores = energy(images)
        self.mean = (1 - self.share) * self.mean + self.share * scores.mean()
        return scores - self.mean


class Counting:
    """Scores that rise by one at each call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.calls += 1
        return energy(images) + self.calls


class Cached:
    """Scores less the mean of the first call."""

    def __init__(self) -> None:
        self.mean: Tensor | None = None

    def __call__(self, images: Tensor) -> Tensor:
        scores = energy(images)
        self.mean = scores.mean() if self.mean is None else self.mean
        return scores - self.mean


class Remembering:
    """One more for an image that was asked about before."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()

    def __call__(self, images: Tensor) -> Tensor:
        known = torch.tensor([float(image.numpy().tobytes() in self.seen) for image in images])
        self.seen |= {image.numpy().tobytes() for image in images}
        return energy(images) + known


def zscore(images: Tensor) -> Tensor:
    scores = energy(images)
    return (scores - scores.mean()) / (scores.std(correction=0) + 1e-6)


def min_max(images: Tensor) -> Tensor:
    scores = energy(images)
    return (scores - scores.min()) / (scores.max() - scores.min() + 1e-6)


def copies(images: Tensor) -> Tensor:
    """One more for an image that is twice in the call."""
    near = torch.cdist(images.flatten(1), images.flatten(1)) < 1e-6
    return energy(images) + (near.sum(dim=1) > 1)


def logits(images: Tensor, classes: int = 4) -> Tensor:
    """Of a linear network."""
    found: Tensor = images.flatten(1) @ torch.linspace(-1, 1, 64 * classes).mul(99).sin().view(64, classes)
    return found


def drawn(images: Tensor, classes: int = 4) -> Tensor:
    return logits(images, classes) + torch.randn(len(images), classes)


def batch_centred(images: Tensor, classes: int = 4) -> Tensor:
    found = logits(images, classes)
    return found - found.mean(dim=0)


def with_first(found: Tensor, first: float) -> Tensor:
    """With a class of a constant logit."""
    return torch.cat([torch.full((len(found), 1), first), found[:, 1:]], dim=1)


def scored(score: Callable[[Tensor], Tensor]) -> Callable[[], Callable[[Tensor], Tensor]]:
    return lambda: score


SCALES, ONE, LAST = torch.tensor([1.0, 1e3, 1e6, 1e9]), torch.eye(4)[0], torch.eye(4)[3]

OTHERS: dict[str, tuple[Callable[[], Callable[[Tensor], Tensor]], str]] = {
    "z-score": (scored(zscore), "alone"),
    "rank": (scored(lambda x: energy(x).argsort().argsort().float()), "among"),
    "min-max": (scored(min_max), "alone"),
    "largest": (scored(lambda x: energy(x) / energy(x).max()), "alone"),
    "share": (scored(lambda x: energy(x) / len(x)), "alone"),
    "place": (scored(lambda x: energy(x) + torch.arange(len(x))), "in another order"),
    "first": (scored(lambda x: energy(x) + (torch.arange(len(x)) == 0)), "in another order"),
    "copies": (scored(copies), "among"),
    "bright calls": (scored(lambda x: energy(x) + (x.mean() > 0.9)), "among white images"),
    "dark calls": (scored(lambda x: energy(x) + (x.mean() < 0.1)), "among black images"),
    "rough calls": (scored(lambda x: energy(x) + (energy(x).mean() > 0.8)), "among checkerboards"),
    "large calls": (scored(lambda x: energy(x) + (len(x) > 48)), "among more images"),
    "random": (scored(lambda x: energy(x) + torch.rand(len(x))), "at a second call"),
    "running mean": (lambda: Running(0.1), "at a second call"),
    "slow running mean": (lambda: Running(0.01), "at a second call"),
    "number of the call": (Counting, "at a second call"),
    "remembering": (Remembering, "at a second call"),
    "mean of the first call": (Cached, "when others are asked about first"),
    "logits less their mean": (scored(batch_centred), "alone"),
    "less their mean, a class at -1e4": (scored(lambda x: with_first(batch_centred(x), -1e4)), "alone"),
    "less their mean, of two classes": (scored(lambda x: with_first(batch_centred(x, 2), -1e9)), "alone"),
    "random, a class at -1e9": (scored(lambda x: with_first(drawn(x), -1e9)), "at a second call"),
    "random, a class at 1e9": (scored(lambda x: with_first(drawn(x), 1e9)), "at a second call"),
    "random, a class at -1e30": (scored(lambda x: with_first(drawn(x), -1e30)), "at a second call"),
    "random, most classes at -1e9": (scored(lambda x: drawn(x).index_fill(1, torch.arange(3), -1e9)), "at a second"),
    "random, a class at 0": (scored(lambda x: with_first(drawn(x), 0.0)), "at a second call"),
    "random, a class at -inf": (scored(lambda x: with_first(drawn(x), -torch.inf)), "at a second call"),
    "random, of two classes": (scored(lambda x: with_first(drawn(x, 2), -1e9)), "at a second call"),
    "random, by far the least of two": (scored(lambda x: drawn(x, 2) * SCALES[::3]), "at a second call"),
    "random, of every scale": (scored(lambda x: drawn(x) * SCALES), "at a second call"),
    "one of every scale is random": (scored(lambda x: logits(x) * SCALES + ONE * torch.randn(len(x), 1)), "at a sec"),
    "one of 1e9 more is random": (scored(lambda x: logits(x) + 1e9 * LAST + ONE * torch.randn(len(x), 1)), "at a sec"),
}
"""Scores and logits that are not an image's own, and what shows it first, or how that begins."""

OWN: dict[str, Callable[[Tensor], Tensor]] = {
    "energy": energy,
    "constant": lambda x: torch.zeros(len(x)),
    "far from zero": lambda x: 1e4 + energy(x),
    "tiny": lambda x: 1e-9 * energy(x),
    "in double precision": lambda x: energy(x.double()),
    "in half precision": lambda x: energy(x.half()),
    "whole numbers": lambda x: x.mul(255).round().flatten(1).sum(dim=1),
    "not a number": lambda x: torch.full((len(x),), torch.nan),
    "a convolution": lambda x: functional_energy(x),
    "logits": logits,
    "logits, a class at -1e9": lambda x: with_first(logits(x), -1e9),
    "logits, a class at 1e9": lambda x: with_first(logits(x), 1e9),
    "logits, a class at 0": lambda x: with_first(logits(x), 0.0),
    "logits, a class at -inf": lambda x: with_first(logits(x), -torch.inf),
    "logits of every scale": lambda x: logits(x) * SCALES,
    "logits of one class": lambda x: logits(x, 1),
    "constant logits": lambda x: torch.ones(len(x), 4),
    "sure log-probabilities": lambda x: sure(x, 4).log_softmax(dim=1),
    "sure log-probabilities of two": lambda x: sure(x, 2).log_softmax(dim=1),
    "sure probabilities of two": lambda x: sure(x, 2).softmax(dim=1),
    "two that are opposite": lambda x: torch.stack([functional_energy(x), -functional_energy(x)], dim=1),
}


def sure(images: Tensor, classes: int) -> Tensor:
    """Logits of a convolution that always name the first class, rounded otherwise at each place of a call."""
    found = functional_energy(images)[:, None] * torch.linspace(0.01, 0.02, classes)
    rounded = 1 + 3e-7 * torch.arange(len(images))[:, None] % 1e-6
    return (found * rounded).index_add(1, torch.tensor([0]), torch.full((len(images), 1), 14.0))


def functional_energy(images: Tensor) -> Tensor:
    kernel = torch.linspace(-1, 1, 4 * 9).view(4, 1, 3, 3)
    return nn.functional.conv2d(images, kernel, padding=1).relu().flatten(1).sum(dim=1)


def depends(make: Callable[[], Callable[[Tensor], Tensor]], count: int = 40) -> str:
    asked = asked_about(random_images(SHAPE, count, 0))

    def ask(score: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda rows: score(filled_call(asked[rows], len(rows)))

    return depends_on(ask(make()), len(asked) - len(STRANGERS), fresh=ask(make()))


@pytest.mark.parametrize("count", [40, 3])
@pytest.mark.parametrize("name", OTHERS)
def test_an_answer_that_depends_on_more_than_its_image_is_found(name: str, count: int) -> None:
    make, clause = OTHERS[name]
    found = depends(make, count)
    assert found.startswith(clause if count == 40 else ""), found
    assert found


@pytest.mark.parametrize("count", [40, 3, 1])
@pytest.mark.parametrize("name", OWN)
def test_an_answer_of_its_own_is_left_alone(name: str, count: int) -> None:
    assert depends(lambda: OWN[name], count) == ""


class Answering(nn.Module):
    """Answers by a function."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> Tensor:
        return self.answer(images)


@pytest.mark.parametrize("name", [name for name in OTHERS if name.startswith(("random, ", "less "))])
def test_a_look_sees_past_a_class_of_another_scale(name: str) -> None:
    make, _ = OTHERS[name]
    found = {check.name: check for check in probe(Answering(make()), random_images(SHAPE, 40, 0)).checks}
    if name.endswith("-inf"):
        assert found["finite answers"].state == State.FAILED
    else:
        drawn = found["randomised model"].state == State.PASSED
        assert drawn == name.startswith("less ")
        assert not drawn or found["other images of a call"].state in (State.REMEDIED, State.FAILED)


def test_what_raises_for_strangers_or_one_image_is_asked_about_the_others() -> None:
    def picky(images: Tensor) -> Tensor:
        assert len(images) > 1
        assert bool((images.flatten(1).std(dim=1) > 0).all())
        return energy(images)

    assert depends(lambda: picky) == ""
    assert depends(lambda: lambda images: picky(images) - energy(images).mean()) == "among copies of it"


@pytest.mark.parametrize("size", [3, 5, 7, 12])
def test_a_call_is_filled_up_by_its_own_images(size: int) -> None:
    images = torch.tensor(random_images(SHAPE, 3, 1))
    filled = filled_call(images, size)
    assert torch.equal(filled, images[torch.arange(size) % 3].float() / 255)
    assert filled.stride() == torch.empty(filled.shape).stride()
    floats = images.float()
    filled_call(floats, size).zero_()
    assert torch.equal(floats, images.float())
    assert filled_call(images[:0], 0).shape == (0, *SHAPE)


class Seeing(nn.Module):
    """Keeps all that it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(images.detach().clone())
        return images.flatten(1)[:, :3]


def test_nobody_is_asked_about_an_image_that_is_not_there() -> None:
    images = random_images(SHAPE, 5, 2)
    known = {(image.astype(np.float32) / 255).tobytes() for image in images}
    model = Seeing()
    evaluator = DenseEvaluator(model)
    evaluator.logits(torch.tensor(images))
    evaluator.gradients(torch.tensor(images), lambda found, rows: [torch.ones_like(found)])
    batch_that_fits(model, torch.tensor(images), 1 << 20, block=16)

    class Own(Detector):
        noise = (2,)

        def score(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
            assert noise is not None
            model(images)
            assert torch.equal(noise[:5], noise[5:10])
            return energy(images)

    score_images(Own(model), images, np.arange(10, dtype=np.float32).reshape(5, 2))
    assert len(model.calls) == 5
    for call in model.calls:
        assert {image.numpy().tobytes() for image in call} == known


WRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "data": lambda x: _normalised(x),
    "sub_": lambda x: x.sub_(0.5).mul_(2),
    "clamp_": lambda x: x.clamp_(0.1, 0.9),
    "index": lambda x: _blackened(x),
    "+=": lambda x: _raised(x),
}


def _normalised(images: Tensor) -> Tensor:
    images.data.sub_(0.5).mul_(2)
    return images


def _blackened(images: Tensor) -> Tensor:
    images[..., 0] = 0
    return images


def _raised(images: Tensor) -> Tensor:
    images += 0.1
    return images


class Writing(nn.Module):
    """A network that changes its input first, in place or in a copy."""

    def __init__(self, change: Callable[[Tensor], Tensor], *, in_place: bool) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.network = CNN(1, 8, 8, 4)
        self.change, self.in_place = change, in_place

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.change(images if self.in_place else images.clone()))


@pytest.mark.parametrize("attack", ["pgd", "torchattacks:PGD", "foolbox:LinfPGD", "jsma", "pixel-beam"])
@pytest.mark.parametrize("name", WRITES)
def test_a_model_that_writes_to_its_input_is_searched_like_one_that_does_not(name: str, attack: str) -> None:
    if ":" in attack:
        pytest.importorskip(attack.partition(":")[0])
    options = {"epsilon": 0.5} if attack in ("pgd", "foolbox:LinfPGD") else {}
    options = {"eps": 0.5, "alpha": 0.1} if attack.startswith("torchattacks") else options
    images, tables = random_images(SHAPE, 6, 4), []
    for in_place in (True, False):
        model = Writing(WRITES[name], in_place=in_place).eval().requires_grad_(False)
        labels = DenseEvaluator(model).logits(torch.tensor(images)).argmax(dim=1).numpy()
        before = images.copy()
        tables.append(attack_named(attack)(**options)(model, images, labels).to_table().drop(["seconds"]))
        assert np.array_equal(images, before)
    assert tables[0].equals(tables[1])
    if attack in ("pgd", "torchattacks:PGD"):
        assert tables[0]["success"].to_pylist() == [True] * 6
        assert not np.array_equal(np.stack(tables[0]["adversarial"].to_pylist()), images.reshape(6, -1))


@pytest.mark.parametrize("name", WRITES)
def test_a_look_says_that_a_model_writes_to_its_input(name: str) -> None:
    images = random_images(SHAPE, 20, 5)
    for in_place in (True, False):
        for wrapped in (lambda model: model, given_copies):
            model = wrapped(Writing(WRITES[name], in_place=in_place).eval().requires_grad_(False))
            (check,) = [one for one in probe(model, images).checks if one.name == "writes to its input"]
            assert check.state == (State.REMEDIED if in_place else State.PASSED)
            assert writes_to_input(nn.Sequential(nn.Identity(), model), torch.rand(2, *SHAPE)) == in_place


def test_a_model_given_copies_keeps_its_callers_images_and_its_own_names() -> None:
    model = given_copies(Writing(WRITES["index"], in_place=True).eval())
    images = torch.rand(3, *SHAPE)
    before = images.clone()
    answer = model(images)
    assert torch.equal(images, before)
    assert torch.equal(answer, Writing(WRITES["index"], in_place=False)(images))
    assert given_copies(model) is model
    assert {name.partition(".")[0] for name in model.state_dict()} == {"network"}


def test_pgd_is_the_same_for_any_neighbours() -> None:
    model = Writing(WRITES["data"], in_place=True).eval().requires_grad_(False)
    images = random_images(SHAPE, 9, 6)
    labels = DenseEvaluator(model).logits(torch.tensor(images)).argmax(dim=1).numpy()
    whole = PGD(epsilon=0.05, steps=5)(model, images, labels)
    for row in range(9):
        one = PGD(epsilon=0.05, steps=5)(model, images[row : row + 1], labels[row : row + 1], ids=[row])
        assert np.array_equal(one.adversarial[0], whole.adversarial[row])
