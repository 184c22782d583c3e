"""Few-pixel search that ranks every single change and keeps the best images."""

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from workers.attacks.few_pixel import FewPixelAttack
from workers.errors import WrongInput

if TYPE_CHECKING:
    from torch import Tensor

    from workers.search import Batch

__all__ = ["PixelBeam"]

AT_ONCE = 1 << 15
"""Candidates of all images that are searched together: enough for one call to cost little beside them."""


class PixelBeam(FewPixelAttack):
    """Beam search over single-pixel changes, fewest pixels first.

    Brittle's own. At first every pixel's change to black or white in each channel (``--levels all``: to any of
    256 levels, grey images) is judged by its margin, the whole table of them. The W best changed images are the
    beam; every image of the beam is tried with one more pixel changed, the W best of all these are the next
    beam, and so on until one reaches the goal or k pixels are changed. What is kept is the success of the lowest
    margin, at the first number of pixels that has one. Two orders of the same changes are tried once.

    The effects of changes nearly add up, so after the table only its M best pixels stay in play, each at its
    best level: the same queries pay for a wider beam. ``--width 1 --candidates 0`` is the plain greedy search.
    """

    NAME: ClassVar[str] = "pixel-beam"

    pixels: int = Field(5, ge=1, description="k, the most pixels that may change.")
    width: int = Field(10, ge=1, le=1024, description="W, how many images are kept after each pixel.")
    candidates: int = Field(
        200,
        ge=0,
        description="M, how many pixels stay in play after the first, each at its best level; 0: all at every level.",
    )
    levels: Literal["extremes", "all"] = Field(
        "extremes", description="Levels of a changed pixel: 0 and 255 of each channel, or all 256 of grey."
    )
    max_queries: int | None = Field(None, ge=1, description="Most queries an image; no limit when absent.")

    @property
    def shard_size(self) -> int:
        table = 1_000 if self.levels == "extremes" else 200_000
        queries = table + (self.pixels - 1) * self.width * (self.candidates or table)
        return max(1, min(256, 1_000_000 // min(queries, self.max_queries or queries)))

    def check(self, shape: tuple[int, int, int], classes: int) -> Self:
        if self.levels == "all" and shape[0] != 1:
            raise WrongInput(f"--levels: all goes with grey images, these have {shape[0]} channels")
        if 0 < self.candidates < self.pixels:
            raise WrongInput(f"--candidates: must be at least --pixels ({self.pixels}) or 0, got {self.candidates}")
        return super().check(shape, classes)

    def _search(self, batch: "Batch") -> None:
        import torch

        from workers.evaluation.few_pixel import all_levels

        values = torch.from_numpy(all_levels(batch.images.shape[1], extremes=self.levels == "extremes"))
        values = values.to(batch.images.device)
        table = len(values) * batch.images.shape[2] * batch.images.shape[3]
        each = max(table, self.width * max(32, min(table, self.candidates or table)))  # 32: `_new` takes all pairs
        for rows in torch.split(batch.all_rows, max(1, AT_ONCE // each)):
            self._some(batch, rows, values)

    def _some(self, batch: "Batch", rows: "Tensor", values: "Tensor") -> None:
        """Searches for consecutive rows of the batch; levels are uint8 ``[L, C]``.

        A change is numbered position·L + its level. The beam is ``images``, the rows that own them (ascending)
        and the changes that made them, int64 ``[m, pixels so far]``.
        """
        import torch

        images, owner, changes = batch.images[rows], rows, rows.new_empty((len(rows), 0))
        play = (images.flatten(2).transpose(1, 2)[:, :, None] != values).any(dim=3).flatten(1)  # [rows, H·W·L]
        for step in range(self.pixels):
            index, change = torch.nonzero(self._new(play[owner - rows[0]], owner, changes, len(values)), as_tuple=True)
            if self.max_queries is not None:
                affordable = _places(owner[index]) < self.max_queries - batch.queries[owner[index]]
                index, change = index[affordable], change[affordable]
            if not len(index):
                return
            row, position, levels = owner[index], change[:, None] // len(values), values[change % len(values)][:, None]
            around = batch.around(images, owner)
            _, margin, success = around.judge(index, position, levels)
            batch.generations[row.unique()] += 1  # type: ignore[no-untyped-call]

            reached = torch.zeros(len(batch), dtype=torch.bool, device=row.device)
            reached[row[success]] = True
            pool = torch.nonzero(success | ~reached[row])[:, 0]
            best = pool[_lowest(margin[pool], row[pool], 1)]
            batch.adversarial[row[best]] = around.images(index[best], position[best], levels[best])
            going = torch.nonzero(~reached[row])[:, 0]
            if not len(going):
                return
            if not step and self.candidates:
                going = going[_lowest(margin[going], row[going] * play.shape[1] + position[going, 0], 1)]
                going = going[_lowest(margin[going], row[going], self.candidates)]
                play = torch.zeros_like(play)
                play[row[going] - rows[0], change[going]] = True
            kept = going[_lowest(margin[going], row[going], self.width)]
            images = around.images(index[kept], position[kept], levels[kept])
            owner, changes = row[kept], torch.cat([changes[index[kept]], change[kept][:, None]], dim=1)

    def _new(self, play: "Tensor", owner: "Tensor", changes: "Tensor", levels: int) -> "Tensor":
        """bool ``[m, H·W·L]``: changes that give each image of the beam a new pixel, and no image twice.

        Two images of a row that differ in one change each meet where each takes the other's: the later one of
        them does not.

        Args:
            play: bool ``[m, H·W·L]``, the changes in play for each image's row; written to.
            owner: int64 ``[m]``.
            changes: int64 ``[m, pixels so far]``, all of them in play.
            levels: L.
        """
        import torch

        if not changes.shape[1]:
            return play
        free = play.view(len(owner), -1, levels)
        free[torch.arange(len(owner), device=owner.device)[:, None], changes // levels] = False
        common = (changes[:, None, :, None] == changes[None, :, None, :]).any(dim=2)  # [m, m, pixels of the second]
        near = (common.sum(dim=2) == changes.shape[1] - 1) & (owner[:, None] == owner)
        later, earlier = torch.nonzero(near.tril(-1), as_tuple=True)
        missing = changes[earlier][~common[later, earlier]]
        play[later, missing] = False
        return play


def _lowest(key: "Tensor", group: "Tensor", count: int) -> "Tensor":
    """The numbers of the ``count`` lowest keys of each group, the earlier one first where two are equal.

    Groups ascend, and so do those of the numbers. Each is sorted as one row of a table, short ones filled up.
    """
    import torch

    _, line, sizes = torch.unique_consecutive(group, return_inverse=True, return_counts=True)
    first = sizes.cumsum(0) - sizes
    table = key.new_full((len(sizes), int(sizes.max())), float("inf"))
    table[line, _places(group)] = key
    order = table.sort(dim=1, stable=True).indices[:, :count] + first[:, None]
    return order[torch.arange(order.shape[1], device=group.device) < sizes[:, None]]


def _places(group: "Tensor") -> "Tensor":
    """int64 ``[n]``: 0, 1, … within each group of an ascending column."""
    import torch

    return torch.arange(len(group), device=group.device) - torch.searchsorted(group, group)
