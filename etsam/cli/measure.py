"""`etsam measure`: from a mask to membranes, their sizes, shapes, thickness and distances."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etsam.cli import add_command, refuse_missing

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from etsam.measure.run import MeasureJob

_EXAMPLES = """\
examples:
  etsam measure results/TS_01_etsam_predicted_mask.mrc --tomogram TS_01.mrc --output-dir results
  etsam measure results --tomogram tomograms --output-dir measured --resume
  etsam measure mask.mrc --output-dir out --points 10 --points-offset 5 --mesh-format ply,glb
  etsam measure mask.mrc --output-dir out --keep 'area_nm2>5000 and nearest_min_nm<30'
"""


def add(commands: Any) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "measure",
        run,
        help="mask -> membranes: area, shape, thickness, distances",
        description="Tell the membranes of a mask apart and measure each: area, volume, curvature, thickness from the"
        " tomogram, distance to the others. Writes NAME_membranes.csv, NAME_contacts.csv, NAME_measure.html and .png,"
        " numbered membranes (NAME_membrane_labels.mrc) and meshes. The page explains every column.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("masks", nargs="+", metavar="MASK", help="masks, or folders of predicted masks")
    parser.add_argument("--tomogram", nargs="+", default=[], metavar="T", help="tomogram, or several of the same names")
    parser.add_argument("-o", "--output-dir", type=Path, default=Path("results"), metavar="DIR", help="(results)")
    parser.add_argument("--voxel-size", type=float, metavar="A", help="Angstrom, where the headers are wrong")
    parser.add_argument("--instances", action="store_true", help="the mask holds a number for each membrane")
    parser.add_argument("--keep", metavar="RULE", help="membranes to keep: 1,3-5 or 'area_nm2>1000'")
    parser.add_argument("--drop", metavar="RULE", help="membranes to leave out, as --keep")
    parser.add_argument(
        "--min-area-nm2", type=float, default=300.0, metavar="A", help="smaller pieces are left out (300)"
    )
    parser.add_argument("--join-gap-nm", type=float, default=20.0, metavar="D", help="widest gap that is joined (20)")
    parser.add_argument(
        "--contact-nm", type=float, default=30.0, metavar="D", help="nearer membranes are in contact (30)"
    )
    parser.add_argument("--triangle-nm", type=float, metavar="D", help="edge of the meshes' triangles (2 voxels)")
    parser.add_argument(
        "--mesh-format", default="ply", metavar="F,F", help="ply,obj,stl,glb,vtp, sff (EMDB) or none (ply)"
    )
    parser.add_argument("--points", type=float, metavar="D", help="also oriented points, so many nm apart")
    parser.add_argument(
        "--points-offset", type=float, default=0.0, metavar="D", help="nm along the normal, outwards (0)"
    )
    parser.add_argument(
        "--unbinned-pixel-size", type=float, metavar="A", help="of the tilt series, for RELION 4 (the star's)"
    )
    parser.add_argument("--tomogram-name", metavar="NAME", help="in the files of points (the star's or the file's)")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    parser.add_argument("--resume", action="store_true", help="skip masks that are complete")


def run(args: argparse.Namespace) -> None:
    """Measure all masks; print a sentence for each."""
    require_extra()
    refuse_missing(args.masks)
    from etsam.cli.console import print_line, progress_bar
    from etsam.errors import ConfigError
    from etsam.measure.measure import MeasureSettings
    from etsam.measure.mesh_files import check_formats
    from etsam.measure.run import MeasureJob, OutputSettings, find_masks, run_jobs, tomogram_of
    from etsam.prediction.finding import find_tomograms
    from etsam.prediction.star import star_tomograms

    if args.points is None and (args.points_offset or args.unbinned_pixel_size or args.tomogram_name):
        raise ConfigError(
            "--points-offset, --unbinned-pixel-size and --tomogram-name are about points; add --points 10."
        )
    formats = [word.strip().lower() for word in args.mesh_format.split(",")]
    formats = [] if formats == ["none"] else formats
    settings = MeasureSettings(
        args.triangle_nm, args.join_gap_nm, args.min_area_nm2, args.contact_nm, args.keep, args.drop
    )
    output = OutputSettings(
        check_formats(formats), args.points, args.points_offset, args.unbinned_pixel_size, args.tomogram_name
    )
    masks = find_masks(args.masks)
    tomograms = find_tomograms(args.tomogram) if args.tomogram else []
    in_star = star_tomograms(args.tomogram)
    jobs = []
    for mask in masks:
        tomogram = tomogram_of(mask, tomograms, alone=len(masks) == 1)
        jobs.append(
            MeasureJob(
                mask,
                tomogram,
                args.output_dir,
                settings,
                output.of_star(in_star[tomogram]) if tomogram in in_star else output,
                args.voxel_size,
                args.instances,
                args.overwrite,
                args.resume,
            )
        )
    for line in run_jobs(jobs, progress_bar):
        print_line(line)
    for line in _closing(jobs):
        print_line(line)


def after_prediction(cfg: "DictConfig") -> None:
    """Measure the masks of a prediction, beside them; the post-processed ones where there are such."""
    require_extra()
    from etsam.app import is_first_process
    from etsam.cli.console import print_line, progress_bar
    from etsam.measure.run import MeasureJob, run_jobs
    from etsam.prediction.record import read_record

    if not is_first_process():
        return
    from hydra.utils import instantiate

    inputs = instantiate(cfg.inputs)
    writer = instantiate(cfg.writer, _partial_=True)(settings={})
    writer.subfolders = inputs.subfolders
    jobs = []
    for path in inputs.paths:
        names = writer.names(path)
        if read_record(names.record) is None:  # it was passed over, or failed, which has been said
            continue
        mask = names.post_processed_mask if writer.steps else names.mask
        voxel, replace, resume = cfg.voxel_size, cfg.overwrite, cfg.resume
        jobs.append(MeasureJob(mask, path, names.folder, voxel_angstrom=voxel, overwrite=replace, resume=resume))
    for line in [*run_jobs(jobs, progress_bar), *_closing(jobs)]:
        print_line(line)


def _closing(jobs: Sequence["MeasureJob"]) -> list[str]:
    """Write scripts for ChimeraX; lines that say where the pages are, and what to type to see the membranes."""
    from etsam.measure.mesh_files import COLOUR_SCALES
    from etsam.prediction.record import read_record
    from etsam.viewer.chimerax import Place, write_membranes_folder_script, write_membranes_script

    done = [(job, record) for job in jobs if (record := read_record(job.names.record)) is not None]
    if not done:
        return []
    pages = [job.names.path("measure.html") for job, _ in done]
    lines = [f"look at {pages[0]}" + (f" and {len(pages) - 1} more" if len(pages) > 1 else "")]
    drawn = [(job, record) for job, record in done if job.names.path("membranes.glb").exists()]
    for job, record in drawn:
        stem, key = job.names.stem, COLOUR_SCALES[record["coloured_by"]].key()
        script, by_value = job.names.path("membranes.cxc"), job.names.path("membranes_values.cxc")
        origin = record.get("origin_angstrom_zyx")  # not in records of old
        place = None if origin is None else Place((record["voxel_angstrom"],) * 3, tuple(origin))
        write_membranes_script(script, job.names.path("membranes.glb"), job.tomogram, stem, (), place)
        write_membranes_script(by_value, job.names.path("membranes_values.glb"), job.tomogram, stem, key, place)
    if len(drawn) > 1:
        kinds = {record["coloured_by"] for _, record in drawn}  # without a key where there are two
        scenes = {job.names.stem: job.names.path("membranes_values.glb") for job, _ in drawn}
        shared = COLOUR_SCALES[kinds.pop()].key() if len(kinds) == 1 else ()
        script = write_membranes_folder_script(jobs[0].output_dir, scenes, shared)
    if len(drawn) == 1:
        of = {"thickness_nm": "thickness", "mean_curvature_per_nm": "curvature"}[drawn[0][1]["coloured_by"]]
        lines.append(f"coloured by {of}:  chimerax {shlex.quote(str(by_value))}")
    if drawn:
        lines.append(f"in 3D:  chimerax {shlex.quote(str(script))}")
    return lines


def require_extra() -> None:
    """Say what to install, if it is missing."""
    from importlib.util import find_spec

    from etsam.errors import ConfigError

    missing = [name for name in ("trimesh", "starfile") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"measuring needs {' and '.join(missing)}; install: pip install 'etsam[measure]'")
