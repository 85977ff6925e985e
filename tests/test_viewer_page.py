"""The page beside a mask and the overview of a folder: what they hold, and what a browser makes of them."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from conftest import write_mrc
from scipy.ndimage import binary_erosion, gaussian_filter

from etsam.app import compose_config
from etsam.pictures import DOUBT, MEMBRANE
from etsam.postprocess.gold import Beads
from etsam.postprocess.regions import Regions
from etsam.postprocess.slab import Slab
from etsam.postprocess.steps import RemoveSmallComponents
from etsam.prediction.preview import Sections
from etsam.prediction.result import Prediction
from etsam.prediction.samples import Samples, evenly, reduced
from etsam.prediction.threshold import threshold_logits
from etsam.prediction.writer import PredictionWriter
from etsam.viewer.chimerax import (
    FOLDER_SCRIPT,
    ChimeraXScript,
    Place,
    surface_commands,
    write_membranes_folder_script,
    write_membranes_script,
)
from etsam.viewer.facts import demo_note
from etsam.viewer.index import INDEX, rows_of, write_overview
from etsam.viewer.page import SlicePage, quantised, stops_around
from etsam.volume import locate, read_volume

SHAPE = (7, 30, 46)
THRESHOLD = 0.33
needs_browser = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser")


def write_prediction(
    folder,
    name="tomo",
    *,
    threshold=THRESHOLD,
    postprocess=None,
    page=None,
    shape=SHAPE,
    chimerax=False,
    uncertainty=None,
    regions=None,
    voxel_size=None,
):
    """Outputs of a prediction whose logits are smooth noise; gives the names and the logits."""
    noise = np.random.default_rng(len(name))
    logits = (3 * gaussian_filter(noise.normal(size=shape), 1)).astype(np.float32)
    volume = read_volume(write_mrc(folder / f"{name}.mrc", noise.normal(size=shape).astype(np.float32)))
    volume = volume if voxel_size is None else volume.at_voxel_size(voxel_size)
    grey, samples = Sections(shape), Samples(shape)
    for z in range(shape[0]):
        grey.add(z, volume[z])
        samples.add(z, volume[z])
    settings = {"stage2": {"threshold": threshold}, "weights": {"stage2": {"name": "some"}}}
    writer = PredictionWriter(
        folder,
        write_logits=True,
        write_uncertainty=uncertainty is not None,
        write_preview=False,
        postprocess=postprocess,
        settings=settings | {"postprocess": dict.fromkeys(postprocess or {})},
        companions={"page": page or SlicePage(), "chimerax": ChimeraXScript(enabled=chimerax)},
        overwrite=True,
    )
    made = {"samples": samples, "uncertainty": uncertainty, "regions": regions}
    prediction = Prediction(volume, logits, logits, threshold, 1, {"stage 1": 2.0}, grey, {}, **made)
    return writer.write(prediction), logits


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])


def test_the_page_is_one_file_that_loads_nothing(tmp_path):
    names, _ = write_prediction(tmp_path)
    page = names.view(".html")
    assert page.name == "tomo_etsam_predicted.html"
    text = page.read_text()
    assert not re.search(r"https?://|src=\"(?!data:)|@import|url\(", text)
    assert "default-src 'none'" in text
    assert json.loads(names.record.read_text())["outputs"][-1] == page.name


def test_the_page_says_first_what_was_found_and_that_demo_weights_made_it(tmp_path):
    names, logits = write_prediction(tmp_path)
    record = json.loads(names.record.read_text())
    lead = re.search(r'class="lead">(.*?) It is', names.view(".html").read_text())[1]
    assert f"{record['pieces']} piece" in lead
    assert f"{100 * (logits > THRESHOLD).mean():.2f} %" in lead
    assert not demo_note(record)
    assert "weights download" in demo_note(record | {"demo_weights": True})


def test_the_steps_of_the_slider_are_decimal_and_hold_the_threshold_of_the_run():
    for threshold in (THRESHOLD, -0.25, 0.5, 3.0):
        stops = stops_around(threshold)
        assert threshold in stops
        assert stops == sorted(set(stops))
        assert len(stops) <= 255
        assert stops == [float(f"{stop:g}") for stop in stops]


def test_a_quantised_logit_exceeds_a_step_exactly_where_the_logit_does():
    stops = stops_around(THRESHOLD)
    exact = np.array(stops, np.float32)
    logits = np.concatenate([exact, np.nextafter(exact, np.float32(9)), np.nextafter(exact, np.float32(-9))])
    for number, stop in enumerate(stops):
        np.testing.assert_array_equal(quantised(logits, stops) > number, logits > stop)


def test_a_large_volume_is_sampled_within_the_limit_and_the_page_says_so(tmp_path):
    names, _ = write_prediction(tmp_path, page=SlicePage(limit_mb=0.09), shape=(40, 90, 110))
    page = names.view(".html")
    assert page.stat().st_size < 0.09e6 + 40_000  # the program of the page, and its words
    shown = [plane["at"] for plane in data_of(page)["views"][0]["planes"]]
    assert (shown[0], shown[-1]) == (0, 39)
    assert 3 <= len(shown) < 40
    assert f"{len(shown)} of 40 slices are here" in page.read_text()


@pytest.mark.parametrize("steps", [None, {"small": RemoveSmallComponents(min_voxels=40)}])
def test_the_page_opens_where_the_mask_has_the_longest_rim_also_among_few_slices(tmp_path, steps):
    names, _ = write_prediction(tmp_path, "nine", postprocess=steps, page=SlicePage(limit_mb=0.02), shape=(19, 30, 46))
    mask = mrcfile.read(names.post_processed_mask if steps else names.mask) > 0
    views = data_of(names.view(".html"))["views"]
    assert len(views[0]["planes"]) <= 4
    opened = {}
    for view in views:
        planes = np.moveaxis(mask, "zyx".index(view["axis"]), 0)
        rims = np.array([(plane & ~binary_erosion(plane)).sum() for plane in planes])
        open_to = rims if view["axis"] == "z" else [rims[plane["at"]] for plane in view["planes"]]
        opened[view["axis"]] = at = view["planes"][view["start"]]["at"]
        assert rims[at] == max(open_to)
    assert opened["z"] != 9  # the middle


def test_samples_of_a_huge_tomogram_are_few_and_reduced():
    samples = Samples((500, 928, 960))
    assert (len(samples.z), samples.reduction) == (35, 2)
    assert evenly(7, 3) == [0, 3, 6]
    seen = Samples((9, 20, 30))
    volume = np.random.default_rng(0).normal(100, 5, (9, 20, 30)).astype(np.float32)
    volume[4, 3, 2], volume[5] = 1e6, np.nan
    for z, whole in enumerate(volume):
        seen.add(z, whole)
    assert np.abs(seen.plane("z", 3) - volume[3]).max() < 1  # but for a hot or dead pixel
    np.testing.assert_array_equal(seen.plane("y", seen.y[1]), volume[:, seen.y[1]])
    np.testing.assert_array_equal(seen.plane("x", seen.x[2]), volume[:, :, seen.x[2]])
    assert seen.levels(1, 99) == pytest.approx((88, 112), abs=10)
    plane = np.arange(15, dtype=np.float32).reshape(3, 5)
    np.testing.assert_array_equal(reduced(plane, 2), [[3, 5, 6.5], [10.5, 12.5, 14]])


SCRIPT = """<script>
const wait = async () => {  // until what was asked for is drawn
  for (let before = null; before !== drawing || !planes.size;) {
    before = drawing;
    await new Promise((after) => setTimeout(after, 60));
  }
};
const tell = (id, value) => { byId(id).value = value; byId(id).dispatchEvent(new Event('input')); };
const masked = () => {
  const { width, height } = byId('mask');
  const data = byId('mask').getContext('2d').getImageData(0, 0, width, height).data;
  return Array.from({ length: width * height }, (_, i) => data[4 * i + 3] ? 1 : 0).join('');
};
const told = () => byId('status').textContent;
const key = (name, target = document.body) =>
  target.dispatchEvent(new KeyboardEvent('keydown', { key: name, bubbles: true }));
