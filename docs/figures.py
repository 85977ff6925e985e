"""Pictures of the pages, drawn by the program from the demonstration tomogram and from simulated ones.

    python docs/figures.py              # all of them, some minutes on two cores
    python docs/figures.py metrics      # those of this name

Pictures of pages in a browser need Chromium or Chrome; without one they stay as they are.
"""

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import mkdtemp

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects
from matplotlib.patches import FancyArrowPatch

from etsam.pictures import DOUBT, MEMBRANE
from etsam.volume import read_volume

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
BLUE, ORANGE = MEMBRANE, DOUBT
COLUMNS = 92  # of terminals
Figures = dict[str, Callable[[], None]]


@cache
def desk() -> Path:
    """Folder with the demonstration tomogram, segmented, and with simulated tomograms."""
    folder = Path(mkdtemp(prefix="etsam-figures-"))
    etsam(folder, "data", "demo", "--output-dir", "demo")
    simulate = "data simulate --n 4 --shape 40,128,128 --voxel-size 10 --val-fraction 1 --seed 5 --output-dir simulated"
    etsam(folder, *simulate.split(), "specimen.empty_probability=0", "min_contrast=0.3")
    return folder


@cache
def demo() -> Path:
    """Folder of results of the demonstration tomogram."""
    command = ["predict", "demo/hiv_vlps.mrc", "--weights", "nano", "--output-dir", "logits", "--store-logits"]
    etsam(desk(), *command)
    return desk() / "logits"


@cache
def masks() -> Path:
    """Folder of masks of the simulated tomograms."""
    command = ["predict", "simulated/*_????.mrc", "--weights", "nano", "--output-dir", "masks", "--store-logits"]
    etsam(desk(), *command)
    return desk() / "masks"


