"""The folder of a run: whose it is, and where it goes on."""

import logging
import subprocess
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from etsam.app import is_first_process
from etsam.errors import CheckpointError, ConfigError, OutputError
from etsam.paths import share
from etsam.prediction.record import environment
from etsam.settings import flat
from etsam.volume import atomic_path

log = logging.getLogger(__name__)

_SETTINGS = "config.yaml"
# may differ when a run goes on: where, how fast and how long it trains, not what it trains
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
)


def settings_of(cfg: DictConfig) -> dict[str, Any]:
    """Settings as plain values; secrets are not among them."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _different(cfg: DictConfig, before: dict[str, Any]) -> list[str]:
    """Names (`a.b.c`) of settings that are not those of before, but for `_FREE` and copies of others (`${a.b}`)."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    written = flat(plain)
    copies = {name for name, value in written.items() if isinstance(value, str) and "${" in value}
    apart = (*_FREE, *copies)
    now, then = flat(settings_of(cfg)), flat(before)
    return sorted(
        name
        for name in now.keys() | then.keys()
        if now.get(name) != then.get(name) and not any(name == free or name.startswith(f"{free}.") for free in apart)
    )


class RunFolder:
    """Folder of a run, `output_dir`: its settings in `config.yaml`, its states in `checkpoints`.

    Parameters
    ----------
    cfg
        configs/train.yaml, composed.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self._cfg = cfg
        self.path = Path(cfg.output_dir)

    def claim(self) -> str | None:
        """Make the folder, unless it belongs to another run; the first process does, the others follow.

        Returns
        -------
        str or None
            Checkpoint to go on from; None to begin.

        Raises
        ------
        CheckpointError
            If there is none where `ckpt_path` says.
        ConfigError
            If `overwrite` would replace it.
        OutputError
            If the folder holds another run: other settings, or the same ones without `ckpt_path` to go on.
        """
        checkpoint = self._checkpoint()
        if is_first_process():
            self._refuse_other_runs()
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"the run folder {self.path} cannot be made: {error.strerror}.") from error
        return checkpoint

    def _checkpoint(self) -> str | None:
        wanted = self._cfg.ckpt_path
        if wanted is None:
            return None
        if self._cfg.overwrite:
            raise ConfigError(f"ckpt_path={wanted} goes on with what overwrite=true would replace; set one of them.")
        last = self.path / "checkpoints" / "last.ckpt"
        path = last if wanted in ("last", "auto") else Path(wanted)
        if wanted == "auto" and not path.exists():
            return None
        if not path.is_file():
            raise CheckpointError(f"no checkpoint at {path}; leave ckpt_path out to start the run.")
        return str(path)

    def _refuse_other_runs(self) -> None:
        file = self.path / _SETTINGS
        begun = any((self.path / "checkpoints").glob("*.ckpt"))  # else it failed before anything was learned
        if not file.exists() or not begun or self._cfg.overwrite:
            return
        before = OmegaConf.to_container(OmegaConf.load(file))
        assert isinstance(before, dict)
        different = _different(self._cfg, {str(key): value for key, value in before.items()})
        if self._cfg.ckpt_path is None:
            raise OutputError(
                f"{self.path} holds a run already; set ckpt_path=last to go on with it, name=OTHER for a new one, or "
                "overwrite=true to replace it."
            )
        if different:
            raise OutputError(
                f"{self.path} holds a run with other settings ({', '.join(different)}); a run goes on with its own. "
                "Set name=OTHER (and start=CHECKPOINT to use its weights)."
            )

    def begin(self) -> None:
        """Write the run's settings into its folder; only now is a run that shall be replaced removed."""
        if not is_first_process():
            return
        if self._cfg.overwrite:
            for old in (self.path / "checkpoints").glob("*.ckpt"):
                old.unlink()
        with atomic_path(self.path / _SETTINGS, overwrite=True) as part:
            part.write_text(OmegaConf.to_yaml(OmegaConf.create(settings_of(self._cfg))), encoding="utf-8")


def description(cfg: DictConfig) -> dict[str, Any]:
    """Settings, versions and git state, for loggers."""
    return {**settings_of(cfg), "environment": environment(), "git": _git_state()}


def _git_state() -> dict[str, str]:
    """Commit and whether files differ from it, of a checkout; empty for an installed package."""
    root = share("configs").parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        return {"commit": commit, "changed": git("status", "--porcelain")[:2000]} if commit else {}
    except OSError:  # no git
        return {}
