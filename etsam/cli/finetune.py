"""`etsam finetune`: both stages on tomograms of one's own, one after the other."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etsam.cli import add_command

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from etsam.training.run import TrainingResult

_EXPERIMENTS = {"nano": "finetune_nano", "etsam_v1": "finetune"}
_STARTS = {"nano": ("nano_stage1", "nano_stage2"), "etsam_v1": ("etsam_stage1_v1", "etsam_stage2_v1")}


def add(commands: Any) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "finetune",
        run,
        help="manifest -> weights of both stages, tuned to it",
        description="Fine-tune stage 1, then stage 2 on what it says, and keep of each what validates better than "
        "before. The same command goes on where it was stopped. KEY=VALUE settings of `etsam train` may follow.",
    )
    parser.add_argument(
        "manifest", type=Path, help="CSV with tomograms to train (train) and to choose the best by (val)"
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="such as trainer.max_epochs=20")
    parser.add_argument("--weights", choices=list(_STARTS), default="nano", help="what to start from (nano)")
    parser.add_argument("--name", default="finetuned", help="of the runs, runs/NAME_stage1 and _stage2 (finetuned)")
    parser.add_argument(
        "--old", type=Path, metavar="CSV", help="tomograms whose Dice may fall by 0.01 at most; half of the clips"
    )
    parser.set_defaults(takes_settings=True, stop_at_once=False)


def run(args: argparse.Namespace) -> None:
    """Train; raises `EtsamError`s."""
    import logging

    from etsam.cli.overrides import quote
    from etsam.training.run import run

    log = logging.getLogger(__name__)
    first = stage1, stage2 = _STARTS[args.weights]
    seen = _seen_by_stage2(args, stage2)
    if seen is None:
        stage1 = _better(run(_composed(args, "stage1", stage1), fixed_data=True), stage1)
    else:  # it may not change any more
        log.info("stage 1 is finished (%s), since stage 2 learns from it; name=OTHER trains both anew", seen)
        stage1 = seen
    second = _composed(args, "stage2", stage2, f"stage1.checkpoint={quote(stage1)}")
    stage2 = _better(run(second, fixed_data=True), stage2)
    if (stage1, stage2) == first:
        log.warning("neither stage became better on these tomograms; go on with the weights that were there")
        return
    log.info(
        "both stages are done: etsam predict TOMOGRAM.mrc weights=%s weights.stage1=%s weights.stage2=%s",
        args.weights,
        stage1,
        stage2,
    )


def _composed(args: argparse.Namespace, stage: str, start: str, *more: str) -> "DictConfig":
    """Config of the run of one stage."""
    from etsam.app import compose_config, config_error
    from etsam.cli.overrides import quote

    experiment = _EXPERIMENTS[args.weights] + ("_stage2" if stage == "stage2" else "")
    settings = [f"experiment={experiment}", f"start={start}", f"name={quote(f'{args.name}_{stage}')}"]
    settings += [f"data.sources.own.manifest={quote(str(args.manifest))}", "ckpt_path=auto", *more]
    if args.old is not None:
        settings += [f"+data.sources.old.manifest={quote(str(args.old))}", "+data.sources.old.weight=1"]
    with config_error():
        return compose_config("train", [*settings, *args.settings])


def _seen_by_stage2(args: argparse.Namespace, start: str) -> str | None:
    """Stage 1 that stage 2 has begun to learn from, in an earlier call of this command; None if it has not."""
    from etsam.errors import CheckpointError
    from etsam.training.run_folder import RunFolder

    folder = RunFolder(_composed(args, "stage2", start))
    seen: str | None = ((folder.begun_with() or {}).get("stage1") or {}).get("checkpoint")
    if seen is not None and seen != _STARTS[args.weights][0] and not Path(seen).exists():
        raise CheckpointError(f"{seen}, which {folder.path} learns from, is gone; name=OTHER trains both stages anew.")
    return seen


def _better(result: "TrainingResult", start: str) -> str:
    """Best state if it scores higher than the start did, else the start."""
    before = result.dice_before.get("own", 0.0)
    improved = result.best_checkpoint is not None and (result.best_score or 0.0) > before
    return str(result.best_checkpoint) if improved else start
