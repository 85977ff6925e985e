"""`etsam data manifest`: tomograms and masks, by name or from a copick project -> a manifest with splits."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etsam.cli import add_command

if TYPE_CHECKING:
    from etsam.data.manifest import Sample


def add(commands: Any) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "manifest",
        run,
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
        "--split", default="0.8,0.1,0.1", metavar="T,V,E", help="fractions of train, val, test (0.8,0.1,0.1)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the drawing of splits (0)")
    parser.add_argument("--dataset", metavar="NAME", help="dataset_id of all rows (name of the tomograms' folder)")
    parser.add_argument("--output", required=True, metavar="FILE.csv", help="the manifest; never overwritten")


def run(args: argparse.Namespace) -> None:
    """Write the manifest and say what comes next; raises `EtsamError`s."""
    from etsam.cli.console import print_line
    from etsam.data.manifest import SPLITS, write_manifest
    from etsam.sources.files.splits import assign_splits, check_split, parse_split
    from etsam.volume.atomic import refuse_existing

    fractions = check_split(parse_split(args.split))
    output = Path(args.output).expanduser()
    refuse_existing(output, overwrite=False)
    samples = _from_project(args) if _wants_project(args) else _from_files(args)
    samples = assign_splits(samples, fractions, args.seed)
    write_manifest(output, samples)
    counts = ((split, sum(sample.split == split for sample in samples)) for split in SPLITS)
    numbers = ", ".join(f"{count} {split}" for split, count in counts if count)
    print_line(f"{len(samples)} tomograms ({numbers}) -> {output}")
    name = shlex.quote(str(output))
    print_line("Next:")
    print_line(f"  etsam data check {name}")
    print_line(f"  etsam train experiment=nano_stage1 name=first data.sources.own.manifest={name}")


def _wants_project(args: argparse.Namespace) -> bool:
    """Source that is meant, of the two; raises `ConfigError` if that is not clear, or half of it."""
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


def _from_files(args: argparse.Namespace) -> "list[Sample]":
    from etsam.cli.console import print_line
    from etsam.sources.files.pairing import expand, list_samples, pair

    pairs = pair(expand(args.tomograms), expand(args.masks))
    for found in pairs:
        if found.guessed:
            print_line(f"by the beginning of the name: {found.tomogram} - {found.mask}")
    if any(found.guessed for found in pairs):
        print_line("look whether these belong together.")
    folder = pairs[0].tomogram.absolute().parent.name
    return list_samples(pairs, args.dataset or folder or "own")


def _from_project(args: argparse.Namespace) -> "list[Sample]":
    from etsam.cli.console import print_line, progress_bar
    from etsam.sources.files.copick import SegmentationName, export_samples

    with progress_bar("exporting") as progress:
        samples, left_out = export_samples(
            args.copick,
            Path(args.export_dir).expanduser(),
            tomogram_type=args.tomogram_type,
            voxel_size_angstrom=args.voxel_size,
            segmentation=SegmentationName.parse(args.segmentation),
            dataset_id=args.dataset or Path(args.copick).stem,
            progress=progress,
        )
    for line in left_out:
        print_line(f"left out: {line}")
    return samples
