"""The folder of a run: whose it is, where it goes on, and that it has ended."""

import fcntl
import json
import logging
import pickle
import re
import subprocess
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from omegaconf import DictConfig, OmegaConf

from etsam.app import is_first_process
from etsam.errors import CheckpointError, ConfigError, OutputError
from etsam.paths import resource_path
from etsam.prediction.record import environment
from etsam.settings import flat
from etsam.volume import atomic_path

log = logging.getLogger(__name__)

_SETTINGS = "config.yaml"
_TOMOGRAMS = "tomograms.json"
_LOCK = ".lock"
_METRICS = "metrics.csv"
_WANDB_ID = "wandb_id"
_ENDED = "ended.json"
# where data lie is free, too: what the manifests list is compared instead
_PLACE_OF_DATA = re.compile(r"data\.sources\.[^.]+\.(manifest|root)")
# may differ when a run goes on: where, how fast and how long it trains, not what it trains; of the callbacks the
# average of the weights may not, which is what a checkpoint holds
_FREE = (
    "ckpt_path",
    "max_time",
    "debug",
    "overwrite",
    "prepare_only",
    "trainer",
    "logger",
    "callbacks",
    "output_dir",
    "paths",
    "encode_batch_size",
    "checkpoint_encoder",
    "data.batch_size",
    "data.num_workers",
    "data.pin_memory",
    "data.cache_folder",
    "stage1.folder",
)


def settings_of(cfg: DictConfig) -> dict[str, Any]:
    """Settings as plain values; secrets are not among them."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def shown(path: str | Path) -> Path:
    """Path as a person would type it here: from the current folder, if it lies in it."""
    path = Path(path)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _different(cfg: DictConfig, before: dict[str, Any]) -> list[str]:
    """Names (`a.b.c`) of settings that are not those of before, but for `_FREE` and copies of others (`${a.b}`)."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    written = flat(plain)
    copies = {name for name, value in written.items() if isinstance(value, str) and "${" in value}
    apart = (*_FREE, *copies)
    now, then = flat(settings_of(cfg)), flat(before)
    averages = tuple(
        name.removesuffix("_target_")
        for name, value in (*now.items(), *then.items())
        if name.startswith("callbacks.") and str(value).endswith("WeightAveraging")
    )
    return sorted(
        name
        for name in now.keys() | then.keys()
        if now.get(name) != then.get(name)
        and (name.startswith(averages) or not any(name == free or name.startswith(f"{free}.") for free in apart))
        and not _PLACE_OF_DATA.fullmatch(name)
    )


def _settings_in(folder: Path) -> dict[str, Any] | None:
    """Settings of the run of a folder; None if there are none."""
    file = folder / _SETTINGS
    if not file.exists():
        return None
    before = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(before, dict)
    return {str(key): value for key, value in before.items()}


def _some(names: Sequence[str], most: int = 8) -> str:
    """Names in a line, those beyond `most` as their number."""
    more = [f"{len(names) - most} more"] * (len(names) > most)
    return ", ".join([*names[:most], *more])


