"""Imports flow one way: workers knows nobody, cluster and analysis know workers, jobs knows all."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOUSE = {"workers", "cluster", "analysis", "jobs"}
MAY_IMPORT = {
    "workers": {"workers"},
    "cluster": {"cluster", "workers"},
    "analysis": {"analysis", "workers"},
    "jobs": HOUSE,
}


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_imports_flow_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        strangers = set(imports_of(path)) & HOUSE - MAY_IMPORT[package]
        assert not strangers, f"{path.relative_to(ROOT)} imports {strangers}"


def test_cluster_needs_no_torch_and_only_the_actor_knows_ray() -> None:
    for path in (ROOT / "cluster").rglob("*.py"):
        assert "torch" not in set(imports_of(path)), path
    for path in (ROOT / "workers").rglob("*.py"):
        if path.name != "actor.py":
            assert "ray" not in set(imports_of(path)), path


def test_parquet_is_read_in_one_place() -> None:
    """Whoever reads it otherwise may abort the process at its end: `workers.parquet` says why."""
    readers = {"read_table", "read_schema", "read_metadata", "ParquetFile", "ParquetDataset", "read_pandas"}
    for package in HOUSE:
        for path in (ROOT / package).rglob("*.py"):
            if path == ROOT / "workers" / "parquet.py":
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyarrow"):
                    assert readers.isdisjoint(alias.name for alias in node.names), path
                    assert "dataset" not in f"{node.module} {[alias.name for alias in node.names]}", path
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pq":
                    assert node.attr not in readers, path


def test_every_folder_is_a_listed_package() -> None:
    import tomllib

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {str(p.parent.relative_to(ROOT)).replace("/", ".") for name in HOUSE for p in (ROOT / name).rglob("*.py")}
    assert listed == found