(async () => {
  const out = { masks: {}, moves: [] };
  await wait();
  out.start = told();
  out.outline = masked().includes('1');
  document.querySelector('[value=fill]').click();
  await wait();
  out.final = masked();
  const { width, height } = byId('mask');
  const pixels = byId('mask').getContext('2d').getImageData(0, 0, width, height).data;
  const colours = Array.from({ length: width * height }, (_, i) => pixels.slice(4 * i, 4 * i + 4));
  out.colours = [...new Set(colours.filter((pixel) => pixel[3]).map((pixel) => pixel.slice(0, 3).join()))];
  for (const stop of STOPS) {
    tell('threshold', data.stops.indexOf(stop));
    for (let view = 0; view < 3; view++) {
      document.querySelectorAll('[name=view]')[view].click();
      for (let at = 0; at < data.views[view].planes.length; at++) {
        tell('slice', at);
        await wait();
        out.masks[[stop, data.views[view].axis, data.views[view].planes[at].at]] = masked();
      }
    }
  }
  out.command = byId('command').textContent;
  document.querySelectorAll('[name=view]')[0].click();
  const moves = [() => tell('slice', 3), () => key('ArrowRight'), () => key('ArrowLeft'),
    () => key('Home', byId('stage')), () => byId('forward').click(),
    () => byId('stage').dispatchEvent(new WheelEvent('wheel', { deltaY: 100, bubbles: true, cancelable: true })),
    () => key(']'), () => byId('reset').click()];
  for (const move of moves) { move(); await wait(); out.moves.push(told()); }
  out.scale = byId('scale-text').textContent;
  out.wide = document.documentElement.scrollWidth <= window.innerWidth;
  document.title = JSON.stringify(out);
})();
</script>"""


def in_browser(page, script, folder, width=390):
    """What the script leaves in the title of the page, which is opened as a file."""
    copy = folder / "with_script.html"
    copy.write_text(page.read_text().replace("</body>", script + "</body>"), encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--virtual-time-budget=60000", f"--window-size={width},844", "--dump-dom", copy.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return json.loads(re.search(r"<title>(\{.*?\})</title>", shown.stdout)[1])


@needs_browser
def test_the_mask_at_each_step_is_what_the_command_on_the_page_writes(tmp_path, monkeypatch, etsam):
    names, logits = write_prediction(Path("a folder"), postprocess={"small": RemoveSmallComponents(min_voxels=40)})
    stops = [-0.5, THRESHOLD, 1.0]
    seen = in_browser(names.view(".html"), SCRIPT.replace("STOPS", json.dumps(stops)), tmp_path)
    written = threshold_logits(locate(names.logits), stops, preview=False)

    def text(plane):
        return "".join(map(str, (plane > 0).astype(int).ravel()))

    samples = Samples(SHAPE)
    for stop, at_stop in zip(stops, written, strict=True):
        mask = mrcfile.read(at_stop.mask)
        assert 0 < mask.mean() < 1
        np.testing.assert_array_equal(mask, logits > stop)
        for axis, planes in (("z", samples.z), ("y", samples.y), ("x", samples.x)):
            for at in planes:
                plane = np.take(mask, at, "zyx".index(axis))
                assert seen["masks"].pop(f"{stop:g},{axis},{at}") == text(plane)
    assert seen["masks"] == {}
    cleaned = mrcfile.read(names.post_processed_mask)
    view = data_of(names.view(".html"))["views"][0]
    start = view["planes"][view["start"]]["at"]
    assert seen["final"] == text(cleaned[start])
    assert seen["start"] == f"slice z = {start}: {100 * cleaned[start].mean():.2f} % membrane, after post-processing"
    assert seen["outline"]
    written[-1].mask.unlink()
    monkeypatch.chdir("/")
    assert etsam(*shlex.split(seen["command"])[1:], "--no-preview", "--overwrite").status == 0
    np.testing.assert_array_equal(mrcfile.read(tmp_path / written[-1].mask), logits > stops[-1])
    assert seen["colours"] == [",".join(str(int(MEMBRANE[i : i + 2], 16)) for i in (1, 3, 5))]
    assert [move.partition(":")[0] for move in seen["moves"]] == [f"slice z = {z}" for z in (3, 4, 3, 0, 1, 2, 2, 2)]
    assert seen["moves"][-2].endswith("threshold 1.1")
    assert seen["moves"][-1].endswith("after post-processing")
    assert (seen["scale"], seen["wide"]) == ("2 nm", True)


@needs_browser
def test_wide_slices_start_with_a_fill_and_only_a_cleaned_mask_has_a_switch_for_it(tmp_path):
    script = """<script>document.title = JSON.stringify({
      style: document.querySelector('[name=style]:checked').value, opacity: byId('opacity').value,
      shown: getComputedStyle(byId('final-box')).display !== 'none' });</script>"""
    names, _ = write_prediction(tmp_path, shape=(3, 24, 520))
    assert in_browser(names.view(".html"), script, tmp_path) == {"style": "fill", "opacity": "50", "shown": False}
    names, _ = write_prediction(tmp_path, postprocess={"small": RemoveSmallComponents(min_voxels=40)})
    assert in_browser(names.view(".html"), script, tmp_path) == {"style": "outline", "opacity": "100", "shown": True}


LAYERS = """<script>
const wait = async () => { for (let before = null; before !== drawing || !planes.size;) {
  before = drawing; await new Promise((after) => setTimeout(after, 60)); } };
