"""Few-pixel candidates a second: the incremental evaluator beside the best dense torch, in one process.

    python benchmarks/few_pixel.py --model MODEL

Ratios are medians over rounds in which both are timed one after the other, so that a machine whose speed
drifts does not favour either. The dense rate is that of the best batch size and memory layout of this run.
"Executed" are the multiply-adds that the kernel does for a candidate, of all that the touched sites have.
The exact verdicts are those of the attacks, from image to result.
"""

import argparse
import copy
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import workers  # noqa: F401 - before torch: it sets what OpenMP and MKL read when they start

# isort: split

import numpy as np
import torch
from torch import Tensor, nn

from workers.attacks import OnePixelExact, TwoPixelExact
from workers.evaluation.chain import read_chain
from workers.evaluation.incremental import IncrementalEvaluator
from workers.models.loading import read_model
from workers.sources import load_data

ROUNDS = 7
COUNT = 50_176
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a model for MNIST")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch and of the kernel")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = read_model(options.model).build()
    chain = read_chain(model, (1, 28, 28))
    if chain is None:
        sys.exit("the model is no chain of convolutions, ReLUs and linear layers")
    evaluator = IncrementalEvaluator(chain, (1, 28, 28), threads=options.threads)
    data = load_data("mnist", "test")
    digit = torch.tensor(data.images[1:2])
    state = evaluator.clean_state(digit)
    layout, batch = best_dense(model)
    dense = partial(dense_evaluator(model, layout, batch), torch.rand(6400, 1, 28, 28))

    print(f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}; dense: {layout}, batch {batch}")
    print(
        f"{'k':>3} {'multiply-adds':>14} {'executed':>9} {'incremental/s':>14} {'dense/s':>9} {'ratio':>7}"
        f" {'of the dense G/s':>17}"
    )
    rng = np.random.default_rng(0)
    for pixels in (1, 2, 3, 5):
        position = rng.integers(0, 784, (COUNT, pixels))
        levels = rng.integers(0, 256, (COUNT, pixels, 1)).astype(np.uint8)
        push = partial(evaluator.logits, state, np.zeros(COUNT, np.int64), position, levels)
        before = evaluator.multiply_adds
        push()
        executed = (evaluator.multiply_adds - before) / COUNT
        pairs = [(rate(push, COUNT), rate(dense, 6400)) for _ in range(ROUNDS)]
        fast, slow = (statistics.median(values) for values in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        share = ratio * executed / evaluator.dense_operations
        print(
            f"{pixels:>3} {evaluator.operations(pixels):>14,.0f} {executed:>9,.0f} {fast:>14,.0f} {slow:>9,.0f}"
            f" {ratio:>6.1f}× {share:>16.0%}"
        )
    position = np.arange(784).repeat(256)[:, None]
    levels = np.tile(np.arange(256, dtype=np.uint8), 784)[:, None, None]
    every = partial(evaluator.logits, state, np.zeros(len(position), np.int64), position, levels)
    print(f"all 784×256 changes of one digit: {statistics.median(1 / rate(every, 1) for _ in range(5)):.3f} s")
    for attack in (OnePixelExact(), TwoPixelExact()):
        verdict = partial(attack, model, digit, data.labels[1:2])
        seconds = statistics.median(1 / rate(verdict, 1) for _ in range(3))
        result = verdict()
        print(f"{attack.NAME} of one digit, {result.queries[0]:,} changes: {seconds:.2f} s ({result.status[0]})")


def best_dense(model: nn.Module) -> tuple[str, int]:
    """The memory layout and the batch size that evaluate 6,400 whole images fastest."""
    images = torch.rand(6400, 1, 28, 28)
    found = []
    for layout in LAYOUTS:
        for batch in (32, 64, 100, 128, 256, 500):
            call = partial(dense_evaluator(model, layout, batch), images)
            call()
            found.append((statistics.median(rate(call, 6400) for _ in range(3)), layout, batch))
    return max(found)[1:]


def dense_evaluator(model: nn.Module, layout: str, batch: int) -> Callable[[Tensor], Tensor]:
    """A function from images to the logits that a copy of the model in this layout gives them."""
    laid_out = copy.deepcopy(model).to(memory_format=LAYOUTS[layout])

    def evaluate(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return torch.cat([laid_out(chunk) for chunk in torch.split(images, batch)])

    return evaluate


def rate(call: Callable[[], object], count: int) -> float:
    """Calls a second times ``count``."""
    started = time.perf_counter()
    call()
    return count / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
