"""How fast each replica is now: what run.json says of them while a run goes on.

rates = Rates(topology.leaders, begun)
rates.note(now, {0: 12, 1: 9})      # images so far, by rank; every half minute
rates.per_second(), rates.quiet_s()
"""

from collections import deque
from collections.abc import Mapping, Sequence

WINDOW_S = 300.0
"""Over which the present speed is taken: some batches of a slow model."""
LEAST = 2
"""With fewer images in that time, it is taken over the whole start."""


class Rates:
    """Rates remember for some minutes how many images each replica had made."""

    def __init__(self, ranks: Sequence[int], begun: float) -> None:
        """
        Args:
            ranks: the leader of each replica.
            begun: the time at which they began, by the same clock as later.
        """
        nothing = dict.fromkeys(ranks, 0)
        self._seen = deque([(begun, nothing)])
        """Of some times, the images until then."""
        self._begun = begun
        self._changed = dict.fromkeys(ranks, begun)
        """When each was last seen to have made some."""

    def note(self, now: float, images: Mapping[int, int]) -> None:
        """Take down how many images each has made until now."""
        counts = {rank: images.get(rank, 0) for rank in self._changed}
        before = self._seen[-1][1]
        self._changed |= {rank: now for rank, count in counts.items() if count != before[rank]}
        self._seen.append((now, counts))
        while len(self._seen) > 2 and now - self._seen[1][0] >= WINDOW_S:
            self._seen.popleft()

    def per_second(self) -> dict[int, float]:
        """Return the images a second of each replica."""
        (since, earlier), (now, counts) = self._seen[0], self._seen[-1]
        found = {}
        for rank, count in counts.items():
            made, begun = (count - earlier[rank], since) if count - earlier[rank] >= LEAST else (count, self._begun)
            found[rank] = made / (now - begun) if now > begun else 0.0
        return found

    def quiet_s(self) -> dict[int, float]:
        """Return for how many seconds each has made nothing."""
        now = self._seen[-1][0]
        return {rank: now - at for rank, at in self._changed.items()}