def etsam(folder: Path, *arguments: str) -> None:
    """Run the command in a folder; an error ends the drawing."""
    done = subprocess.run([sys.executable, "-m", "etsam", *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"etsam {' '.join(arguments)}: status {done.returncode}\n{done.stderr}")


def array(path: Path) -> np.ndarray:
    """All of a volume (Z, Y, X)."""
    with read_volume(path, warn=False) as volume:
        return np.stack([volume[z] for z in range(volume.shape[0])])


def grey(axes: plt.Axes, plane: np.ndarray, title: str = "") -> None:
    """Show a plane from its 1st to its 99th percentile."""
    low, high = np.percentile(plane, (1, 99))
    axes.imshow(plane, cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()


def tint(axes: plt.Axes, mask: np.ndarray, colour: str = BLUE, alpha: float = 0.55) -> None:
    """Lay a mask over a plane."""
    layer = np.zeros((*mask.shape, 4))
    layer[mask > 0] = (*matplotlib.colors.to_rgb(colour), alpha)
    axes.imshow(layer, origin="lower", interpolation="nearest")


def scale_bar(axes: plt.Axes, voxel_size_angstrom: float, length_nm: int = 100) -> None:
    """Draw a bar in the lower left corner."""
    voxels = length_nm * 10 / voxel_size_angstrom
    left, bottom = axes.get_xlim()[0] + 5, axes.get_ylim()[0] + 5
    axes.plot([left, left + voxels], [bottom, bottom], color="white", linewidth=3, solid_capstyle="butt")
    outline = [patheffects.withStroke(linewidth=2, foreground="black")]
    axes.text(left, bottom + 3, f"{length_nm} nm", color="white", fontsize=8, path_effects=outline)


def save(figure: plt.Figure, name: str) -> None:
    """Write a picture into docs/images, in few colours, since pages load it."""
    IMAGES.mkdir(exist_ok=True)
    path = IMAGES / f"{name}.png"
    figure.savefig(path, dpi=130, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    shrink(path, path)


def shrink(source: Path, target: Path, width: int | None = None) -> None:
    """Store a picture in few colours, and no wider than `width`."""
    from PIL import Image

    with Image.open(source) as picture:
        small = picture.convert("RGB")
        if width is not None and small.width > width:
            small = small.resize((width, round(small.height * width / small.width)), Image.Resampling.LANCZOS)
        # the octree keeps rare colours, such as those of legends
        small.quantize(256, method=Image.Quantize.FASTOCTREE).save(target, optimize=True)


def surface(axes: plt.Axes, mask: np.ndarray) -> None:
    """Draw a mask as a shaded surface."""
    import cc3d
    from scipy.ndimage import gaussian_filter
    from skimage.measure import marching_cubes

    smooth = np.pad(gaussian_filter(cc3d.dust(mask, 300).astype(np.float32), 1.0), 1)
    points, triangles, _, _ = marching_cubes(smooth, 0.4, step_size=2)
    light = matplotlib.colors.LightSource(315, 45)
    mesh = axes.plot_trisurf(
        points[:, 2],
        points[:, 1],
        triangles,
        points[:, 0],
        color=BLUE,
        lightsource=light,
        linewidth=0,
        antialiased=False,
    )
    mesh.set_edgecolor("none")
    axes.set_box_aspect(mask.shape[::-1], zoom=1.2)
    axes.view_init(55, -60)
    axes.set_axis_off()


def draw_readme() -> None:
    """Slice, slice with mask, surface."""
    tomogram, mask = array(desk() / "demo/hiv_vlps.mrc"), array(next(demo().glob("*_mask.mrc")))
    z = int(mask[20:-20].sum(axis=(1, 2)).argmax()) + 20
    figure = plt.figure(figsize=(11, 3.7))
    for number, title in enumerate(("tomogram", "mask"), start=1):
        axes = figure.add_subplot(1, 3, number)
        grey(axes, tomogram[z - 1 : z + 2].mean(axis=0), title)
        if number == 2:
            tint(axes, mask[z])
        scale_bar(axes, 43.2)
    axes = figure.add_subplot(1, 3, 3, projection="3d")
    surface(axes, mask)
    axes.set_title("surface", fontsize=10)
    figure.subplots_adjust(wspace=0.02)
    save(figure, "readme")


def draw_preview() -> None:
    """The program's own picture of the demonstration tomogram."""
    shrink(next(demo().glob("*_preview.png")), IMAGES / "preview.png", 1300)


def draw_threshold() -> None:
    """One slice at three thresholds."""
    tomogram, logits = array(desk() / "demo/hiv_vlps.mrc"), array(next(demo().glob("*_logits.mrc")))
    z = int((logits[20:-20] > 0.5).sum(axis=(1, 2)).argmax()) + 20
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.8))
    for axes, threshold in zip(panels, (-1.0, 0.0, 2.0), strict=True):
        grey(axes, tomogram[z - 1 : z + 2].mean(axis=0), f"threshold {threshold:g}")
        tint(axes, logits[z] > threshold)
    scale_bar(panels[0], 43.2)
    figure.subplots_adjust(wspace=0.03)
    save(figure, "threshold")


def draw_simulated() -> None:
    """Four simulated tomograms with their exact masks."""
    figure, panels = plt.subplots(2, 4, figsize=(11, 5.6))
    names = sorted(path for path in (desk() / "simulated").glob("simulated_5_????.mrc"))
    for column, path in enumerate(names):
        tomogram, truth = array(path), array(path.with_name(f"{path.stem}_membrane.mrc"))
        z = int((truth == 1).sum(axis=(1, 2)).argmax())
        plane = tomogram[max(0, z - 1) : z + 2].mean(axis=0)
        for row in range(2):
            grey(panels[row, column], plane)
        tint(panels[1, column], truth[z] == 1)
    scale_bar(panels[0, 0], 10.0, 50)
    figure.subplots_adjust(wspace=0.03, hspace=0.03)
    save(figure, "simulated")


def draw_normalisation() -> None:
    """One slice with a bead of gold, as three normalisations see it."""
    from etsam.normalize import MinMaxPositive, Robust, SoftplusMinMax, normalize

    path = sorted((desk() / "simulated").glob("simulated_5_????.mrc"))[0]
    tomogram = array(path)
    z, y, x = np.ogrid[tuple(slice(side) for side in tomogram.shape)]
    tomogram[(z - 20) ** 2 + (y - 23) ** 2 + (x - 93) ** 2 < 12] -= 25 * tomogram.std()  # gold, which is dark
    tomogram -= tomogram.mean()
    methods = {"robust": Robust(), "min_max_positive": MinMaxPositive(), "softplus_minmax": SoftplusMinMax()}
    figure, panels = plt.subplots(2, 4, figsize=(11, 4.8), height_ratios=(3, 1))
    shown = {"file": tomogram} | {
        name: np.stack([plane for plane in normalize(tomogram, method)]) for name, method in methods.items()
    }
    for (name, volume), (above, below) in zip(shown.items(), panels.T, strict=True):
        limits = (volume.min(), volume.max()) if name == "file" else (0, 1)
        above.imshow(volume[20], cmap="gray", vmin=limits[0], vmax=limits[1], origin="lower")
        above.set_title("as in the file" if name == "file" else f"normalize={name}", fontsize=10)
        above.set_axis_off()
        below.hist(volume.ravel(), bins=80, range=limits, color=BLUE)
        below.set_yticks([])
        below.tick_params(labelsize=8)
    figure.subplots_adjust(wspace=0.06, hspace=0.05)
    save(figure, "normalisation")


def draw_how_it_works() -> None:
    """What each step makes of one slice."""
    import etsam as program
    from etsam.normalize import normalize

    model = program.load(["weights=nano"], device="cpu")
    segmenter = model._segmenter
    tomogram = array(desk() / "demo/hiv_vlps.mrc")[20:80]
    seen = normalize(tomogram, segmenter.normalization)
    out = segmenter.two_stage(seen)
    from etsam.inference.fusion import fuse

    threshold = segmenter.two_stage.stages[1].threshold
    z = int(np.argmax([(out.logits[z] > threshold).sum() for z in range(10, 50)])) + 10
    steps = [
        ("tomogram", seen[z], "gray"),
        ("stage 1: logits", np.clip(out.stage1_logits[z], -5, 5), "viridis"),
        ("fused", fuse(seen, out.stage1_logits)[z], "gray"),
        ("both stages: logits", np.clip(out.logits[z], -5, 5), "viridis"),
        ("mask", out.logits[z] > threshold, "gray"),
    ]
    figure, panels = plt.subplots(1, 5, figsize=(12, 2.9))
    for axes, (title, plane, colours) in zip(panels, steps, strict=True):
        axes.imshow(plane, cmap=colours, origin="lower")
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    figure.subplots_adjust(wspace=0.25)
    for left, right in pairwise(panels):
        a, b = left.get_position(), right.get_position()
        start, end = (a.x1 + 0.003, (a.y0 + a.y1) / 2), (b.x0 - 0.003, (b.y0 + b.y1) / 2)
        figure.add_artist(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color="black"))
    save(figure, "how-it-works")


