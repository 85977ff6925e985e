"""Names of weights -> files.

The config group `weights` names a file for each stage, or a seed for random weights. This module is plain Python, so
that a missing file is found before the heavy libraries are imported.
"""

from dataclasses import dataclass
from pathlib import Path

from etsam.errors import CheckpointError
from etsam.paths import file_sha256, find_share

PUBLISHED_WEIGHTS_URL = "https://zenodo.org/records/17571925"
"""The published ETSAM v1 weights of both stages (Zenodo record 17571925)."""


@dataclass(frozen=True)
class StageWeights:
    """Weights of one stage.

    Attributes
    ----------
    path
        Checkpoint (`.pt`, `.ckpt`, `.safetensors`), or None for random weights.
    seed
        Of the random weights; used only without a path.
    """

    path: Path | None
    seed: int = 0

    @classmethod
    def resolve(cls, path: str | None = None, seed: int = 0) -> "StageWeights":
        """Find the file: as given, or in the `checkpoints` folder that belongs to the program.

        Raises
        ------
        CheckpointError
            If there is no such file; says where it looked and where the published weights are.
        """
        if path is None:
            return cls(None, seed)
        given = Path(path).expanduser()
        candidates = [given] if given.is_absolute() else [given, *find_share("checkpoints", given.name)]
        for candidate in candidates:
            if candidate.is_file():
                return cls(candidate, seed)
        places = ", ".join(str(candidate.absolute()) for candidate in candidates)
        raise CheckpointError(
            f"no weights at {places}; give weights.stage1=FILE weights.stage2=FILE, or put the published files from "
            f"{PUBLISHED_WEIGHTS_URL} there."
        )

    @property
    def name(self) -> str:
        """For records and messages: the file's name, or `random (seed N)`."""
        return self.path.name if self.path else f"random (seed {self.seed})"

    def sha256(self) -> str | None:
        """Checksum of the file, None for random weights."""
        return file_sha256(self.path) if self.path else None
