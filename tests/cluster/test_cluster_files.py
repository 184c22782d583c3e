"""The files that make a cluster, checked offline, and what travels to it."""

import re
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from cluster.session import stage_code

ROOT = Path(__file__).parents[2]
LAUNCHER_FILES = ("ray-config.yaml", "cluster/ray-config-aws.yaml")


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_a_launcher_file_is_one_for_ray(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    validate_config(prepare_config(read(name)))


def without_hosts(config: dict[str, Any]) -> None:
    del config["provider"]["head_ip"]


def with_a_typo(config: dict[str, Any]) -> None:
    config["setup_command"] = config.pop("setup_commands")


def with_words_for_numbers(config: dict[str, Any]) -> None:
    config["max_workers"] = "many"


def with_an_unknown_head(config: dict[str, Any]) -> None:
    config["head_node_type"] = "absent"


def with_too_many(config: dict[str, Any]) -> None:
    config["available_node_types"]["gpu"]["min_workers"] = config["max_workers"] + 1


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("ray-config.yaml", without_hosts),
        ("ray-config.yaml", with_a_typo),
        ("cluster/ray-config-aws.yaml", with_a_typo),
        ("cluster/ray-config-aws.yaml", with_words_for_numbers),
        ("cluster/ray-config-aws.yaml", with_an_unknown_head),
        ("cluster/ray-config-aws.yaml", with_too_many),
    ],
)
def test_a_spoilt_launcher_file_is_refused(name: str, spoil: Callable[[dict[str, Any]], None]) -> None:
    config = read(name)
    spoil(config)
    with pytest.raises((jsonschema.ValidationError, ValueError, click.ClickException)):
        validate_config(prepare_config(config))


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_every_node_starts_with_the_token_and_known_flags(name: str) -> None:
    config = read(name)
    known = {flag for parameter in start.params for flag in parameter.opts}
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        [line] = [command for command in commands if "ray start" in command]
        assert "RAY_AUTH_MODE=token" in line.partition(";")[0]
        flags = {word.split("=")[0] for word in shlex.split(line.partition("ray start")[2])}
        assert flags <= known
    assert "--dashboard-host=127.0.0.1" in " ".join(config["head_start_ray_commands"])
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_what_a_node_installs_is_there(name: str) -> None:
    config = read(name)
    mounted = {there: Path(here) for there, here in config["file_mounts"].items() if there.startswith("~/brittle/")}
    assert all((ROOT / here).exists() for here in mounted.values())
    assert {"~/brittle/pyproject.toml", "~/brittle/constraints.txt", "~/brittle/README.md"} <= mounted.keys()
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages <= {here.name for here in mounted.values()}


def test_both_launcher_files_install_the_same() -> None:
    on_premise, cloud = map(read, LAUNCHER_FILES)
    assert on_premise["setup_commands"] == cloud["setup_commands"]
    assert on_premise["file_mounts"] == cloud["file_mounts"]


def test_the_rayjob_has_what_kuberay_asks_for() -> None:
    job = read("cluster/kuberay-job.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec["entrypoint"].startswith("python -m jobs.attack ")
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert cluster["rayVersion"] == pinned[1]
    groups = cluster["workerGroupSpecs"]
    for group in groups:
        assert {"groupName", "minReplicas", "maxReplicas", "template"} <= group.keys()
    for pod in (group["template"]["spec"] for group in [cluster["headGroupSpec"], *groups]):
        [container] = pod["containers"]
        [mount], [volume] = container["volumeMounts"], pod["volumes"]
        assert mount["name"] == volume["name"]
        for path in re.findall(r"--(?:model|data|out) (\S+)", spec["entrypoint"]):
            assert Path(path).is_relative_to(mount["mountPath"])


def packed(folder: Path, to: Path) -> tuple[set[str], int]:
    """The names in Ray's package of a working directory, and the package's bytes."""
    create_package(
        str(folder),
        to,
        include_gitignore=True,
        include_parent_dir=False,
        excludes=get_runtime_env_default_excludes(),
    )
    return set(zipfile.ZipFile(to).namelist()), to.stat().st_size


def test_a_submitted_tree_travels_without_its_ballast(tree: Path, tmp_path: Path) -> None:
    names, size = packed(tree, tmp_path / "package.zip")
    wanted = {path for package in ("analysis", "cluster", "jobs", "workers") for path in (tree / package).rglob("*")}
    wanted = {str(path.relative_to(tree)) for path in wanted if path.is_file() and path.suffix != ".pyc"}
    assert wanted | {"mymodels.py", "layers.py", "images.npz", "constraints.txt", "pyproject.toml"} <= names
    tops = {name.split("/")[0] for name in names}
    assert not tops & {"tests", "benchmarks", ".git", ".venv", "experiment", "runs", "build", "brittle.egg-info"}
    assert not [name for name in names if "cache" in name.rpartition("/")[0] or name.endswith((".pyc", ".optimizer"))]
    assert size < 1.1 * sum((tree / name).stat().st_size for name in wanted)  # nearly all of it is sources


def test_a_joining_driver_ships_code_alone(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    (tmp_path / "stage").mkdir()
    names, size = packed(stage_code(tmp_path / "stage"), tmp_path / "package.zip")
    assert {"mymodels.py", "layers.py", "cluster/pool.py", "workers/actor.py", "workers/attacks/jsma.py"} <= names
    assert {Path(name).suffix for name in names if not name.startswith(".") and not name.endswith("/")} == {".py"}
    assert {name.split("/")[0] for name in names if "/" in name} <= {"cluster", "workers", "model"}
    assert size < 1_500_000  # the sources themselves are two thirds of it


def test_a_users_folder_named_like_ours_does_not_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("workers/mine.py", "jobs/mine.py", "nets/mine.py", "site-packages/mine.py", ".hidden/mine.py"):
        (tmp_path / "here" / name).parent.mkdir(parents=True)
        (tmp_path / "here" / name).touch()
    monkeypatch.chdir(tmp_path / "here")
    staged = stage_code(tmp_path / "stage")
    assert [str(path.relative_to(staged)) for path in staged.rglob("mine.py")] == ["nets/mine.py"]
    assert (staged / "workers" / "actor.py").is_file()
