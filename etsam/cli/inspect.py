"""`etsam inspect`: say what a file is and which settings suit it."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etsam.cli import add_command

if TYPE_CHECKING:
    from rich.console import Console

    from etsam.sources.files.inspect import Inspection
    from etsam.volume import Location


def add(commands: Any) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "inspect",
        run,
        help="tomogram -> what it is, and the command to run",
        description="Explain tomograms, masks and other MRC files. Nothing is written unless --preview asks for it.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="tomograms, masks or folders of them")
    parser.add_argument(
        "--preview",
        type=_picture,
        nargs="?",
        const="",
        metavar="FILE.png",
        help="draw three planes and a histogram; without a name into NAME_preview.png in --output-dir",
    )
    parser.add_argument("-o", "--output-dir", metavar="DIR", help="where pictures go (the current folder)")
    parser.add_argument("--json", action="store_true", help="print the same as JSON, a list with one entry a file")
    parser.add_argument("--verbose", "-v", action="store_true", help="header, grey values, every remark and setting")
    parser.add_argument("--overwrite", action="store_true", help="replace pictures that exist")


def _picture(text: str) -> str:
    """Name of a picture, or none; raises ArgumentTypeError."""
    if text and not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"{text} is no name of a picture (.png); write files before this flag")
    return text


def run(args: argparse.Namespace) -> None:
    """Print what is found of each file; raises `InputError` at the end if some could not be read."""
    from rich.console import Console

    from etsam.cli.console import print_line, progress_bar
    from etsam.errors import ConfigError, InputError
    from etsam.prediction.finding import find_tomograms
    from etsam.sources.files.inspect import inspect_file
    from etsam.sources.files.inspect_picture import write_inspection
    from etsam.sources.files.verdict import verdict

    if args.output_dir is not None and args.preview is None:
        raise ConfigError(f"--output-dir {args.output_dir} is where pictures go; add --preview, which draws them.")
    paths = find_tomograms(args.files)
    if args.preview and len(paths) > 1:
        raise ConfigError(f"--preview {args.preview} is one name for {len(paths)} files; leave the name out.")
    pictures = _pictures(args, paths)
    console = Console(highlight=False)
    found_all, failed = [], []
    for number, path in enumerate(paths):
        try:
            with progress_bar(path.name) as progress:
                found, planes = inspect_file(path, progress)
        except InputError as error:
            failed.append(str(error))
            continue
        lines = verdict(found, pictures[number] if pictures else None)
        found_all.append(found.as_dict() | {"verdict": list(lines)})
        if not args.json:
            _print(console, found, lines, args.verbose)
        if args.preview is not None:
            write_inspection(pictures[number], found, planes, args.overwrite)
            found_all[-1]["preview"] = str(pictures[number])
            if not args.json:
                print_line(f"picture: {pictures[number]}\n")
    if args.json:
        json.dump(found_all, sys.stdout, indent=1)
        sys.stdout.write("\n")
    elif args.preview is None and found_all:
        more = "" if args.verbose else "all that is known --verbose; "
        print_line(f"Further flags: a picture --preview; {more}for scripts --json.")
    if failed:
        if len(failed) == 1:
            raise InputError(failed[0])
        raise InputError.of(f"{len(failed)} of {len(paths)} files cannot be read", failed)


def _pictures(args: argparse.Namespace, paths: "list[Location]") -> list[Path]:
    """One for each file; refused before anything is read if one exists or two are the same."""
    from etsam.errors import OutputError
    from etsam.paths import make_folder
    from etsam.volume import strip_suffix
    from etsam.volume.atomic import refuse_existing

    if args.preview is None:
        return []
    folder = Path(args.output_dir or ".").expanduser()
    pictures = [
        folder / args.preview if args.preview else folder / f"{strip_suffix(path)}_preview.png" for path in paths
    ]
    if len(set(pictures)) < len(pictures):
        raise OutputError(f"two files would have the same picture in {folder}; inspect them one after the other.")
    for picture in pictures:
        refuse_existing(picture, args.overwrite)
    for picture in pictures:
        make_folder(picture.parent)
    return pictures


def _print(console: "Console", found: "Inspection", verdict: Sequence[str], verbose: bool) -> None:
    """The verdict, and with `verbose` a table of everything."""
    from rich.padding import Padding
    from rich.text import Text

    console.print(Text(str(found.path), style="bold blue"), soft_wrap=True)
    *said, command = verdict
    for line in said:
        console.print(Padding(Text(line), (0, 0, 0, 2)))
    console.print(Text(f"  {command}"), soft_wrap=True)  # to be copied whole
    if verbose:
        console.print()
        _print_table(console, found)
    console.print()


def _print_table(console: "Console", found: "Inspection") -> None:
    from rich.table import Table
    from rich.text import Text

    from etsam.cli.console import readable_bytes

    size = found.voxel_size_angstrom
    voxel = "unknown" if size is None else f"{_three(size)} Å"
    labels = "\n".join(" ".join(label.split()) for label in found.labels) or "none"
    stored = "" if found.bytes_on_disk is None else f", {readable_bytes(found.bytes_on_disk)}"
    lines = [
        ("looks like", f"a {found.looks_like}"),
        ("shape (Z, Y, X)", f"{' x '.join(map(str, found.shape))}, {found.dtype}{stored}"),
        ("voxel size", f"{voxel} (Z x Y x X): {found.voxel_size_note}" if size else found.voxel_size_note),
        ("origin, start", f"{_three(found.origin_angstrom)} Å, {_three(found.start_voxels)} voxels"),
        ("header", "; ".join(found.header_warnings) or "nothing odd"),
        ("history", labels),
        ("grey values", f"{found.minimum:g} to {found.maximum:g}, mean {found.mean:.4g}, {_nonfinite(found)}"),
        ("percentiles", ", ".join(f"{percent} %: {value:.4g}" for percent, value in found.percentiles.items())),
        ("skewness", f"{found.skewness:+.2f} of block means: the minority is {found.contrast}"),
        *(("remark", remark) for remark in found.remarks),
        *(("suggestion", suggestion) for suggestion in found.suggestions),
    ]
    table = Table.grid(padding=(0, 2, 0, 1))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    previous = ""
    for name, text in lines:
        table.add_row("" if name == previous else name, Text(text))
        previous = name
    console.print(table)


def _three(values: tuple[float, ...]) -> str:
    return " x ".join(f"{value:.5g}" for value in values)


def _nonfinite(found: "Inspection") -> str:
    if not found.nonfinite_voxels:
        return "none NaN or infinite"
    z, y, x = found.shape
    return f"{100 * found.nonfinite_voxels / (z * y * x):.3g} % NaN or infinite"
