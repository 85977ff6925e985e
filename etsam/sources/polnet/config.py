"""Settings of PolNet 1.1: read, checked, and completed with the folders of this machine."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from etsam.errors import ConfigError, InputError
from etsam.paths import resource_path

PUBLISHED = ("polnet_data_1", "polnet_data_2")
"""Names of the settings that the published simulated tomograms were made with: 10 and 18 of them."""

_SHIPPED = ("data", "polnet_config", "polnet_1.1")
MODEL_LISTS = ("membranes", "filaments", "pns", "pms")  # in the order in which PolNet places them
_SAMPLE_KEYS = ("voi_shape", "voi_offset", "v_size", *MODEL_LISTS)
_OLDER_KEYS = ("membranes_list", "proteins_list", "voi_vsize", "tilt_angs")  # of PolNet before 1.1


@dataclass(frozen=True)
class Acquisition:
    """Microscope that sees a sample: PolNet's `.tem` file.

    Attributes
    ----------
    tilt_degrees
        Angles, increasing.
    snr
        Range that the signal-to-noise ratio is drawn from; None: no noise.
    shift_voxels
        Size of a micrograph's shift without tilt, and at the largest tilt.
    shift_divider
        The shifts' random part has a standard deviation of the largest shift divided by this.
    """

    tilt_degrees: tuple[float, ...]
    snr: tuple[float, float] | None
    shift_voxels: tuple[float, float]
    shift_divider: float


@dataclass(frozen=True)
class PolnetConfig:
    """Settings of one set of tomograms: a PolNet 1.1 YAML file.

    Attributes
    ----------
    name
        Of the data set: the file's name without its suffix.
    path
        The file.
    count
        Tomograms that it asks for.
    sample
        `shape` (X, Y, Z), `offset`, `v_size` (Å) and the lists of models `membranes`, `filaments`, `pns`, `pms`, as
        PolNet's `SynthTomo` wants them.
    tem_file, models
        As the file says, not resolved.
    """

    name: str
    path: Path
    count: int
    sample: dict[str, Any]
    tem_file: str
    models: str | None


def find_config(name_or_path: str) -> Path:
    """Path of a settings file, or of the shipped one of that name.

    Raises
    ------
    InputError
        If there is neither.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    folder = resource_path(*_SHIPPED)
    names = sorted(file.stem for file in folder.glob("*.yaml"))
    if name_or_path in names:
        return folder / f"{name_or_path}.yaml"
    raise InputError(f"{name_or_path}: no such file of PolNet settings; shipped with etsam are {', '.join(names)}")


def read_config(path: Path) -> PolnetConfig:
    """Read and check a YAML file of PolNet 1.1.

    Raises
    ------
    InputError
        If it cannot be read, is of an older PolNet, or lacks a setting or has one of another type.
    """
    try:
        found = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"{path}: no PolNet settings: {' '.join(str(error).split())}") from error
    content: dict[Any, Any] = found if isinstance(found, dict) else {}
    older = [key for key in _OLDER_KEYS if key in content]
    if older:
        raise InputError(
            f"{path}: settings of a PolNet before 1.1 ({', '.join(older)}); the published ones are shipped in the form "
            f"of PolNet 1.1 as {' and '.join(PUBLISHED)}"
        )
    missing = [section for section in ("global", "sample", "tem") if not isinstance(content.get(section), dict)]
    if missing:
        raise InputError(f"{path}: no PolNet settings: without the sections {', '.join(missing)}")
    count, tem_file = content["global"].get("ntomos"), content["tem"].get("config")
    if not isinstance(count, int) or count < 1:
        raise InputError(f"{path}: global.ntomos is {count!r}; a positive whole number is needed")
    if not isinstance(tem_file, str):
        raise InputError(f"{path}: tem.config is {tem_file!r}; name a .tem file, which says how the sample is imaged")
    models = (content.get("folders") or {}).get("input")
    return PolnetConfig(path.stem, path, count, _sample(content["sample"], path), tem_file, models)


