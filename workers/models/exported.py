"""Programs of ``torch.export``, read without running anything that a file brings along.

`torch.export.load` of torch 2.13 may run code of the file's choice in five ways: example inputs, weights and constants
are unpickled when the file says so, and when a safe attempt fails; operators are looked up by any dotted name below
``torch``, which reaches ``torch.os.system``; sizes are text that sympy evaluates; guards are Python source; compiled
libraries are loaded. So an archive is first read here as data, what is not needed is left out, and what is left is
held against lists of what a model needs.
"""

import io
import json
import logging
import re
import zipfile
from typing import Any

import torch
from torch import Tensor, nn

from workers.errors import WrongInput

__all__ = ["Exported", "load_program", "pack_program"]

_OPERATOR = re.compile(
    r"torch\.ops\.aten\.(?!from_file|save)\w+(\.\w+)?|"
    r"_operator\.(getitem|add|sub|mul|floordiv|mod|neg|[lg][te]|eq|ne)"
)
_FORMAT = ("archive_format", "archive_version", "byteorder", ".data/version")
_SIZE = re.compile(r"[\w ,()+*/'=-]*")
_SIZE_WORDS = re.compile(
    r"[suz]\d+|\d+|Symbol|Integer|Mul|Add|Pow|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|integer|positive|"
    r"nonnegative|True|False"
)


class Exported(nn.Module):
    """A program as a model. Its mode was chosen when it was exported; ``eval()`` and ``train()`` leave it so."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program
        for module in self.modules():
            module.training = False

    def train(self, mode: bool = True) -> "Exported":
        return self

    def forward(self, images: Tensor) -> Any:
        return self.program(images)


def pack_program(content: bytes) -> bytes:
    """Checks a ``.pt2`` file and packs what a model needs of it, the same bytes for the same program.

    Raises:
        WrongInput: when it is none, or holds what could run code, or takes a fixed number of images.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            files = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
        program = json.loads(files["models/model.json"])
        configs = [json.loads(files[f"data/{kind}/model_{kind}_config.json"]) for kind in ("weights", "constants")]
        _check_tensors(configs)
        _check_graph(program)
        _check_batch(program["graph_module"])
    except (zipfile.BadZipFile, KeyError, TypeError, AttributeError, IndexError, UnicodeDecodeError) as error:
        raise WrongInput(f"not a program of torch.export.save ({type(error).__name__}: {error})") from None
    except json.JSONDecodeError as error:
        raise WrongInput(f"not a program of torch.export.save ({error})") from None
    wanted = [path for config in configs for path in (entry["path_name"] for entry in config["config"].values())]
    kept: dict[str, bytes] = {name: files[name] for name in _FORMAT if name in files}
    kept |= {name: data for name, data in files.items() if name.rpartition("/")[2] in wanted}
    kept |= {f"data/{kind}/model_{kind}_config.json": json.dumps(config).encode()
             for kind, config in zip(("weights", "constants"), configs, strict=True)}  # fmt: skip
    kept["data/sample_inputs/model.pt"] = b""
    program["guards_code"] = []
    kept["models/model.json"] = json.dumps(program).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(kept):
            archive.writestr(zipfile.ZipInfo(f"model/{name}"), kept[name])
    return packed.getvalue()


def load_program(packed: bytes) -> Exported:
    """Builds the model of a packed program."""
    logging.getLogger("torch.export").setLevel(logging.ERROR)  # it warns with a traceback before it raises
    return Exported(torch.export.load(io.BytesIO(packed)).module(check_guards=False))


def _check_tensors(configs: list[dict[str, Any]]) -> None:
    for config in configs:
        for name, entry in config["config"].items():
            plain = re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"])
            if entry["use_pickle"] is not False or not plain:
                raise WrongInput(f"{name} is stored as a pickle, which is never loaded")


def _check_graph(part: Any) -> None:
    """Every operator and size in the program, wherever it is nested."""
    if isinstance(part, list):
        for item in part:
            _check_graph(item)
    if not isinstance(part, dict):
        return
    for key, value in part.items():
        if key == "target" and "inputs" in part and not _OPERATOR.fullmatch(value):
            raise WrongInput(f"operator {value} is not one of torch.ops.aten")
        if key == "expr_str" and not (_SIZE.fullmatch(value) and all(map(_is_size_word, re.findall(r"\w+", value)))):
            raise WrongInput(f"size {value!r} is not understood")
        if key == "arg" and part.get("name") in ("training", "train") and value == {"as_bool": True}:
            raise WrongInput("was exported in training mode: call model.eval() before torch.export.export")
        _check_graph(value)


def _is_size_word(word: str) -> bool:
    return _SIZE_WORDS.fullmatch(word) is not None


def _check_batch(module: dict[str, Any]) -> None:
    inputs = [spec["user_input"]["arg"]["as_tensor"]["name"] for spec in module["signature"]["input_specs"]
              if "user_input" in spec]  # fmt: skip
    if len(inputs) != 1:
        raise WrongInput(f"takes {len(inputs)} inputs, expected one: images")
    sizes = module["graph"]["tensor_values"][inputs[0]]["sizes"]
    if "as_expr" not in sizes[0]:
        raise WrongInput(
            f"takes exactly {sizes[0].get('as_int')} images: export it with "
            "dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)"
        )