class RunFolder:
    """Folder of a run, `output_dir`: settings, tomograms, states, metrics. One process at a time works in it.

    A context manager, which gives the folder back to others.

    Parameters
    ----------
    cfg
        configs/train.yaml, composed.
    fixed_data
        Refuse a run that goes on with manifests that have changed; else that is a warning.

    Attributes
    ----------
    path
        The folder.
    checkpoint
        File that the run goes on from; None where it begins. Known once it is claimed.
    lengthened
        True if the run had ended and goes on, unless `outcome` is told. Known once it is claimed.
    mark
        File that says that the run has ended, and what it came to.
    """

    def __init__(self, cfg: DictConfig, *, fixed_data: bool = False) -> None:
        self._cfg, self._fixed_data = cfg, fixed_data
        self.path = Path(cfg.output_dir)
        self.checkpoint: Path | None = None
        self.lengthened = False
        self.mark = self.path / _ENDED
        self._lock: IO[str] | None = None
        self._drawn = uuid.uuid4().hex[:8]

    def __enter__(self) -> "RunFolder":
        self.claim()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()

    def claim(self) -> None:
        """Make the folder, unless it belongs to another run; the first process does, the others follow.

        Raises
        ------
        CheckpointError
            If there is none where `ckpt_path` says, or it is of a run with other settings.
        ConfigError
            If `overwrite` would replace it.
        OutputError
            If the folder holds another run: other settings, or the same ones without `ckpt_path` to go on; or if a run
            is at work in it.
        """
        self.checkpoint = self._found_checkpoint()
        self.lengthened = self.checkpoint is not None and self.mark.exists()
        if not is_first_process():
            return
        self._refuse_other_runs()
        self._refuse_states_of_other_runs()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / _LOCK).open("a")
        except OSError as error:
            raise OutputError(f"the run folder {self.path} cannot be made: {error.strerror}.") from error
        try:
            # of this process alone: workers that are forked do not hold it when the run is killed
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise OutputError(
                f"{self.path} holds a run that is at work now; set name=OTHER. In a sweep give each job its own, such "
                "as 'name=run_${seed}'."
            ) from None
        except OSError as error:  # a file system without locks
            log.warning("%s: other runs of this name are not kept out (%s)", self.path, error.strerror)

    def _found_checkpoint(self) -> Path | None:
        wanted = self._cfg.ckpt_path
        if wanted is None:
            return None
        if self._cfg.overwrite:
            raise ConfigError(f"ckpt_path={wanted} goes on with what overwrite=true would replace; set one of them.")
        states = self.path / "checkpoints"
        path = states / "last.ckpt" if wanted in ("last", "auto") else Path(wanted)
        if wanted == "auto" and not path.exists():
            others = sorted(states.glob("*.ckpt"))
            if not others:
                return None
            raise CheckpointError(
                f"{path} is gone, but {others[-1].name} is there; set ckpt_path={others[-1]} to go on from it, or "
                "overwrite=true to begin anew."
            )
        if not path.is_file() and wanted not in ("last", "auto"):
            raise CheckpointError(
                f"ckpt_path={wanted}: there is no such file; allowed: last, auto (last if it is there, else a new "
                "run), or a .ckpt file."
            )
        if not path.is_file():
            raise CheckpointError(f"no checkpoint at {path}; leave ckpt_path out to start the run.")
        return path

    def _refuse_other_runs(self) -> None:
        before = self.begun_with()
        if before is None or self._cfg.overwrite:
            return
        different = _different(self._cfg, before)
        if self._cfg.ckpt_path is None:
            raise OutputError(
                f"{self.path} holds a run already; set ckpt_path=last to go on with it, name=OTHER for a new one, or "
                "overwrite=true to replace it."
            )
        if different:
            raise OutputError(
                f"{self.path} holds a run with other settings ({_some(different)}); a run goes on with its own. "
                "Set name=OTHER (and start=CHECKPOINT to use its weights)."
            )

    def _refuse_states_of_other_runs(self) -> None:
        if self.checkpoint is None or self._origin == self.path:
            return
        different = [name for name in _different(self._cfg, _settings_in(self._origin) or {}) if name != "name"]
        if different:
            raise CheckpointError(
                f"ckpt_path={self.checkpoint} is of a run with other settings ({_some(different)}); a run goes on with "
                f"its own. start={self.checkpoint} takes the weights only."
            )

    @property
    def _origin(self) -> Path:
        """Folder of the run that `checkpoint` is of; this one, where none is known."""
        place = self.path if self.checkpoint is None else self.checkpoint.absolute().parent.parent
        return place if (place / _SETTINGS).exists() and place.resolve() != self.path.resolve() else self.path

    def check_state(self, network: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse a checkpoint that training cannot go on from.

        Parameters
        ----------
        network
            Name -> shape of all that is trained.

        Raises
        ------
        CheckpointError
            If it holds weights alone, or those of another network.
        ConfigError
            If it has more epochs behind it than the run may have.
        """
        if self.checkpoint is None:
            return
        import torch

        try:
            state = torch.load(self.checkpoint, weights_only=True, mmap=True, map_location="cpu")
        except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
            state = {}
        only = f"start={self.checkpoint} takes the weights only."
        if not {"state_dict", "optimizer_states", "loops"} <= set(state):
            raise CheckpointError(f"ckpt_path={self.checkpoint} holds no state that training goes on from; {only}")
        then = {name: tuple(value.shape) for name, value in state["state_dict"].items()}
        others = sorted(name for name in then.keys() | network.keys() if then.get(name) != network.get(name))
        if others:
            raise CheckpointError(
                f"ckpt_path={self.checkpoint} is of another network: {_some(others, 2)} have other shapes or are "
                f"only in one. Set net= as in that run; {only}"
            )
        epochs = state["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        limit = self._cfg.trainer.max_epochs
        if limit is not None and 0 <= limit < epochs:
            raise ConfigError(
                f"trainer.max_epochs={limit}, but ckpt_path={self.checkpoint} has {epochs} epochs behind it; set "
                f"trainer.max_epochs={epochs} or more, or name=OTHER for a new run."
            )

    def begun_with(self) -> dict[str, Any] | None:
        """Settings of the run that is in the folder; None if nothing was learned in it."""
        return _settings_in(self.path) if any((self.path / "checkpoints").glob("*.ckpt")) else None

    @property
    def wandb_id(self) -> str:
        """Identity of the run for W&B, kept in the folder: one curve, however often the run goes on."""
        file = self.path / _WANDB_ID
        known = self.checkpoint is not None and file.exists()
        return file.read_text(encoding="utf-8").strip() if known else self._drawn

    def begin(self, tomograms: dict[str, list[list[str]]]) -> None:
        """Write the run's settings and tomograms into its folder; only now is a run that shall be replaced removed.

        Parameters
        ----------
        tomograms
            Source -> (name, split, fingerprint of the content) of each.

        Raises
        ------
        OutputError
            If a run that goes on has other manifests, which list other tomograms, or `fixed_data` forbids it.
        """
        if not is_first_process():
            return
        if self.checkpoint is not None:
            self._compare(tomograms, fixed=self._fixed_data)
        else:
            for old in (*(self.path / "checkpoints").glob("*.ckpt"), self.path / _METRICS, self.mark):
                old.unlink(missing_ok=True)
        texts = {
            _SETTINGS: OmegaConf.to_yaml(OmegaConf.create(settings_of(self._cfg))),
            _TOMOGRAMS: json.dumps(tomograms, indent=0),
            _WANDB_ID: self.wandb_id + "\n",
        }
        for name, text in texts.items():
            self._write(name, text)

    def _write(self, name: str, text: str) -> None:
        with atomic_path(self.path / name, overwrite=True) as part:
            part.write_text(text, encoding="utf-8")

    def end(self, epochs: int, outcome: dict[str, Any]) -> None:
        """Note that the run has ended, by itself and not because it was told to.

        Parameters
        ----------
        epochs
            So many were trained.
        outcome
            What it came to: plain values and paths.
        """
        limits = {name: self._cfg.trainer[name] for name in ("max_epochs", "max_steps")}
        self._write(_ENDED, json.dumps({"epochs": epochs, **limits, "outcome": outcome}, indent=1, default=self._place))

    def _place(self, path: Path) -> str:
        """Path from the folder on, which may be moved, if it lies in it."""
        whole, folder = path.absolute(), self.path.absolute()
        return str(whole.relative_to(folder) if whole.is_relative_to(folder) else whole)

    def _ended(self) -> dict[str, Any] | None:
        """Note that `end` made, if `ckpt_path` asks to go on from there; else None."""
        if not self.lengthened or self._cfg.ckpt_path not in ("last", "auto"):
            return None
        ended: dict[str, Any] = json.loads(self.mark.read_text(encoding="utf-8"))
        return ended

    def _longer(self, ended: dict[str, Any]) -> bool:
        """True if the run may have more epochs or steps than when it ended."""

        def limit(value: int | None) -> float:
            return float("inf") if value is None or value < 0 else value

        return any(limit(self._cfg.trainer[name]) > limit(ended[name]) for name in ("max_epochs", "max_steps"))

    def outcome(self, tomograms: Callable[[], dict[str, list[list[str]]]]) -> dict[str, Any] | None:
        """What the run came to, told in a line, if it has ended and is not to be longer now; else None.

        Parameters
        ----------
        tomograms
            Gives what `begin` takes.

        Raises
        ------
        CheckpointError
            If its best state is gone.
        OutputError
            If the manifests have changed since.
        """
        ended = self._ended()
        if ended is None or self._longer(ended):
            return None
        self._compare(tomograms(), fixed=True)
        outcome: dict[str, Any] = ended["outcome"]
        for name in ("best_checkpoint", "last_checkpoint"):
            if outcome[name] is not None:
                outcome[name] = shown(self.path / outcome[name])
        best = outcome["best_checkpoint"]
        if best is not None and not best.exists():
            raise CheckpointError(f"{best}, the best state of a run that is finished, is gone; name=OTHER trains anew.")
        if is_first_process():
            limit = "max_epochs" if (ended["max_epochs"] or -1) > 0 else "max_steps"
            log.info(
                "%s is finished (%d epoch%s; %s); it was not trained again: trainer.%s=%d or more goes on, name=OTHER "
                "trains anew",
                self.path,
                ended["epochs"],
                "" if ended["epochs"] == 1 else "s",
                "nothing was validated" if best is None else f"best state {best}",
                limit,
                ended[limit] + 1,
            )
        return outcome

    def _compare(self, tomograms: dict[str, list[list[str]]], *, fixed: bool = False) -> None:
        folder = self._origin
        file = folder / _TOMOGRAMS
        if not file.exists() or (before := json.loads(file.read_text(encoding="utf-8"))) == tomograms:
            return
        then_count, now_count = (sum(len(rows) for rows in one.values()) for one in (before, tomograms))
        numbers = f"{then_count} tomograms before, {now_count} now"
        then, now = flat(_settings_in(folder) or {}), flat(settings_of(self._cfg))
        if any(then.get(name) != now.get(name) for name in then.keys() | now.keys() if _PLACE_OF_DATA.fullmatch(name)):
            raise OutputError(
                f"{folder} holds a run on other data ({numbers}: names, splits or contents differ); set name=OTHER "
                "(and start=CHECKPOINT to use its weights)."
            )
        if fixed:
            raise OutputError(
                f"the manifest has changed since {self.path} was trained ({numbers}: names, splits or contents "
                "differ); name=OTHER trains anew."
            )
        log.warning("the manifest has changed since the run began: %s; it goes on with those of now", numbers)


def description(cfg: DictConfig) -> dict[str, Any]:
    """Settings, versions and git state, for loggers."""
    return {**settings_of(cfg), "environment": environment(), "git": _git_state()}


def _git_state() -> dict[str, str]:
    """Commit and whether files differ from it, of a checkout; empty for an installed package."""
    root = resource_path("configs").parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        return {"commit": commit, "changed": git("status", "--porcelain")[:2000]} if commit else {}
    except OSError:  # no git
        return {}
