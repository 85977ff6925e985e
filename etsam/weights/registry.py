"""Names of weights -> files.

The config group `weights` names a file for each stage, or a seed for random weights; `start` of training names one
file. This module is plain Python, so that a missing file is found before the heavy libraries are imported.
"""

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from etsam.download import read_record
from etsam.errors import CheckpointError
from etsam.paths import resource_paths, sha256

PUBLISHED_WEIGHTS_URL = "https://zenodo.org/records/17571925"
"""The published ETSAM v1 weights of both stages (Zenodo record 17571925)."""

# The address that SAM 2's own repository gives for its 2.1 checkpoints (facebookresearch/sam2, README)
_SAM2_URL = "https://dl.fbaipublicfiles.com/segment_anything_2/092824"


@dataclass(frozen=True)
class NamedWeights:
    """Weights that are known by a name.

    Attributes
    ----------
    name
        As settings and commands call them.
    about
        What they are, in a few words.
    files
        Of stage 1 and stage 2, or one that training starts from.
    page
        Where they are described; empty: they come with the program.
    zenodo_record
        Number of the Zenodo record that holds them; None: they are elsewhere.
    megabytes
        Of all files, about; None: they come with the program.
    voxel_angstrom
        Smallest and largest voxel size that they were trained on, Å; None: they are no membrane segmenters yet.
    """

    name: str
    about: str
    files: tuple[str, ...]
    page: str = ""
    zenodo_record: int | None = None
    megabytes: int | None = None
    voxel_angstrom: tuple[float, float] | None = None


_NANO = NamedWeights(
    "nano",
    "to try the program",
    ("nano_stage1.safetensors", "nano_stage2.safetensors"),
    voxel_angstrom=(7.0, 48.0),  # of the simulated tomograms, checkpoints/train_nano.sh
)
_ETSAM_V1 = NamedWeights(
    "etsam_v1",
    "real work",
    ("etsam_stage1_v1.pt", "etsam_stage2_v1.pt"),
    PUBLISHED_WEIGHTS_URL,
    zenodo_record=17571925,
    megabytes=646,  # two networks of SAM 2.1 base_plus, see below
    voxel_angstrom=(5.0, 22.0),  # nine in ten tomograms of the published data set, data/dataset.csv
)
_SAM2 = [
    NamedWeights(
        f"sam2.1_hiera_{size}",
        "to start training",
        (f"sam2.1_hiera_{size}.pt",),
        _SAM2_URL,
        megabytes=round(4 * million),  # 32 bits for each of the parameters that its README counts
    )
    for size, million in (("tiny", 38.9), ("small", 46), ("base_plus", 80.8), ("large", 224.4))
]

REGISTRY = {weights.name: weights for weights in (_NANO, _ETSAM_V1, *_SAM2)}
"""Every name that `etsam weights` knows."""

PUBLISHED = _ETSAM_V1
"""Weights that `weights=auto` takes where they are."""


def is_embedded(file_name: str) -> bool:
    """True if a file of this name comes with the program: weights that show what it does, and are no match for real."""
    return any(file_name in weights.files for weights in REGISTRY.values() if not weights.page)


def names_of(file_names: Iterable[str]) -> str:
    """Weights that files belong to, for people: names of the list, else of the files.

    Examples
    --------
    >>> names_of(["nano_stage1.safetensors", "nano_stage2.safetensors"]), names_of(["a.pt", "b.pt"])
    ('nano', 'a.pt + b.pt')
    """
    known = {file: name for name, weights in REGISTRY.items() for file in weights.files}
    return " + ".join(dict.fromkeys(known.get(file, file) for file in file_names))


def are_random(names: Iterable[str]) -> bool:
    """True if any of the names (`StageWeights.name`) is that of random weights."""
    return any(name.startswith("random") for name in names)


