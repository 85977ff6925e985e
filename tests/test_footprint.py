import pytest
import torch
from networks import random_tracker

from etsam.errors import ConfigError
from etsam.training.clip import forward_clip
from etsam.training.memory import Footprint, _Saved, estimate, require_room
from etsam.training.prompting import ClipPlan


def test_the_estimate_is_close_to_what_a_real_clip_keeps():
    tracker = random_tracker().train()
    images, masks = torch.rand(9, 2, 3, 64, 64), torch.rand(9, 2, 64, 64) > 0.5
    with _Saved(tracker) as saved:
        forward_clip(tracker, images, masks, ClipPlan({0: "zero"}))
    guess = estimate(tracker, num_slices=9, batch_size=2)
    assert guess.encoder + guess.tracking == pytest.approx(saved.bytes, rel=0.25)


def test_in_bfloat16_too():
    tracker = random_tracker().train()
    images, masks = torch.rand(9, 2, 3, 64, 64), torch.rand(9, 2, 64, 64) > 0.5
    with torch.autocast("cpu", torch.bfloat16), _Saved(tracker) as saved:
        forward_clip(tracker, images, masks, ClipPlan({0: "zero"}))
    guess = estimate(tracker, num_slices=9, batch_size=2, half=True)
    assert guess.encoder + guess.tracking == pytest.approx(saved.bytes, rel=0.25)


def test_slices_that_are_only_seen_beside_others_keep_nothing_of_their_own():
    narrow, wide = random_tracker().train(), random_tracker(input_slices=5).train()
    assert estimate(wide, num_slices=8, batch_size=2).tracking == estimate(narrow, num_slices=4, batch_size=2).tracking


def test_checkpointing_and_averaging_count():
    tracker = random_tracker().train()
    plain = estimate(tracker, num_slices=4, batch_size=2)
    less = estimate(tracker, num_slices=4, batch_size=2, checkpoint_encoder=True, encode_batch_size=2)
    assert less.encoder == pytest.approx(plain.encoder * 2 / 8)
    assert less.tracking == plain.tracking
    averaged = estimate(tracker, num_slices=4, batch_size=2, averaged=True)
    assert averaged.state == pytest.approx(plain.state * 5 / 4)


def test_a_step_that_cannot_fit_is_an_error_that_names_what_helps(caplog):
    with pytest.raises(ConfigError, match=r"needs about 1150000\.0 GB .*data.batch_size.*checkpoint_encoder=true"):
        require_room(Footprint(state=0, encoder=10**15, tracking=0), accelerated=False)
    with caplog.at_level("INFO", "etsam"):
        require_room(Footprint(state=10**6, encoder=10**6, tracking=10**6), accelerated=False)
    assert "a step needs about 0.00 GB" in caplog.text
