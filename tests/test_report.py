"""The report of an evaluation: one page that loads nothing, with every number, and the same numbers in other files."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html import escape
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from etsam.errors import ConfigError, OutputError
from etsam.evaluation.compare.tables import parse_source, published_scores, read_scores, results_of_scores
from etsam.evaluation.metrics.curves import Sweep
from etsam.evaluation.metrics.results import InclinationRow, SlicePicture, TomogramResult
from etsam.evaluation.organisms import short_species
from etsam.evaluation.report.figures import labels, useful_range
from etsam.evaluation.report.headline import findings
from etsam.evaluation.report.page import (
    PICTURE_BUDGET_BYTES,
    Paragraph,
    Picture,
    Slice,
    Slices,
    _threshold,
    document,
    page,
)
from etsam.evaluation.report.pictures import (
    encoder,
    errors_image,
    images_with_bars,
    jpeg_uri,
    slice_views,
    truth_image,
)
from etsam.evaluation.report.report import write_report
from etsam.evaluation.report.tables import build_tables, cells_of_other_means, cells_of_scores, format_value
from etsam.pictures import FOUND, MISSED, WRONG

pytestmark = pytest.mark.workshop
NAMES = ["d1/t1", "d1/t2", "d2/t1", "d2/t9"]
THRESHOLDS = np.array([-1.0, -0.25, 0.5, 2.0], np.float32)
SETTINGS = {"weights": "nano", "data": {"manifest": "test.csv"}}
VOID = {"meta", "img", "rect", "br"}


def picture(shape=(20, 30), seed=0, axis="z", index=7):
    random = np.random.default_rng(seed)
    truth = (random.random(shape) < 0.2).astype(np.uint8)
    truth[:, -4:] = 255
    return SlicePicture(axis, index, random.random(shape, dtype=np.float32), truth, random.random(shape) < 0.2)


def result(method, tomogram, seed, masks_only=False):
    random = np.random.default_rng(seed)
    values = dict(zip(("dice", "iou", "precision", "recall"), random.uniform(0.2, 0.9, 4), strict=True))
    true = np.array([90, 80, 60, 20]) + seed
    counts = np.stack([true, [70, 30, 10, 1], 100 + seed - true], axis=1).astype(np.int64)
    return TomogramResult(
        method,
        tomogram,
        metrics=values | {"surface": random.uniform(1, 9), "auprc": np.nan if masks_only else 0.5},
        voxels=600,
        thresholds=THRESHOLDS[:0] if masks_only else THRESHOLDS,
        counts=counts[:0] if masks_only else counts,
        threshold=np.nan if masks_only else -0.25,
        planes={plane: {"dice": random.uniform(0.1, 0.9)} for plane in ("xy", "xz", "yz")},
        inclination=tuple(
            InclinationRow(a, a + 30.0, random.uniform(), random.uniform(), 10 + a, 9) for a in (0.0, 30.0, 60.0)
        ),
        pictures=(picture(seed=seed), picture((12, 30), seed=seed, axis="y", index=3)),
        seconds=seed + 0.5,
    )


@pytest.fixture(scope="module")
def results():
    found = [result("nano", name, i) for i, name in enumerate(NAMES)]
    found += [result("other tool", name, 10 + i, masks_only=True) for i, name in enumerate(NAMES)]
    failed = TomogramResult("other tool", NAMES[2], error="mask has shape (3, 4, 5); expected (3, 4, 6)")
    return [failed if (r.method, r.tomogram) == (failed.method, failed.tomogram) else r for r in found]


@pytest.fixture(scope="module")
def written(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "new"
    return write_report(results, folder, SETTINGS)


@pytest.fixture(scope="module")
def html(written):
    return written.read_text(encoding="utf-8")


class Page(HTMLParser):
    """Checks that tags close in order; gathers text, attributes and the rows of tables."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.text, self.rows, self.tags = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text.append(data)
            if {"td", "th"} & set(self.open):
                self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def parsed(html):
    return Page(html)


