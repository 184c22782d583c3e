"""A detector from its name to a classifier guarded by it: networks trained, fitted, scored on clean images, calibrated.

What is finished is kept in files and never computed again.
"""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.first_look import look_at_detector
from jobs.interruption import keeping
from jobs.progress import Progress, progress, say
from jobs.subject import Subject
from jobs.train import epochs_of, followed
from workers.errors import WrongInput, in_one_line
from workers.parquet import read_table
from workers.places import Place
from workers.results import write_part

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from analysis.detection import Threshold
    from workers.detectors import Detector, DetectorRecipe
    from workers.detectors.detector import OnStep
    from workers.images import Dataset
    from workers.training.networks import Network
    from workers.training.second_model import SecondModel

__all__ = [
    "EXPLAINED",
    "Guard",
    "Named",
    "Split",
    "guard",
    "load_networks",
    "require_classes",
    "require_fit",
    "score",
    "split_images",
    "trained",
    "trained_second",
]

CALIBRATION = 5000
GUIDES = 500
STAND_IN_IMAGES, STAND_IN_LEAST = 6000, 40
EXPLAINED = 0.05
"""Share of the variance of the scores below which a stand-in has learned nothing."""


@dataclass(frozen=True)
class Named:
    """A detector as the user named it: ``vae-kl`` or ``vae-kl,code_size=8,epochs=5``, or ``module:function``."""

    text: str
    recipe: "DetectorRecipe"

    @classmethod
    def of(cls, text: str) -> "Named":
        """Reads a name with its parameters.

        Raises:
            WrongInput: for an unknown detector or a wrong parameter.
        """
        from workers.detectors import DETECTORS, detector_named

        name, *pairs = (part.strip() for part in text.split(","))
        parameters: dict[str, Any] = {}
        for pair in pairs:
            key, equals, value = pair.partition("=")
            if not equals or not key:
                raise WrongInput(f"{text}: expected PARAMETER=VALUE after the detector's name, got {pair!r}")
            if (key := key.strip().replace("-", "_")) in parameters:
                raise WrongInput(f"{text}: {key} is given twice")
            parameters[key] = value.strip()
        try:
            return cls(text, detector_named(name, **parameters))
        except WrongInput as error:
            if name not in DETECTORS:
                raise
            known = ", ".join(DETECTORS[name].model_fields) or "no parameters"
            raise WrongInput(f"{text}: {error}; {name} takes {known}") from None

    def trained_anew(self, times: int) -> "list[Named]":
        """The same with one training seed after another, its own first; itself where it trains no network."""
        first: int | None = getattr(self.recipe, "training_seed", None)
        if times == 1 or first is None:
            return [self]
        return [Named.of(f"{self.untrained},training_seed={first + number}") for number in range(times)]

    @property
    def untrained(self) -> str:
        """What detectors that differ in the training seed alone have in common."""
        return ",".join(
            part for part in self.text.split(",") if not part.strip().replace("-", "_").startswith("training_seed")
        )

    @property
    def folder(self) -> str:
        """A name for its folder."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.text)

    def describe(self) -> dict[str, Any]:
        """As a guarded model's description has it."""
        return {"name": self.recipe.NAME, "parameters": self.recipe.model_dump(mode="json")}

    def frozen(self) -> dict[str, Any]:
        """As it is frozen: the sources of a user's function too."""
        from workers.models.loading import hash_of_sources

        parameters = self.recipe.model_dump(mode="json")
        return self.describe() | ({"code": hash_of_sources(parameters)} if "function" in parameters else {})


@dataclass(frozen=True)
class Split:
    """Images by what they serve, int64 ids: thresholds are set on one part and judged on the other."""

    calibration: np.ndarray
    test: np.ndarray


