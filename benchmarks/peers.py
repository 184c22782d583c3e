"""Few-pixel search beside its peers: the same model, images and number of model evaluations, one table.

    pip install --no-deps --target build/peers -r benchmarks/requirements-peers.txt
    PYTHONPATH=build/peers python benchmarks/peers.py --model MODEL

Each row is a fresh process, so that its peak memory is its own. Success is counted in one way for all: the image,
rounded to 8 bits, differs in at most k pixels, and the model, which was right, is wrong about it.
"""

import argparse
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported by the rows: the process that starts them stays small
    import torch
    from torch import Tensor

    from workers.attacks import Attack

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

SHAPE = (1, 28, 28)
SIDE = 2048
SECONDS = 2
"""A row that takes less is run again until it has taken this long."""


@dataclass(frozen=True)
class Task:
    """What every row is given.

    Attributes:
        model: in ``eval()`` mode.
        pixels: k.
        multiplier: individuals a gene, which is how scipy, ART and torchattacks count a population.
        generations: after the first population.
        threads: of torch, and of brittle's kernel.
        layout, batch: with which torch runs the model fastest.
    """

    model: "torch.nn.Module"
    pixels: int
    multiplier: int
    generations: int
    threads: int
    layout: str
    batch: int

    @property
    def population(self) -> int:
        """Individuals: each has row, column and level for every pixel."""
        return self.multiplier * 3 * self.pixels

    @property
    def queries(self) -> int:
        """The budget of an image."""
        return self.population * (self.generations + 1)


Run = Callable[["Tensor", "Tensor"], tuple["Tensor | None", int]]
"""From images uint8 ``[n, 1, 28, 28]`` and labels to what an attack made of them (uint8, or floats in [0, 1]), None
for a row that only evaluates candidates; and how many candidates it evaluated."""


def random_changes(task: Task) -> Run:
    """The incremental evaluator alone: 16,384 random candidates an image."""
    import torch

    def candidates() -> "tuple[Tensor, Tensor]":
        position = torch.randint(0, SHAPE[1] * SHAPE[2], (1 << 14, task.pixels))
        return position, torch.randint(0, 256, (*position.shape, 1), dtype=torch.uint8)

    return _evaluate(task, *candidates())


def every_change(task: Task) -> Run:
    """The incremental evaluator alone: all 200,704 changes of a pixel of every image."""
    import torch

    position = torch.arange(SHAPE[1] * SHAPE[2]).repeat_interleave(256)[:, None]
    levels = torch.arange(256, dtype=torch.uint8).repeat(SHAPE[1] * SHAPE[2])[:, None, None]
    return _evaluate(task, position, levels)


def _evaluate(task: Task, position: "Tensor", levels: "Tensor") -> Run:
    import torch

    from workers.evaluation.dense import DenseEvaluator
    from workers.evaluation.few_pixel import FewPixelEvaluator, Neighbourhood

    evaluator = FewPixelEvaluator(DenseEvaluator(task.model), SHAPE, threads=task.threads)

    def run(images: "Tensor", labels: "Tensor") -> tuple[None, int]:
        around = Neighbourhood(evaluator, images)
        for number in range(len(images)):
            around.logits(torch.full((len(position),), number), position, levels)
        return None, len(images) * len(position)

    return run


def dense(task: Task) -> Run:
    """The model alone, on 6,400 images that are ready, in its fastest memory layout and batch size."""
    import torch
    from few_pixel import dense_evaluator

    evaluate = dense_evaluator(task.model, task.layout, task.batch)
    ready = torch.rand(6400, *SHAPE)

    def run(images: "Tensor", labels: "Tensor") -> tuple[None, int]:
        evaluate(ready)
        return None, len(ready)

    return run


def brittle_de(task: Task) -> Run:
    """`DifferentialEvolution`: best1bin, F dithered over U(.5, 1), CR 1, probability; every individual checked."""
    from workers.attacks import DifferentialEvolution

    return _attack(
        task, DifferentialEvolution(pixels=task.pixels, population=task.population, generations=task.generations)
    )


def brittle_beam(task: Task) -> Run:
    """`PixelBeam` of width 1, stopped at the budget."""
    from workers.attacks import PixelBeam

    return _attack(task, PixelBeam(pixels=task.pixels, max_queries=task.queries))


def brittle_exact(task: Task) -> Run:
    """`OnePixelExact`: the verdict over all 200,704 changes of an image, whatever the budget."""
    from workers.attacks import OnePixelExact

    return _attack(task, OnePixelExact())