def draw_missing_wedge() -> None:
    """A spherical membrane, cut along the beam, before and after tilts to 60 degrees; and what is found by angle."""
    from etsam.evaluation.metrics.scores import Metrics, Scored

    side = 96
    z, y, x = np.ogrid[:side, :side, :side]
    distance = np.sqrt((z - 48.0) ** 2 + (y - 48.0) ** 2 + (x - 48.0) ** 2)
    sphere = np.exp(-(((distance - 32) / 1.8) ** 2))
    kz, kx = np.fft.fftfreq(side)[:, None, None], np.fft.rfftfreq(side)[None, None, :]
    seen = np.broadcast_to(np.abs(kz) <= np.tan(np.deg2rad(60)) * np.abs(kx), (side, side, side // 2 + 1))
    tilted = np.fft.irfftn(np.fft.rfftn(sphere) * seen, s=(side,) * 3, axes=(0, 1, 2))
    found, expected = np.zeros(9), np.zeros(9)
    for path in sorted((desk() / "simulated").glob("simulated_5_????.mrc")):
        mask = next(masks().glob(f"{path.stem}_*_mask.mrc"))
        truth = array(path.with_name(f"{path.stem}_membrane.mrc"))
        scores = Metrics(["inclination"])(truth, Scored(mask=array(mask)), (10.0, 10.0, 10.0))
        for number, row in enumerate(scores.inclination):
            found[number] += np.nan_to_num(row.recall) * row.truth_voxels
            expected[number] += row.truth_voxels
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.5), width_ratios=(1, 1, 1.3))
    for axes, volume, title in zip(panels, (sphere, tilted), ("a vesicle", "what tilts to 60° show"), strict=False):
        axes.imshow(-volume[:, side // 2], cmap="gray", origin="lower")
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    arrow = {"arrowstyle": "-|>", "color": "black"}
    panels[0].annotate("", (0.06, 0.7), (0.06, 0.93), xycoords="axes fraction", arrowprops=arrow)
    panels[0].text(0.1, 0.82, "beam", transform=panels[0].transAxes, va="center")
    panels[2].bar(np.arange(5, 90, 10), found / np.maximum(expected, 1), width=9, color=BLUE)
    panels[2].set(xlim=(0, 90), ylim=(0, 1), ylabel="found", xlabel="angle between the membrane's normal and the beam")
    panels[2].set_xticks([0, 30, 60, 90], ["0°\nlies flat", "30°", "60°", "90°\nstands upright"])
    panels[2].set_title("membrane found (nano, 4 simulated tomograms)", fontsize=10)
    figure.subplots_adjust(wspace=0.3)
    panels[2].spines[["top", "right"]].set_visible(False)
    save(figure, "missing-wedge")


def draw_metrics() -> None:
    """One truth, and four predictions that are wrong in four ways, with their scores."""
    from scipy.ndimage import binary_dilation, shift

    from etsam.evaluation.metrics.scores import Metrics, Scored

    _, y, x = np.ogrid[:24, :72, :72]
    membrane = np.abs(np.sqrt((y - 30.0) ** 2 + (x - 36.0) ** 2) - 22) < 1.6
    second = np.abs(y - 64.0) < 1.6
    truth = np.broadcast_to(membrane | second, (24, 72, 72)).astype(np.uint8)
    holes = truth * ((np.abs(x - 36) > 5) | (y > 40))
    predictions = {
        "too thick": binary_dilation(truth, np.ones((1, 3, 3))).astype(np.uint8),
        "shifted by 2 voxels": shift(truth, (0, 2, 0), order=0),
        "with gaps": (holes * (np.abs(y - 30) > 4)).astype(np.uint8),
        "one forgotten": truth * (y < 56).astype(np.uint8),
    }
    figure, panels = plt.subplots(1, 5, figsize=(12, 3.4))
    panels[0].imshow(1 - truth[12], cmap="gray", vmin=-0.5, vmax=1)
    panels[0].set_title("truth", fontsize=10)
    measured = Metrics(["surface", "cldice", "betti"], surface_tolerance_angstrom=15.0)
    for axes, (title, mask) in zip(panels[1:], predictions.items(), strict=True):
        picture = np.ones((72, 72, 3))
        for cells, colour in (
            (truth[12] & mask[12], "#444444"),
            (truth[12] & ~mask[12] & 1, BLUE),
            (mask[12] & ~truth[12] & 1, ORANGE),
        ):
            picture[cells > 0] = matplotlib.colors.to_rgb(colour)
        axes.imshow(picture)
        scores = measured(truth, Scored(mask=mask), (10.0, 10.0, 10.0)).metrics
        axes.set_title(title, fontsize=10)
        names = {
            "dice": "Dice",
            "precision": "precision",
            "recall": "recall",
            "surface_dice": "surface Dice",
            "cldice": "clDice",
        }
        lines = [f"{label} {scores[key]:.2f}" for key, label in names.items()]
        axes.text(0.5, -0.04, "\n".join(lines), transform=axes.transAxes, ha="center", va="top", fontsize=9)
    for axes in panels:
        axes.set_xticks([])
        axes.set_yticks([])
    figure.text(0.13, 0.03, "grey: right\nblue: missed\norange: wrong", fontsize=9)
    save(figure, "metrics")


def screen(folder: Path, command: str, target: Path, *, keep: int | None = None) -> None:
    """Run `etsam COMMAND` in a terminal and draw what a person sees at the end.

    Parameters
    ----------
    folder
        Where it runs.
    command
        As typed after `etsam`; quotes are not taken away.
    target
        SVG file.
    keep
        So many lines from the end; None: all.
    """
    import pyte
    from rich.console import Console
    from rich.style import Style
    from rich.text import Text

    sys.path.append(str(ROOT / "tests"))
    from terminal import Terminal

    terminal = Terminal(COLUMNS)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "TERM": "xterm-256color",
        "COLUMNS": str(COLUMNS),
        "COLORTERM": "",
    }
    status = terminal.run(*command.split(), cwd=folder, env=environment)
    terminal.close()
    if status:
        raise RuntimeError(f"etsam {command}: status {status}\n{terminal.text()}")
    seen = pyte.HistoryScreen(COLUMNS, 50, history=1000)
    pyte.ByteStream(seen).feed(terminal.output)
    lines = [*seen.history.top, *(seen.buffer[row] for row in range(50))]
    texts = []
    for line in lines:
        text = Text()
        for column in range(COLUMNS):
            cell = line[column]
            colour = None if cell.fg == "default" else {"brown": "yellow"}.get(cell.fg, cell.fg)
            colour = f"#{colour}" if colour and re.fullmatch(r"[0-9a-f]{6}", colour) else colour
            text.append(cell.data, Style(color=colour, bold=cell.bold))
        text.rstrip()
        texts.append(text)
    while texts and not texts[-1].plain:
        texts.pop()
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), color_system="truecolor")
    console.print(Text(f"$ etsam {command}", style="bold"))
    for text in texts[-keep:] if keep else texts:
        console.print(text)
    IMAGES.mkdir(exist_ok=True)
    svg = re.sub(
        r"@font-face \{.*?\}", "", console.export_svg(title=""), flags=re.DOTALL
    )  # no request to other servers
    target.write_text(svg, encoding="utf-8")