def test_the_page_loads_nothing(parsed, html):
    loading = {"src", "srcset", "href", "xlink:href", "action", "poster", "data"}
    for tag, name, value in parsed.attributes:
        if name in loading:
            assert value.startswith("data:image/") or (tag == "a" and value.startswith("#part-")), (tag, name)
    assert not {"link", "iframe", "object", "embed", "base", "form"} & set(parsed.tags)
    plain = re.sub(r"data:image/[\w+]+;base64,[\w+/=]+", "", html)
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp", plain)
    for encoded in re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", html):
        svg = base64.b64decode(encoded).decode()
        assert not re.search(r"""(href|src)="(?!\#|data:)""", svg)


def test_the_page_says_its_language_and_every_picture_has_words(parsed):
    assert ("html", "lang", "en") in parsed.attributes
    alternatives = [value for tag, name, value in parsed.attributes if (tag, name) == ("img", "alt")]
    assert parsed.tags.count("img") == len(alternatives)
    assert all(alternatives)


def test_links_within_the_page_lead_somewhere(parsed):
    identities = {value for _, name, value in parsed.attributes if name == "id"}
    links = {value[1:] for _, name, value in parsed.attributes if name == "href"}
    assert links
    assert links <= identities


def text_of(value):
    return "–" if np.isnan(value) else f"{value:.3f}"


def test_every_method_tomogram_and_number_is_in_the_table(parsed, results):
    for r in results:
        row = [r.tomogram, r.method, *map(text_of, r.metrics.values()), f"{r.seconds:.1f}"]
        if r.error:
            row = [r.tomogram, r.method, f"failed: {r.error}"]
        assert row in parsed.rows


def test_the_summary_says_mean_interval_number_and_what_failed(parsed, results):
    values = [r.metrics["dice"] for r in results if r.method == "other tool" and not r.error]
    (row,) = [row for row in parsed.rows if row[:2] == ["other tool", "3"]]
    assert row[2].startswith(f"{np.mean(values):.3f} (")
    text = "".join(parsed.text)
    assert "other tool failed on d2/t1: mask has shape (3, 4, 5); expected (3, 4, 6)." in text
    assert "Wilcoxon" in text


SORT = """<script>
const head = [...document.querySelectorAll('table.sortable')]
  .find((table) => table.caption.textContent.startsWith('Press')).querySelector('th.number');
const arrow = () => getComputedStyle(head.querySelector('[role=button]'), '::after').content;
const arrows = [arrow()];
for (const turn of [1, 2]) { head.querySelector('[role=button]').click(); arrows.push(arrow()); }
const column = [...head.parentNode.cells].indexOf(head);
const rows = [...head.closest('table').tBodies[0].rows];
document.title = JSON.stringify([arrows, rows.map((row) => row.cells[column]?.textContent ?? '')]);
</script>"""