def _attack(task: Task, attack: "Attack") -> Run:
    import torch

    def run(images: "Tensor", labels: "Tensor") -> "tuple[Tensor, int]":
        result = attack(task.model, images, labels)
        return torch.from_numpy(result.adversarial), int(result.queries.sum())

    return run


def scipy_de(task: Task) -> Run:
    """`differential_evolution(vectorized=True)` over the fastest dense model; popsize is a multiplier; same F and CR.

    Every individual is checked, and the search ends within the call that finds a success.
    """
    import torch
    from few_pixel import dense_evaluator
    from scipy.optimize import differential_evolution

    from workers.attacks.de import phenotype
    from workers.evaluation.few_pixel import changed_images

    model = _counted(dense_evaluator(task.model, task.layout, task.batch))

    class Success(Exception):
        pass

    def search(image: "Tensor", label: "Tensor") -> "Tensor":
        def probabilities(genes: Any) -> Any:
            position, levels = phenotype(torch.from_numpy(genes.T.copy()), task.pixels, *SHAPE[1:])
            candidates = changed_images(image[None], torch.zeros(len(position), dtype=torch.long), position, levels)
            logits = model(candidates / 255)
            wrong = logits.argmax(dim=1) != label
            if wrong.any():
                raise Success(candidates[wrong.nonzero()[0, 0]])
            return logits.softmax(dim=1)[:, label].double().numpy()

        try:
            differential_evolution(
                probabilities,
                [(0, 1)] * (3 * task.pixels),
                popsize=task.multiplier,
                maxiter=task.generations,
                recombination=1,
                atol=-1,  # never converged
                polish=False,
                updating="deferred",
                vectorized=True,
                rng=0,
            )
        except Success as found:
            return found.args[0]
        return image

    def run(images: "Tensor", labels: "Tensor") -> "tuple[Tensor, int]":
        model.images = 0
        return torch.stack([search(*pair) for pair in zip(images, labels, strict=True)]), model.images

    return run


def art(task: Task) -> Run:
    """`PixelAttack(th=k, es=1)` of a model with softmax; its population is fixed: 400 // genes individuals a gene."""
    import torch
    from art.attacks.evasion import PixelAttack
    from art.estimators.classification import PyTorchClassifier

    model = _counted(torch.nn.Sequential(task.model, torch.nn.Softmax(dim=1)))
    classifier = PyTorchClassifier(
        model, torch.nn.CrossEntropyLoss(), input_shape=SHAPE, nb_classes=10, clip_values=(0, 1), device_type="cpu"
    )
    attack = PixelAttack(classifier, th=task.pixels, es=1, max_iter=task.generations)

    def run(images: "Tensor", labels: "Tensor") -> "tuple[Tensor, int]":
        model.images = 0
        return torch.from_numpy(attack.generate((images / 255).numpy(), labels.numpy())), model.images

    return run


def torchattacks(task: Task) -> Run:
    """`OnePixel(pixels=k)`, inf_batch 128; its popsize is a number, rounded down to a multiple of the genes."""
    from torchattacks import OnePixel

    model = _counted(task.model)
    attack = OnePixel(model, pixels=task.pixels, steps=task.generations, popsize=task.population)

    def run(images: "Tensor", labels: "Tensor") -> "tuple[Tensor, int]":
        model.images = 0
        return attack(images / 255, labels), model.images

    return run


