"""``brittle transfer``: whether adversarial images of each model fool the others."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from cyclopts import App, Group, Parameter
from pydantic import BaseModel, ConfigDict, Field

from cluster.store import RunFolder
from jobs.examples import examples
from jobs.exits import Exit
from jobs.first_look import require_own_answers
from jobs.frozen import FrozenFolder, on_disk
from jobs.interruption import keeping
from jobs.launch import Selection, Where, WorkerHost, launch, shard_of_few
from jobs.progress import progress, say
from jobs.subject import Subject, load_training, numbers
from jobs.threat import BallFlags, said_of
from jobs.typed import changed, flags, path
from jobs.typed import command as typed
from workers.attacks import DDN, FGSM, PGD, Attack, IterativeFGSM
from workers.budgets import Number
from workers.errors import Failed, WrongInput
from workers.files import write_whole
from workers.images import Dataset, Layout
from workers.parquet import read_table
from workers.places import Place
from workers.results import Status, distances, write_part
from workers.sources import load_data
from workers.threat import Ball
from workers.versions import versions

if TYPE_CHECKING:
    from torch import nn

    from analysis.transfer import Answers, Cell, TransferReport
    from jobs.surrogates import Made

__all__ = ["KINDS", "Question", "app", "attacks_within", "twice"]

KINDS = ("seed", "half", "mlp", "kernel", "substitute")
"""Surrogates that the command makes: the CNN from another seed, and from half of the images; a multilayer perceptron;
a kernel machine, which is no network; a substitute learned from each victim's answers alone."""

FIRST = 150
"""Images that a substitute begins with, as in Papernot et al. (2017); of a small test split a quarter."""

app = App(
    name="transfer",
    help="""Try the adversarial images of each model on every other.

    Each model is searched on the same images, those that all models classify right; whatever fools it is shown to the
    others. The command makes more sources by itself: seed, half and mlp are networks trained on the training images,
    kernel is no network, and a substitute is learned from the answers of a model alone. Ended by a crash or Ctrl-C, the
    same command goes on; nothing finished is done again.
    """,
    help_epilogue=examples(
        "brittle transfer --models MODEL,DEFENDED --data mnist --out T",
        "brittle transfer --models MODEL --data mnist --surrogates seed,substitute --out T",
        "brittle transfer --models MODEL,DEFENDED --data mnist --surrogates seed,half,mlp,kernel,substitute "
        "--norm linf --epsilon 0.2 --networks NETWORKS --require holds --out T",
    ),
)