def split_images(count: int, seed: int) -> Split:
    """Half of the images, 5,000 at most, for calibration and the others for the test, at random.

    Not by position: MNIST's first 5,000 test images are easier than the rest.

    Raises:
        WrongInput: for fewer than 40 images.
    """
    if count < 40:
        raise WrongInput(f"--data: a detector is calibrated on half of the images; expected 40 at least, got {count}")
    order = np.random.default_rng([seed, 0]).permutation(count)
    size = min(CALIBRATION, count // 2)
    return Split(np.sort(order[:size]), order[size:])


@dataclass(frozen=True)
class Guard:
    """A detector, fitted and calibrated.

    Attributes:
        named: what the user asked for.
        detector: in this process.
        subject: the classifier behind it, as it is attacked; None when its scores judge nothing.
        lenient: the same behind a threshold of 1 % false alarms; None where that flags nothing.
        thresholds: at 5 % and 1 % false alarms.
        calibration, test: scores and predictions of the clean images of `Split`.
        stand_in: the share of the variance of its scores that the stand-in explains; None where there is none.
    """

    named: Named
    detector: "Detector"
    subject: Subject | None
    lenient: Subject | None
    thresholds: "dict[float, Threshold]"
    calibration: "pa.Table"
    test: "pa.Table"
    stand_in: float | None


def guard(
    named: Named, subject: Subject, training: "Dataset", split: Split, folder: Path, networks: Path, seed: int
) -> Guard:
    """Brings a detector to where it can be attacked, or reads what an earlier start left.

    Args:
        named: which one.
        subject: the classifier and the images of the split.
        training: images and labels that the detector may learn from.
        split: what its threshold is set on and judged by.
        folder: its own; holds ``fitted.safetensors``, ``clean-calibration.parquet``, ``clean-test.parquet``, and
            ``guarded`` and ``guarded-at-1``, model folders.
        networks: where trained networks are kept, shared by detectors and evaluations.
        seed: of every draw but those of training.

    Raises:
        WrongInput: when the detector cannot take these images or this classifier, or its scores are not an image's own.
        Interrupted: when stopped; the same command resumes.
    """
    import torch

    from analysis.detection import calibrate
    from workers.detectors.guarded import Guarded, write_guarded
    from workers.detectors.user import UserDetector
    from workers.evaluation.dense import DenseEvaluator
    from workers.models.loading import read_model

    folder.mkdir(parents=True, exist_ok=True)
    detector = named.recipe.build(subject.model, subject.dataset.shape)
    fit(named, detector, training, networks, folder / "fitted.safetensors", seed)
    detector.eval().requires_grad_(False)
    if not isinstance(named.recipe, UserDetector) and not (folder / "clean-calibration.parquet").exists():
        look_at_detector(named.text, detector, subject)
    calibration, test = (
        score(named, detector, subject.dataset.images[ids], ids, folder / f"clean-{part}.parquet", seed)
        for part, ids in (("calibration", split.calibration), ("test", split.test))
    )
    scores = calibration["score"].to_numpy()
    thresholds = {rate: calibrate(scores, rate) for rate in (0.05, 0.01)}
    places = {0.05: folder / "guarded", 0.01: folder / "guarded-at-1"}
    places = {rate: place for rate, place in places.items() if np.isfinite(thresholds[rate].value)}
    if 0.05 not in places:
        return Guard(named, detector, None, None, thresholds, calibration, test, None)
    if not all((place / "model.json").exists() for place in places.values()):
        stand_in, explained = None, None
        if not (thresholds[0.05].problem or _has_gradient(detector, subject)):
            stand_in, explained = _stand_in(named, detector, training, seed)
        low, high = np.quantile(scores, [0.25, 0.75])
        calm = (scores <= thresholds[0.05].value) & subject.correct[split.calibration]
        guides = torch.tensor(subject.dataset.images[split.calibration[calm][:GUIDES]])
        logits = DenseEvaluator(subject.model).logits(guides)
        for rate, place in places.items():
            guarded = Guarded(
                subject.model,
                detector,
                threshold=float(thresholds[rate].value),
                scale=float(high - low) or 1.0,
                guides=logits,
                stand_in=stand_in,
            )
            shape = subject.dataset.shape
            write_guarded(place, subject.recipe, named.describe(), shape, guarded, explained=explained)
    behind = {}
    for rate, place in places.items():
        recipe = read_model(str(place))
        behind[rate] = Subject(recipe, recipe.build(), subject.dataset, subject.classes)
    explained = json.loads((places[0.05] / "model.json").read_text())["stand_in_explains"]
    return Guard(named, detector, behind[0.05], behind.get(0.01), thresholds, calibration, test, explained)


def require_fit(named: Named, subject: Subject) -> None:
    """Refuses a detector that cannot take this classifier and these images, before anything is done.

    A user's own is looked at too; what is to be fitted is looked at after that.

    Raises:
        WrongInput: saying why.
    """
    from workers.detectors.user import UserDetector

    def built() -> "Detector":
        return named.recipe.build(subject.model, subject.dataset.shape)

    detector = built()
    if isinstance(named.recipe, UserDetector):  # others have no scores before they are fitted
        look_at_detector(named.text, detector, subject, built)


def require_classes(named: Named, subject: Subject, training: "Dataset") -> None:
    """Refuses training images from which a second model would not learn the classifier's classes.

    Raises:
        WrongInput: saying so.
    """
    if named.recipe.second_models() and training.classes != subject.classes:
        raise WrongInput(
            f"--training-data: {named.text} learns the classifier's classes from it; expected images of "
            f"{subject.classes} classes, got {training.classes}"
        )


def _has_gradient(detector: "Detector", subject: Subject) -> bool:
    """Whether scores have a derivative by the images, as a detector without a stand-in must."""
    import torch

    if not detector.differentiable:
        return False
    images, noise = _two(detector, subject)
    try:
        with torch.enable_grad():
            return detector.score(images.requires_grad_(True), noise).requires_grad
    except (RuntimeError, TypeError):  # numpy() of a tensor that wants a gradient
        return False


def _two(detector: "Detector", subject: Subject) -> "tuple[Tensor, Tensor | None]":
    """Two images in [0, 1] to try a detector on, and draws for them where it takes any."""
    import torch

    images = torch.tensor(subject.dataset.images[:2]).float().div(255)
    return images, None if detector.noise is None else torch.zeros(len(images), *detector.noise)


def fit(named: Named, detector: "Detector", training: "Dataset", networks: Path, kept: Path, seed: int) -> None:
    """Trains the detector's networks and fits it, or takes over what an earlier start kept.

    Raises:
        WrongInput: for a networks' folder that holds something else.
        Interrupted: when stopped; the same command resumes.
    """
    import joblib
    import safetensors.torch
    import torch

    from workers.files import write_whole
    from workers.models.loading import pack_weights

    if kept.exists():
        detector.restore(safetensors.torch.load_file(kept))
        return
    before = torch.get_num_threads()
    torch.set_num_threads(joblib.cpu_count())
    try:
        with keeping(networks):
            load_networks(named.recipe, detector, training, networks)
        torch.set_num_threads(before)
        detector.eval().requires_grad_(False)
        with _followed(named.text) as on_step:
            detector.fit(torch.tensor(training.images), torch.tensor(training.labels), seed=seed, on_step=on_step)
    finally:
        torch.set_num_threads(before)
    write_whole(kept, pack_weights(detector))


def load_networks(recipe: "DetectorRecipe", detector: "Detector", training: "Dataset", folder: Path) -> None:
    """Gives a detector its networks and second models, trained with progress or read from where they were kept.

    Args:
        recipe, detector: whose networks.
        training: what they are trained on.
        folder: of trained networks, each in a folder of its own.

    Raises:
        WrongInput: for a folder that holds something else.
    """
    data = training.content_hash()[:8]
    for attribute, network in recipe.networks().items():
        detector.get_submodule(attribute).load_state_dict(trained(network, training, folder / f"{network.key}-{data}"))
    for attribute, second in recipe.second_models().items():
        weights = trained_second(second, training, folder / f"{second.key}-{data}")
        detector.get_submodule(attribute).load_state_dict(weights)


def trained(network: "Network", training: "Dataset", folder: Path) -> "dict[str, Tensor]":
    """Weights of a network, trained with progress or read from where they were kept.

    Raises:
        WrongInput: for a folder that holds something else.
    """
    from workers.training.checkpoints import last_weights
    from workers.training.networks import train_network

    steps = len(training) // network.batch_size
    epochs_of = partial(train_network, network, training, folder)
    for epoch, new in followed(epochs_of, network.epochs, steps, f"training {network.NAME}"):
        if new:
            say(f"{network.NAME}: epoch {epoch.epoch}, loss {epoch.loss:.3f}")
    return last_weights(folder)


def trained_second(second: "SecondModel", training: "Dataset", folder: Path) -> "dict[str, Tensor]":
    """Weights of a second model, trained with progress or read from where they were kept.

    Raises:
        WrongInput: for a folder that holds something else.
    """
    from workers.training.checkpoints import last_weights

    learned, held_out = second.split(training)
    name = second.defense.NAME
    trainings = epochs_of(
        learned, held_out, second.recipe, folder, second.defense, lambda stage: f"training {name}: {stage.title}"
    )
    for stage, epoch, new in trainings:
        if new:
            say(f"{name}: {stage.title}, epoch {epoch.epoch}, accuracy {epoch.accuracy:.2%} on held-out images")
    return last_weights(folder)


def score(
    named: Named,
    detector: "Detector",
    images: np.ndarray,
    ids: np.ndarray,
    kept: Path,
    seed: int,
    *,
    purpose: str | None = None,
) -> "pa.Table":
    """Scores of images and the pair's predictions, from fresh draws; read where an earlier start kept them.

    Args:
        named, detector: what scores.
        images: uint8 ``[n, C, H, W]``.
        ids: int64 ``[n]``, that key the draws.
        kept: the file; what it holds of other images is scored again.
        seed: of the evaluation.
        purpose: what the draws are for; the file's name when absent.

    Returns:
        ``image_id``, ``score`` and ``prediction``.

    Raises:
        WrongInput: when the detector fails on the images.
    """
    import pyarrow as pa

    from workers.detectors.scoring import fresh_noise, score_images
    from workers.images import hash_of_images

    of = {b"images": hash_of_images(images).encode()}
    if kept.exists():
        found = read_table(kept)
        same = (found.schema.metadata or {}).get(b"images") == of[b"images"]
        if same and np.array_equal(found["image_id"].to_numpy(), ids):
            return found
    noise = fresh_noise(detector, ids, seed=seed, purpose=f"{named.text} {purpose or kept.stem}")
    with progress(len(images), f"{named.text}: scoring {kept.stem}") as bar:
        try:
            scored = score_images(detector, images, noise, on_images=bar.advance)
        except Exception as error:  # whatever a user's detector raises
            raise WrongInput(f"{named.text} fails on these images: {in_one_line(error)}") from None
    table = pa.table({"image_id": ids, "score": scored.scores, "prediction": scored.predictions}, metadata=of)
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_part(table, Place.of(kept))
    return table


def _stand_in(named: Named, detector: "Detector", training: "Dataset", seed: int) -> tuple[Any, float]:
    """A differentiable model of the scores of training images, of noisy ones, and of mixtures of two."""
    import torch

    from workers.detectors.scoring import fresh_noise, score_images
    from workers.detectors.stand_in import learn

    rng = np.random.default_rng([seed, 1])
    chosen = rng.choice(len(training), min(STAND_IN_IMAGES, len(training)), replace=False)
    images = training.images[chosen].astype(np.float32)
    third = len(images) // 3
    strength = rng.uniform(0, 100, (third, 1, 1, 1))
    images[:third] += strength * rng.standard_normal(images[:third].shape)
    share = rng.uniform(0, 1, (third, 1, 1, 1))
    images[third : 2 * third] = share * images[third : 2 * third] + (1 - share) * images[-third:]
    rounded = images.round().clip(0, 255).astype(np.uint8)
    noise = fresh_noise(detector, chosen, seed=seed, purpose=f"{named.text} stand-in")
    with progress(len(rounded), f"{named.text}: scoring for its stand-in") as bar:
        scores = score_images(detector, rounded, noise, on_images=bar.advance).scores
    finite = np.isfinite(scores)
    if finite.sum() < STAND_IN_LEAST:
        raise WrongInput(
            f"{named.text}: gives no gradients, and a stand-in needs finite scores of {STAND_IN_LEAST} training "
            f"images, got {finite.sum()}"
        )
    with _followed(named.text) as on_step:
        model, explained = learn(
            torch.from_numpy(rounded[finite]), torch.from_numpy(scores[finite]), seed=seed, on_step=on_step
        )
    if explained < EXPLAINED:
        for parameter in model.parameters():  # its gradient would lead searches astray: none says so
            parameter.zero_()
    say(f"{named.text} has no gradients: a stand-in explains {explained:.0%} of the variance of its scores")
    return model, explained


@contextmanager
def _followed(title: str) -> "Iterator[OnStep]":
    """What shows the progress of something that learns only as it goes on how much there is to do."""
    with ExitStack() as stack:
        bars: list[Progress] = []
        done = 0

        def on_step(step: int, total: int, what: str) -> None:
            nonlocal done
            if not bars:
                bars.append(stack.enter_context(progress(total, f"{title}: {what}", "steps")))
            bars[0].advance(step - done, what)
            done = step

        yield on_step
