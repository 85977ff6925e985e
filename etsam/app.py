"""Shared ground of the entry scripts: config resolvers, logging, and the way errors reach a person."""

import difflib
import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException

from etsam.errors import ConfigError, EtsamError
from etsam.paths import forget_folders, read_names_as_utf8, remove_empty_folders, resource_path
from etsam.screen import ScreenHandler, folded, idle, in_their_words
from etsam.settings import RENAMED, misfits

# Read by OpenMP when torch is loaded: how long its threads spin for work before they sleep. Measured with nano on two
# cores, slices/s: default 21 alone and 5 with one core busy (under 1 beside another such program), 1000 turns 16 and 9.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

SIGTERM_STATUS = 128 + signal.SIGTERM  # what a shell reports of a process that ended by it
# set by torchrun, Lightning's own launcher and Slurm; in Slurm's interactive jobs Lightning starts processes itself
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID")


def is_first_process() -> bool:
    """True if this process speaks for all: checks inputs and logs. Known before anything heavy is imported."""
    name = next((name for name in _RANK_VARIABLES if name in os.environ), None)
    if name == "LOCAL_RANK" and os.environ.get("NODE_RANK", "0") != "0":
        return False
    return name is None or os.environ[name] == "0"


def register_resolvers() -> None:
    """Make the `etsam.` resolvers `precision`, `not`, `any`, `add` and `times` known to configs: `${etsam.add:1,2}`."""
    OmegaConf.register_new_resolver("etsam.precision", _precision, replace=True)
    OmegaConf.register_new_resolver("etsam.not", lambda switch: not switch, replace=True)
    OmegaConf.register_new_resolver("etsam.any", lambda *switches: any(switches), replace=True)
    OmegaConf.register_new_resolver("etsam.add", lambda *numbers: sum(numbers), replace=True)
    OmegaConf.register_new_resolver("etsam.times", _times, replace=True)


def _precision(accelerator: str) -> str:
    """Precision for an accelerator: bfloat16 autocast on GPUs that have it (the published runs), else float32."""
    import torch

    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() and torch.cuda.is_bf16_supported():
        return "bf16-mixed"
    return "32-true"


def _times(number: float, factor: float) -> float:
    """Product as a person would write it: 4e-4 times 0.75 is 3e-4. What is no number is left to `check_values`."""
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in (number, factor))
    return float(f"{number * factor:.12g}") if numbers else number


def compose_config(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Compose a shipped config, leaving Hydra as it was found.

    Raises
    ------
    hydra.errors.HydraException
        If an override does not fit.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    register_resolvers()
    running = GlobalHydra.instance().hydra  # of `python train.py` and sweeps, beside which no other may be begun
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(resource_path("configs")), version_base="1.3"):
            return compose(name, overrides=list(overrides))
    finally:
        GlobalHydra.instance().hydra = running  # another instance than before


