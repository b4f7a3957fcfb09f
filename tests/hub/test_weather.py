"""Every tenth request fails, over and over: nothing is lost, nothing is seen in part, and repeating makes it good."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from hpm_robustbench.errors import DownloadFailed, IntegrityError, UploadFailed
from hpm_robustbench.hub.remote import Destination, send
from hpm_robustbench.weights.hub import Hub
from hpm_robustbench.zoo.hub_file import HubFile

ROUNDS = 200
HERE = Destination("me/model")


def until_done(act: Callable[[], object], check: Callable[[], None]) -> Any:
    """Repeat a call until it succeeds; look after each attempt."""
    for _ in range(20):
        try:
            return act()
        except (DownloadFailed, UploadFailed, IntegrityError):
            check()
    raise AssertionError("twenty attempts failed")


@pytest.mark.hub
def test_in_bad_weather_every_push_and_pull_ends_well(hub, tmp_path):
    states = [{"config.json": b"", "hpm_card.json": b"{}", "model.safetensors": b""}]
    hub.failing, hub.chance = 0.1, random.Random(0)

    def whole() -> None:
        if "me/model" in hub.repositories:
            seen = {k: v for k, v in hub.head("me/model").items() if k != ".gitattributes"}
            assert seen in ({}, *states[-2:])

    for i in range(ROUNDS):
        states.append({"config.json": b"%d" % i, "hpm_card.json": b"{}", "model.safetensors": b"%d," % i * 300})
        sent = until_done(lambda: send(states[-1], HERE, "round"), whole)
        assert {k: v for k, v in hub.head("me/model").items() if k != ".gitattributes"} == states[-1]
        pull = Hub(cache=tmp_path / str(i % 7)).fetch
        for name, content in states[-1].items():
            path, _ = until_done(partial(pull, HubFile("me/model", sent.commit, name)), whole)
            assert path.read_bytes() == content
    assert len(hub.repositories["me/model"].messages) == ROUNDS + 1
