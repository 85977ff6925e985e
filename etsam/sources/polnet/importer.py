"""PolNet output -> training data: masks from label volumes, and a manifest.

Read is what PolNet 1.1 writes (https://github.com/anmartinezs/polnet, Apache-2.0): a folder `TomoNNN` for each
tomogram, with `tomo_NNN_rec_snrS.mrc` (the reconstruction; no `_snrS` without noise), `tomo_NNN_lbl.mrc` (what lies in
each voxel, as a number) and `tomo_NNN_motif_list.csv` (what the numbers mean). The table `labels_table.csv` is not
used: it numbers the models that were asked for, the label volume those that found room.
"""

import csv
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from etsam.data.manifest import Sample, write_manifest
from etsam.errors import EtsamError, InputError, OutputError
from etsam.paths import make_folder
from etsam.sources.files.splits import check_split, draw_splits
from etsam.volume import MrcWriter, Volume, read_volume

log = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.csv"
MOTIF_TYPES = ("membrane", "filament", "cprotein", "mbprotein")  # polnet/sample/sample.py, MOTIF_DTYPE
_VOXEL_SIZE_TOLERANCE = 0.01  # relative, as for manifests


@dataclass(frozen=True)
class PolnetTomogram:
    """The files of one simulated tomogram.

    Attributes
    ----------
    folder
        `.../TomoNNN`; the name of the folder above it is the data set's.
    reconstruction, labels
        Volumes (Z, Y, X) of equal shape.
    motif_list
        Tab-separated: a line for each piece that was placed, with its type and label.
    snr
        As in the reconstruction's name, "1.73"; empty if PolNet added no noise.
    """

    folder: Path
    reconstruction: Path
    labels: Path
    motif_list: Path
    snr: str

    @property
    def dataset_id(self) -> str:
        """Name of the folder that PolNet wrote into."""
        return self.folder.resolve().parent.name

    @property
    def run_id(self) -> str:
        """`TomoNNN`."""
        return self.folder.name

    @property
    def name(self) -> str:
        """`dataset_id/run_id`, as messages call it."""
        return f"{self.dataset_id}/{self.run_id}"


@dataclass(frozen=True)
class _Checked:
    """A tomogram with which nothing is wrong."""

    tomogram: PolnetTomogram
    shape: tuple[int, int, int]
    voxel_size_angstrom: tuple[float, float, float] | None
    membrane: frozenset[int]


def find_folders(source: str | os.PathLike[str]) -> list[Path]:
    """`TomoNNN` folders in `source`, or in the folders in it, by name and number.

    Raises
    ------
    InputError
        If there is none.
    """
    root = Path(source).expanduser()
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the one that PolNet wrote its TomoNNN folders into")
    found = [path for pattern in ("Tomo*", "*/Tomo*") for path in root.glob(pattern) if _number(path) and path.is_dir()]
    if not found:
        raise InputError(
            f"{root}: no folder TomoNNN in it; give the folder that PolNet 1.1 wrote into (folders.output of its "
            "settings). The output of older versions of PolNet has another form and is not read"
        )
    return sorted(found, key=lambda path: (str(path.parent), int(_number(path))))


def _number(folder: Path) -> str:
    match = re.fullmatch(r"Tomo(\d{3,})", folder.name)
    return match.group(1) if match else ""


def open_tomogram(folder: Path) -> PolnetTomogram:
    """Find the files of one `TomoNNN` folder; they are not read.

    Only the folder itself is searched: PolNet keeps a second copy of the reconstruction in `TomoNNN/tem`.

    Raises
    ------
    InputError
        If one is missing, or there are several reconstructions.
    """
    stem = f"tomo_{_number(folder)}"
    pattern = re.compile(rf"{stem}_rec(?:_snr(?P<snr>\d+(?:\.\d+)?(?:e-?\d+)?))?\.mrc")
    matches = [match for path in sorted(folder.iterdir()) if (match := pattern.fullmatch(path.name))]
    if not matches:
        raise InputError(
            f"no reconstruction {stem}_rec*.mrc; PolNet writes it if its settings name a microscope (tem.config) and "
            "IMOD is installed"
        )
    if len(matches) > 1:
        names = ", ".join(match.group() for match in matches)
        raise InputError(f"{len(matches)} reconstructions ({names}); keep the one that belongs to the labels")
    labels, motif_list = folder / f"{stem}_lbl.mrc", folder / f"{stem}_motif_list.csv"
    missing = [path.name for path in (labels, motif_list) if not path.is_file()]
    if missing:
        raise InputError(f"{' and '.join(missing)} missing; copy the whole folder, or let PolNet make it again")
    return PolnetTomogram(folder, folder / matches[0].group(), labels, motif_list, matches[0]["snr"] or "")


