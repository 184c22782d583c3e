"""Compiled kernels are found again wherever their source lies, and only there."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from workers.evaluation.chain import read_chain
from workers.evaluation.incremental import IncrementalEvaluator
from workers.evaluation.kernel import evaluate
from workers.models.cnn import CNN

USE = """
import numpy as np, torch
from workers.evaluation import kernel
from workers.evaluation.chain import read_chain
from workers.evaluation.incremental import IncrementalEvaluator
from workers.models.cnn import CNN
evaluator = IncrementalEvaluator(read_chain(CNN(1, 8, 8, 3).eval(), (1, 8, 8)), (1, 8, 8))
state = evaluator.clean_state(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
evaluator.logits(state, np.zeros(1, np.int64), np.zeros((1, 1), np.int64), np.ones((1, 1, 1), np.uint8))
print(kernel.__file__, sum(kernel.evaluate.stats.cache_hits.values()), sum(kernel.evaluate.stats.cache_misses.values()))
"""


def run(folder: Path, program: str) -> list[str]:
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """A copy of the package at another path, and this process's kernel compiled."""
    chain = read_chain(CNN(1, 8, 8, 3).eval(), (1, 8, 8))
    assert chain is not None
    evaluator = IncrementalEvaluator(chain, (1, 8, 8))
    state = evaluator.clean_state(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    evaluator.logits(state, np.zeros(1, np.int64), np.zeros((1, 1), np.int64), np.ones((1, 1, 1), np.uint8))
    package = Path(__file__).parents[2] / "workers"
    shutil.copytree(package, tmp_path / "workers", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_a_shipped_copy_loads_what_is_compiled(shipped: Path) -> None:
    file, hits, misses = run(shipped, USE)
    assert Path(file).is_relative_to(shipped)
    assert (hits, misses) == ("1", "0")


def test_an_edit_of_what_the_kernel_imports_is_seen(shipped: Path) -> None:
    with (shipped / "workers" / "evaluation" / "vectors.py").open("a") as file:
        file.write("# edited\n")
    [folder] = run(shipped, "from workers.evaluation.kernel import evaluate; print(evaluate.stats.cache_path)")
    assert Path(folder).parent == Path(evaluate.stats.cache_path).parent
    assert folder != evaluate.stats.cache_path
