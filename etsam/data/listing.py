"""Pairs of files -> samples with voxel size and shape, for a manifest."""

from collections.abc import Sequence

from etsam.data.manifest import Sample
from etsam.data.pairing import Pair
from etsam.errors import InputError
from etsam.io import read_volume

_SHOWN = 20  # faults in an error


def list_samples(pairs: Sequence[Pair], dataset_id: str) -> list[Sample]:
    """Open the tomograms' headers.

    Parameters
    ----------
    pairs
        From `etsam.data.pairing.pair`.
    dataset_id
        Of all of them.

    Returns
    -------
    list
        Samples without a split (`unassigned`); `voxel_size_angstrom` is that along X, None if the header does not say.

    Raises
    ------
    InputError
        Naming every tomogram that cannot be read, and names that are the same after `/` became `_`.
    """
    samples, faults = [], []
    names: dict[str, Pair] = {}
    for found in pairs:
        run_id = found.name.replace("/", "_")
        if (other := names.setdefault(run_id, found)) is not found:
            faults.append(f"{other.tomogram} and {found.tomogram} would both be called {run_id}; rename one")
        try:
            with read_volume(found.tomogram, warn=False) as volume:
                size = volume.voxel_size_angstrom
                samples.append(
                    Sample(
                        dataset_id=dataset_id,
                        run_id=run_id,
                        split="unassigned",
                        tomogram=found.tomogram,
                        target_mask=found.mask,
                        voxel_size_angstrom=None if size is None else round(size[2], 4),
                        shape=volume.shape,
                    )
                )
        except InputError as error:
            faults.append(str(error))
    if faults:
        more = f" | and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise InputError(" | ".join(faults[:_SHOWN]) + more)
    return samples