def read_motif_types(motif_list: Path) -> dict[int, str]:
    """Type of each label, one of `MOTIF_TYPES`.

    Raises
    ------
    InputError
        If the file is no motif list, or a label has two types.
    """
    types: dict[int, str] = {}
    try:
        with motif_list.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t")
            if not {"type", "label"} <= set(rows.fieldnames or []):
                raise InputError(f"{motif_list.name}: no tab-separated table with the columns type and label")
            for row in rows:
                kind, text = row["type"], row["label"]
                if kind not in MOTIF_TYPES or not (text or "").isdecimal():
                    raise InputError(
                        f"{motif_list.name}, line {rows.line_num}: type {kind!r}, label {text!r}; known types are "
                        f"{', '.join(MOTIF_TYPES)}, and labels are whole numbers"
                    )
                if types.setdefault(int(text), kind) != kind:
                    raise InputError(f"{motif_list.name}: label {text} is both {types[int(text)]} and {kind}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{motif_list.name}: cannot be read: {error}") from error
    return types


def count_labels(labels: Volume) -> dict[int, int]:
    """Number of voxels of each label, 0 (nothing) included.

    Raises
    ------
    InputError
        If values are no whole numbers from 0 to 65535.
    """
    counts = np.zeros(1, dtype=np.int64)
    for plane in labels:
        if plane.dtype.kind == "f" and not np.array_equal(plane, np.floor(plane)):
            raise InputError("the label volume holds values that are no whole numbers")
        if plane.min() < 0 or plane.max() > np.iinfo(np.uint16).max:
            raise InputError(f"the label volume holds values from {plane.min()} to {plane.max()}; allowed: 0 to 65535")
        found = np.bincount(plane.ravel().astype(np.int64), minlength=counts.size)
        found[: counts.size] += counts
        counts = found
    return {int(label): int(counts[label]) for label in np.flatnonzero(counts)}


def membrane_labels(tomogram: PolnetTomogram, labels: Volume) -> frozenset[int]:
    """Labels of the volume that are membrane, checked against the motif list.

    Raises
    ------
    InputError
        If list and volume do not belong together.
    """
    types = read_motif_types(tomogram.motif_list)
    present = set(count_labels(labels)) - {0}
    unknown = sorted(present - set(types))
    if unknown:
        raise InputError(
            f"the label volume holds {_numbers(unknown)}, of which the motif list says nothing (it has "
            f"{_numbers(sorted(types))}); do the two belong together?"
        )
    listed = {label for label, kind in types.items() if kind == "membrane"}
    absent = sorted(listed - present)
    if absent:
        raise InputError(
            f"the motif list has the membrane {_numbers(absent)}, but no voxel of the label volume has (found: "
            f"{_numbers(sorted(present))}); do the two belong together?"
        )
    return frozenset(listed)


def _numbers(labels: Sequence[int]) -> str:
    return f"label{'s' * (len(labels) != 1)} {', '.join(map(str, labels)) or 'none'}"


def _check(tomogram: PolnetTomogram) -> _Checked:
    with read_volume(tomogram.reconstruction, warn=False) as rec, read_volume(tomogram.labels, warn=False) as labels:
        if rec.shape != labels.shape:
            raise InputError(f"reconstruction of shape {rec.shape}, labels of {labels.shape} (Z, Y, X)")
        ours, theirs = rec.voxel_size_angstrom, labels.voxel_size_angstrom
        if ours is not None and theirs is not None and not np.allclose(ours, theirs, rtol=_VOXEL_SIZE_TOLERANCE):
            raise InputError(f"voxel size {ours} Å in the reconstruction, {theirs} Å in the labels (Z, Y, X)")
        return _Checked(tomogram, rec.shape, ours or theirs, membrane_labels(tomogram, labels))


