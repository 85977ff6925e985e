"""What the entry scripts share: config resolvers, logging, and the way errors reach a person."""

import importlib.util
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from etsam.errors import ConfigError, EtsamError
from etsam.paths import share

log = logging.getLogger(__name__)

_RANK_VARIABLES = ("RANK", "SLURM_PROCID", "LOCAL_RANK")  # set by torchrun, Slurm and Lightning's own launcher


def is_first_process() -> bool:
    """Whether this process speaks for all: checks inputs and logs. Known before anything heavy is imported."""
    return next((os.environ[name] == "0" for name in _RANK_VARIABLES if name in os.environ), True)


def register_resolvers() -> None:
    """Make `${etsam.precision:...}` and `${etsam.next:...}` known to the configs."""
    OmegaConf.register_new_resolver("etsam.precision", _precision, replace=True)
    OmegaConf.register_new_resolver("etsam.next", lambda number: number + 1, replace=True)


def _precision(accelerator: str) -> str:
    """Precision for an accelerator: bfloat16 autocast on GPUs that have it (the published runs), else float32."""
    import torch

    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() and torch.cuda.is_bf16_supported():
        return "bf16-mixed"
    return "32-true"


def quiet() -> None:
    """One line per event on standard error, and none of the libraries' talk about themselves."""
    level = logging.INFO if is_first_process() else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("etsam").setLevel(level)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # one path a batch, read lazily: more loader workers would do nothing, and the writer needs no batch indices
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*infer the batch indices.*")
    warnings.filterwarnings("ignore", module="sam2")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def guarded(run: Callable[[DictConfig], Any], cfg: DictConfig) -> None:
    """Call `run(cfg)`; an error ends the process with status 1 and one line that says what to do.

    With `debug=true` the traceback is shown.
    """
    quiet()
    register_resolvers()
    try:
        run(cfg)
    except KeyboardInterrupt:
        leave("interrupted; outputs that were not complete have been removed.", status=130)
    except Exception as error:
        if cfg.get("debug", False):
            traceback.print_exc()
        leave(explain(error))


def explain(error: BaseException) -> str:
    """One line for a person; errors inside Hydra's instantiation are traced to their cause."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, EtsamError):
            return " ".join(str(cause).split())
        if isinstance(cause, MissingMandatoryValue):
            return f"a setting is not given: {str(cause).splitlines()[0]}; add KEY=VALUE to the command."
        cause = cause.__cause__
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, OmegaConfBaseException) or type(error).__module__.startswith("hydra"):
        return f"the settings do not fit together: {text}"
    if "out of memory" in text.lower() or isinstance(error, MemoryError):
        return f"out of memory: {text[:200]} - use tile_batch_size=1, a smaller net, or tiles=auto tiles.size_voxels=N."
    return f"unexpected {type(error).__name__}: {text} - this is a defect; run again with debug=true and report it."


@contextmanager
def config_error() -> Iterator[None]:
    """Turn what Hydra says of a config into the `EtsamError` behind it, or a `ConfigError`."""
    from hydra.errors import HydraException

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from error


def leave(message: str, status: int = 1) -> NoReturn:
    """End the process with one line on standard error."""
    sys.stderr.write(f"etsam: error: {message}\n")
    sys.stderr.flush()
    raise SystemExit(status)


def require(cfg: DictConfig, key: str, meaning: str) -> None:
    """Raise `ConfigError` if a value that must be given is missing."""
    if OmegaConf.is_missing(cfg, key):
        raise ConfigError(f"{key} is not given; add {key}={meaning}.")


def load_script(name: str) -> Any:
    """The entry script `NAME.py` as a module, from the installed package or the checkout."""
    path = share(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"etsam_script_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