def dumped(page_text, folder, width=1400):
    """The page as a browser has it once its scripts have run."""
    (folder / "page.html").write_text(page_text, encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command.append(f"--window-size={width},900")
    shown = subprocess.run([*command, "--dump-dom", folder / "page.html"], capture_output=True, text=True, timeout=240)
    return shown.stdout


def test_what_is_pressed_to_sort_is_what_the_arrows_belong_to(html):
    (pressed,) = re.findall(r"setAttribute\('role', '(\w+)'\)", html)
    arrows = re.findall(r"th(\[aria-sort=\w+\])? (\S+)::after { content", html)
    assert arrows == [(state, f"[role={pressed}]") for state in ("", "[aria-sort=ascending]", "[aria-sort=descending]")]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser")
def test_a_browser_sorts_and_shows_which_way(html, results, tmp_path):
    shown = dumped(html.replace("</body>", SORT + "</body>"), tmp_path)
    arrows, column = json.loads(re.search(r"<title>(.*?)</title>", shown)[1])
    assert [arrow.strip('" ') for arrow in arrows] == ["↕", "↑", "↓"]
    dice = sorted((r.metrics["dice"] for r in results if not r.error), reverse=True)
    assert column[:-1] == [f"{value:.3f}" for value in dice]
    assert column[-1].startswith("failed")


PLACES = """<script>window.onload = () => {
  document.title = JSON.stringify([...document.querySelectorAll('iframe')].map((frame) =>
    [...frame.contentDocument.querySelector('.slices').children].map((one) => {
      const box = one.getBoundingClientRect(); return [box.left, box.top].map(Math.round); })));
};</script>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser")
def test_methods_stand_beside_each_other_on_a_screen_and_below_each_other_on_a_phone(tmp_path):
    frames = ""
    for methods, width in (("ab", 1400), ("abc", 1400), ("ab", 390)):
        images = [
            Picture(title, "", jpeg_uri(np.zeros((20, 30, 3), np.uint8), 400, 80)) for title in ("", "", *methods)
        ]
        text = document("report", {"Slices": [Slices({"t": ("", [Slice("z", images, "1 nm", 0.2)])})]})
        frames += f'<iframe width="{width}" height="900" srcdoc="{escape(text)}"></iframe>'
    shown = json.loads(re.search(r"<title>(.*?)</title>", dumped(f"<title></title>{frames}{PLACES}", tmp_path))[1])
    rows = [[sorted({top for _, top in one}).index(top) for _, top in one] for one in shown]
    assert rows == [[0, 0, 0, 0], [0, 0, 1, 1, 1], [0, 1, 2, 3]]  # tomogram, truth, methods
    assert [len({left for left, _ in one}) for one in shown] == [4, 3, 1]


def test_tables_of_a_tomogram_have_a_column_for_each_method(parsed, results):
    dice = {(r.method, r.tomogram): f"{r.metrics['dice']:.3f}" if not r.error else "–" for r in results}
    by_tomogram = parsed.rows[parsed.rows.index(["Tomogram", "nano", "other tool"]) :][1 : len(NAMES) + 1]
    assert {tuple(row) for row in by_tomogram} == {
        (name, dice["nano", name], dice["other tool", name]) for name in NAMES
    }
    by_plane = parsed.rows[parsed.rows.index(["Plane", "Metric", "nano", "other tool"]) + 1]
    means = [
        np.mean([r.planes["xy"]["dice"] for r in results if r.method == method and not r.error])
        for method in ("nano", "other tool")
    ]
    assert by_plane == ["XY", "Dice", *(f"{mean:.3f}" for mean in means)]
    assert f"Dice: nano {dice['nano', NAMES[0]]}, other tool {dice['other tool', NAMES[0]]}" in parsed.text
    rows = [row[:2] for row in parsed.rows if row[0] in NAMES and row[1] in ("nano", "other tool")]
    assert rows == [[name, method] for name in NAMES for method in ("nano", "other tool")]


def test_where_the_curve_over_thresholds_is_missing_stands_what_makes_it(html, results):
    assert "Dice against the threshold needs logits; masks only: other tool. Predict with --store-logits" in html

    def told(found):
        return [part.text for part in _threshold(build_tables(found), found) if isinstance(part, Paragraph)]

    cut = [replace(r, thresholds=r.thresholds[:0], counts=r.counts[:0]) for r in results]
    assert "masks only: nano, other tool." in told(cut)[0]
    not_asked = [replace(r, metrics={k: v for k, v in r.metrics.items() if k != "auprc"}) for r in cut]
    assert "metrics=[...]" in told(not_asked)[0]
    assert told([r for r in results if r.method == "nano"]) == []
    assert told([replace(r, voxels=0) for r in cut]) == []  # as those of a table of scores


def test_settings_versions_and_licence_are_there(parsed):
    text = "".join(parsed.text)
    assert ["data.manifest", "test.csv"] in parsed.rows
    rows = {row[0]: row[1] for row in parsed.rows if len(row) == 2}
    assert rows["torch"].startswith("2.")
    assert {"etsam", "sam2", "lightning"} <= set(rows)
    assert "Apache-2.0" in text
    assert "10.1101/2025.11.23.689996" in text


def test_csv_json_and_markdown_hold_the_same_numbers(written, results):
    folder = written.parent
    as_csv = pd.read_csv(folder / "scores.csv", keep_default_na=False, na_values=[""])
    as_json = json.loads((folder / "report.json").read_text())
    lines = (folder / "report.md").read_text().splitlines()
    assert len(as_csv) == len(as_json["scores"]) == len(results)
    for r, row, record in zip(results, as_csv.to_dict("records"), as_json["scores"], strict=True):
        for name, value in (results[0].metrics | r.metrics).items():
            if r.error or np.isnan(value):
                assert record[name] is None
                assert np.isnan(row[name])
            else:
                assert row[name] == record[name] == value
        cells = ["failed: " + r.error] if r.error else [text_of(value) for value in r.metrics.values()]
        assert any(line.startswith("| " + " | ".join([r.tomogram, r.method, *cells])) for line in lines)
    for name in ("means", "pairs", "best_thresholds", "thresholds", "planes", "inclination"):
        table = pd.read_csv(folder / f"{name}.csv")
        assert len(table) == len(as_json[name])
        for column in table.select_dtypes("number"):
            stored = [np.nan if record[column] is None else record[column] for record in as_json[name]]
            np.testing.assert_allclose(table[column], stored, rtol=1e-12)


def test_the_scores_can_be_compared_again(written, results):
    table = read_scores(parse_source(str(written.parent / "scores.csv")))
    again = results_of_scores(table)
    assert [r.error for r in again] == [r.error for r in results]
    assert again[0].metrics == results[0].metrics


def test_names_cannot_put_code_into_the_page(results, tmp_path):
    name = '<script>alert("x")</script>&amp;'
    evil = [
        replace(r, pictures=(), method=name if r.method == "nano" else r.method, tomogram=f"{r.tomogram}'\"><b>")
        for r in (results[0], results[4])
    ]
    evil[-1] = TomogramResult("other tool", "x", error="<img src=x onerror=alert(1)>")
    html = write_report(evil, tmp_path, {"<i>key": "<script>"}, title="<title>|").read_text()
    parsed = Page(html)
    assert parsed.tags.count("script") == 1
    assert not {"b", "i"} & set(parsed.tags)
    assert not any(name == "onerror" for _, name, _ in parsed.attributes)
    assert name in "".join(parsed.text)
    assert "<script" not in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / "report.json").read_text())["scores"][0]["method"] == name


def test_bars_in_names_do_not_break_the_tables_of_markdown(results, tmp_path):
    write_report([replace(results[4], tomogram="d1/t1|x")], tmp_path, {})
    lines = (tmp_path / "report.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith("| d1/t1"))
    head = next(line for line in lines if line.startswith("| Tomogram"))
    assert len(re.findall(r"(?<!\\)\|", row)) == len(re.findall(r"(?<!\\)\|", head))


def test_a_report_is_not_overwritten_unless_asked(results, tmp_path):
    (tmp_path / "pairs.csv").write_text("mine")
    with pytest.raises(OutputError, match=r"pairs\.csv"):
        write_report(results, tmp_path, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.csv"]
    write_report([results[4], results[0]], tmp_path, SETTINGS, overwrite=True)
    assert (tmp_path / "pairs.csv").read_text() != "mine"
    assert (tmp_path / "inclination.csv").exists()
    write_report(results_of_scores(published_scores()), tmp_path, {}, overwrite=True)
    assert not (tmp_path / "inclination.csv").exists()  # it belonged to the report that was replaced


def test_no_results_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="results"):
        write_report([], tmp_path, {})


def test_one_tomogram_and_one_method_make_a_report(results, tmp_path):
    text = "".join(Page(write_report(results[:1], tmp_path, SETTINGS).read_text()).text)
    assert f"{results[0].metrics['dice']:.3f}" in text
    assert "Methods against each other" not in text
    assert not (tmp_path / "pairs.csv").exists()


def test_nothing_but_failures_makes_a_report(tmp_path):
    failed = [TomogramResult("a", "t", error="no file", metrics={}), TomogramResult("a", "u", error="disk full")]
    with pytest.raises(ConfigError, match="metric"):
        write_report(failed, tmp_path, {})
    failed = [replace(r, metrics={"dice": float("nan")}) for r in failed]
    parsed = Page(write_report(failed, tmp_path, {}).read_text())
    assert ["u", "a", "failed: disk full"] in parsed.rows
    assert ["a", "0", "–"] in parsed.rows


def test_twenty_tomograms_with_large_slices_stay_below_five_megabytes():
    many, one = [], picture((400, 480), 0, "z", 9)
    for method in ("a", "b", "c"):
        for i in range(20):
            large = tuple(replace(one, axis=axis) for axis in "zyx")
            many.append(TomogramResult(method, f"t{i}", pictures=large))
    views = slice_views(many)
    encode, number = encoder(views, PICTURE_BUDGET_BYTES)
    sizes = [len(encode(view.images[i % 5][2])) for i, view in enumerate(views[:number:4])]
    total = np.mean(sizes) * 5 * number
    assert number >= 20
    assert 0.5 * PICTURE_BUDGET_BYTES < total < 1.1 * PICTURE_BUDGET_BYTES


def test_a_page_too_small_for_all_slices_shows_some_of_each_tomogram(results, monkeypatch):
    monkeypatch.setattr("etsam.evaluation.report.page.PICTURE_BUDGET_BYTES", 60_000)
    shortened = [replace(r, thresholds=THRESHOLDS[:0], inclination=()) for r in results]
    text = page("t", build_tables(shortened), shortened, {}, {})
    shown = re.findall(r"<h3>(d\d/t\d)</h3>", text)
    assert 0 < text.count('class="slices"') < 8
    assert len(shown) == min(len(NAMES), text.count('class="slices"'))
    assert "slices are left out" in text


def test_the_headline_says_what_is_found_and_what_is_lost(results, tmp_path):
    rows = [InclinationRow(0.0, 10.0, 0.07, 0.9, 100, 50), InclinationRow(80.0, 90.0, 0.98, 0.9, 100, 90)]
    mine = [
        replace(r, inclination=tuple(rows), voxels=4_000_000, metrics={"dice": value, "precision": 0.7 + value / 1000})
        for r, value in zip(results[:2], (0.64, 0.66), strict=True)
    ]
    settings = {"prediction": {"weights": {"stage2": {"name": "nano_stage2.safetensors"}}}}
    text = " ".join("".join(Page(write_report(mine, tmp_path, settings).read_text()).text).split())
    assert "Dice 0.650. Finds upright membranes (0.98 of them), loses flat ones (0.07). Precision 0.701." in text
    assert re.search(
        r"2 tomograms of 8 million voxels together · weights nano · threshold -0.25 · \d+ \w+ 20\d\d", text
    )
    assert "DEMO WEIGHTS" in text


@pytest.mark.parametrize(
    ("upright", "flat", "words"),
    [(0.9, 0.8, "upright (0.90 of them) and flat"), (0.3, 0.1, "Loses most"), (0.6, 0.4, "0.60 of upright")],
)
def test_the_headline_fits_what_is_found(results, upright, flat, words):
    rows = InclinationRow(0.0, 30.0, flat, 0.5, 10, 9), InclinationRow(60.0, 90.0, upright, 0.5, 10, 9)
    ((_, sentences),) = findings(build_tables([replace(results[0], inclination=rows)]))
    assert words in sentences


def test_the_headline_ranks_methods_on_the_tomograms_of_all():
    dice = {"a": (0.80, 0.82, 0.1), "b": (0.77, 0.75), "c": ()}
    given = [TomogramResult(m, f"t{i}", metrics={"dice": v}) for m, own in dice.items() for i, v in enumerate(own)]
    given.append(TomogramResult("c", "t0", error="no file"))
    assert findings(build_tables(given)) == [
        ("a", "Dice 0.810 on the 2 tomograms of all methods."),
        ("b", "Dice 0.760 on the 2 tomograms of all methods."),
        ("c", "No scores."),
    ]


def test_the_headline_has_the_digits_of_the_table():
    given = [TomogramResult("a", "t", metrics={"dice": 0.5, "hausdorff95_angstrom": 179.5})]
    assert findings(build_tables(given, metrics=["hausdorff95_angstrom"])) == [
        ("a", "95 % Hausdorff, larger direction (Å) 180.")
    ]


def test_means_over_shared_tomograms_stand_in_page_and_markdown(written, parsed, results):
    shared = [r.metrics["dice"] for r in results if r.method == "nano" and r.tomogram != "d2/t1"]
    (row,) = [row for row in parsed.rows if row[:2] == ["nano", "3 shared"]]
    assert row[2] == f"{np.mean(shared):.3f}"
    assert f"| nano | 3 shared | {np.mean(shared):.3f} |" in (written.parent / "report.md").read_text()


def test_a_failure_is_told_once_and_ends_in_one_full_stop(results, tmp_path):
    failed = TomogramResult("nano", "d9/t9", error="no such file: a.mrc.")
    text = "".join(Page(write_report([*results, failed], tmp_path, {}).read_text()).text)
    markdown = [line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("- ")]
    assert [line for line in markdown if "a.mrc" in line] == ["- nano failed on d9/t9: no such file: a.mrc."]
    assert text.count("failed on d9/t9") == 1
    assert "d9/t9: no such file: a.mrc.." not in text
    assert "nano has no value" not in text


def test_slices_come_first_the_worst_tomogram_before_the_others(html, results):
    dice = {name: np.mean([r.metrics["dice"] for r in results if r.tomogram == name and not r.error]) for name in NAMES}
    assert re.findall(r"<h3>(d\d/t\d)</h3>", html) == sorted(NAMES, key=dice.__getitem__)
    assert html.index('class="slices"') < html.index("By direction") < html.index("<details>")


def test_slices_have_scale_bars_in_nanometres():
    sized = replace(picture((20, 30)), voxel_size_angstrom=(40.0, 20.0), averaged=5, shows="most errors")
    (view,) = slice_views([TomogramResult("m", "t", pictures=(sized,))])
    assert view.bar.label == "10 nm"
    assert view.bar_share == pytest.approx(5 / 30)
    assert view.images[0][2].shape == (40, 30, 3)  # rows are twice as far apart as columns
    (_, image), *_ = images_with_bars(view)
    assert image.shape[0] == 400
    assert (image == 255).all(axis=-1)[-20:].sum(axis=1).max() == pytest.approx(400 / 40 * 5, abs=2)


def test_numbers_have_the_digits_that_mean_something():
    shown = {"assd_angstrom": "15", "hausdorff95_angstrom": "8.3", "betti0_error": "13", "dice": "0.652"}
    values = {"assd_angstrom": 14.676, "hausdorff95_angstrom": 8.26, "betti0_error": 13.0, "dice": 0.6521}
    assert {name: format_value(name, value) for name, value in values.items()} == shown
    assert format_value("betti1_error", 2.5) == "2.5"
    assert format_value("dice", float("nan")) == "–"


def test_thresholds_are_drawn_over_the_useful_range():
    thresholds = np.linspace(-20, 20, 81)
    true = np.rint(1000 * np.exp(-((thresholds / 2) ** 2))).astype(np.int64)
    counts = np.stack([true, np.full(81, 100), 1000 - true], axis=1)[None]
    low, high = useful_range(Sweep("m", ("t",), thresholds, counts, 3.5))
    assert -4 < low < -2
    assert 3.5 < high < 4


def test_organisms_stand_beside_published_tomograms():
    heads, rows = cells_of_scores(build_tables([TomogramResult("m", "emdb/4603", metrics={"dice": 0.5})]))
    assert heads[:3] == ["Tomogram", "Organism", "Method"]
    assert rows[0][1] == "Synechocystis sp. PCC 6803"
    assert labels(["emdb/4603", "mine/7"]) == ["Synechocystis sp. 4603", "7"]
    assert labels(["a/7", "b/7"]) == ["a/7", "b/7"]
    assert short_species("Schizosaccharomyces pombe 972h-") == "S. pombe"
    assert short_species("Murine Leukemia Virus") == "Murine Leukemia Virus"


def test_settings_are_folded_away(parsed, html):
    folded = html[html.index("<details>") :]
    assert "data.manifest" in folded
    assert parsed.tags.count("details") == 1


ENLARGE = """<script>
const zoom = [...document.querySelectorAll('.slices')].map((row) => row.querySelectorAll('.zoom'))[0];
zoom[1].click();
const large = () => document.querySelector('dialog').open && document.querySelector('dialog img').src;
const seen = [large()];
document.querySelector('dialog .zoom').click();
seen.push(large());
const source = [...zoom].map((one) => one.querySelector('img').src);
document.title = JSON.stringify(seen.map((src) => source.indexOf(src)));
</script>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser")
@pytest.mark.slow
def test_a_slice_that_is_pressed_is_shown_large_and_then_the_next(html, tmp_path):
    shown = dumped(html.replace("</body>", ENLARGE + "</body>"), tmp_path)
    assert json.loads(re.search(r"<title>(.*?)</title>", shown)[1]) == [1, 2]


def test_pictures_show_found_wrong_and_missed():
    grey = np.zeros((3, 5), np.float32)
    truth = np.array([[1, 1, 0, 0, 255]] * 3, np.uint8)
    prediction = np.array([[True, False, True, False, True]] * 3)
    image = errors_image(SlicePicture("z", 0, grey, truth, prediction))

    def painted(colour):
        return [round(0.6 * int(colour[i : i + 2], 16)) for i in (1, 3, 5)]

    for column, colour in ((0, FOUND), (1, MISSED), (2, WRONG)):
        np.testing.assert_allclose(image[1, column], painted(colour), atol=1)
    assert image[1, 3].tolist() == [0, 0, 0]
    assert np.ptp(image[:, 4], axis=-1).max() == 0  # not annotated: grey, or a grey stripe
    assert (truth_image(SlicePicture("z", 0, grey, truth, prediction))[:, :2].sum(axis=-1) > 0).all()


def test_pictures_stand_upright_and_count_pixels(html):
    one = picture()
    (view,) = slice_views([TomogramResult("m", "t", pictures=(one,))])
    np.testing.assert_array_equal(view.images[0][2][0], np.repeat((one.grey[-1] * 255).round()[:, None], 3, axis=1))
    counted = one.truth != 255
    found = int(((one.truth == 1) & one.prediction).sum())
    wrong = int((one.prediction & (one.truth == 0) & counted).sum())
    assert view.images[2][1].startswith(f"t, z = 7, m: {found} pixels found, {wrong} wrong")
    jpeg = re.search(r"data:image/jpeg;base64,([\w+/=]+)", html).group(1)
    assert Image.open(io.BytesIO(base64.b64decode(jpeg))).size == (400, 267)  # 30 x 20, enlarged


def test_wandb_gets_tables_curves_slices_and_means(results, tmp_path, wandb_apart):
    from etsam.evaluation.report.wandb import log_to_wandb

    folder = log_to_wandb(results, SETTINGS, project="test", name="look", offline=True, save_dir=tmp_path)
    assert folder.startswith(str(tmp_path))
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    media = run / "files/media"
    (scores,) = (media / "table/tables").glob("scores_*.json")
    stored = json.loads(scores.read_text())
    assert stored["columns"][:3] == ["method", "tomogram", "error"]
    assert stored["data"][0][:4] == ["nano", NAMES[0], "", results[0].metrics["dice"]]
    assert len(stored["data"]) == len(results)
    curves = {path.name.rsplit("_", 2)[0] for path in (media / "images/curves").iterdir()}
    assert {"scores_dice", "precision_recall", "threshold_nano", "inclination_recall"} <= curves
    assert len(list((media / "images/slices").rglob("*.png"))) == len(NAMES) * 2 * 2 + 7 * 2  # grey, truth, predictions
    recorded = next(run.glob("*.wandb")).read_bytes()
    assert b"nano/dice" in recorded
    assert b"manifest" in recorded


def test_reports_do_not_import_wandb():
    code = (
        "import sys, etsam.evaluation.report.report, etsam.evaluation.report.wandb;"
        "print({'wandb', 'torch'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "set()"


def test_means_of_what_is_not_compared_say_of_how_many_tomograms_they_are(results):
    given = [
        replace(one, metrics=one.metrics | {"hausdorff95_angstrom": np.nan if number == 0 else 10.0 * number})
        for number, one in enumerate(r for r in results if r.method == "nano" and not r.error)
    ]
    tables = build_tables(given)
    (row,) = tables.comparison.means.query("metric == 'hausdorff95_angstrom'").itertuples()
    expected = [10.0 * number for number in range(1, len(given))]
    assert (row.n, row.mean) == (len(expected), np.mean(expected))
    assert "hausdorff95_angstrom" not in set(tables.comparison.pairs["metric"])
    heads, cells = cells_of_other_means(tables.comparison, len(given))
    assert heads == ["Metric", "nano"]
    (of_distance,) = [cell for name, cell in cells if "larger direction" in name]
    assert of_distance == f"{np.mean(expected):.0f} ({len(expected)} of {len(given)})"
