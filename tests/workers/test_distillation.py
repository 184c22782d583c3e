"""Defensive distillation: what the student learns, from whom, and what it hides."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.conftest import random_model
from tests.workers.defense_cases import quick, run, stream, trained
from workers.errors import WrongInput
from workers.models.loading import read_model
from workers.sources import load_data
from workers.training.classifiers import Epoch, Recipe, train
from workers.training.distillation import Distillation, Teacher


def test_the_student_learns_the_teacher_s_soft_labels_at_the_temperature() -> None:
    """The loss is Σ −s·log p, s and p both at T, and least where the student answers as the teacher does."""
    student, images, labels = trained()
    teacher = random_model("grey", 9)[0].requires_grad_(False)
    objective = Distillation(temperature=20.0).objective(teacher, load_data("digits", "train"))
    loss = objective(student, images, labels, stream(), 0.0)
    soft = torch.exp(teacher(images) / 20) / torch.exp(teacher(images) / 20).sum(dim=1, keepdim=True)
    expected = -(soft * (student(images) / 20).log_softmax(dim=1)).sum(dim=1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert objective(teacher, images, labels, stream(), 0.0) < loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    taught = Teacher(temperature=20.0).objective(None, load_data("digits", "train"))
    hard = taught(student, images, labels, stream(), 0.0)
    assert hard.item() == pytest.approx(cross_entropy(student(images) / 20, labels).item(), rel=1e-6)


def test_a_distilled_model_hides_its_gradient_behind_its_softmax_alone(tmp_path: Path) -> None:
    """Cross-entropy in float32 has no gradient at most images; the logit margin has one at all of them."""
    run(tmp_path, Distillation(temperature=100.0, teacher_epochs=12), 12)
    model, test = read_model(str(tmp_path)).build(), load_data("digits", "test")
    labels = torch.tensor(test.labels)
    right = (model(torch.tensor(test.images).float().div(255)).argmax(dim=1) == labels).nonzero()[:, 0]
    assert len(right) > 0.85 * len(labels)
    shares = {}
    for name in ("cross-entropy", "margin"):
        images = torch.tensor(test.images[right.numpy()]).float().div(255).requires_grad_(True)
        logits, truth = model(images), labels[right]
        loss = cross_entropy(logits, truth, reduction="sum")
        if name == "margin":
            loss = (logits.scatter(1, truth[:, None], -torch.inf).amax(dim=1) - logits[range(len(truth)), truth]).sum()
        (gradient,) = torch.autograd.grad(loss, images)
        shares[name] = (gradient.abs().amax(dim=(1, 2, 3)) > 1e-30).float().mean().item()
    assert shares["margin"] == 1
    assert shares["cross-entropy"] < 0.5, shares


def test_the_student_waits_for_its_teacher(tmp_path: Path) -> None:
    """Trained by itself it is refused; prolonged, it goes on under the teacher that it had."""
    training, test = load_data("digits", "train"), load_data("digits", "test")
    defense = Distillation(teacher_epochs=2)

    def student(epochs: int) -> list[Epoch]:
        recipe = Recipe(epochs, 64, 3e-3, 1)
        return list(train(training, test, recipe, tmp_path / "b", on_batch=lambda *_: None, defense=defense))

    with pytest.raises(WrongInput, match="its teacher has 0 of 2 epochs"):
        student(1)
    assert not (tmp_path / "b").exists()
    run(tmp_path / "b", defense, 1)
    assert sorted(path.name for path in (tmp_path / "b" / "teacher").iterdir())[-1] == "model.json"
    assert read_model(str(tmp_path / "b" / "teacher")).build()(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert student(3) == run(tmp_path / "a", defense, 3)
    with pytest.raises(WrongInput, match="teacher_epochs 2, not 3"):
        run(tmp_path / "b", Distillation(teacher_epochs=3), 3)


def test_another_training_s_folder_is_refused_before_its_teacher_is_trained(tmp_path: Path) -> None:
    run(tmp_path, quick("none"), 1)
    with pytest.raises(WrongInput, match="trained with defense none, not distillation"):
        run(tmp_path, quick("distillation"), 1)
    assert not (tmp_path / "teacher").exists()
