"""`NAME.part`: what has come of a file, what the server said of it, and a lock against other processes."""

import json
import logging
import os
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: two processes that download the same file are not kept apart there
    fcntl = None  # type: ignore[assignment]

from etsam.errors import OutputError
from etsam.io.web import Web

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2  # how often is looked whether another process is done


@dataclass(frozen=True)
class Announced:
    """What a server said of a file, to recognise it later.

    Attributes
    ----------
    url
        Its address.
    size
        In bytes; None: not said.
    etag
        Strong entity tag; empty: none.
    last_modified
        As in the header of that name; empty: none.
    """

    url: str
    size: int | None
    etag: str
    last_modified: str

    def fits(self, other: "Announced", verifiable: bool) -> bool:
        """Whether two answers are about the same bytes, so that pieces of both may be joined.

        `verifiable`: a known checksum will tell afterwards, so that equal size is enough where the tags say nothing.
        """
        if self.size is None or self.size != other.size:
            return False
        if self.url != other.url:  # a mirror has its own tags
            return verifiable
        if self.etag and other.etag:
            return self.etag == other.etag
        if self.last_modified and other.last_modified:
            return self.last_modified == other.last_modified
        return verifiable


class Part:
    """`NAME.part`, locked against other processes while the block runs; vanishes at its end if it is empty.

    Parameters
    ----------
    target
        NAME.
    web
        Told when to stop waiting for the lock.
    """

    def __init__(self, target: Path, web: Web) -> None:
        self.target = target
        self.path = self._beside(target)
        self._announced = target.with_name(f"{target.name}.part.json")
        self._web = web
        self._file: FileIO | None = None

    @staticmethod
    def _beside(target: Path) -> Path:
        return target.with_name(f"{target.name}.part")

    @classmethod
    def size_beside(cls, target: Path) -> int:
        """Bytes that have come of `target`."""
        try:
            return cls._beside(target).stat().st_size
        except OSError:
            return 0

    def __enter__(self) -> "Part":
        told = False
        while True:
            self._file = self.path.open("ab", buffering=0)
            if self._lock() and self._is_still_there():
                return self
            self._file.close()
            if not told:
                log.info("%s is being downloaded by another process; waiting for it", self.target)
                told = True
            self._web.wait(_POLL_SECONDS)

    def _lock(self) -> bool:
        assert self._file is not None
        if fcntl is None:
            return True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:  # a file system without locks
            log.debug("%s cannot be locked: %s", self.path, error)
        return True

    def _is_still_there(self) -> bool:
        """Whether the name still means the locked file: the process that had it may have renamed or removed it."""
        assert self._file is not None
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def __exit__(self, *exception: object) -> None:
        assert self._file is not None
        if not self._file.closed:
            if self.size() == 0:
                self.path.unlink(missing_ok=True)
                self._announced.unlink(missing_ok=True)
            self._file.close()

    def size(self) -> int:
        """Bytes that have come."""
        assert self._file is not None
        return os.fstat(self._file.fileno()).st_size

    def append(self, piece: bytes) -> None:
        """Write at the end."""
        assert self._file is not None
        rest = memoryview(piece)
        while rest:
            rest = rest[self._file.write(rest) :]

    def discard(self) -> None:
        """Forget what has come."""
        assert self._file is not None
        self._file.truncate(0)
        self._announced.unlink(missing_ok=True)

    def announced(self) -> Announced | None:
        """What the server said when these bytes came; None if that is not known."""
        try:
            return Announced(**json.loads(self._announced.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def announce(self, announced: Announced) -> None:
        """Remember what the server says of the bytes that follow."""
        self._announced.write_text(json.dumps(asdict(announced)) + "\n", encoding="utf-8")

    def flush_to_disk(self) -> None:
        """Without it a crash of the machine can leave the new name with no content."""
        assert self._file is not None
        os.fsync(self._file.fileno())

    def publish(self) -> None:
        """Give the file its name; after the record, so that no file with a name lacks one."""
        assert self._file is not None
        if fcntl is None:
            self._file.close()  # Windows does not rename open files
        if os.path.lexists(self.target):
            raise OutputError(f"{self.target}: appeared while it was downloaded; move it away.")
        os.replace(self.path, self.target)
        self._announced.unlink(missing_ok=True)
        self._file.close()
