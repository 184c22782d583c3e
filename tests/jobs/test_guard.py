"""How detectors come by their second models: trained by a defense, kept by name, resumed, or refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.guard import Named, load_networks, require_classes, trained_second
from jobs.subject import Subject
from tests.conftest import random_model
from workers.detectors.disagreement import RBFDisagreement, SynthesisDisagreement
from workers.errors import WrongInput
from workers.images import Dataset
from workers.models.cnn import CNN
from workers.models.loading import ModelRecipe
from workers.sources import load_data


@pytest.mark.parametrize(
    ("recipe", "learned"),
    [(RBFDisagreement(epochs=14, base_epochs=5), "second"), (SynthesisDisagreement(epochs=3), "second")],
    ids=["rbf", "synthesis"],
)
def test_a_second_model_learns_is_kept_and_resumes(
    recipe: RBFDisagreement | SynthesisDisagreement, learned: str, tmp_path: Path
) -> None:
    digits, test = load_data("digits", "train"), load_data("digits", "test")
    detector = recipe.build(CNN(*digits.shape, digits.classes), digits.shape)
    load_networks(recipe, detector, digits, tmp_path)
    weights = detector.second.state_dict()
    with torch.no_grad():
        found = detector.get_submodule(learned)(torch.tensor(test.images).float() / 255).argmax(dim=1).numpy()
    assert (found == test.labels).mean() > 0.6

    second = recipe.second_models()["second"]
    (kept,) = tmp_path.glob(f"{second.key}-*")
    times = {path: path.stat().st_mtime_ns for path in kept.rglob("*.safetensors")}
    load_networks(recipe, detector, digits, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in kept.rglob("*.safetensors")} == times

    shorter = recipe.model_copy(update={"epochs": 1}).second_models()["second"]
    trained_second(shorter, digits, tmp_path / "again")
    again = trained_second(second, digits, tmp_path / "again")
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in again)


def test_a_second_model_of_other_classes_is_refused() -> None:
    model, shape, classes = random_model("grey", 1)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, *shape), dtype=np.uint8)
    subject = Subject(
        ModelRecipe("noise", {}, b"", (), (), None, ""),
        model,
        Dataset(images, np.arange(30) % classes, "test", "noise"),
        classes,
    )
    few = Dataset(images, np.arange(30) % (classes - 1), "train", "noise")
    named = Named.of("rbf-disagreement")
    with pytest.raises(WrongInput, match=f"expected images of {classes} classes, got {classes - 1}"):
        require_classes(named, subject, few)
    require_classes(named, subject, subject.dataset)
    require_classes(Named.of("max-softmax"), subject, few)
