"""Time to the end of a job of several tomograms, from what its parts have taken so far."""

from dataclasses import dataclass, field

# Work in a tomogram's parts, in slices of one stage: what is taken for it until it has been measured. The two stages
# are much alike and nearly all of the time; reading says nothing about them.
_EXPECTED = {"reading": 0.05, "stage 1": 1.0, "stage 2": 1.0, "writing": 0.1}
_STAGES = ("stage 1", "stage 2")


def fraction_done(part: str, done: int, total: int) -> float:
    """Share of a tomogram that is done, 0 to 1, by what its parts take as a rule.

    Parameters
    ----------
    part
        At work; what comes after those that are known counts as their end.
    done, total
        Slices of it.
    """
    before = 0.0
    for name, work in _EXPECTED.items():
        if name == part:
            return (before + work * done / max(total, 1)) / sum(_EXPECTED.values())
        before += work
    return 1.0


@dataclass
class _Part:
    slices: int
    started: float
    done: int = 0
    seconds: float = 0.0  # until `done`

    @property
    def seconds_per_slice(self) -> float | None:
        return self.seconds / self.done if self.done else None


@dataclass
class Forecast:
    """Progress of a job while it runs; times are those of any clock, in seconds.

    Attributes
    ----------
    tomograms
        In the whole job.
    """

    tomograms: int
    _finished: int = 0
    _job_started: float | None = None
    _started: float = 0.0
    _updated: float = 0.0
    _parts: dict[str, _Part] = field(default_factory=dict)  # of the tomogram at work, in order
    _paces: dict[str, float] = field(default_factory=dict)  # seconds a slice of parts of finished tomograms

    @property
    def finished(self) -> int:
        """Tomograms that are done."""
        return self._finished

    def begin(self, now: float) -> None:
        """Begin a tomogram."""
        self._started, self._updated, self._parts = now, now, {}
        self._job_started = now if self._job_started is None else self._job_started

    def update(self, part: str, done: int, total: int, now: float) -> None:
        """Slices `done` of `total` of a part of the tomogram at work."""
        if part not in self._parts:
            self._parts[part] = _Part(total, self._updated)  # its first slice is told when it is done
        at, self._updated = self._parts[part], now
        at.done, at.slices, at.seconds = done, total, now - at.started

    def end(self) -> None:
        """End a tomogram."""
        self._finished += 1
        for name, part in self._parts.items():
            if part.seconds_per_slice is not None:
                self._paces[name] = part.seconds_per_slice

    def seconds_left(self) -> float | None:
        """Seconds to the end of the tomogram at work, from the last update; None while nothing can be said."""
        if not self._parts:
            return None
        *_, (last, at) = self._parts.items()
        pace = at.seconds_per_slice or self._pace(last)
        if pace is None:
            return None
        left = pace * (at.slices - at.done)
        for name in self._to_come():
            pace = self._pace(name)
            if pace is None:
                return None
            left += pace * at.slices
        return left

    def job_seconds_left(self, now: float) -> float | None:
        """Seconds to the end of the job: the other tomograms take as long as the mean of those that were finished."""
        left, others = self.seconds_left(), self.tomograms - self._finished - 1
        if left is None or others <= 0:
            return left
        spent = now - self._started
        mean = left + spent
        if self._finished and self._job_started is not None:
            mean = (self._started - self._job_started) / self._finished
        return left + others * mean

    def share_done(self, now: float) -> float:
        """Part of the expected time of the tomogram at work that is over, 0 to 1."""
        left, spent = self.seconds_left(), now - self._started
        return 0.0 if left is None or left + spent <= 0 else spent / (left + spent)

    def _to_come(self) -> list[str]:
        """Parts that have not begun: those of an earlier tomogram, else the usual ones of a segmentation."""
        usual = list(self._paces)
        if not usual and next(iter(self._parts)) == "reading":
            usual = list(_EXPECTED)
        return [name for name in usual if name not in self._parts]

    def _pace(self, name: str) -> float | None:
        """Seconds a slice of a part that is to come."""
        if name in self._paces:
            return self._paces[name]
        known = [part.seconds_per_slice for stage in _STAGES if (part := self._parts.get(stage)) is not None]
        paces = [pace for pace in known if pace is not None]
        return _EXPECTED[name] * paces[-1] if paces and name in _EXPECTED else None