_quiet_lock = threading.Lock()
_quieted: dict[str, tuple[int, int]] = {}  # logger -> how many ask for quiet now, and its level before the first


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Hold back the lines of a logger that are no warnings, while anybody asks for it; threads may ask side by side."""
    logger = logging.getLogger(name)
    with _quiet_lock:
        asking, before = _quieted.get(name, (0, logger.level))
        _quieted[name] = asking + 1, before
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        with _quiet_lock:
            asking, before = _quieted.pop(name)
            if asking > 1:
                _quieted[name] = asking - 1, before
            else:
                logger.setLevel(before)


def configure_logging() -> None:
    """One line per event on standard error, and none of the libraries' talk about themselves."""
    level = logging.INFO if is_first_process() else logging.WARNING
    logging.basicConfig(level=logging.WARNING, handlers=[ScreenHandler()])
    logging.getLogger("etsam").setLevel(level)
    talkative = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero")
    for name in (
        *talkative,
        "lightning.pytorch.trainer.connectors.signal_connector",
        "lightning.fabric.utilities.distributed",
        "torch.distributed",
        "urllib3.connectionpool",  # each of its attempts; what came of them is told by etsam/download.py
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    # one path a batch, read lazily: more loader workers would do nothing, and the writer needs no batch indices
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*infer the batch indices.*")
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
    # a run that goes on finds its own checkpoints; one of another run was refused (training/run.py)
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*Glyph .* missing from font.*")  # titles of previews: any file name
    warnings.filterwarnings("ignore", module="sam2")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def launch(main: Callable[[], Any], switch: str = "HYDRA_FULL_ERROR") -> None:
    """Call a `@hydra.main` function; what Hydra itself refuses is told as one line, with status 1.

    Hydra alone prints several lines, of which some are about its inside, and leaves with status 1 or 2.
    """
    from hydra._internal.utils import get_args_parser
    from hydra.errors import HydraException

    read_names_as_utf8()
    parser = get_args_parser()
    hint = "settings are written KEY=VALUE, such as input=FILE; flags like those of the published tool: `etsam predict`"
    # its own way is several lines and status 2
    parser.error = lambda message: exit_with_error(f"{message}; {hint}.")  # type: ignore[method-assign]
    given = parser.parse_args()
    before = os.environ.get(switch)
    os.environ[switch] = "1"  # makes Hydra raise what it would print otherwise
    try:
        main()
        _tell_jobs()
    except KeyboardInterrupt:
        exit_with_error("interrupted before anything was written.", status=130)
    except JobError as error:
        _tell_jobs()
        told = JobError.messages or [str(error)]  # jobs of a cluster failed in other processes
        exit_with_error(explain(EtsamError.of(f"{len(told)} of the sweep's jobs failed, the others ran", told)))
    except (HydraException, OmegaConfBaseException) as error:
        if before or "debug=true" in given.overrides:
            traceback.print_exc()
        exit_with_error(explain(error, given.overrides))
    finally:
        os.environ.pop(switch) if before is None else os.environ.update({switch: before})


def reporting_errors(run: Callable[[DictConfig], _Result], cfg: DictConfig, *, stop_at_once: bool = True) -> _Result:
    """Call `run(cfg)`; an error ends the process with status 1 and one line that says what to do.

    With `debug=true` the traceback is shown. An interrupted run (Ctrl-C) ends with status 130, one that was told to
    stop (SIGTERM, as from a cluster's queue) with 143; files that were being written are removed in any case.
    Without `stop_at_once` SIGTERM is left to Lightning, which ends training after the step at work and saves it.
    """
    configure_logging()
    register_resolvers()
    forget_folders()
    try:
        with _stopped_by_sigterm() if stop_at_once else nullcontext():
            result = run(cfg)
        if _in_sweep():
            score = getattr(result, "best_score", None)
            _jobs.append((_job_settings(), "done" if score is None else f"best score {score:.4f}"))
        return result
    except (KeyboardInterrupt, SystemExit) as stop:
        remove_empty_folders()
        if not stop_at_once and isinstance(stop, SystemExit) and stop.code in (130, SIGTERM_STATUS):
            raise  # training has told how to go on
        removed = "outputs that were not complete have been removed."
        if "resume" in cfg and not cfg.overwrite:
            removed = removed[:-1] + "; the same with resume=true goes on."
        # Lightning turns Ctrl-C into `sys.exit(1)`
        if isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt):
            exit_with_error(f"interrupted; {removed}", status=130)
        if stop.code == SIGTERM_STATUS:
            exit_with_error(f"told to stop (SIGTERM); {removed}", SIGTERM_STATUS)
        raise
    except Exception as error:
        remove_empty_folders()
        if cfg.get("debug", False) is True:
            traceback.print_exc()
        if _in_sweep():  # the other jobs go on
            log.error("this job failed: %s", explain(error))
            JobError.messages.append(explain(error))
            _jobs.append((_job_settings(), f"failed: {explain(error)}"))
            raise JobError(explain(error)) from error
        exit_with_error(explain(error))
    finally:
        idle()


class JobError(Exception):
    """A job of a sweep (`--multirun`) that failed; its text is that of the error.

    Hydra runs the other jobs and then raises the error of the first that failed.

    Attributes
    ----------
    messages
        Of all jobs of this process that failed.
    """

    messages: ClassVar[list[str]] = []


_jobs: list[tuple[list[str], str]] = []
"""Settings and outcome of each job of a sweep that ended in this process."""


def _job_settings() -> list[str]:
    from hydra.core.hydra_config import HydraConfig

    return [str(override) for override in HydraConfig.get().overrides.task]


def _tell_jobs() -> None:
    """Table of a sweep: what differs between its jobs, and what each came to."""
    if not _jobs:
        return
    common = set.intersection(*(set(settings) for settings, _ in _jobs))
    named = [
        " ".join(item for item in settings if item not in common and not item.startswith("name=")) or "the same"
        for settings, _ in _jobs
    ]
    width = max(map(len, named))
    log.info("%d job%s:", len(_jobs), "" if len(_jobs) == 1 else "s")
    for name, (_, outcome) in zip(named, _jobs, strict=True):
        log.info("  %-*s  %s", width, name, outcome)
    _jobs.clear()


