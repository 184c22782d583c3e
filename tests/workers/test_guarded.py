"""A classifier behind a detector: one model, written and read, that any attack can search."""

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import random_images, random_model
from workers.attacks import (
    DDN,
    FGSM,
    JSMA,
    PGD,
    Adaptive,
    CornerSearch,
    DifferentialEvolution,
    Noise,
    PixelBeam,
    RandomPixels,
    RayS,
    SparseRS,
    Square,
)
from workers.attacks.adaptive import Form
from workers.attacks.attack import Attack
from workers.detectors import Detector, detector_named
from workers.detectors.guarded import Guarded, write_guarded
from workers.detectors.scoring import fresh_noise, score_images
from workers.detectors.stand_in import learn
from workers.errors import WrongInput
from workers.evaluation.answers import REJECTED, UNANSWERED, answers
from workers.models.loading import ModelRecipe, read_model
from workers.results import Status


def recipe_of(kind: str, folder: Path) -> ModelRecipe:
    """A random model as one that travels."""
    (folder / f"{kind}_model.py").write_text(
        f"from tests.conftest import random_model\ndef make():\n    return random_model({kind!r}, 1)[0]\n"
    )
    sys.modules.pop(f"{kind}_model", None)  # another test's, of another folder
    return read_model(f"{kind}_model:make")