def _counted(model: "Callable[[Tensor], Tensor]") -> Any:
    """The model as a module that counts the images it is given in ``images``."""
    import torch

    class Counted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.images = model, 0

        def forward(self, images: "Tensor") -> "Tensor":
            self.images += len(images)
            return self.model(images)

    return Counted().eval()


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        prepare: imports and builds; what it returns is timed.
        pixels: the k it is run for.
        peer: whether it runs as it would without brittle, and has a ratio.
    """

    prepare: Callable[[Task], Run]
    pixels: tuple[int, ...] = (1, 5)
    peer: bool = False


EVERY = "evaluator, every change"
ROWS = {
    "evaluator": Row(random_changes),
    EVERY: Row(every_change, (1,)),
    "brittle de": Row(brittle_de),
    "brittle pixel-beam": Row(brittle_beam),
    "brittle one-pixel-exact": Row(brittle_exact, (1,)),
    "dense torch": Row(dense, peer=True),
    "scipy DE": Row(scipy_de, peer=True),
    "ART PixelAttack": Row(art, peer=True),
    "torchattacks OnePixel": Row(torchattacks, peer=True),
}


def main() -> None:
    """Prints the table."""
    options = _options()
    if options.measure:
        found = measure_machine(options) if options.measure == "machine" else measure(options)
        print(json.dumps(found))
        return
    missing = [name for name in ("art", "torchattacks") if not importlib.util.find_spec(name)]
    if missing:
        sys.exit(f"{', '.join(missing)} not found: install benchmarks/requirements-peers.txt, see --help")
    # Threads that wait asleep, as brittle has them: spinning, a shared machine takes minutes for a matrix product.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    machine = _child(options, "machine")
    product, layout, batch = machine["products"], machine["layout"], machine["batch"]
    print(
        f"{platform.machine()}, {options.threads} threads, torch {machine['torch']}; {options.images} MNIST digits "
        f"that the model has right; dense: {layout}, batch {batch}; matrix product: {product / 1e9:.0f} G "
        f"multiply-adds/s ({SIDE}³, float32)"
    )
    rates: dict[tuple[str, int], float] = {}
    for pixels in options.pixels:
        genes = 3 * pixels
        population = options.population // genes * genes
        print(
            f"\nk = {pixels}: population {population} ({population // genes} a gene), {options.generations} more "
            f"generations: at most {population * (options.generations + 1):,} candidates a digit\n"
            f"{'':<23} {'candidates/s':>13} {'a digit':>9} {'digits/s':>9} {'success':>8} {'MB':>5} "
            f"{'evaluator':>10} {'de':>7}"
        )
        for name, row in ROWS.items():
            if pixels not in row.pixels:
                continue
            found = _child(options, name, pixels, layout, batch)
            rate = rates[name, pixels] = found["candidates"] / found["seconds"]
            line = f"{name:<23} {rate:>13,.0f} "
            if found["success"] is None:
                line += f"{'':>28}"
            else:
                line += f"{found['candidates'] / found['images']:>9,.0f} {found['images'] / found['seconds']:>9.2f} "
                line += f"{found['success']:>8}"
            line += f" {found['megabytes']:>5.0f}"
            if row.peer:
                line += f" {rates['evaluator', pixels] / rate:>9.1f}× {rates['brittle de', pixels] / rate:>6.1f}×"
            print(line, flush=True)
        operations, whole = machine["operations"][str(pixels)], machine["dense_operations"]
        evaluator, dense_rate = rates["evaluator", pixels], rates["dense torch", pixels]
        print(
            f"floor: {operations:,.0f} multiply-adds a candidate, or {product / operations:,.0f} candidates/s as a "
            f"matrix product; the evaluator reaches {evaluator * operations / product:.0%} of it,\n"
            f"       the dense model with its {whole:,} reaches {dense_rate * whole / product:.0%} of its own"
        )
    if 1 in options.pixels:
        beside = [_child(options, EVERY, 1, layout, batch)]
        rate, shards = command_line(options)
        beside.append(_child(options, EVERY, 1, layout, batch))
        share = rate / statistics.mean(found["candidates"] / found["seconds"] for found in beside)
        print(
            f"\nbrittle attack one-pixel-exact, {options.digits} digits in {shards} shards, from the first one's start "
            f"to the last one's end:\n{rate:,.0f} candidates/s, {share:.0%} of the evaluator's just before and after"
        )
    print(
        "\na digit: candidates evaluated, counted at the model; MB: the peak above what the process held with its "
        "imports, model and\nimages (for brittle with the compiled kernel); evaluator, de: how many times a row's "
        "candidates/s those rows of brittle reach"
    )
    for name, row in ROWS.items():
        print(f"  {name}: {' '.join((row.prepare.__doc__ or '').split())}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a model for MNIST")
    parser.add_argument("--images", type=int, default=16, help="digits each attack is given (default 16)")
    parser.add_argument("--pixels", type=int, nargs="+", default=[1, 5], help="k (default 1 5)")
    parser.add_argument("--population", type=int, default=400, help="rounded down to a multiple of the genes, 3k")
    parser.add_argument("--generations", type=int, default=7, help="after the first population (default 7)")
    parser.add_argument("--digits", type=int, default=128, help="digits for the command line (default 128)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch and of the kernel")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # this and the next two: for the rows' processes
    parser.add_argument("--layout", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def _child(options: argparse.Namespace, name: str, *row: Any) -> Any:
    """What a fresh process measures: for a row its k, and how torch runs the model fastest."""
    given = vars(options) | dict(zip(("pixels", "layout", "batch"), row, strict=False)) | {"measure": name}
    print(f"{name} {f'k = {row[0]}' if row else ''}", file=sys.stderr, flush=True)
    command = [sys.executable, __file__]
    for flag, value in given.items():
        if value is not None:
            command += [f"--{flag}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_machine(options: argparse.Namespace) -> dict[str, Any]:
    """The rate of the matrix product, the best way to run the dense model, and the operations of a candidate."""
    import torch

    torch.set_num_threads(options.threads)
    a, b = torch.rand(2, SIDE, SIDE)
    rates = []
    for _ in range(10):
        started = time.perf_counter()
        torch.mm(a, b)
        rates.append(SIDE**3 / (time.perf_counter() - started))

    from few_pixel import best_dense

    from workers.evaluation.chain import read_chain
    from workers.evaluation.incremental import IncrementalEvaluator
    from workers.models.loading import read_model

    model = read_model(options.model).build()
    chain = read_chain(model, SHAPE)
    if chain is None:
        sys.exit("the model is no chain of convolutions, ReLUs and linear layers")
    evaluator = IncrementalEvaluator(chain, SHAPE)
    layout, batch = best_dense(model)
    return {
        "torch": torch.__version__,
        "products": statistics.median(rates),
        "layout": layout,
        "batch": batch,
        "operations": {k: evaluator.operations(k) for k in options.pixels},
        "dense_operations": evaluator.dense_operations,
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs one row in this process."""
    import torch

    row, (pixels,) = ROWS[options.measure], options.pixels
    torch.set_num_threads(options.threads)
    if row.peer:
        torch.rand(64, 64) @ torch.rand(64, 64)  # MKL is up before brittle can ask it to be reproducible

    import numpy as np

    from workers.models.loading import read_model
    from workers.sources import load_data

    model = read_model(options.model).build().eval()
    data = load_data("mnist", "test")
    images, labels = torch.tensor(data.images[: 2 * options.images]), torch.tensor(data.labels[: 2 * options.images])
    with torch.inference_mode():
        right = (model(images / 255).argmax(dim=1) == labels).nonzero()[: options.images, 0]
    images, labels = images[right], labels[right].long()
    np.random.seed(0)
    torch.manual_seed(0)
    multiplier = options.population // (3 * pixels)
    task = Task(model, pixels, multiplier, options.generations, options.threads, options.layout, options.batch)
    run = row.prepare(task)
    before = _peak_megabytes()
    run(images[:1], labels[:1])
    candidates, seconds, times = 0, 0.0, 0
    while seconds < SECONDS:
        started = time.perf_counter()
        made, evaluated = run(images, labels)
        seconds += time.perf_counter() - started
        candidates, times = candidates + evaluated, times + 1
    return {
        "candidates": candidates,
        "seconds": seconds,
        "images": times * len(images),
        "success": None if made is None else f"{_successes(task, made, images, labels)}/{len(images)}",
        "megabytes": _peak_megabytes() - before,
    }