const layer = (id) => {
  const canvas = byId(id);
  if (canvas.hidden) return null;
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  return Array.from(pixels);
};
(async () => {
  await wait();
  const out = { start: [layer('doubt'), layer('left-out')].map((pixels) => pixels !== null), planes: {} };
  byId('show-doubt').click();
  for (let view = 0; view < 3; view++) {
    document.querySelectorAll('[name=view]')[view].click();
    await wait();
    const shown = data.views[view];
    out.planes[shown.axis] = [shown.planes[shown.start].at, layer('doubt'), layer('left-out')];
  }
  document.body.dispatchEvent(new KeyboardEvent('keydown', { key: 'l', bubbles: true }));
  await wait();
  out.hidden = layer('left-out') === null;
  document.title = JSON.stringify(out);
})();
</script>"""


@needs_browser
def test_uncertainty_and_what_was_left_out_are_layers_with_a_switch_each(tmp_path):
    chances = np.random.default_rng(3).uniform(0, 0.5, SHAPE).astype(np.float32)
    slab = Slab((1.5, 0.0, 0.05), (5.0, 0.0, 0.0), None, SHAPE)
    regions = Regions(SHAPE, {"slab": slab, "gold": Beads((), SHAPE), "border": None})
    names, _ = write_prediction(tmp_path, uncertainty=chances, regions=regions)
    page = names.view(".html")
    text = page.read_text()
    assert "Darker: parts where nothing is marked (void around the sample)." in text  # no bead, no rim was found
    assert "Orange: where the mask at threshold 0.33 may be wrong" in text
    seen = in_browser(page, LAYERS, tmp_path, width=1400)
    assert (seen["start"], seen["hidden"]) == ([False, True], True)
    outside = np.stack([regions.outside(z) for z in range(SHAPE[0])])
    assert 0.1 < outside.mean() < 0.9
    colour = [int(DOUBT[i : i + 2], 16) for i in (1, 3, 5)]
    for axis, (at, doubt, left_out) in seen["planes"].items():
        shown, void = (np.take(volume, at, "zyx".index(axis)) for volume in (chances, outside))
        pixels = np.reshape(doubt, (*shown.shape, 4))
        np.testing.assert_allclose(pixels[..., 3] / 255, shown, atol=0.5 / 15 / 2 + 0.004)
        strong = pixels[..., 3] > 60  # fewer bits of a colour are kept where it is faint
        assert np.abs(pixels[strong][:, :3] - colour).max() <= 2
        np.testing.assert_array_equal(np.reshape(left_out, (*void.shape, 4))[..., 3] > 100, void)


def test_a_page_has_no_layer_that_was_not_made_or_shows_nothing(tmp_path):
    names, _ = write_prediction(tmp_path, regions=Regions(SHAPE, {"slab": None, "gold": Beads((), SHAPE)}))
    text = names.view(".html").read_text()
    assert not re.search(r'id="show-|Darker|Orange', text)
    assert {key for view in data_of(names.view(".html"))["views"] for plane in view["planes"] for key in plane} == {
        "at", "grey", "logits"
    }  # fmt: skip


def test_the_overview_shows_what_needs_a_look_first(tmp_path):
    for name, threshold in (("usual", 1.0), ("like_it", 1.0), ("empty", 50.0)):
        write_prediction(tmp_path, name, threshold=threshold)
    told = write_overview(tmp_path, ["broken.mrc: no volume"], script=False)
    assert str(tmp_path / INDEX) in told[0]
    assert len(told) == 1
    text = (tmp_path / INDEX).read_text()
    rows = rows_of(tmp_path, ["broken.mrc: no volume"])
    assert [row.name for row in rows][:2] == ["broken.mrc", "empty"]
    assert [bool(row.warnings) for row in rows] == [True, True, False, False]
    assert [row.page for row in rows][1] == "empty_etsam_predicted.html"
    assert text.index("broken.mrc") < text.index("empty") < min(text.index("usual_"), text.index("like_it_"))
    assert not re.search(r"https?://|src=\"(?!data:)", text)


def test_a_folder_of_masks_that_chimerax_does_not_open_has_no_script(tmp_path):
    for name in ("one", "two"):
        names, _ = write_prediction(tmp_path, name)
        names.mask.rename(names.mask.with_suffix(".mrc.gz"))
        names.record.write_text(names.record.read_text().replace("_mask.mrc", "_mask.mrc.gz"))
    assert write_overview(tmp_path, page=False) == []
    assert not (tmp_path / FOLDER_SCRIPT).exists()


def test_a_folder_of_one_tomogram_has_no_overview_and_a_strange_one_stays(tmp_path):
    write_prediction(tmp_path, "one")
    assert write_overview(tmp_path) == []
    write_prediction(tmp_path, "two")
    for name in (INDEX, FOLDER_SCRIPT):
        (tmp_path / name).write_text("mine")
    assert write_overview(tmp_path) == []
    assert [(tmp_path / name).read_text() for name in (INDEX, FOLDER_SCRIPT)] == ["mine", "mine"]


def test_a_run_writes_pages_scripts_and_their_overviews(predict, work):
    for name in ("a.mrc", "b.mrc"):
        write_mrc(work / name)
    outcome = predict("a.mrc", "b.mrc", "write_preview=false", "write_page=true", "write_chimerax=true")
    assert outcome.status == 0, outcome.stderr
    of_folder, starts = {INDEX, FOLDER_SCRIPT}, ("a_etsam_predicted", "b_etsam_predicted")
    assert of_folder | {f"{start}.{kind}" for start in starts for kind in ("html", "cxc")} <= set(outcome.files)
    record = json.loads((work / "out" / "a_etsam_predicted_record.json").read_text())
    assert record["seconds"]["companions"] > 0
    assert "random" in (work / "out" / INDEX).read_text()


@pytest.mark.parametrize("page", [False, True])
@pytest.mark.parametrize("script", [False, True])
def test_planes_are_kept_where_a_page_or_a_script_shows_them(page, script):
    cfg = compose_config("predict", [f"write_page={page}", f"write_chimerax={script}"])
    assert cfg.segmenter.samples is (page or script)


def test_the_script_has_the_grey_levels_of_the_tomogram_without_a_page_too(predict, work):
    write_mrc(work / "a.mrc")
    assert predict("a.mrc", "write_preview=false", "--no-page", "write_chimerax=true").status == 0
    commands = [given for _, _, given in parsed(work / "out" / "a_etsam_predicted.cxc")]
    (levels,) = [given["level"] for given in commands if given.get("color") == ["white"]]
    low, high = (float(level.partition(",")[0]) for level in levels)
    assert 0 < low < high < 20


def test_a_run_ends_with_what_to_do_next(predict, work, caplog):
    write_mrc(work / "a b.mrc")
    assert (
        predict("a b.mrc", "write_preview=false", "write_page=true", "write_chimerax=true", "--store-logits").status
        == 0
    )
    block = next(str(record.screen) for record in caplog.records if hasattr(record, "screen"))
    assert "out/a b_etsam_predicted.html" in block
    assert [line.rpartition(":  ")[2] for line in block.rstrip().splitlines()[-2:]] == [
        "chimerax 'out/a b_etsam_predicted.cxc'",
        "etsam threshold 'out/a b_etsam_predicted_logits.mrc' --at 0",
    ]


def test_a_run_of_old_without_pages_is_complete_for_resume(predict, work):
    write_mrc(work / "a.mrc")
    assert predict("a.mrc", "write_preview=false", "write_page=false").status == 0
    mask = work / "out" / "a_etsam_predicted_mask.mrc"
    before = mask.stat().st_mtime_ns
    assert predict("a.mrc", "write_preview=false", "write_page=true", "--resume").status == 0
    assert mask.stat().st_mtime_ns == before


# what ChimeraX knows: keywords of its commands, each with how many values it takes
COMMANDS = {
    "open": {"format": 1, "name": 1},
    "volume": {
        **dict.fromkeys(("style", "level", "color", "step", "orthoplanes", "positionPlanes", "voxelSize", "origin"), 1),
        **dict.fromkeys(("surfaceSmoothing", "smoothingIterations", "smoothingFactor"), 1),
    },
    "tile": {},
    "key": {"size": 1, "pos": 1},
    "lighting": {"soft": 0},
    "graphics": {"silhouettes": 1},
    "view": {},
}


def parsed(script):
    """Commands of a script as (name, target, {keyword: values}); each keyword has to be one of COMMANDS."""
    for line in script.read_text().splitlines():
        if line.startswith("#"):
            continue
        command, *words = shlex.split(line)
        known, target, given = COMMANDS[command], [], {}
        while words and words[0] not in known:
            target.append(words.pop(0))
        while words:
            keyword = words.pop(0)
            given.setdefault(keyword, []).extend(words.pop(0) for _ in range(known[keyword]))
        yield command, " ".join(target), given


def test_the_script_opens_both_files_from_its_own_folder(tmp_path):
    (tmp_path / "in").mkdir()
    names, _ = write_prediction(tmp_path, "in/TS 1", chimerax=True, postprocess={"s": RemoveSmallComponents(40)})
    script = names.view(".cxc")
    commands = list(parsed(script))
    opened = [Path(script.parent, target) for command, target, _ in commands if command == "open"]
    assert [path.resolve() for path in opened] == [tmp_path / "in" / "TS 1.mrc", names.post_processed_mask]
    assert [given["name"] for command, _, given in commands if command == "open"] == [
        ["TS_1_tomogram"], ["TS_1_membranes"]
    ]  # fmt: skip
    shown = {target: given for command, target, given in commands if "orthoplanes" in given or "level" in given}
    depth, height, width = SHAPE
    assert shown["##name=TS_1_tomogram"]["positionPlanes"] == [f"{width // 2},{height // 2},{depth // 2}"]
    assert shown["##name=TS_1_membranes"]["level"] == ["0.5"]
    assert shown["##name=TS_1_membranes"]["color"] == [MEMBRANE]  # as in the pictures and on the page


def test_the_script_gives_the_tomogram_the_voxel_size_and_origin_of_the_mask(tmp_path):
    names, _ = write_prediction(tmp_path, chimerax=True, voxel_size=43.2)
    placed = [given for _, _, given in parsed(names.view(".cxc")) if {"voxelSize", "origin"} & set(given)]
    assert placed == [{"voxelSize": ["43.2,43.2,43.2"]}, {"origin": ["5,6,7"]}]  # the first one moves the origin
    assert read_volume(names.mask).voxel_size_angstrom == pytest.approx((43.2,) * 3)
    assert read_volume(names.mask).origin_angstrom == (7, 6, 5)
    as_it_is, _ = write_prediction(tmp_path, "plain", chimerax=True)
    assert not re.search("voxelSize|origin", as_it_is.view(".cxc").read_text())
    script = tmp_path / "measured.cxc"
    write_membranes_script(script, tmp_path / "a.glb", tmp_path / "tomo.mrc", "a", (), Place((8.0,) * 3, (7, 6, 5)))
    assert "##name=a_tomogram voxelSize 8,8,8\nvolume ##name=a_tomogram origin 5,6,7\n" in script.read_text()


def test_measured_membranes_open_in_their_colours_over_the_tomogram_and_a_folder_of_them_is_tiled(tmp_path):
    write_mrc(tmp_path / "in" / "TS 1.mrc")
    scenes = {name: tmp_path / f"{name}_membranes.glb" for name in ("TS 1", "two")}
    key = [("#440154", "2"), ("#fde725", "6 nm")]
    script = tmp_path / "TS 1_membranes.cxc"
    write_membranes_script(script, scenes["TS 1"], tmp_path / "in" / "TS 1.mrc", "TS 1", key)
    commands = list(parsed(script))
    assert [(target, given["format"]) for name, target, given in commands if name == "open"] == [
        ("in/TS 1.mrc", ["mrc"]), ("TS 1_membranes.glb", ["gltf"])
    ]  # fmt: skip
    assert [target for name, target, _ in commands if name == "key"] == ["#440154:2 #fde725:6 nm"]
    commands = list(parsed(write_membranes_folder_script(tmp_path, scenes, ())))
    assert [target for name, target, _ in commands if name == "tile"] == [
        "##name=TS_1_membranes | ##name=two_membranes"
    ]
    assert [name for name, _, _ in commands if name in ("open", "key")] == ["open", "open"]


def test_what_chimerax_cannot_read_is_a_comment(tmp_path):
    lines = surface_commands(tmp_path / "mask.zarr", "TS", 1, tmp_path)
    assert [line[0] for line in lines] == ["#"]
    assert "mask.zarr" in lines[0]
    assert "step 2" in surface_commands(tmp_path / "mask.mrc", "TS", 10**9, tmp_path)[1]


def test_the_script_of_a_folder_tiles_its_masks_and_nothing_else(tmp_path):
    for name in ("one", "two"):
        write_prediction(tmp_path, name)
    write_overview(tmp_path, page=False)
    commands = list(parsed(tmp_path / FOLDER_SCRIPT))
    assert [Path(target).exists() or (tmp_path / target).exists() for name, target, _ in commands if name == "open"]
    (tiled,) = [target for name, target, _ in commands if name == "tile"]
    assert tiled == "##name=one_etsam_predicted_membranes | ##name=two_etsam_predicted_membranes"
