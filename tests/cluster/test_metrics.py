"""What Ray is given as tags."""

import pytest

from cluster.metrics import SearchMetrics


@pytest.mark.parametrize("name", ["run", "a b%", "é", "new\nline", "😀" * 60, "x" * 255, "", 'it\'s "q" \\', "\udcff"])
def test_names_of_any_kind_are_tags_that_ray_takes(name: str) -> None:
    metrics = SearchMetrics("torchattacks:PGD", name)
    metrics.workers(2)
    tags = metrics._workers._default_tags
    assert tags["attack"] == "torchattacks:PGD"
    assert tags["run"].isascii()
    assert len(tags["run"]) <= 255
    assert tags["run"].isprintable()
    if name.isascii() and name.isprintable() and not {"%", "\\"} & set(name):
        assert tags["run"] == name