def write_membrane_mask(tomogram: PolnetTomogram, path: str | os.PathLike[str], membrane: frozenset[int]) -> None:
    """Write the mask of one tomogram, anew: int8 (Z, Y, X), 1 where the label is one of `membrane`.

    Voxel size and origin are the reconstruction's; a voxel size that it does not say, the label volume's.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    with read_volume(tomogram.reconstruction, warn=False) as rec, read_volume(tomogram.labels, warn=False) as labels:
        size = rec.voxel_size_angstrom or labels.voxel_size_angstrom
        with MrcWriter(path, rec.shape, np.int8, rec, size, overwrite=True) as mask:
            for z, plane in enumerate(labels):
                mask[z] = np.isin(plane, list(membrane)).astype(np.int8)


def import_tree(
    source: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    split: Sequence[float] = (0.8, 0.2),
    seed: int = 0,
    skip_empty: bool = False,
    overwrite: bool = False,
) -> Path:
    """Make training data of a PolNet output tree: masks in `output_dir/masks`, and `output_dir/manifest.csv`.

    Everything is checked before the first file is written. Reconstructions stay where they are.

    Parameters
    ----------
    source
        Folder with `TomoNNN` folders, or with folders of such.
    output_dir
        Made if need be.
    split
        Shares of train, val and, if there are three, test; whole tomograms are shared out.
    seed
        Of the choice of tomograms for each split.
    skip_empty
        Leave out tomograms without any membrane instead of raising.
    overwrite
        Replace masks and manifest.

    Returns
    -------
    Path
        The manifest, with the additional column `snr`.

    Raises
    ------
    InputError
        One line with all faults of all tomograms.
    OutputError
        If the manifest exists and `overwrite` is not set.
    """
    shares = check_split(split)
    folder = Path(output_dir).expanduser()
    manifest = folder / MANIFEST_NAME
    if manifest.exists() and not overwrite:
        raise OutputError(f"{manifest}: exists already; choose another --output-dir, or --overwrite replaces it")
    checked = _check_all(find_folders(source), skip_empty)
    samples = []
    for item, name in zip(checked, draw_splits(len(checked), shares, seed), strict=True):
        tomogram = item.tomogram
        mask = folder / "masks" / tomogram.dataset_id / f"{tomogram.run_id}_membrane.mrc"
        make_folder(mask.parent)
        # without a manifest, masks are what an interrupted run left
        write_membrane_mask(tomogram, mask, item.membrane)
        samples.append(
            Sample(
                dataset_id=tomogram.dataset_id,
                run_id=tomogram.run_id,
                split=name,
                tomogram=tomogram.reconstruction,
                target_mask=mask,
                voxel_size_angstrom=None if item.voxel_size_angstrom is None else item.voxel_size_angstrom[0],
                shape=item.shape,
                extra=(("snr", tomogram.snr),),
            )
        )
    write_manifest(manifest, samples, overwrite)
    return manifest


def _check_all(folders: Sequence[Path], skip_empty: bool) -> list[_Checked]:
    checked, faults = [], []
    for folder in folders:
        name = f"{folder.resolve().parent.name}/{folder.name}"
        try:
            item = _check(open_tomogram(folder))
        except EtsamError as error:
            faults.append(f"{name}: {error}")
            continue
        if item.membrane:
            checked.append(item)
        elif skip_empty:
            log.warning("%s: no membrane found room in it; left out", name)
        else:
            faults.append(f"{name}: no membrane found room in it; --skip-empty leaves such tomograms out")
    names = [item.tomogram.name for item in checked]
    faults += [f"{name}: there are two folders of this name" for name in sorted(set(names)) if names.count(name) > 1]
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise InputError.of(f"{count} in the PolNet output", faults)
    if not checked:
        raise InputError("no tomogram with a membrane is left")
    return checked