def weights_warning(file_names: Collection[str]) -> str:
    """`DEMO WEIGHTS` for the weights that come with the program, and a word for random ones; otherwise empty."""
    if are_random(file_names):
        return "RANDOM WEIGHTS: MEANINGLESS"
    return "DEMO WEIGHTS" if any(map(is_embedded, file_names)) else ""


def weights_folder() -> Path:
    """Folder of downloaded weights: ETSAM_CHECKPOINT_DIR, or `etsam` in the user's cache (XDG base directories)."""
    given = os.environ.get("ETSAM_CHECKPOINT_DIR", "")
    if given:
        return Path(given).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if os.path.isabs(cache) else Path("~/.cache").expanduser()) / "etsam"


def _places(file_name: str) -> list[Path]:
    """Places of a file that is known by name; the first that has it wins."""
    folders = [Path("checkpoints"), weights_folder()]
    return [*(folder / file_name for folder in folders), *resource_paths("checkpoints", file_name)]


def find_weights(file_name: str) -> Path | None:
    """Find a file in `checkpoints`, where downloads go, or beside the program; None if it is in none of them."""
    return next((place for place in _places(file_name) if place.is_file()), None)


def _named_file(text: str) -> tuple[str, NamedWeights | None]:
    """(file, the named weights it belongs to) of `sam2.1_hiera_large`, `etsam_stage1_v1` or the name of a file."""
    for weights in REGISTRY.values():
        for file_name in weights.files:
            stem = file_name.rpartition(".")[0]
            if Path(text).name == file_name or text == stem:
                return file_name, weights
    if text in REGISTRY:
        stems = " or ".join(name.rpartition(".")[0] for name in REGISTRY[text].files)
        raise CheckpointError(f"{text} has one file for each stage; name the one that is meant: {stems}.")
    return Path(text).name, None


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
        """Find the file: as given, or by its name where weights lie.

        Parameters
        ----------
        path
            A file, or a name such as `sam2.1_hiera_base_plus` or `etsam_stage1_v1`; None: random weights.
        seed
            Of random weights.

        Raises
        ------
        CheckpointError
            If there is no such file (says where it looked and how to get it), or it is not what was downloaded.
        """
        if path is None:
            return cls(None, seed)
        given = Path(path).expanduser()
        candidates = [given]
        named = None
        if not given.is_file() and str(given.parent) in (".", "checkpoints"):  # elsewhere only that file is meant
            file_name, named = _named_file(path)
            candidates += _places(file_name)
        found = next((candidate for candidate in candidates if candidate.is_file()), None)
        if found is None:
            raise CheckpointError(_missing(path, named, candidates))
        _compare_with_record(found)
        return cls(found, seed)

    @property
    def name(self) -> str:
        """For records and messages: the file's name, or `random (seed N)`."""
        return self.path.name if self.path else f"random (seed {self.seed})"

    def sha256(self) -> str | None:
        """Checksum of the file, None for random weights."""
        return sha256(self.path) if self.path else None


def _missing(path: str, named: NamedWeights | None, candidates: list[Path]) -> str:
    places = ", ".join(dict.fromkeys(str(candidate.absolute()) for candidate in candidates))
    if named is not None and named.page:
        remedy = f"`etsam weights download {named.name}` gets them from {named.page}"
        if len(named.files) == 2:
            remedy += "; so does weights.download=true; for files of your own: weights.stage1=FILE weights.stage2=FILE"
    elif named is not None:
        remedy = "this version of the program comes without them; use weights=etsam_v1 or files of your own"
    else:
        remedy = f"give weights.stage1=FILE weights.stage2=FILE, or a name: {', '.join(REGISTRY)}"
    return f"no weights {path} at {places}; {remedy}."


def _compare_with_record(path: Path) -> None:
    record = read_record(path)
    if record is not None and sha256(path) != record.checksums["sha256"]:
        raise CheckpointError(
            f"{path} is not what was downloaded from {record.url}: SHA-256 {sha256(path)}, recorded "
            f"{record.checksums['sha256']}; remove it and download it again with `etsam weights download`."
        )
