"""The zoo that the evaluator is tried on: every model is built, answers as classifiers do, and decides as it says."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from workers.images import Dataset
from workers.models.loading import construct, pack_weights, read_model

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def validity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The command's module; its models stand on random weights, and on what is fitted to noise."""
    folder = tmp_path_factory.mktemp("zoo")
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.syspath_prepend(str(BENCHMARKS))
        patch.setenv("BRITTLE_ZOO", str(folder))
        import validity

        torch.manual_seed(0)
        for name, how in validity.bases.BASES.items():
            if how.network:
                weights = pack_weights(validity.bases.NETWORKS[how.network]())
                (folder / f"{name}.safetensors").write_bytes(weights)
                continue
            card = {"architecture": how.defense.architecture((1, 28, 28), 10), "weights": "weights.safetensors"}
            (folder / name).mkdir()
            (folder / name / "model.json").write_text(json.dumps(card))
            (folder / name / "weights.safetensors").write_bytes(pack_weights(construct(card["architecture"])))
        for name, fitted in validity.bases.FITTED.items():
            (folder / f"{name}.safetensors").write_bytes(safetensors.torch.save(fitted(noise(200))))
        yield validity
        for module in [module for module in sys.modules if module.partition(".")[0] in ("validity", "zoo")]:
            del sys.modules[module]


def noise(count: int) -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (count, 1, 28, 28), dtype=np.uint8)
    return Dataset.checked(images, np.arange(count) % 10, split="train", name="noise")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.tensor(noise(16).images).float().div(255)


def test_every_model_answers(validity: Any, images: torch.Tensor) -> None:
    models = list(validity.zoo())
    assert len({model.reference for model in models}) == len(models)
    for kind in ("broken", "genuine"):
        assert sum(model.kind == kind for model in models) >= 20
    for model in models:
        assert model.function.__doc__, model.name
        before = images.clone()
        logits = read_model(model.reference).build()(images)
        assert logits.shape == (16, 10), model.name
        assert logits.is_floating_point(), model.name
        assert logits.isfinite().all(), model.name
        assert torch.equal(images, before), model.name


def test_decides_as_its_base(validity: Any, images: torch.Tensor) -> None:
    kept = validity.broken.KEEPS
    assert len(kept) >= 20
    for name, base in kept.items():
        given = read_model(f"zoo.broken:{name}").build()(images).argmax(dim=1)
        assert torch.equal(given, validity.bases.base(base)(images).argmax(dim=1)), name


def test_genuine_models_tell_their_gradient(validity: Any, images: torch.Tensor) -> None:
    for model in validity.zoo():
        if model.kind != "genuine":
            continue
        network = read_model(model.reference).build().double()
        moving = (0.1 + 0.8 * images[:2].double()).requires_grad_(True)  # inside [0, 1], where clamping is smooth
        towards = torch.randn(moving.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        (gradient,) = torch.autograd.grad(network(moving)[:, 3].sum(), moving)
        with torch.no_grad():
            step = 1e-7 * towards
            measured = (network(moving + step)[:, 3].sum() - network(moving - step)[:, 3].sum()) / 2e-7
        assert float(measured) == pytest.approx(float((gradient * towards).sum()), rel=1e-3, abs=1e-6), model.name


def test_bases_that_are_absent_are_named(validity: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRITTLE_ZOO", str(tmp_path))
    with pytest.raises(Exception, match=r"has no plain: run python benchmarks/validity\.py --train"):
        validity.bases.base("plain")


def test_summary_counts_what_is_caught_and_flagged(validity: Any) -> None:
    models = {model.name: model for model in validity.zoo()}

    def found(name: str, robust: float, verdict: str, state: str) -> Any:
        checks = [{"name": "masked gradient", "state": state, "seconds": 1.5}]
        rate = {"value": robust, "interval": [0.0, 1.0]}
        told = {"verdict": verdict, "robust_accuracy": rate, "clean_accuracy": rate, "checks": checks}
        return validity.Found(models[name], told, 10.0)

    rows = [
        found("one_hot", 0.9, "evaluation invalid", "failed"),
        found("huge_logits", 0.05, "none asked", "remedied"),
        found("jpeg", 0.06, "none asked", "passed"),
        found("pgd_03", 0.9, "evaluation invalid", "failed"),
        found("cnn", 0.0, "none asked", "passed"),
    ]
    assert [row.as_it_should for row in rows] == [True, True, False, False, True]
    text = "\n".join(validity.summary(rows))
    assert "5% robust: 66.7%" in text
    assert "genuine, flagged: 50.0%" in text
    assert "(!): jpeg, pgd_03" in text
    assert "2 failed, 2 passed, 1 remedied" in text
    assert "masked gradient remedied" in rows[1].line()
    lost = validity.Found(models["cnn"], {}, 1.0, "killed")
    assert not lost.as_it_should
    assert "killed" in lost.line()
