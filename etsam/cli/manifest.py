"""`etsam data manifest`: tomograms and masks, by name or from a copick project -> a manifest with splits."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from etsam.data.manifest import Sample


def add(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "manifest",
        help="tomograms and masks -> manifest",
        description="Pair tomograms with masks by name, or export both from a copick project, draw splits by chance, "
        "and write the manifest that training takes.",
    )
    files = parser.add_argument_group("from files")
    files.add_argument("--tomograms", nargs="+", metavar="PATTERN", help="such as 'data/*.mrc', in quotes")
    files.add_argument("--masks", nargs="+", metavar="PATTERN", help="such as 'data/*_mask.mrc', in quotes")
    project = parser.add_argument_group("from a copick project")
    project.add_argument("--copick", metavar="CONFIG.json", help="configuration of the project")
    project.add_argument("--tomogram-type", metavar="NAME", help="such as wbp")
    project.add_argument("--voxel-size", type=float, metavar="A", help="of tomogram and segmentation, Å")
    project.add_argument("--segmentation", metavar="NAME[:USER[:SESSION]]", help="a binary one, such as membrane")
    project.add_argument("--export-dir", metavar="DIR", help="new MRC files of tomograms and masks go here")
    parser.add_argument(
        "--split", default="0.8,0.1,0.1", metavar="T,V,E", help="shares of train, val, test (0.8,0.1,0.1)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the drawing of splits (0)")
    parser.add_argument("--dataset", metavar="NAME", help="dataset_id of all rows (name of the tomograms' folder)")
    parser.add_argument("--output", required=True, metavar="FILE.csv", help="the manifest; never overwritten")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the manifest and say what comes next; raises `EtsamError`s."""
    from rich.console import Console

    from etsam.data.manifest import write_manifest
    from etsam.sources.files.splits import SPLITS, assign_splits, check_split, parse_split
    from etsam.volume.atomic import refuse_existing

    shares = check_split(parse_split(args.split))
    output = Path(args.output).expanduser()
    refuse_existing(output, overwrite=False)
    console = Console(highlight=False, soft_wrap=True)
    samples = _from_project(args, console) if _wants_project(args) else _from_files(args, console)
    samples = assign_splits(samples, shares, args.seed)
    write_manifest(output, samples)
    counts = ((split, sum(sample.split == split for sample in samples)) for split in SPLITS)
    numbers = ", ".join(f"{count} {split}" for split, count in counts if count)
    console.print(f"{len(samples)} tomograms ({numbers}) -> {output}", markup=False)
    name = shlex.quote(str(output))
    console.print("Next:", markup=False)
    console.print(f"  etsam data check {name}", markup=False)
    console.print(f"  etsam train experiment=nano_stage1 name=first data.sources.own.manifest={name}", markup=False)


def _wants_project(args: argparse.Namespace) -> bool:
    """Which of the two sources; raises `ConfigError` if that is not clear, or half of it."""
    from etsam.errors import ConfigError

    groups = {
        "files": ("tomograms", "masks"),
        "project": ("copick", "tomogram_type", "voxel_size", "segmentation", "export_dir"),
    }
    given = {kind: [name for name in names if getattr(args, name) is not None] for kind, names in groups.items()}
    flags = {name: f"--{name.replace('_', '-')}" for names in groups.values() for name in names}
    if bool(given["files"]) == bool(given["project"]):
        raise ConfigError("give --tomograms and --masks, or --copick with what belongs to it; not both, not neither")
    kind = "files" if given["files"] else "project"
    missing = [flags[name] for name in groups[kind] if name not in given[kind]]
    if missing:
        raise ConfigError(f"{flags[given[kind][0]]} needs {', '.join(missing)}, too")
    return kind == "project"


def _from_files(args: argparse.Namespace, console: "Console") -> "list[Sample]":
    from etsam.sources.files.pairing import expand, list_samples, pair

    pairs = pair(expand(args.tomograms), expand(args.masks))
    for found in pairs:
        if found.guessed:
            console.print(f"by the beginning of the name: {found.tomogram} - {found.mask}", markup=False)
    if any(found.guessed for found in pairs):
        console.print("look whether these belong together.", markup=False)
    folder = pairs[0].tomogram.absolute().parent.name
    return list_samples(pairs, args.dataset or folder or "own")


def _from_project(args: argparse.Namespace, console: "Console") -> "list[Sample]":
    from rich.console import Console
    from rich.progress import Progress

    from etsam.sources.files.copick import SegmentationName, export_samples

    stderr = Console(stderr=True)
    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task("exporting", total=None)
        samples, left_out = export_samples(
            args.copick,
            Path(args.export_dir).expanduser(),
            tomogram_type=args.tomogram_type,
            voxel_size_angstrom=args.voxel_size,
            segmentation=SegmentationName.parse(args.segmentation),
            dataset_id=args.dataset or Path(args.copick).stem,
            progress=lambda name, done, total: bar.update(task, completed=done, total=total, description=name),
        )
    for line in left_out:
        console.print(f"left out: {line}", markup=False)
    return samples
