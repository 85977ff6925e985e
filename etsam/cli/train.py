"""`etsam train`: one run, a sweep of runs, or what can be set."""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig


def add(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "train",
        help="clips -> weights",
        description="Train one stage. `etsam train --list` shows the experiments and every setting with what it does.",
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="such as experiment=nano_stage1")
    parser.add_argument(
        "--list",
        nargs="?",
        const="",
        metavar="GROUP",
        help="show all settings, or the choices of one group (experiment)",
    )
    parser.add_argument("--cfg", choices=["job"], help="show the settings that these arguments give, and stop")
    parser.add_argument("--multirun", "-m", action="store_true", help="a run for each value of settings with commas")
    parser.set_defaults(prepare=prepare, takes_settings=True)


def prepare(args: argparse.Namespace, settings: Sequence[str]) -> Callable[[], None]:
    """The run, or the list, that the arguments ask for; raises ValueError if they ask for nothing."""
    if not settings and args.list is None:
        raise ValueError("no settings; such as experiment=nano_stage1 (`etsam train --list` shows all)")
    return partial(run, args, settings)


def run(args: argparse.Namespace, settings: Sequence[str]) -> None:
    """Do what the arguments ask for; one run is left to `train`."""
    if args.list is not None:
        print_settings(args.list)
    elif args.cfg:
        from omegaconf import OmegaConf

        sys.stdout.write(OmegaConf.to_yaml(_composed(settings)))
    elif args.multirun:
        _sweep(settings)
    else:
        train(settings)


def train(settings: Sequence[str]) -> None:
    """One run, with errors as one line."""
    from etsam.app import reporting_errors
    from etsam.training.run import run

    reporting_errors(run, _composed(settings), stop_at_once=False)


def _composed(settings: Sequence[str]) -> "DictConfig":
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from etsam.app import compose_config, exit_with_error, explain

    try:
        return compose_config("train", settings)
    except (HydraException, OmegaConfBaseException) as error:
        exit_with_error(explain(error, settings))


def _sweep(settings: Sequence[str]) -> None:
    """`python train.py --multirun`, also where there is no train.py."""
    import hydra

    from etsam.app import launch, reporting_errors
    from etsam.paths import resource_path
    from etsam.training.run import run

    def job(cfg: "DictConfig") -> float | None:
        _refuse_several_devices(cfg)
        return reporting_errors(run, cfg, stop_at_once=False).best_score  # what sweepers that search optimise

    sys.argv = ["train.py", "--multirun", *settings]
    launch(hydra.main(version_base="1.3", config_path=str(resource_path("configs")), config_name="train")(job))


def _refuse_several_devices(cfg: "DictConfig") -> None:
    """End a sweep whose jobs would start processes beside them, unless a cluster starts them.

    Lightning starts them with the command line of this process, and they would do the whole sweep.
    """
    from hydra.core.hydra_config import HydraConfig

    from etsam.app import exit_with_error

    here = HydraConfig.get().launcher._target_.endswith("BasicLauncher")
    if here and cfg.trainer.devices not in (1, "1", [0]) and str(cfg.trainer.strategy).startswith("ddp"):
        exit_with_error(
            f"--multirun with trainer.devices={cfg.trainer.devices}: a run of a sweep takes one device; set "
            "trainer.devices=1 trainer.strategy=auto, or type `etsam train` once for each value: such as "
            "for seed in 0 1; do etsam train seed=$seed name=run_$seed ...; done"
        )


def print_settings(group: str = "") -> None:
    """Write the settings of training with their comments, or the choices of a group, to standard output."""
    from etsam.app import exit_with_error
    from etsam.paths import resource_path

    configs = resource_path("configs")
    if group:
        files = sorted((configs / group).glob("*.yaml"))
        if not files:
            groups = ", ".join(sorted(folder.name for folder in configs.iterdir() if folder.is_dir()))
            exit_with_error(f"--list {group}: there is no such group; allowed: {groups}.")
        for file in files:
            sys.stdout.write(f"----- {group}={file.stem}\n{file.read_text(encoding='utf-8')}\n")
        return
    sys.stdout.write((configs / "train.yaml").read_text(encoding="utf-8"))
    for name, choice in (("data", "manifest"), ("optimizer", "published"), ("callbacks", "default"), ("loss", "sam2")):
        text = (configs / name / f"{choice}.yaml").read_text(encoding="utf-8")
        sys.stdout.write(f"\n----- {name}={choice}, settings {name}.KEY=VALUE\n{text}")
    sys.stdout.write("\n----- experiment=NAME, each in full by `etsam train --list experiment`\n")
    for file in sorted((configs / "experiment").glob("*.yaml")):
        sys.stdout.write(f"{file.stem:22}{_first_comment(file)}\n")


def _first_comment(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    return next(line[2:] for line in lines if line.startswith("# ") and "@package" not in line)