def _sample(found: dict[Any, Any], path: Path) -> dict[str, Any]:
    unknown = [str(key) for key in found if key not in _SAMPLE_KEYS]
    if unknown:
        raise InputError(
            f"{path}: unknown settings sample.{', sample.'.join(unknown)}; known are {', '.join(_SAMPLE_KEYS)}"
        )
    shape, offset, size = found.get("voi_shape"), found.get("voi_offset", [4, 4, 4]), found.get("v_size")
    for key, value, least in (("voi_shape", shape, 1), ("voi_offset", offset, 0)):
        sides = value if isinstance(value, list) and len(value) == 3 else [None]
        if not all(isinstance(side, int) and side >= least for side in sides):
            raise InputError(f"{path}: sample.{key} is {value!r}; three whole numbers [X, Y, Z] are needed")
    if not isinstance(size, int | float) or not size > 0:
        raise InputError(f"{path}: sample.v_size is {size!r}; a positive number (Å) is needed")
    lists = {key: found.get(key) or [] for key in MODEL_LISTS}
    for key, value in lists.items():
        if not isinstance(value, list) or not all(isinstance(model, str) for model in value):
            raise InputError(f"{path}: sample.{key} is {value!r}; a list of files is needed")
    if not lists["membranes"]:
        raise InputError(f"{path}: sample.membranes is empty; without membranes there is nothing to learn")
    return {"shape": shape, "offset": offset, "v_size": float(size), **lists}


def read_acquisition(tem_file: Path) -> Acquisition:
    """Read PolNet's `.tem` file: lines `KEY = VALUE`, values as in Python, comments from `#`.

    Raises
    ------
    InputError
        If a value is missing or out of range.
    """
    values: dict[str, Any] = {}
    try:
        lines = tem_file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{tem_file}: cannot be read: {error}") from error
    for line in lines:
        key, equals, text = line.partition("#")[0].partition("=")
        if equals:
            try:
                values[key.strip()] = ast.literal_eval(text.strip())
            except (ValueError, SyntaxError) as error:
                raise InputError(f"{tem_file}: {key.strip()} = {text.strip()} is no number, range or None") from error
    try:
        (low, high), step = values["TILT_ANGS_RG"], values["TILT_ANGS_STEP"]
        return _acquisition(low, high, step, values.get("DETECTOR_SNR"), values)
    except KeyError as error:
        raise InputError(f"{tem_file}: {error.args[0]} is missing; see in_tem/default.tem of PolNet") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{tem_file}: {error}; see in_tem/default.tem of PolNet") from error


def _acquisition(low: float, high: float, step: float, snr: Any, values: dict[str, Any]) -> Acquisition:
    if not (-90 < low <= high < 90 and step > 0):
        raise ValueError(f"tilts from {low} to {high} by {step}; a range between -90 and 90 and a step are needed")
    angles = tuple(low + i * step for i in range(int((high - low) / step + 1e-6) + 1))
    noise = None
    if snr is not None:
        ends = list(snr) if isinstance(snr, Sequence) else [snr]
        noise = (float(ends[0]), float(ends[-1]))
        if not 0 < noise[0] <= noise[1]:
            raise ValueError(f"DETECTOR_SNR = {snr}; a positive number, a range or None is needed")
    least, largest, divider = (float(values[key]) for key in ("MALIGN_MIN", "MALIGN_MAX", "MALIGN_SG"))
    if not (0 <= least <= largest and divider > 0):
        raise ValueError(
            f"MALIGN_MIN, MALIGN_MAX, MALIGN_SG = {least}, {largest}, {divider}; MIN and MAX are shifts in voxels, SG "
            "divides MAX (PolNet 1.1.2)"
        )
    return Acquisition(angles, noise, (least, largest), divider)


def check_configs(configs: Sequence[PolnetConfig]) -> None:
    """Raise `ConfigError` if two settings files have the same name, which names the folder of their tomograms."""
    names = [config.name for config in configs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"--config {twice[0]} is given twice; its name is that of the folder, so each has its own")