def draw_terminal_predict() -> None:
    """The end of a prediction."""
    screen(desk(), "predict demo/hiv_vlps.mrc --weights nano -o results", IMAGES / "terminal-predict.svg")


def draw_terminal_inspect() -> None:
    """A tomogram explained."""
    screen(desk(), "inspect demo/hiv_vlps.mrc --preview", IMAGES / "terminal-inspect.svg")


def draw_terminal_check() -> None:
    """A manifest checked."""
    screen(desk() / "simulated", "data check manifest.csv", IMAGES / "terminal-check.svg")


def draw_terminal_compare() -> None:
    """The published scores compared."""
    screen(desk(), "compare --published --metric dice", IMAGES / "terminal-compare.svg")


def draw_page() -> None:
    """The page beside a mask, in a browser."""
    browser(next(demo().glob("*predicted.html")), "page", (1280, 900))


def draw_report() -> None:
    """The top of a report, in a browser."""
    # the commands of docs/tutorials/first-evaluation.md, which names the numbers in this picture
    simulate = "data simulate --n 4 --shape 32,96,96 --voxel-size 12 --val-fraction 1 --seed 1 --output-dir trial"
    etsam(desk(), *simulate.split())
    for name, how in (("all", []), ("quick", ["--quick"])):
        to = ["--weights", "nano", "--output-dir", f"trial_masks/{name}", "--store-logits"]
        etsam(desk(), "predict", "trial/*_????.mrc", *how, *to)
    settings = ["data.manifest=trial/manifest.csv", "predictions={all: trial_masks/all, quick: trial_masks/quick}"]
    etsam(desk(), "evaluate", *settings, "output_dir=report")
    browser(desk() / "report/report.html", "report", (1280, 1100))


def draw_measure() -> None:
    """The page of measurements, in a browser."""
    mask = next(masks().glob("simulated_5_0002_*_mask.mrc"))
    etsam(desk(), "measure", str(mask), "--tomogram", "simulated/simulated_5_0002.mrc", "--output-dir", "measured")
    browser(desk() / "measured/simulated_5_0002_measure.html", "measure", (1280, 1000))


def browser(page: Path, name: str, size: tuple[int, int]) -> None:
    """Show a page in headless Chromium and keep the picture; without a browser it stays as it is."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        sys.stderr.write(f"{name}: no Chromium here, not drawn again\n")
        return
    path = IMAGES / f"{name}.png"
    command = [program, "--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={size[0]},{size[1]}"]
    command += ["--virtual-time-budget=8000", f"--screenshot={path}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    shrink(path, path, 1200)


FIGURES: Figures = {
    name.removeprefix("draw_").replace("_", "-"): draw
    for name, draw in list(globals().items())
    if name.startswith("draw_")
}


def main(names: Sequence[str]) -> None:
    """Draw pictures; without names all of them."""
    plt.switch_backend("Agg")
    for name in names or FIGURES:
        sys.stderr.write(f"{name}\n")
        FIGURES[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