def _in_sweep() -> bool:
    """True inside a job of `--multirun`."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind the program, so that temporary files go; Lightning alone would only take note of it."""

    def stop(*_: Any) -> NoReturn:
        raise SystemExit(SIGTERM_STATUS)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def explain(error: BaseException, overrides: Iterable[str] = ()) -> str:
    """Message for a person, a line for each fault; errors inside Hydra's instantiation are traced to their cause.

    Parameters
    ----------
    error
        What was raised.
    overrides
        Settings of the command, to name the one that does not fit.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, EtsamError):
            return "\n  ".join([f"{cause.head}:", *cause.faults]) if cause.faults else _one_line(cause)
        if isinstance(cause, MissingMandatoryValue | InterpolationToMissingValueError):
            key = [*_one_line(cause).partition("issing mandatory value: ")[2].split(), "a setting"][0]
            return f"{key} is not given; add {key}={'FILE' if key.startswith('weights.') else 'VALUE'} to the command."
        cause = cause.__cause__
    text = _one_line(error) or "no message"
    if "No supported gpu backend" in text or "MPSAccelerator can not run" in text or "You requested gpu" in text:
        found = re.search(r"machine only has: (\[.*?\])", text)
        there = f"this machine has {found[1]}" if found else "none was found on this machine"
        return f"no such GPU: {there}; trainer=cpu works without one."
    if "out of memory" in text.lower() or isinstance(error, MemoryError):
        return f"out of memory: {text[:200]} - use tile_batch_size=1, a smaller net, or tiles=auto tiles.size_voxels=N."
    if "--ntasks" in text:  # Lightning's advice for Slurm
        return text[:300]
    if isinstance(error, OmegaConfBaseException) or type(error).__module__.startswith("hydra"):
        return _explain_config(error, str(error), list(overrides))
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; check the file, its folder and its permissions."
    return f"unexpected {type(error).__name__}: {text} - this is a defect; run again with debug=true and report it."


def _one_line(error: object) -> str:
    return " ".join(str(error).split())


def _explain_config(error: BaseException, text: str, overrides: list[str]) -> str:
    """Say what Hydra 1.3 says of a setting in the words of someone who uses the program."""
    cause = error.__cause__
    if found := re.search(r"Could not find '(.*)/(.*?)'", text):
        group, choice = found.groups()
        listed = text.partition("Available options in")[2].partition("Config search path")[0].split()[1:]
        names = ", ".join(name for name in listed if not name.startswith("_"))
        meant = difflib.get_close_matches(choice, names.split(", "), n=1, cutoff=0.75)
        names = f"{names}; did you mean {meant[0]}?" if meant else f"{names}."
        more = " For checkpoints of your own: weights=files weights.stage1=FILE weights.stage2=FILE"
        return f"{group}={choice} is unknown; allowed: {names}{more if group == 'weights' else ''}"
    if found := re.search(r"Could not override '(.*?)'", text):
        key = found.group(1)
        if key == "normalize.membranes":
            return (
                "normalize.membranes belongs to normalize=robust, which turns bright membranes dark; the published "
                "weights and their normalisation take membranes as dark. Invert the tomogram, or add normalize=robust."
            )
        if key == "resume" and _program() == "train":
            return "training has no setting resume; ckpt_path=last goes on with a run, ckpt_path=auto if it is there."
        meant = re.findall(r"\w+@[\w.]+", text) or [name for name in _similar_settings(key) if name != key]
        hint = f"did you mean {' or '.join(meant)}?" if meant else _all_settings()
        written = next((item for item in overrides if item.startswith(f"{key}=")), f"{key}=...")
        if "." in key and not meant:
            hint += f" +{written} adds it to {key.rpartition('.')[0]}, if that takes it."
        return f"there is no setting {key} ({written}); {hint} If a file is called so, check that it is there."
    if found := re.search(r"Ambiguous value for argument '(.*)'", text):
        key, _, value = found.group(1).partition("=")
        return (
            f"{key}={value} has commas; for several values write '{key}=[{value}]', for one name '{key}=\"{value}\"'."
        )
    if type(error).__name__ == "OverrideParseException":
        item = str(getattr(error, "override", ""))
        key, equals, value = item.partition("=")
        if not equals:
            return f"{item} is no setting, which is written KEY=VALUE; for a tomogram: input={item}"
        value = value.replace('"', '\\"')
        return (
            f"{item} cannot be read; put text with spaces or special characters in double quotes: '{key}=\"{value}\"'"
        )
    if cause is not None and (place := re.search(r"full_key: (.*)", text)):
        return f"the settings of {place.group(1).removeprefix('segmenter.')} do not fit: {_one_line(cause)}"
    return f"the settings do not fit together: {_one_line(text)}"


def _program() -> str:
    """Whose settings these are, train, evaluate or predict: that script was started, or `etsam COMMAND`."""
    started = Path(sys.argv[0]).name
    script = started.endswith(".py") and started != "__main__.py"  # `python -m etsam` is the command
    name = started.removesuffix(".py") if script else "".join(sys.argv[1:2])
    return {"train": "train", "finetune": "train", "evaluate": "evaluate"}.get(name, "predict")


def _all_settings() -> str:
    """Sentence that says what lists the settings of the program or command that was started."""
    started, words = Path(sys.argv[0]).name, [word for word in sys.argv[1:3] if re.fullmatch("[a-z-]+", word)]
    if started in ("predict.py", "train.py", "evaluate.py"):
        return f"`python {started} --help` lists all."
    if words[:1] == ["data"]:
        return f"`etsam {' '.join(words)} --help` says which there are."
    return f"`etsam {_program()} --settings` lists all."


def _similar_settings(key: str) -> list[str]:
    """Find groups and settings of this program's config that are written like `key`.

    The last part of the name decides, first among those beside it: `trainer.` is common to many that mean other things.
    """
    group, point, last = key.rpartition(".")
    if last in RENAMED:
        return [group + point + RENAMED[last]]
    known = [folder.name for folder in resource_path("configs").iterdir() if folder.is_dir()]
    first, dot, rest = key.partition(".")
    if dot and first not in known and (meant := difflib.get_close_matches(first, known, n=1, cutoff=0.75)):
        return [f"{meant[0]}.{rest}"]
    known += [name for name, _ in _shipped_values(_program())]
    parent, _, written = key.rpartition(".")
    for names in ([name for name in known if name.rpartition(".")[0] == parent], known):
        close = difflib.get_close_matches(
            written, sorted({name.rpartition(".")[2] for name in names}), n=2, cutoff=0.75
        )
        found = [name for last in close for name in names if name.rpartition(".")[2] == last and name != parent]
        if found:
            return found[:2]
    return []


def _shipped_values(name: str) -> list[tuple[str, Any]]:
    """(`a.b.c`, value as written) of configs/NAME.yaml and of those it builds on, without what groups add."""

    def walk(node: dict[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")
            elif key not in ("defaults", "_recursive_", "_convert_"):
                yield f"{prefix}{key}", value

    written: Any = OmegaConf.to_container(OmegaConf.load(resource_path("configs", f"{name}.yaml")))
    values: dict[str, Any] = {}
    for base in written.get("defaults", []):
        if isinstance(base, str) and (resource_path("configs") / f"{base}.yaml").is_file():
            values |= _shipped_values(base)
    return list((values | dict(walk(written, ""))).items())


_READ_BY_PROGRAMS: dict[str, Any] = {
    "net.input_slices": int,
    "net.tile_voxels": int | None,
    "net.tile_step": int | None,
    "net.memory_slices": int | None,
    "prediction_threshold": float | None,
    "workers": int | None,
    "debug": bool,
    "data.sources.*.weight": float,
    "weights.download": bool,
}
"""Types of settings that are null or in a group where they are written, and that no constructor takes by this name."""


def check_values(cfg: DictConfig, name: str) -> None:
    """Compare every setting with the type that the constructor which takes it is annotated with (`etsam.settings`).

    Switches and numbers that no constructor takes are compared with what is written in configs/NAME.yaml.

    Raises
    ------
    ConfigError
        Names the first setting that does not fit, what was given and what is allowed. Hydra takes `overwrite=no` for a
        text, and a text that is not empty for a yes.
    """
    for message in misfits(cfg, types_without_target(name)):
        raise ConfigError(message)


def types_without_target(name: str) -> dict[str, Any]:
    """Types of settings of configs/NAME.yaml that programs read themselves, by key."""
    shipped = {key: type(value) for key, value in _shipped_values(name) if isinstance(value, bool | int | float)}
    return shipped | _READ_BY_PROGRAMS


@contextmanager
def config_error() -> Iterator[None]:
    """Turn what Hydra says of a config into the `EtsamError` behind it, or a `ConfigError`."""
    from hydra.errors import HydraException

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from error


def exit_with_error(message: str, status: int = 1) -> NoReturn:
    """End the process with a message on standard error, in the words that were typed."""
    idle()
    sys.stderr.write(folded(f"etsam: error: {in_their_words(message)}") + "\n")
    sys.stderr.flush()
    raise SystemExit(status)


def require(cfg: DictConfig, key: str, meaning: str) -> None:
    """Raise `ConfigError` if a value that must be given is missing."""
    group, _, name = key.rpartition(".")
    if OmegaConf.is_missing(OmegaConf.select(cfg, group) if group else cfg, name):
        raise ConfigError(f"{key} is not given; add {key}={meaning}.")