class Question(BaseModel):
    """What is asked, and how much is tried."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    limit: int = Field(200, ge=1, description="Attacked images: test images that all models classify right, at random.")
    steps: int = Field(40, ge=1, le=100_000, description="Steps of the searches within the ball.")
    surrogate_epochs: int = Field(5, ge=1, le=10_000, description="Passes over the training images of a surrogate.")
    queries: int = Field(9600, ge=10, le=10**7, description="Images, at most, that a substitute asks its victim about.")
    tolerance: Number = Field(
        0.1, gt=0, lt=1, description="Largest acceptable share of images that fool a model and were made on others."
    )
    require: str | None = Field(None, pattern="^holds$", description="holds: exit code 1 unless every model does.")
    seed: int = Field(0, ge=0, lt=2**31, description="Of the choice of images and of every draw.")


def attacks_within(ball: Ball, steps: int) -> dict[str, Attack]:
    """The searches of each source by name; what `twice` makes of the last is tried beside them.

    A search that ends at the first success leaves images that only just succeed, which transfer little; so beside
    ``pgd`` there is one that goes on to its last step (L∞), and beside the smallest change its double.
    """
    found: dict[str, Attack] = {"pgd": PGD(norm=ball.norm, epsilon=ball.epsilon, steps=steps)}
    if ball.norm == "linf":
        found = {"fgsm": FGSM(epsilon=ball.epsilon)} | found
        found["bim"] = IterativeFGSM(steps=steps, step_size=ball.radius / 255 / steps, full=True)
    return found | {"ddn": DDN(steps=100)}


BOUNDED = ("fgsm", "pgd", "bim")
"""The attacks that keep to the threat; of the others the images that happen to lie within it count for the verdict."""


CLEAN = "clean.parquet"
"""What every model answers to the images as they are."""


def twice(clean: np.ndarray, adversarial: np.ndarray) -> np.ndarray:
    """The images that lie twice as far from clean ones; all uint8 of one shape, clipped to 0 to 255."""
    return (2 * adversarial.astype(np.int16) - clean).clip(0, 255).astype(np.uint8)


@app.default
def transfer(
    *,
    models: Annotated[str, Parameter(group=Group("Models and images"))],
    data: Annotated[str, Parameter(group=Group("Models and images"))],
    out: Annotated[str, Parameter(group=Group("Models and images"))],
    split: Annotated[str | None, Parameter(group=Group("Models and images"))] = None,
    layout: Annotated[Layout | None, Parameter(group=Group("Models and images"))] = None,
    mean: Annotated[str, Parameter(group=Group("Models and images"))] = "",
    std: Annotated[str, Parameter(group=Group("Models and images"))] = "",
    surrogates: Annotated[str, Parameter(group=Group("Surrogates"))] = "",
    networks: Annotated[str | None, Parameter(group=Group("Surrogates"))] = None,
    training_data: Annotated[str | None, Parameter(group=Group("Surrogates"))] = None,
    retry_failed: Annotated[bool, Parameter(negative="", group=Group("Models and images"))] = False,
    threat: Annotated[BallFlags | None, Parameter(name="*", group=Group("Threat"))] = None,
    question: Annotated[Question | None, Parameter(name="*", group=Group("What is asked"))] = None,
    where: Annotated[Where | None, Parameter(name="*", group=Group("Where"))] = None,
) -> int:
    """
    Args:
        models: Model folders, torch.export programs or module:function, separated by commas: sources and victims.
        data: mnist, fashion-mnist, digits, or a path: .npz, .parquet, IDX, a folder of them.
        out: Folder for the verdict, the page, the tables and the runs; a transfer there is resumed.
        split: train or test; test when absent. A single file has no splits.
        layout: Order of the axes of images that are arrays: chw or hwc. Asked for where it is in doubt.
        mean: Normalisation put before every model: a mean for each channel, as 0.5,0.5,0.5.
        std: The standard deviation for each channel.
        surrogates: More sources, made here: some of seed, half, mlp, kernel, substitute, separated by commas.
        networks: Folder of trained surrogates, shared by several transfers; OUT/surrogates when absent.
        training_data: What surrogates are trained on; the train split of --data when absent.
        retry_failed: Search the images again whose search failed.
    """
    given, question, where = threat or BallFlags(), question or Question(), where or Where()
    named = {"models": models, "data": data, "split": split, "layout": layout, "mean": mean, "std": std,
             "surrogates": surrogates, "networks": networks, "training_data": training_data}  # fmt: skip
    command = typed("transfer", *flags(named), *changed(given, question, where), "--out", path(out))
    kinds = _kinds(surrogates)
    references = [text.strip() for text in models.split(",") if text.strip()]
    if len(set(references)) < len(references):
        raise WrongInput("--models: the same one is named twice")
    if len(references) < 2 - bool(kinds):
        raise WrongInput(f"--models: expected two at least, or one and --surrogates, got {len(references)}")
    folder = FrozenFolder(on_disk("--out", out), "transfer")
    folder.require_usable()
    trained = on_disk("--networks", networks) if networks else folder.path / "surrogates"
    host = WorkerHost(where)
    dataset = load_data(data, split, layout=layout, say=say)
    ball = given.ball(dataset.shape)
    attacks = attacks_within(ball, question.steps)
    if kinds and min(dataset.shape[1:]) < 7:
        raise WrongInput(
            f"--surrogates: the CNN needs images of at least 7×7, got {dataset.shape[1]}×{dataset.shape[2]}"
        )
    training = load_training(training_data, data, dataset) if set(kinds) - {"substitute"} else None
    victims = _load_models(references, dataset, mean, std)
    for subject in victims.values():
        for attack in attacks.values():
            attack.check(dataset.shape, subject.classes)
    asked = {
        "models": {name: subject.recipe.content_hash for name, subject in victims.items()},
        **ball.describe(),
        **question.model_dump(mode="json", exclude={"require", "tolerance"}),
        "surrogates": ", ".join(kinds),
        "split": dataset.split,
        "data": next(iter(victims.values())).data_hash,
        "training": training.content_hash() if training else "",
        **versions(),
    }
    if folder.exists:
        folder.compare(asked)
    job = _Transfer(victims, dataset, training, folder, trained, host, ball, question, kinds, attacks, retry_failed)
    with keeping(folder.path), folder.locked(), host:
        if fresh := not folder.exists:
            job.require_images()
            folder.create(asked)
        else:
            folder.compare(asked)
        try:
            if fresh:
                host.pool()  # refuses what does not fit before anything is trained
            for line in said_of(ball, given=given.epsilon is not None):
                say(line)
            job.make_surrogates()
            job.search()
        except WrongInput:
            if fresh and not any((folder.path / name).exists() for name in ("runs", "surrogates")):
                (folder.path / CLEAN).unlink(missing_ok=True)
                folder.forget()
            raise
        report = job.report()
        _publish(folder, report, ball, command)
    return _tell(folder, report, job)


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(part.strip() for part in text.split(",") if part.strip())
    for kind in kinds:
        if kind not in KINDS:
            raise WrongInput(f"--surrogates: unknown surrogate {kind}: expected some of {', '.join(KINDS)}")
    if len(set(kinds)) < len(kinds):
        raise WrongInput("--surrogates: the same one is named twice")
    return tuple(kind for kind in KINDS if kind in kinds)


def _load_models(references: Sequence[str], dataset: Dataset, mean: str, std: str) -> dict[str, Subject]:
    """The models by name: the last part of each reference, and as much before it as tells it from the others.

    Sets torch to one thread, as `jobs.subject.load_subject` does.

    Raises:
        WrongInput: when one is wrong or does not fit the images.
    """
    import torch

    from workers.models.loading import check_model, read_model

    torch.set_num_threads(1)
    means, deviations = numbers(mean, float, "--mean"), numbers(std, float, "--std")
    if means and len(means) not in (1, dataset.shape[0]):
        raise WrongInput(f"--mean: images have {dataset.shape[0]} channels, got {len(means)} numbers")
    found = {}
    for name, reference in zip(_names(references), references, strict=True):
        recipe = read_model(reference, mean=means, std=deviations)
        model = recipe.build()
        try:
            found[name] = Subject(recipe, model, dataset, check_model(model, dataset))
            require_own_answers(found[name])
        except WrongInput as error:
            raise WrongInput(f"--models: {reference}: {error}") from None
    return found


def _names(references: Sequence[str]) -> list[str]:
    split = [[part for part in re.split(r"[/\\]", text) if part.strip(".")] for text in references]
    parts = [found or [text] for found, text in zip(split, references, strict=True)]
    for length in range(1, max(map(len, parts)) + 1):
        names = [_slug("-".join(part[-length:])) for part in parts]
        if len(set(names)) == len(names) and not any(map(_reserved, names)):
            return names
    return [f"{name}-{number}" for number, name in enumerate(names, 1)]


def _reserved(name: str) -> bool:
    return name in (*KINDS, "itself") or name.startswith("substitute-")


@dataclass
class _Transfer:
    """A transfer while it runs.

    Attributes:
        victims: the models that were named, by name.
        training: what surrogates are trained on; None where none is.
        failures: the first reason why a search failed on an image, by source and attack.
    """

    victims: dict[str, Subject]
    dataset: Dataset
    training: Dataset | None
    folder: FrozenFolder
    networks: Path
    host: WorkerHost
    threat: Ball
    question: Question
    kinds: tuple[str, ...]
    attacks: dict[str, Attack]
    retry_failed: bool = False
    failures: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        order = np.random.default_rng(self.question.seed).permutation(len(self.dataset))
        held = min(FIRST, len(order) // 4, self.question.queries) if "substitute" in self.kinds else 0
        if "substitute" in self.kinds and not held:
            raise WrongInput(f"--surrogates: substitute begins with a quarter of the images, got {len(order)} images")
        self.first, self.rest = order[:held], order[held:]
        self.sources, self.made = dict(self.victims), list["Made"]()
        self._clean: dict[str, np.ndarray] = {}

    def require_images(self) -> None:
        """Refuses models that classify no image right together.

        Raises:
            WrongInput: saying so.
        """
        if not self._right(self.victims).any():
            raise WrongInput(f"no image is left to attack: none of {len(self.rest)} is classified right by all models")

    def make_surrogates(self) -> None:
        """Trains what is not trained yet, and finds the images that all models classify right.

        Raises:
            WrongInput: when there are none.
            Interrupted: when stopped; the same command goes on.
        """
        from analysis.summary import clean_accuracy

        if self.kinds:
            from jobs.surrogates import Workshop
            from workers.models.loading import check_model, read_model

            workshop = Workshop(
                self.training or self.dataset,  # substitutes need only shape and classes of it
                self.dataset,
                self.dataset.images[self.first],
                self.question.surrogate_epochs,
                self.question.queries,
                self.networks,
            )
            recipes = {name: subject.recipe for name, subject in self.victims.items()}
            for kind in self.kinds:
                self.made += workshop.make(kind, recipes)
        for made in self.made:
            recipe = read_model(str(made.folder))
            model = recipe.build()
            self.sources[made.name] = Subject(recipe, model, self.dataset, check_model(model, self.dataset))
        self.right = self._right(self.sources)
        self.ids = self.rest[self.right[self.rest]][: self.question.limit]
        if not len(self.ids):
            raise WrongInput(f"no image is left to attack: none of {len(self.rest)} is classified right by all models")
        for name, subject in self.sources.items():
            subject.warn_near_chance(clean_accuracy(self._clean[name], self.dataset.labels))
        say(
            f"{int(self.right[self.rest].sum())} of {len(self.rest)} images are classified right by all "
            f"{len(self.sources)} models, {len(self.ids)} of them are attacked"
        )

    def search(self) -> None:
        """Searches every source, or what is left of that.

        Raises:
            Interrupted: when stopped; the same command goes on.
        """
        size = shard_of_few(len(self.ids))
        for name, subject in self.sources.items():
            say(f"source {name}:")
            for attack_name, attack in self.attacks.items():
                (summary,) = launch(
                    (attack,),
                    subject,
                    Selection(seed=self.question.seed, shard_size=size),
                    self._run(name, attack_name),
                    self.host,
                    ids=self.ids,
                    title=f"{name}: {attack_name}",
                    retry_failed=self.retry_failed,
                )
                if summary.first_error:
                    self.failures[f"{name} {attack_name}"] = summary.first_error

    def report(self) -> "TransferReport":
        """Shows every image to every model, and counts."""
        from analysis.statistics import Rate
        from analysis.summary import clean_accuracy
        from analysis.transfer import Surrogate, report

        clean = {name: clean_accuracy(found, self.dataset.labels) for name, found in self._clean.items()}
        made = [Surrogate(one.name, one.what, clean[one.name], one.queries) for one in self.made]
        return report(
            self._answers(),
            {name: clean[name] for name in self.victims},
            threat=str(self.threat),
            right=Rate(int(self.right[self.rest].sum()), len(self.rest)),
            surrogates=made,
            tolerance=self.question.tolerance,
        )

    def _answers(self) -> "list[Answers]":
        from analysis.transfer import Answers

        asked = len(self.sources) * len(self.ids) * (len(self.attacks) + 1)
        found = []
        with progress(asked, "answers to the images found", "images") as bar:
            for source in self.sources:
                for attack in (*self.attacks, "ddn×2"):
                    table = self._answered(source, attack)
                    bar.advance(len(table), f"{attack} of {source}")
                    columns = {name: table[name].to_numpy() for name in table.column_names}
                    found.append(
                        Answers(
                            source,
                            attack,
                            columns["image_id"],
                            columns["label"],
                            columns["l2"],
                            columns["within"],
                            {name: columns[f"of {name}"] for name in self._asked(source)},
                            attack in BOUNDED,
                        )
                    )
        return found

    def _asked(self, source: str) -> dict[str, "nn.Module"]:
        """Who is shown the images of a source: the victims and itself."""
        return {name: one.model for name, one in self.sources.items() if name in self.victims or name == source}

    def _answered(self, source: str, attack: str) -> Any:
        """What the victims and the source itself answer to the images of one attack; kept beside the runs."""
        import pyarrow as pa
        import pyarrow.compute as pc

        from analysis.replay import stored_images
        from workers.evaluation.answers import UNANSWERED, answers

        run = RunFolder(self._run(source, "ddn" if attack == "ddn×2" else attack))
        (rows,) = run.tables(run.plan())
        failed = pc.equal(rows["status"].cast("string"), str(Status.FAILED))
        lost, rows = rows.filter(failed)["image_id"].to_numpy(), rows.filter(pc.invert(failed))
        if not len(rows):
            raise Failed(f"{run.place}: every search failed; --retry-failed tries again")

        def with_lost(table: pa.Table) -> pa.Table:
            """Behind the answers the images that the search failed on, to which there are none."""
            known = {"image_id": lost, "label": self.dataset.labels[lost], "within": np.ones(len(lost), dtype=bool)}
            others = {
                name: np.full(len(lost), UNANSWERED if name.startswith("of ") else 0) for name in table.column_names
            }
            return pa.concat_tables([table, pa.table(others | known).cast(table.schema)])

        kept = self.folder.path / "answers" / source / f"{_slug(attack)}.parquet"
        if kept.exists():
            table = read_table(kept)
            if table["image_id"].equals(rows["image_id"]):
                return with_lost(table)
        ids, images = rows["image_id"].to_numpy(), stored_images(rows)
        if attack == "ddn×2":
            images = twice(self.dataset.images[ids], images)
        moved = distances(self.dataset.images[ids], images)
        table = pa.table(
            {
                "image_id": rows["image_id"],
                "label": self.dataset.labels[ids],
                **vars(moved),
                "within": self.threat.within(moved),
                **{f"of {name}": answers(model, images) for name, model in self._asked(source).items()},
            }
        )
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_part(table, Place.of(kept))
        return with_lost(table)

    def _right(self, subjects: Mapping[str, Subject]) -> np.ndarray:
        """bool ``[N]``: which images all of some models classify right."""
        from workers.evaluation.answers import answers

        self._read_clean()
        missing = [name for name in subjects if name not in self._clean]
        if missing:
            with progress(len(missing) * len(self.dataset), "clean predictions") as bar:
                for name in missing:
                    self._clean[name] = answers(subjects[name].model, self.dataset.images, bar.advance)
        if self.folder.exists and (missing or not (self.folder.path / CLEAN).exists()):
            self._write_clean()
        return np.logical_and.reduce([self._clean[name] == self.dataset.labels for name in subjects])

    def _read_clean(self) -> None:
        path = self.folder.path / CLEAN
        if not self._clean and self.folder.exists and path.exists():
            table = read_table(path)
            self._clean = {name[3:]: table[name].to_numpy() for name in table.column_names if name.startswith("of ")}

    def _write_clean(self) -> None:
        import pyarrow as pa

        columns = {"image_id": np.arange(len(self.dataset)), "label": self.dataset.labels}
        found = {f"of {name}": predicted for name, predicted in self._clean.items()}
        write_part(pa.table(columns | found), Place.of(self.folder.path / CLEAN))

    def _run(self, source: str, attack: str) -> Place:
        return Place.of(self.folder.path / "runs" / source / attack)


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name.replace("×", "x"))


def _publish(folder: FrozenFolder, report: "TransferReport", ball: Ball, command: str) -> None:
    """Writes verdict, tables, figures and page."""
    from analysis.exhibits import write_exhibits
    from analysis.figures.transfer import transfer_exhibits
    from analysis.page.transfer import render_transfer
    from analysis.transfer import to_json, to_table

    verdict = to_json(report) | {"threat": ball.describe()}
    write_part(to_table(report), Place.of(folder.path / "transfer.parquet"))
    write_whole(folder.path / "verdict.json", (json.dumps(verdict, indent=1) + "\n").encode())
    exhibits = transfer_exhibits(report)
    write_whole(folder.page, render_transfer(report, exhibits=exhibits, command=command).encode())
    write_exhibits(exhibits, folder.path / "figures")


def _tell(folder: FrozenFolder, report: "TransferReport", job: _Transfer) -> int:
    """Prints the matrix of each attack and the verdicts, and says how the command ends."""
    names = [victim.name for victim in report.victims]
    itself = [] if set(names) >= set(report.sources) else ["itself"]
    widths = [max(map(len, (*report.sources, "source"))), *(max(len(name), 6) for name in (*names, *itself))]

    def line(first: str, *others: str) -> None:
        aligned = [f"{text:>{width}}" for text, width in zip(others, widths[1:], strict=True)]
        print(f"  {first:<{widths[0]}}", *aligned)

    for attack in report.attacks:
        print(f"{attack}: of the images that fool the source, those that fool the victim; on the diagonal, of all")
        line("source", *names, *itself)
        for source in report.sources:
            onto = [*names, *(source if source not in names else "" for _ in itself)]
            line(source, *(_percent(report.cell(source, victim, attack)) for victim in onto))
    for victim in report.victims:
        print(f"{victim.name}: {victim.judgement.verdict}")
        for reason in victim.judgement.reasons:
            print(f"  {reason}")
        if one := victim.worst:
            print(f"  most transfers {one.attack} of {one.source}: {one.rate}; the same wrong class: {one.agreement}")
    for name, reason in job.failures.items():
        say(f"{name}: a search failed, and what such images do is not known: {reason}")
    print(f"verdict in {folder.path / 'verdict.json'}, page in {folder.page}")
    unmet = job.question.require and report.verdict != "holds"
    return Exit.FAILED if unmet or job.failures else Exit.DONE


def _percent(cell: "Cell | None") -> str:
    return "" if cell is None else cell.rate.share


if __name__ == "__main__":
    from jobs.main import main

    sys.exit(main(["transfer", *sys.argv[1:]]))