@pytest.fixture(params=["colour", "grey"])
def guarded(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Guarded:
    """A random model behind a random autoencoder's detector that flags half of all images, read from its folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return built(request.param, tmp_path)


def built(kind: str, folder: Path, name: str = "vae-error") -> Guarded:
    recipe, (_, shape, _) = recipe_of(kind, folder), random_model(kind, 1)
    model = recipe.build()
    torch.manual_seed(5)
    detector = detector_named(name).build(model, shape).eval().requires_grad_(False)
    images = random_images(shape, 200, 6)
    scores = score_images(detector, images, fresh_noise(detector, np.arange(200), seed=0, purpose="test")).scores
    with torch.no_grad():
        guides = model(torch.from_numpy(images[scores < np.median(scores)]).float() / 255)
    made = Guarded(model, detector, threshold=float(np.median(scores)), scale=float(scores.std()), guides=guides)
    write_guarded(folder / "guarded", recipe, {"name": name, "parameters": {}}, shape, made)
    read = read_model(str(folder / "guarded")).build()
    assert isinstance(read, Guarded)
    inputs = torch.from_numpy(images[:16]).float() / 255
    assert torch.equal(read(inputs), made(inputs))
    assert torch.equal(read.excess(inputs), made.excess(inputs))
    assert torch.equal(read.guides, guides)
    return read


def images_for(guarded: Guarded, count: int = 24) -> tuple[np.ndarray, np.ndarray]:
    shape = (3, 7, 6) if guarded.guides.shape[1] == 7 else (1, 9, 12)
    images = random_images(shape, count, 11)
    with torch.no_grad():
        return images, guarded(torch.from_numpy(images).float() / 255).argmax(dim=1).numpy()


FORMS: tuple[Form, ...] = ("joint", "selective", "orthogonal", "matching", "penalty")

ATTACKS: list[Attack] = [
    FGSM(epsilon=0.2),
    PGD(epsilon=0.2, steps=10),
    DDN(steps=20),
    *(Adaptive(form=form, steps=20) for form in FORMS),
    Adaptive(norm="linf", steps=20),
    Square(epsilon=0.2, max_queries=40),
    Noise(epsilon=0.2),
    RayS(epsilon=0.2, max_queries=200),
    JSMA(),
    DifferentialEvolution(pixels=3, population=12, generations=4),
    PixelBeam(pixels=2, width=1),
    RandomPixels(pixels=3, max_queries=40),
    SparseRS(pixels=3, max_queries=40),
    CornerSearch(pixels=2, max_queries=600),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{attack.NAME}-{getattr(attack, 'form', '')}")
def test_success_is_fooled_and_not_flagged(attack: Attack, guarded: Guarded) -> None:
    images, labels = images_for(guarded)
    found = attack(guarded, images, labels)
    inputs = torch.from_numpy(found.adversarial).float() / 255
    with torch.no_grad():
        fooled = guarded(inputs).argmax(dim=1).numpy() != labels
        flagged = guarded.excess(inputs).numpy() > 0
    assert np.array_equal(found.success, fooled & ~flagged)
    assert np.array_equal(found.adversarial_prediction != labels, fooled)
    assert np.array_equal(found.clean_prediction, labels)
    assert not (found.status == Status.ALREADY_WRONG).any()


def test_every_form_evades_on_most_images(guarded: Guarded) -> None:
    images, labels = images_for(guarded)
    for form in FORMS:
        found = Adaptive(form=form, steps=60)(guarded, images, labels)
        assert found.success.mean() > 0.8, form


@pytest.mark.parametrize("form", ["joint", "penalty"])
def test_a_limit_is_kept_and_costs_what_lies_beyond(form: Form, guarded: Guarded) -> None:
    images, labels = images_for(guarded)
    free = Adaptive(form=form, steps=40)(guarded, images, labels)
    limit = float(np.median(free.distances.l2[free.success]))
    found = Adaptive(form=form, steps=40, epsilon=limit)(guarded, images, labels)
    assert (found.distances.l2 <= limit).all()
    assert 0.2 < found.success.mean() < free.success.mean()


def test_a_penalty_is_of_the_l2_norm() -> None:
    with pytest.raises(WrongInput, match="--form: penalty makes the l2 norm small, not linf"):
        Adaptive(form="penalty", norm="linf")


@pytest.mark.parametrize(
    "attack", [PGD(epsilon=0.2, steps=8), PixelBeam(pixels=2), Adaptive(steps=8), Adaptive(form="penalty", steps=8)]
)
def test_rows_do_not_depend_on_their_neighbours(attack: Attack, guarded: Guarded) -> None:
    images, labels = images_for(guarded)
    together = attack(guarded, images, labels)
    part = np.array([20, 3, 7])
    apart = attack(guarded, images[part], labels[part], ids=part)
    assert np.array_equal(apart.adversarial, together.adversarial[part])
    assert np.array_equal(apart.queries, together.queries[part])


def test_adaptive_is_ddn_where_no_detector_is() -> None:
    model, shape, _ = random_model("colour", 1)
    images = random_images(shape, 20, 4)
    with torch.no_grad():
        labels = model(torch.from_numpy(images).float() / 255).argmax(dim=1).numpy()
    for form in ("joint", "selective", "orthogonal"):
        found, ddn = Adaptive(form=form, steps=30)(model, images, labels), DDN(steps=30)(model, images, labels)
        assert np.array_equal(found.success, ddn.success)
        assert np.median(found.distances.l2) == pytest.approx(np.median(ddn.distances.l2), rel=0.02)
    with pytest.raises(WrongInput, match="matching needs a model behind a detector"):
        Adaptive(form="matching")(model, images, labels)


class Linear(nn.Module):
    """Two classes told apart by one direction."""

    def __init__(self, normal: Tensor) -> None:
        super().__init__()
        self.normal = nn.Parameter(normal)

    def forward(self, images: Tensor) -> Tensor:
        ahead = (images.flatten(1) - 0.5) @ self.normal
        return torch.stack([ahead, torch.zeros_like(ahead)], dim=1)


class HalfSpace(Detector):
    """Flags one side of a plane."""

    def __init__(self, classifier: nn.Module, normal: Tensor) -> None:
        super().__init__(classifier)
        self.register_buffer("normal", normal)

    def score(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        return (images.flatten(1) - 0.5) @ self.normal  # type: ignore[operator]


@pytest.mark.parametrize("form", ["joint", "selective", "orthogonal", "penalty"])
def test_the_smallest_change_is_the_projection_on_both_half_spaces(form: Form) -> None:
    """Of half-spaces the answer is known: to the nearest plane, or where the two planes meet."""
    rng = np.random.default_rng(3)
    shape, size = (1, 8, 8), 64
    one, two = rng.standard_normal((2, size))
    two -= 0.5 * one  # the classifier's plane and the detector's are at an obtuse angle: both bind
    one, two = one / np.linalg.norm(one), two / np.linalg.norm(two)
    classifier = Linear(torch.tensor(one, dtype=torch.float32))
    detector = HalfSpace(classifier, torch.tensor(two, dtype=torch.float32))
    guarded = Guarded(classifier, detector, threshold=-0.3, scale=1.0, guides=torch.zeros(1, 2)).eval()
    images = (128 + 20 * rng.standard_normal((40, *shape))).clip(60, 190).astype(np.uint8)
    with torch.no_grad():
        images = images[classifier(torch.from_numpy(images).float() / 255)[:, 0] > 0]
    found = Adaptive(form=form, steps=200)(guarded, images, np.zeros(len(images), dtype=int))
    assert found.success.all()
    flat = images.reshape(len(images), -1) / 255 - 0.5
    need = np.stack([flat @ one, flat @ two + 0.3], axis=1)  # how far beyond each plane
    gram = np.array([[1, one @ two], [one @ two, 1]])
    both = np.linalg.solve(gram, need.T).T
    best = np.where((both > 0).all(axis=1), np.sqrt((both * need).sum(axis=1).clip(min=0)), need.max(axis=1))
    assert (found.distances.l2 >= best - 0.02).all()
    within = 1.1 if form == "penalty" else 1.05  # what it keeps to spare is much where a logit's slope is 1
    assert np.median(found.distances.l2 / best) < within


class Unmoved(Detector):
    """Flags all images alike."""

    def score(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        return 0 * images.flatten(1).sum(dim=1) + 1


@pytest.mark.parametrize("form", ["joint", "selective", "orthogonal"])
def test_a_score_that_cannot_be_moved_costs_no_distance(form: Form) -> None:
    """What flags everything is evaded by luck alone, and a larger change would only be easier to see."""
    model, _, _ = random_model("grey", 1)
    guarded = Guarded(model, Unmoved(model), threshold=0.0, scale=1.0, guides=torch.zeros(1, 4)).eval()
    images, labels = images_for(guarded)
    attack = Adaptive(form=form, steps=100)
    found, alone = attack(guarded, images, labels), attack(model, images, labels)
    assert not found.success.any()
    assert alone.success.all()
    assert np.array_equal(found.adversarial_prediction != labels, alone.success)
    assert np.median(found.distances.l2) < 1.1 * np.median(alone.distances.l2)


class Unsure(Detector):
    """Flags what lies near the classifier's plane, in steps: without a gradient where a search begins and ends."""

    def score(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        logits = self.classifier(images)
        return -((logits[:, 0] - logits[:, 1]).abs() * 4).round() / 4


@pytest.mark.parametrize(("form", "norm"), [("joint", "l2"), ("joint", "linf"), ("selective", "l2")])
def test_a_score_without_a_gradient_may_fall_farther_out(form: Form, norm: Any) -> None:
    rng = np.random.default_rng(3)
    normal = torch.tensor(rng.standard_normal(64) / 8, dtype=torch.float32)
    classifier = Linear(normal)
    guarded = Guarded(classifier, Unsure(classifier), threshold=-0.7, scale=1.0, guides=torch.zeros(1, 2)).eval()
    images = (128 + 20 * rng.standard_normal((40, 1, 8, 8))).clip(60, 190).astype(np.uint8)
    with torch.no_grad():
        images = images[classifier(torch.from_numpy(images).float() / 255)[:, 0] > 0]
    found = Adaptive(form=form, norm=norm, steps=100)(guarded, images, np.zeros(len(images), dtype=int))
    assert found.success.mean() > 0.9


class Broken(Detector):
    """No score of dark images."""

    def __init__(self, classifier: nn.Module, value: float) -> None:
        super().__init__(classifier)
        self.value = value

    def score(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        bright = images.flatten(1).mean(dim=1)
        return torch.where(bright < 0.5, self.value, -bright)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_an_image_without_a_score_is_neither_flagged_nor_not_flagged(value: float) -> None:
    model, shape, _ = random_model("grey", 1)
    guarded = Guarded(model, Broken(model, value), threshold=-0.8, scale=1.0, guides=torch.zeros(1, 4)).eval()
    dark, bright = torch.full((1, *shape), 0.1), torch.full((1, *shape), 0.7)
    excess = guarded.excess(torch.cat([dark, bright]))
    assert torch.isnan(excess).tolist() == [True, False]
    assert excess[1] > 0
    images = torch.cat([dark, bright]).mul(255).round().to(torch.uint8)
    assert answers(guarded, images.numpy()).tolist() == [UNANSWERED, REJECTED]
    with torch.no_grad():
        labels = guarded(images.float() / 255).argmax(dim=1)
    found = Adaptive(steps=20)(guarded, images, labels)
    assert found.error[0] == "the clean image was answered by numbers that are not finite"
    assert found.status[0] == Status.FAILED
    assert (found.status[1] == Status.FAILED) == (found.error[1] is not None)
    turned = found.success[1]
    with torch.no_grad():
        last = guarded.excess(torch.from_numpy(found.adversarial[1:]).float() / 255)[0]
    assert turned == (found.status[1] == Status.SUCCESS)
    assert not turned or last <= 0


def test_random_scores_are_taken_at_their_upper_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    guarded = built("grey", tmp_path)
    images = torch.rand(5, 1, 9, 12)
    scores = torch.stack([guarded.detector.score(images, draw.expand(5, 2)) for draw in guarded.draws])
    upper = scores.mean(dim=0) + 3 * scores.std(dim=0)
    assert torch.allclose(guarded.excess(images), (upper - guarded.threshold) / guarded.scale, atol=1e-4)


USERS = """
import torch
class Bright:
    def score(self, images):
        return images.flatten(1).mean(dim=1)
class Repairing(torch.nn.Module):
    noise = (2,)
    differentiable = False
    def __init__(self, classifier):
        super().__init__()
        self.classifier = (classifier,)
        self.weight = torch.nn.Parameter(torch.ones(1))
    def score(self, images, noise):
        return self.weight * noise.sum(dim=1)
    def predict(self, images, noise):
        return self.classifier[0](images.round())
def bright(classifier):
    return Bright()
def repairing(classifier):
    return Repairing(classifier)
def nothing(classifier):
    return 3
def fails(classifier):
    raise OSError("no weights here")
class Wide:
    def score(self, images):
        return images
def wide(classifier):
    return Wide()
"""


def test_a_users_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "users_detectors.py").write_text(USERS)
    model, shape, _ = random_model("grey", 1)
    images = torch.rand(4, *shape)
    bright = detector_named("users_detectors:bright").build(model, shape)
    assert torch.allclose(bright.score(images), images.flatten(1).mean(dim=1))
    assert (bright.noise, bright.differentiable, bright.repairs) == (None, True, False)
    assert torch.equal(bright.predict(images), model(images))
    repairing = detector_named("users_detectors:repairing").build(model, shape)
    assert (repairing.noise, repairing.differentiable, repairing.repairs) == ((2,), False, True)
    assert list(repairing.state_dict()) == ["module.weight"]
    noise = torch.ones(4, 2)
    assert repairing.score(images, noise).tolist() == [2, 2, 2, 2]
    assert torch.equal(repairing.predict(images, noise), model(images.round()))
    for function, said in (("nothing", "object with score"), ("fails", "OSError: no weights here"), ("x", "no func")):
        with pytest.raises(WrongInput, match=said):
            detector_named(f"users_detectors:{function}").build(model, shape)
    with pytest.raises(ValueError, match=r"score must return \[4\], got \[4, 1, 9, 12\]"):
        detector_named("users_detectors:wide").build(model, shape).score(images)


def test_a_stand_in_learns_scores_and_lends_its_gradient() -> None:
    model, shape, _ = random_model("grey", 1)
    images = torch.from_numpy(random_images(shape, 2000, 3))
    scores = images.float().div(255).flatten(1)[:, :30].mean(dim=1)
    steps: list[int] = []
    learned, explained = learn(images, scores, seed=1, epochs=20, on_step=lambda step, total, what: steps.append(step))
    assert explained > 0.8
    assert steps == list(range(1, 20 * 15 + 1))

    class Rounded(Detector):
        differentiable = False

        def score(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
            return images.round().flatten(1)[:, :30].mean(dim=1)

    guarded = Guarded(model, Rounded(model), threshold=0.4, scale=0.5, guides=torch.zeros(1, 4), stand_in=learned)
    inputs = torch.rand(4, *shape, requires_grad=True)
    excess = guarded.excess(inputs)
    expected = (inputs.detach().round().flatten(1)[:, :30].mean(dim=1) - 0.4) / 0.5
    assert torch.allclose(excess, expected, atol=1e-5)
    (gradient,) = torch.autograd.grad(excess.sum(), inputs)
    (own,) = torch.autograd.grad(learned(inputs).sum(), inputs)
    assert torch.allclose(gradient, own / 0.5)


def test_a_guarded_model_is_bound_to_all_that_it_is_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    hashes = set()
    for name, threshold in (("vae-error", 0.1), ("vae-error", 0.2), ("vae-kl", 0.1)):
        recipe, (_, shape, classes) = recipe_of("grey", tmp_path), random_model("grey", 1)
        torch.manual_seed(1)
        detector = detector_named(name).build(recipe.build(), shape)
        made = Guarded(recipe.build(), detector, threshold=threshold, scale=1.0, guides=torch.zeros(1, classes))
        write_guarded(tmp_path / "g", recipe, {"name": name, "parameters": {}}, shape, made)
        hashes.add(read_model(str(tmp_path / "g")).content_hash)
    assert len(hashes) == 3
    before = read_model(str(tmp_path / "g")).content_hash
    source = tmp_path / "grey_model.py"
    source.write_text(source.read_text() + "# changed\n")
    assert read_model(str(tmp_path / "g")).content_hash != before
    with pytest.raises(WrongInput, match="used as it was made"):
        read_model(str(tmp_path / "g"), mean=(0.5,), std=(0.5,))


def test_fresh_draws_are_keyed_by_image_and_purpose() -> None:
    model, shape, _ = random_model("grey", 1)
    detector = detector_named("vae-kl").build(model, shape)
    ids = np.array([4, 9, 2])
    one = fresh_noise(detector, ids, seed=1, purpose="a")
    assert one is not None
    other = fresh_noise(detector, ids[::-1], seed=1, purpose="a")
    assert other is not None
    assert np.array_equal(one, other[::-1])
    digests = {hashlib.sha256(one.tobytes()).hexdigest()}
    for seed, purpose in ((2, "a"), (1, "b")):
        more = fresh_noise(detector, ids, seed=seed, purpose=purpose)
        assert more is not None
        digests.add(hashlib.sha256(more.tobytes()).hexdigest())
    assert len(digests) == 3
