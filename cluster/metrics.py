"""What a search tells Prometheus, through the endpoint that every Ray node has."""

from urllib.parse import quote

from workers.actor import ShardSummary

__all__ = ["SearchMetrics"]

TAG_LENGTH = 255
"""Of the value of a tag at most: Ray takes printable ASCII up to that length, and fails at all else."""

SHARD_SECONDS = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000]
"""The upper bounds of the histogram's buckets."""


class SearchMetrics:
    """Counts the finished shards of one search; Ray's agent on the driver's node exports them as ``ray_brittle_…``.

    The counters end in ``_total`` there. Recording costs microseconds and sends nothing: the driver reports to the
    agent every few seconds, and where there is no agent the numbers stay where they are.

    Args:
        attack: the attack's name, a tag of every sample.
        run: the run's, the other tag; what is not ASCII in them is percent-encoded.
    """

    def __init__(self, attack: str, run: str) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        tags, keys = {"attack": _tag(attack), "run": _tag(run)}, ("attack", "run")

        def counter(name: str, what: str) -> Counter:
            made = Counter(f"brittle_{name}", what, keys)
            made.set_default_tags(tags)
            return made

        self._rows = counter("rows", "Rows written: one for each image, target and budget.")
        self._searched = counter("searched", "Rows whose image was searched to an end.")
        self._successes = counter("successes", "Rows with an adversarial image.")
        self._failed = counter("failed", "Rows whose search failed.")
        self._queries = counter("queries", "Model evaluations; their rate is queries per second.")
        self._busy = counter("worker_seconds", "Wall time of all shards in their workers.")
        # Ray adds up the middles of the buckets, so the histogram's own sum and mean are rough.
        self._seconds = Histogram("brittle_shard_seconds", "Wall time of a shard in its worker.", SHARD_SECONDS, keys)
        self._seconds.set_default_tags(tags)
        self._workers = Gauge("brittle_workers", "Workers of the search.", keys)
        self._workers.set_default_tags(tags)

    def shard(self, summary: ShardSummary) -> None:
        """Adds a finished shard."""
        for counter, amount in (
            (self._rows, summary.rows),
            (self._searched, summary.all.searched),
            (self._successes, summary.all.successes),
            (self._failed, summary.all.failed),
            (self._queries, summary.queries),
            (self._busy, summary.seconds),
        ):
            if amount:  # Ray refuses to count nothing
                counter.inc(amount)
        self._seconds.observe(summary.seconds)

    def workers(self, count: int) -> None:
        """Sets how many workers the search has now."""
        self._workers.set(count)


def _tag(name: str) -> str:
    return quote(name, safe=" !\"#$&'()*+,:;<=>?@[]^`{|}", errors="surrogateescape")[:TAG_LENGTH]