def _successes(task: Task, made: "Tensor", images: "Tensor", labels: "Tensor") -> int:
    """How many of what an attack made succeed as 8-bit images within the budget."""
    import torch

    levels = made if made.dtype == torch.uint8 else (made * 255).round().clamp(0, 255).to(torch.uint8)
    few = (levels != images).any(dim=1).flatten(1).sum(dim=1) <= task.pixels
    with torch.inference_mode():
        wrong = task.model(levels / 255).argmax(dim=1) != labels
    return int((few & wrong).sum())


def _peak_megabytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def command_line(options: argparse.Namespace) -> tuple[float, int]:
    """Candidates a second through ``brittle attack``, and the shards; from what is in the parts, and their times."""
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        command = [
            *(sys.executable, "-m", "jobs.attack", "one-pixel-exact", "--model", options.model, "--data", "mnist"),
            *("--correct", "--limit", str(options.digits), "--workers", str(options.threads), "--out", str(out)),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        queries, begins, ends = 0, [], []
        for part in (out / "parts").glob("*.parquet"):
            rows = pq.read_table(part, columns=["queries", "seconds"])
            queries += sum(rows["queries"].to_pylist())
            ends.append(part.stat().st_mtime)
            begins.append(ends[-1] - sum(rows["seconds"].to_pylist()))
    return queries / (max(ends) - min(begins)), len(ends)


if __name__ == "__main__":
    main()
