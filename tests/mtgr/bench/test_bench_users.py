"""Users that are drawn for a benchmark."""

from __future__ import annotations

import numpy as np

from mtgr.admission import admit
from mtgr.bench.cases import TOP
from mtgr.bench.users import SyntheticUsers, requests_of, video_name
from mtgr.catalog import Catalog
from mtgr.presets import PRESETS

VIDEOS = 500
CONFIG = PRESETS["tiny"].replace(n_items=VIDEOS)


def test_every_request_is_one_that_the_model_takes() -> None:
    """A request that was refused would take no time and look fast."""
    users = SyntheticUsers(VIDEOS, seed=1).draw(20, 100)
    for request in requests_of(users, 100):
        history, _ = admit(request, CONFIG)
        assert len(history) == 100
        assert request.count == TOP
        assert np.all(np.diff(history.records["timestamp_ms"]) >= 0)


def test_a_request_after_one_more_event_begins_with_the_one_before() -> None:
    """A cached row is one only if the history that is known stands at the beginning of the new one."""
    (user,) = SyntheticUsers(VIDEOS, seed=2).draw(1, 60)
    shorter, longer = user.request(59), user.request(60)
    assert longer.records.startswith(shorter.records)
    assert longer.videos.startswith(shorter.videos)
    assert len(longer.records) > len(shorter.records)


def test_the_plain_models_tokens_are_the_same_videos() -> None:
    """Both systems are asked about the same histories."""
    (user,) = SyntheticUsers(VIDEOS, seed=3).draw(1, 40)
    catalog = Catalog([video_name(index) for index in range(VIDEOS)], CONFIG.unknown_buckets)
    history, _ = admit(user.request(30), CONFIG)
    assert user.token_ids(30, CONFIG.profile_id) == [
        CONFIG.profile_id,
        *catalog.indices(history.video_ids).tolist(),
    ]


def test_no_two_users_share_a_history() -> None:
    """What one user has in the cache is of no use to another, also in the next batch."""
    drawn = SyntheticUsers(VIDEOS, seed=4)
    users = [*drawn.draw(30, 50), *drawn.draw(30, 50)]
    assert len({user.user_id for user in users}) == 60
    assert len({user.request(50).records for user in users}) == 60
