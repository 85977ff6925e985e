"""Methods are compared on the same tomograms, with the tests that the published tables give."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from etsam.errors import ConfigError
from etsam.evaluation.compare.compare import compare, format_p
from etsam.evaluation.compare.statistics import holm, mean_interval, paired_tests
from etsam.evaluation.compare.tables import PUBLISHED, published_scores
from etsam.evaluation.report.tables import cells_of_means, cells_of_other_means, cells_of_pairs
from etsam.paths import resource_path

pytestmark = pytest.mark.workshop
STAGE2, STAGE1, MEMBRAIN, TARDIS = PUBLISHED
A = np.array([0.9, 0.8, 0.7, 0.65, 0.6])
B = np.array([0.8, 0.6, 0.75, 0.65, 0.3])


@pytest.fixture(scope="module")
def published():
    return compare(published_scores())


def pair(comparison, first, second, metric="dice"):
    (row,) = comparison.pairs.query("first == @first and second == @second and metric == @metric").itertuples()
    return row


def table(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("method", "dice", "iou", "precision", "recall"),
    [
        (STAGE1, 0.714, 0.592, 0.729, 0.772),
        (STAGE2, 0.787, 0.675, 0.802, 0.803),
        (MEMBRAIN, 0.540, 0.410, 0.474, 0.736),
        (TARDIS, 0.555, 0.411, 0.620, 0.574),
    ],
)
def test_published_means_come_out(published, method, dice, iou, precision, recall):
    means = published.means.query("method == @method").set_index("metric")["mean"].round(3).to_dict()
    assert means == {"dice": dice, "iou": iou, "precision": precision, "recall": recall}


@pytest.mark.parametrize(
    ("second", "difference", "p", "digits"),
    [(MEMBRAIN, 0.247, 0.003, 3), (TARDIS, 0.231, 5e-5, 6), (STAGE1, 0.073, 0.058, 3)],
)
def test_published_paired_t_tests_come_out(published, second, difference, p, digits):
    row = pair(published, STAGE2, second)
    assert (row.n, round(row.difference, 3), round(row.t_p, digits)) == (10, difference, p)


def test_published_tests_agree_with_scipy_on_the_files_themselves(published):
    folder = resource_path("data", "reference_results")
    ours = pd.read_csv(folder / "etsam.csv").set_index(["dataset_id", "run_id"])["etsam_stage2_dice_-0.25"]
    other = pd.read_csv(folder / "tardis.csv").set_index(["dataset_id", "run_id"])["dice_score"].reindex(ours.index)
    row = pair(published, STAGE2, TARDIS)
    assert row.t_p == pytest.approx(stats.ttest_rel(ours, other).pvalue, rel=1e-9)
    assert row.wilcoxon_p == pytest.approx(2 / 2**10)  # higher on all ten: the smallest p there is
    assert row.shapiro_p == pytest.approx(stats.shapiro(ours - other).pvalue, rel=1e-9)
    assert (row.higher, row.equal, row.lower) == (10, 0, 0)


def test_the_published_difference_that_is_not_normal_is_named(published):
    (note,) = [note for note in published.notes if note.startswith(f"{STAGE2} - {STAGE1}")]
    assert "Dice (p = 0.0022)" in note
    assert "Wilcoxon" in note


def test_paired_tests_of_a_case_computed_by_hand():
    # differences 0.1, 0.2, -0.05, 0, 0.3: mean 0.11, squares about it 0.082, so sd = sqrt(0.082 / 4)
    found = paired_tests(A, B)
    sd = np.sqrt(0.082 / 4)
    assert found.difference == pytest.approx(0.11)
    assert found.effect_size == pytest.approx(0.11 / sd)
    assert found.t == pytest.approx(0.11 / (sd / np.sqrt(5)))
    assert found.t_p == pytest.approx(stats.ttest_rel(A, B).pvalue)
    assert (found.higher, found.equal, found.lower) == (3, 1, 1)


def test_the_wilcoxon_p_counts_all_patterns_of_signs():
    d = np.array([0.3, -0.1, 0.2, 0.5, 0.4, -0.05])
    ranks = stats.rankdata(abs(d))
    sums = [
        sum(r for r, sign in zip(ranks, signs, strict=True) if sign) for signs in itertools.product((0, 1), repeat=6)
    ]
    smaller = min(ranks[d > 0].sum(), ranks[d < 0].sum())
    assert paired_tests(d, 0 * d).wilcoxon_p == pytest.approx(2 * np.mean(np.array(sums) <= smaller))


def test_swapping_two_methods_changes_signs_and_no_p():
    one, other = paired_tests(A, B), paired_tests(B, A)
    assert (one.t_p, one.wilcoxon_p, one.shapiro_p) == pytest.approx((other.t_p, other.wilcoxon_p, other.shapiro_p))
    assert (one.difference, one.effect_size) == pytest.approx((-other.difference, -other.effect_size))


def test_equal_methods_give_no_difference_and_no_t_test():
    found = paired_tests(A, A)
    assert (found.difference, found.low, found.high, found.wilcoxon_p, found.equal) == (0, 0, 0, 1, 5)
    assert np.isnan([found.t_p, found.shapiro_p, found.effect_size]).all()


def test_a_difference_that_is_the_same_everywhere_has_a_wilcoxon_test_only():
    found = paired_tests(np.array([0.5, 0.6, 0.7]), np.array([0.4, 0.5, 0.6]))
    assert (found.low, found.high) == pytest.approx((0.1, 0.1))
    assert found.wilcoxon_p == pytest.approx(2 / 2**3)
    assert np.isnan(found.t_p)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_fewer_than_three_tomograms_are_not_tested(n):
    found = paired_tests(A[:n], B[:n])
    assert found.n == n
    assert np.isnan([found.t_p, found.wilcoxon_p, found.shapiro_p]).all()
    assert np.isnan([found.difference, found.low]).tolist() == [n == 0, n < 2]


def test_the_interval_of_few_tomograms_agrees_with_the_t_test():
    # n = 3, mean 0.11, sd 0.06: the t-test gives p = 0.087; 4.303 = 0.975 quantile of t with two degrees of freedom
    d = np.array([0.05, 0.17, 0.11])
    half = 4.302653 * 0.06 / np.sqrt(3)
    assert mean_interval(d) == pytest.approx((0.11 - half, 0.11 + half), rel=1e-6)
    random = np.random.default_rng(2)
    for n in (3, 5, 9):
        for _ in range(30):
            found = paired_tests(random.normal(0.8, 1, n), np.zeros(n))
            assert (found.low <= 0 <= found.high) == (found.t_p >= 0.05)


@pytest.mark.parametrize("n", [2, 3, 5, 9])
def test_the_interval_of_few_values_holds_the_true_mean_as_often_as_it_says(n):
    random = np.random.default_rng(n)
    held = [low <= 0 <= high for low, high in (mean_interval(random.normal(size=n)) for _ in range(2000))]
    assert 0.935 < np.mean(held) < 0.965


@pytest.mark.parametrize("n", [5, 17])
def test_intervals_do_not_depend_on_the_order_of_tomograms(n):
    values = np.random.default_rng(0).gamma(2, size=n)
    for seed in range(5):
        assert mean_interval(np.random.default_rng(seed).permutation(values)) == mean_interval(values)


@pytest.mark.parametrize("values", [A, np.random.default_rng(0).gamma(2, size=17) - 2, np.linspace(-0.3, 0.3, 13)])
def test_swapping_two_methods_mirrors_the_interval(values):
    low, high = mean_interval(values)
    assert mean_interval(-values) == (-high, -low)
    one, other = paired_tests(values, 0 * values), paired_tests(0 * values, values)
    assert (one.low, one.high) == (-other.high, -other.low)


def test_paired_scores_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="equal lengths"):
        paired_tests(A, B[:3])


def test_intervals_repeat_with_the_seed_and_hold_the_mean():
    values = np.random.default_rng(0).uniform(size=30)
    low, high = mean_interval(values, seed=3)
    assert (low, high) == mean_interval(values, seed=3)
    assert (low, high) != mean_interval(values, seed=4)
    assert values.min() < low < values.mean() < high < values.max()


def test_the_interval_of_many_values_is_close_to_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(0.5, 0.1, 400)
    half = 1.96 * values.std(ddof=1) / 20
    assert mean_interval(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=half / 10)


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says():
    random = np.random.default_rng(1)
    held = [
        low <= 0 <= high for low, high in (mean_interval(random.normal(size=30), resamples=999) for _ in range(200))
    ]
    assert 0.88 < np.mean(held) <= 0.99


def test_corrections_of_a_case_computed_by_hand():
    p = [0.01, 0.04, 0.03, float("nan"), 0.5]
    # sorted 0.01 x 4, 0.03 x 3, 0.04 x 2 (not below the one before), 0.5 x 1
    np.testing.assert_allclose(holm(p), [0.04, 0.09, 0.09, np.nan, 0.5])
    assert holm([]).size == 0


def test_corrections_are_made_for_the_pairs_of_one_metric(published):
    dice = published.pairs.query("metric == 'dice'")
    assert len(dice) == 6
    np.testing.assert_allclose(dice["t_p_holm"], holm(dice["t_p"]))
    assert dice["t_p_holm"].min() == pytest.approx(6 * dice["t_p"].min())


def test_with_a_baseline_each_other_method_is_compared_with_it():
    found = compare(published_scores(), ["dice"], baseline=STAGE1)
    assert list(found.pairs["first"]) == [STAGE2, MEMBRAIN, TARDIS]
    assert set(found.pairs["second"]) == {STAGE1}
    assert pair(found, STAGE2, STAGE1).t_p_holm == pytest.approx(0.058412, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "part"),
    [({"baseline": "nobody"}, "no method nobody"), ({"metrics": ["dice", "size"]}, "metric size; there are dice, iou")],
)
def test_unknown_names_are_refused(options, part):
    with pytest.raises(ConfigError, match=part):
        compare(published_scores(), **options)


def scores(**methods):
    rows = [(m, t, "", value) for m, values in methods.items() for t, value in values.items()]
    return pd.DataFrame(rows, columns=["method", "tomogram", "error", "dice"])


def test_missing_tomograms_are_named_and_left_out_of_the_pairs_only():
    found = compare(scores(a={"t1": 0.9, "t2": 0.8, "t3": 0.4, "t4": 0.1}, b={"t1": 0.7, "t2": 0.7, "t3": np.nan}))
    assert found.missing.values.tolist() == [
        ["b", "dice", "t3", "no value"],
        ["b", "dice", "t4", "not in the table"],
    ]
    assert any("t4" in note and note.startswith("b has no value") for note in found.notes)
    row = pair(found, "a", "b")
    assert (row.n, row.mean_first, row.mean_second) == pytest.approx((2, 0.85, 0.7))
    means = found.means.set_index("method")
    assert list(means["n"]) == [4, 2]
    assert list(means["mean"]) == pytest.approx([0.55, 0.7])
    assert list(means["mean_shared"]) == pytest.approx([0.85, 0.7])


def test_a_method_without_any_value_leaves_the_shared_means_of_others():
    values = {"a": {"t1": 0.9, "t2": 0.8, "t3": 0.1}, "b": {"t1": 0.7, "t2": 0.5}, "c": {"t1": np.nan}}
    found = compare(scores(**values))
    means = found.means.set_index("method")
    assert list(means["n_shared"]) == [2, 2, 0]
    assert list(means["mean_shared"])[:2] == pytest.approx([0.85, 0.6])
    assert np.isnan(means["mean_shared"]["c"])
    assert found.unequal == ("dice",)
    (note,) = [note for note in found.notes if note.startswith("Left out of the shared means")]
    assert note.endswith(": c.")


def test_means_over_shared_tomograms_are_shown_where_methods_have_different_ones():
    hard = scores(a={"t1": 0.8, "t2": 0.9, "t3": 0.1}, b={"t1": 0.7, "t2": 0.78})
    hard["hausdorff95_angstrom"] = [100, 200, 900, 110, np.nan]
    _, rows = cells_of_means(compare(hard))
    assert [row[0] for row in rows] == ["a", "b", "a", "b"]
    assert rows[2:] == [["a", "2 shared", "0.850"], ["b", "2 shared", "0.740"]]
    _, others = cells_of_other_means(compare(hard), 3)
    assert others[1][1:] == ["100 (1 shared)", "110 (1 shared)"]
    _, rows = cells_of_means(compare(hard[hard["tomogram"] != "t3"]))
    assert len(rows) == 2


def test_as_many_but_other_tomograms_are_different_ones():
    found = compare(scores(a={"t1": 0.8, "t2": 0.9}, b={"t2": 0.7, "t3": 0.1}))
    assert found.unequal == ("dice",)
    assert [row[1:] for row in cells_of_means(found)[1][2:]] == [["1 shared", "0.900"], ["1 shared", "0.700"]]


def test_differences_have_the_digits_of_their_metric():
    found = scores(a={"t1": 0.9, "t2": 0.5, "t3": 0.4}, b={"t1": 0.7, "t2": 0.6, "t3": 0.2})
    found["hausdorff95_angstrom"] = [175, 190, 180, 95.2, 93.5, 97.3]
    _, (dice, distance) = cells_of_pairs(compare(found, ["dice", "hausdorff95_angstrom"]))
    assert dice[3] == "+0.100"
    assert distance[3] == "+86"
    # differences 79.8, 96.5, 82.7: mean 86.33, sd 8.92, and 4.303 * 8.92 / sqrt(3) = 22.2 to both sides
    assert distance[4] == "+64 to +108"


def test_metrics_may_be_written_in_capitals():
    assert compare(published_scores(), ["Dice", "IOU", "dice"]).metrics == ("dice", "iou")


def test_methods_without_a_common_tomogram_are_told_so():
    found = compare(scores(a={"t1": 0.9}, b={"t2": 0.7}))
    assert pair(found, "a", "b").n == 0
    assert "fewer than 3 common tomograms" in " ".join(found.notes)


def test_methods_without_a_common_name_show_one_of_each():
    found = compare(scores(a={"d/t1": 0.9, "d/t2": 0.8}, b={"t1.mrc": 0.7}, c={"d/t1": 0.5}))
    assert found.notes[-1].startswith("No common tomogram name: a - b, b - c.")
    assert found.notes[-1].endswith("d/t1 (a), t1.mrc (b), d/t1 (c).")
    assert not any("common tomogram name:" in note for note in compare(published_scores()).notes)


def test_five_tomograms_are_too_few_for_the_wilcoxon_test():
    values = {f"t{i}": 0.5 + 0.01 * i for i in range(5)}
    found = compare(scores(a=values, b={name: value**2 for name, value in values.items()}))
    assert any("cannot give p < 0.05" in note for note in found.notes)
    assert pair(found, "a", "b").wilcoxon_p == pytest.approx(2 / 2**5)


def test_the_order_of_rows_does_not_matter():
    shuffled = published_scores().sample(frac=1, random_state=1).reset_index(drop=True)
    found = compare(shuffled, ["dice"])
    (row,) = [r for r in found.pairs.itertuples() if {r.first, r.second} == {STAGE2, MEMBRAIN}]
    assert abs(row.difference) == pytest.approx(0.2468098, abs=1e-6)
    assert row.t_p == pytest.approx(0.002986, rel=1e-3)


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.058412, "0.058"), (0.0010, "0.001"), (5.04e-5, "5e-5"), (1.0, "1"), (float("nan"), "–"), (0, "0")],
)
def test_p_is_written_short(p, text):
    assert format_p(p) == text


def run(etsam, capsys, *arguments):
    """Standard output of a command that ends well."""
    from etsam.cli.main import main

    main(["compare", *arguments])
    return capsys.readouterr().out


def test_the_command_shows_the_published_comparison(etsam, capsys):
    out = " ".join(run(etsam, capsys, "--published").split())
    assert "ETSAM stage 2" in out
    assert "0.787" in out
    assert "+0.247" in out


def test_the_command_compares_own_tables_with_published_ones_and_writes_the_report(etsam, work):
    own = published_scores().query("method == @TARDIS").assign(method="x").head(7)
    own.to_csv(work / "own.csv", index=False)
    flags = ["--metric", "iou,dice", "--published", "--baseline", "my-method", "--output-dir", "out"]
    outcome = etsam("compare", "my-method=own.csv", *flags)
    assert outcome.status == 0, outcome.stderr
    assert outcome.files == [
        "means.csv",
        "missing.csv",
        "pairs.csv",
        "report.html",
        "report.json",
        "report.md",
        "scores.csv",
    ]
    pairs = pd.read_csv(work / "out/pairs.csv").set_index(["metric", "first"])
    assert (pairs["second"] == "my-method").all()
    assert tuple(pairs.loc[("dice", TARDIS), ["n", "difference", "equal"]]) == (7, 0, 7)
    missing = pd.read_csv(work / "out/missing.csv")
    assert set(missing["tomogram"]) == {"10104/7325", "10118/7667", "10032/676"}
    assert set(missing["method"]) == {"my-method"}


def test_tables_may_stand_before_between_and_after_flags(etsam, work):
    for name in "abc":
        table(work / f"{name}.csv", "tomogram,dice\nt,0.5\n")
    outcome = etsam("compare", "--metric", "dice", "a=a.csv", "--output-dir", "out", "b=b.csv", "c=c.csv")
    assert outcome.status == 0, outcome.stderr
    assert sorted(pd.read_csv(work / "out/scores.csv")["method"]) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "--published"),
        (["a=no.csv"], "no.csv"),
        (["no.csv"], "no.csv"),
        (["--published", "--baseline", "x"], "method x"),
        (["--published", "--metric", "size"], "metric size"),
        (["--published", "--unknown"], "--unknown"),
    ],
)
def test_the_command_refuses_with_one_line(etsam, arguments, part):
    outcome = etsam("compare", *arguments, "--output-dir", "out")
    assert outcome.status == 1
    assert part in outcome.message
    assert outcome.files == []


def test_the_command_does_not_overwrite(etsam):
    command = ["compare", "--published", "--metric", "dice", "--output-dir", "out"]
    assert etsam(*command).status == 0
    outcome = etsam(*command)
    assert outcome.status == 1
    assert "report.html" in outcome.message
    assert etsam(*command, "--overwrite").status == 0
