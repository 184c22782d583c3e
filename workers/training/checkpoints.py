"""A training's folder: its description, and a checkpoint after every epoch that it resumes from."""

import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from workers.errors import Failed, WrongInput
from workers.files import require_place, write_whole
from workers.models.loading import pack_weights

__all__ = ["last_weights", "restore", "same_training", "save"]


def same_training(folder: Path, card: dict[str, Any], epochs: int, parts: Sequence[str] = ()) -> dict[str, Any]:
    """The folder's own card when it holds epochs of this training, else the given one.

    Args:
        folder: of the training; absent, empty, or one that `save` wrote.
        card: ``architecture``, ``training`` (both compared field by field) and ``epochs``.
        epochs: how many are wanted.
        parts: names of the trainings below the folder that this one stands on, which may be there before it.

    Raises:
        WrongInput: when the folder holds another training, more epochs than are wanted, or something else.
    """
    path = folder / "model.json"
    if folder.exists() and not folder.is_dir():
        raise WrongInput(f"--out {folder}: exists and is not a folder")
    if not path.exists():
        leftovers = ("epoch-", ".epoch-", ".model.json.", ".lock")  # of a kill before the first checkpoint was whole
        strange = (entry for entry in (folder.iterdir() if folder.exists() else ()) if entry.name not in parts)
        if not all(entry.name.startswith(leftovers) for entry in strange):
            raise WrongInput(f"--out {folder}: exists and is not a model folder")
        require_place(folder)
        return card
    try:
        found = json.loads(path.read_text())
        haves, wants = ({**one["training"], "architecture": one["architecture"]} for one in (found, card))
        for field in wants | haves:
            # a folder that was made before there were defenses does not say that it has none
            have, want = haves.get(field, "none"), wants.get(field, "none")
            if have != want:
                if field == "data":  # hashes: the names say more
                    have, want = (
                        f"{one['data']['name']} ({digest[:8]}…)" for one, digest in ((found, have), (card, want))
                    )
                raise WrongInput(f"--out {folder}: was trained with {field} {have}, not {want}; name another folder")
        if len(found["epochs"]) > epochs:
            raise WrongInput(f"--epochs: {folder} has {len(found['epochs'])} epochs already, got {epochs}")
        return dict(found)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, WrongInput):
            raise
        raise WrongInput(f"--out {folder}: model.json is not a training's description") from None


def save(folder: Path, card: dict[str, Any], model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Writes the epoch that the card lists last; ``model.json`` is replaced last, so a kill leaves the one before.

    Raises:
        Failed: when its loss or the weights are not finite; the folder keeps the epoch before.
    """
    done = len(card["epochs"])
    loss = card["epochs"][-1].get("loss", 0.0)  # a fit in one go has none
    if not (math.isfinite(loss) and all(bool(value.isfinite().all()) for value in model.state_dict().values())):
        what = "its weights are not finite" if math.isfinite(loss) else f"its loss is {loss}"
        raise Failed(f"{folder}: the training diverged in epoch {done}: {what}; a lower learning rate may help")
    stem = f"epoch-{len(card['epochs']):03d}"
    write_whole(folder / f"{stem}.safetensors", pack_weights(model))
    write_whole(folder / f"{stem}.optimizer", safetensors.torch.save(_moments(model, optimizers)))
    card["weights"] = f"{stem}.safetensors"
    write_whole(folder / "model.json", (json.dumps(card, indent=1) + "\n").encode())
    for old in [*folder.glob("epoch-*"), *folder.glob(".*.tmp")]:
        if old.stem != stem:
            with contextlib.suppress(OSError):
                old.unlink()


def last_weights(folder: Path) -> dict[str, Tensor]:
    """The weights after the last epoch that `save` wrote."""
    weights: str = json.loads((folder / "model.json").read_text())["weights"]
    found: dict[str, Tensor] = safetensors.torch.load_file(folder / weights)
    return found


def restore(folder: Path, weights: str, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Puts model and optimizers back to where `save` left them.

    Args:
        folder: of the training.
        weights: as the card names them.
        model, optimizers: freshly made, to be filled.

    Raises:
        WrongInput: when the checkpoint cannot be read.
    """
    try:
        model.load_state_dict(safetensors.torch.load_file(folder / weights))
        names = {parameter: name for name, parameter in model.named_parameters()}
        moments = safetensors.torch.load_file((folder / weights).with_suffix(".optimizer"))
        for optimizer in optimizers:
            for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
                start = f"{names[parameter]}."
                kept = {key.removeprefix(start): value for key, value in moments.items() if key.startswith(start)}
                if not kept:
                    raise KeyError(f"nothing of {names[parameter]}")
                optimizer.state[parameter] = kept
    except (OSError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise WrongInput(f"--out {folder}: its checkpoint cannot be read: {str(error).splitlines()[0]}") from None


def _moments(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """What the optimizers keep of each parameter, as ``PARAMETER.KEY``."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}.{key}": value.contiguous()
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }
