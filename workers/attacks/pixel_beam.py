"""Few-pixel search that ranks every single change and keeps the best images."""

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from workers.attacks.few_pixel import FewPixelAttack
from workers.errors import WrongInput

if TYPE_CHECKING:
    from torch import Tensor

    from workers.search import Batch

__all__ = ["PixelBeam"]

IMAGES_AT_ONCE = 16


class PixelBeam(FewPixelAttack):
    """Beam search over single-pixel changes, fewest pixels first.

    Brittle's own. Every change of one more pixel of the W best images found so far is judged by its margin; the
    best W different images go on, until one reaches the goal or k pixels are changed. The success kept is the
    one with the lowest margin among those of the smallest k. With ``--levels all`` (grey images) a pixel may
    take any of 256 levels, else black or white in each channel.
    """

    NAME: ClassVar[str] = "pixel-beam"

    pixels: int = Field(5, ge=1, description="k, the most pixels that may change.")
    width: int = Field(1, ge=1, le=1024, description="W, how many images are kept after each pixel.")
    levels: Literal["extremes", "all"] = Field(
        "extremes", description="Levels of a changed pixel: 0 and 255 of each channel, or all 256 of grey."
    )
    max_queries: int | None = Field(None, ge=1, description="Most queries an image; no limit when absent.")

    @property
    def shard_size(self) -> int:
        return max(1, 64 // self.width) if self.levels == "extremes" else 1

    def check(self, shape: tuple[int, int, int], classes: int) -> Self:
        if self.levels == "all" and shape[0] != 1:
            raise WrongInput(f"--levels: all goes with grey images, these have {shape[0]} channels")
        return super().check(shape, classes)

    def _search(self, batch: "Batch") -> None:
        for start in range(0, len(batch), IMAGES_AT_ONCE):
            self._some(batch, batch.all_rows[start : start + IMAGES_AT_ONCE])

    def _some(self, batch: "Batch", rows: "Tensor") -> None:
        """Searches for some rows of the batch; a beam is images and the rows that they belong to."""
        import torch

        from workers.evaluation.few_pixel import all_levels

        values = torch.from_numpy(all_levels(batch.images.shape[1], extremes=self.levels == "extremes"))
        beam, owner = batch.images[rows], rows
        for _ in range(self.pixels):
            index, position, levels = self._changes(batch, beam, owner, values)
            if not len(index):
                return
            around = batch.around(beam, owner)
            _, margin, success = around.judge(index, position, levels)
            batch.generations[owner.unique()] += 1  # type: ignore[no-untyped-call]
            kept: list[Tensor] = []
            for row in owner.unique().tolist():  # type: ignore[no-untyped-call]
                mine = torch.nonzero(owner[index] == row)[:, 0]
                if not len(mine):
                    continue
                reached = mine[success[mine]]
                pool = reached if len(reached) else mine
                ranked = pool[margin[pool].argsort(stable=True)[: self.width * (1 + self.pixels)]]
                images = around.images(index[ranked], position[ranked], levels[ranked])
                batch.adversarial[row] = images[0]
                if not len(reached):
                    kept.append(ranked[_first_of_each(images)[: self.width]])
            if not kept:
                return
            chosen = torch.cat(kept)
            beam, owner = around.images(index[chosen], position[chosen], levels[chosen]), owner[index[chosen]]

    def _changes(
        self, batch: "Batch", beam: "Tensor", owner: "Tensor", values: "Tensor"
    ) -> tuple["Tensor", "Tensor", "Tensor"]:
        """Every change of one untouched pixel to another value, of each image of the beam, within the budget."""
        import torch

        touched = (beam != batch.images[owner]).any(dim=1).flatten(1)
        same = (beam.flatten(2).transpose(1, 2)[:, :, None] == values).all(dim=3)
        index, position, value = torch.nonzero(~touched[:, :, None] & ~same, as_tuple=True)
        if self.max_queries is not None:
            mine = owner[index]
            first = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(mine).cumsum(0)])
            order = mine.argsort(stable=True)
            rank = torch.empty_like(order)
            rank[order] = torch.arange(len(order)) - first[mine[order]]
            allowed = rank + batch.queries[mine] < self.max_queries
            index, position, value = index[allowed], position[allowed], value[allowed]
        return index, position[:, None], values[value][:, None]


def _first_of_each(images: "Tensor") -> "Tensor":
    """The numbers of the images that no earlier one equals: two orders of the same changes meet here."""
    import torch

    seen = {image.tobytes(): number for number, image in reversed(list(enumerate(images.cpu().numpy())))}
    return torch.tensor(sorted(seen.values()))
