"""Installations of PolNet, its models and IMOD on this machine."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from etsam.errors import InputError
from etsam.sources.polnet.config import MODEL_LISTS, PolnetConfig

IMOD_PROGRAMS = ("xyzproj", "tilt", "alterheader")  # polnet/tem/tem.py
_PROBE = (
    "import json, polnet; "
    "print(json.dumps([polnet.__version__, list(polnet.__path__)[0], hasattr(polnet, 'SynthTomo')]))"
)
_INSTALL = (
    "git clone https://github.com/anmartinezs/polnet && python3 -m venv polnet/.venv && "
    "polnet/.venv/bin/pip install ./polnet, then --polnet-python polnet/.venv/bin/python --polnet-data polnet/data"
)


@dataclass(frozen=True)
class Installation:
    """Installation of PolNet: the Python that has it, its version, and the folder of its package."""

    python: str
    version: str
    package: Path


def find_polnet(python: str | None = None) -> Installation:
    """Ask a Python for PolNet.

    Parameters
    ----------
    python
        Its program; None: this one.

    Raises
    ------
    InputError
        If there is no such program, or PolNet is missing in it, does not load, or is older than 1.1.
    """
    program = shutil.which(os.path.expanduser(python)) if python else sys.executable
    if program is None:
        raise InputError(f"{python}: no such program; --polnet-python is the Python that PolNet is installed in")
    # not in the current folder, which might hold a folder `polnet`
    found = subprocess.run([program, "-c", _PROBE], capture_output=True, text=True, cwd=Path(program).parent)
    if found.returncode:
        last = ["no message", *found.stderr.strip().splitlines()][-1]
        if "No module named 'polnet'" in last:
            raise InputError(f"PolNet is not installed in {program} (it is not on PyPI); install it: {_INSTALL}")
        raise InputError(f"PolNet does not load in {program}: {last}; install it anew: {_INSTALL}")
    version, package, usable = json.loads(found.stdout.strip().splitlines()[-1])
    if not usable:
        raise InputError(f"{package}: PolNet {version} is older than 1.1; install a newer one: {_INSTALL}")
    return Installation(program, version, Path(package))


def check_imod() -> None:
    """Raise `InputError` if a program of IMOD that PolNet calls is not on the PATH."""
    missing = [program for program in IMOD_PROGRAMS if shutil.which(program) is None]
    if missing:
        raise InputError(
            f"IMOD's {', '.join(missing)} not found on the PATH; install IMOD, or leave out --acquisition imod: etsam "
            "then projects and reconstructs itself"
        )


def find_models(config: PolnetConfig, given: Path | None, polnet_package: Path) -> Path:
    """Folder of PolNet's models, with the files that a config names.

    Parameters
    ----------
    config
        The settings; their `folders.input` counts from the file and from the current folder.
    given
        The folder as it was asked for, which has to be right; None: it is looked for, also beside PolNet itself.
    polnet_package
        Folder of the package `polnet`. PolNet's wheel lacks the models, an installation with `pip install -e` has them.

    Raises
    ------
    InputError
        If it is not found, or files are missing in it.
    """
    needed = [model for key in MODEL_LISTS for model in config.sample[key]]
    if given is None:
        places = [polnet_package.parent.parent / "data"]
        if config.models is not None:
            written = Path(config.models).expanduser()
            places = [config.path.parent / written, Path.cwd() / written, *places]
        given = next((place for place in places if all((place / model).is_file() for model in needed)), None)
        if given is None:
            raise InputError(
                f"PolNet's models, such as {needed[0]}, are not in {', '.join(map(str, places))}; PolNet's wheel "
                "lacks them: git clone https://github.com/anmartinezs/polnet and give --polnet-data polnet/data"
            )
    missing = [model for model in needed if not (given / model).is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(
            f"{given}: without the models {', '.join(missing[:3])}{more} that {config.path.name} names; "
            "--polnet-data is the folder `data` of https://github.com/anmartinezs/polnet"
        )
    return given.resolve()


def find_tem_file(config: PolnetConfig, models: Path) -> Path:
    """The `.tem` file of a config: beside it, or in the folder of the models, where PolNet has it.

    Raises
    ------
    InputError
        If it is in neither.
    """
    places = [config.path.parent / config.tem_file, models / config.tem_file]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise InputError(f"{config.path}: tem.config {config.tem_file} is neither {' nor '.join(map(str, places))}")
    return found.resolve()
