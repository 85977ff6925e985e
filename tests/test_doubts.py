"""A mask that is probably wrong says so, with what to try."""

import json
import logging

import numpy as np
import pytest

from etsam.normalize import MinMaxPositive, Robust, measure
from etsam.prediction.doubts import Coverage, Mask, Noted, doubts

SHAPE = (40, 60, 20)  # borders of 2, 3 and 1 voxels


def sentences(share=0.05, before=None, border=False, contrast="dark", guessed=False):
    return list(doubts(Mask(share, share if before is None else before, border, contrast, guessed, threshold=0.5)))


def test_a_mask_of_the_usual_kind_is_not_doubted():
    assert sentences() == []


@pytest.mark.parametrize(
    ("known", "remedy"),
    [
        ({"share": 0.0}, "stage2.threshold=-0.5"),
        ({"share": 0.00004}, "normalize.membranes=bright"),
        ({"share": 0.00004, "contrast": "bright"}, "normalize.membranes=dark"),
        ({"share": 0.26}, "stage2.threshold=1.5"),
        ({"share": 0.0, "before": 0.01}, "1.00 %"),
        ({"border": True}, "crop"),
        ({"guessed": True}, "normalize.membranes=bright"),
        ({"guessed": True, "contrast": "bright"}, "normalize.membranes=dark"),
    ],
)
def test_a_doubt_names_what_to_try(known, remedy):
    [sentence] = sentences(**known)
    assert remedy in sentence


def test_shares_count_all_voxels_and_those_that_are_not_at_the_border():
    coverage, mask = Coverage(SHAPE), np.zeros(SHAPE, bool)
    mask[:2], mask[:, :3], mask[..., -1] = True, True, True
    for z, plane in enumerate(mask):
        coverage.add(z, plane)
    assert (coverage.membrane, coverage.inside) == (mask.sum(), 0)
    assert coverage.share == mask.mean()
    assert coverage.only_at_border
    coverage = Coverage(SHAPE)
    mask[20, 30, 4:18] = True  # below one in a hundred of all
    for z, plane in enumerate(mask):
        coverage.add(z, plane)
    assert coverage.inside == 14
    assert coverage.only_at_border
    coverage.add(20, np.ones(SHAPE[1:], bool))
    assert not coverage.only_at_border


def test_nothing_at_all_is_not_at_the_border():
    assert not Coverage(SHAPE).only_at_border


def test_the_other_contrast_is_no_advice_where_the_normalisation_does_not_ask():
    assert "membranes=" not in " ".join(sentences(share=0.0, contrast=None))


def test_contrast_is_guessed_where_the_skewness_is_one_of_chance():
    noise = np.random.default_rng(0).normal(0, 1, SHAPE).astype(np.float32)
    dark = noise.copy()
    dark[:, ::20] -= 20
    for volume, method, guessed, contrast in (
        (noise, Robust(), True, measure(noise).contrast),
        (dark, Robust(), False, "dark"),
        (-dark, Robust(), False, "bright"),
        (noise, Robust(membranes="bright"), False, "bright"),
        (np.abs(noise), MinMaxPositive(), False, None),
    ):
        noted = Noted(method)
        noted.fit(measure(volume))
        assert (noted.contrast_is_guessed, noted.contrast) == (guessed, contrast)


def test_a_prediction_that_finds_nothing_warns_and_its_record_says_so(work, tomogram, predict, caplog):
    caplog.set_level(logging.INFO)
    assert predict("tomo.mrc", "--logit-threshold", "1e6", "write_preview=false").status == 0
    record = json.loads((work / "out" / "tomo_etsam_predicted_record.json").read_text())
    [warning] = record["warnings"]
    assert (record["pieces"], record["demo_weights"]) == (0, False)
    assert "0.00 %" in warning
    assert f"tomo.mrc: {warning}" in [entry.getMessage() for entry in caplog.records if entry.levelname == "WARNING"]
