"""Transfers that go wrong on the way, by the real client from a real server."""

from __future__ import annotations

import gzip
import logging
import time
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest

from hpm_robustbench.weights.transfer import Partial, Patient, Unavailable
from hpm_robustbench.weights.web import GoogleDrive, Web

CONTENT = bytes(range(256)) * 1200
CUT = 200_000
ARRIVED = CUT - CUT % (1 << 16)
"""Of the chunk in which the line broke, nothing is kept."""
ETAG = '"state 1"'


@pytest.fixture
def partial(tmp_path: Path) -> Partial:
    return Partial(tmp_path / "net.pt.partial")


@pytest.fixture
def patient() -> Patient:
    return Patient(Web(timeout=0.3), waits=(0.01, 0.01, 0.01))


def ranges(server) -> list[str | None]:
    return [asked.headers.get("Range") for asked in server.asked]


def rest(server, since: int, **headers: str) -> None:
    """Answer the next request with what comes after ``since`` bytes."""
    server.file(CONTENT[since:], Content_Range=f"bytes {since}-{len(CONTENT) - 1}/{len(CONTENT)}", **headers)
    server.replies[-1] = replace(server.replies[-1], status=206)


@pytest.mark.parametrize(
    ("headers", "mark"),
    [
        ({"ETag": ETAG}, ETAG),
        ({"Last-Modified": formatdate(0, usegmt=True)}, formatdate(0, usegmt=True)),
        ({"ETag": 'W/"weak"', "Last-Modified": formatdate(0, usegmt=True)}, formatdate(0, usegmt=True)),
    ],
)
def test_a_connection_that_drops_is_continued_where_it_broke(headers, mark, server, partial, patient):
    server.file(CONTENT, cut=CUT, **headers)
    rest(server, ARRIVED)
    patient.fetch(server.address, partial)
    assert partial.path.read_bytes() == CONTENT
    assert ranges(server) == [None, f"bytes={ARRIVED}-"]
    assert server.asked[1].headers["If-Range"] == mark


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"weak"'}])
def test_without_a_strong_mark_a_transfer_starts_again(headers, server, partial, patient):
    server.file(CONTENT, cut=CUT, **headers)
    server.file(CONTENT, **headers)
    patient.fetch(server.address, partial)
    assert partial.path.read_bytes() == CONTENT
    assert ranges(server) == [None, None]


def test_a_line_that_goes_silent_is_given_up_and_continued(server, partial, patient):
    server.file(CONTENT, cut=CUT, stall=True, ETag=ETAG)
    rest(server, ARRIVED)
    patient.fetch(server.address, partial)
    assert partial.path.read_bytes() == CONTENT
    assert ranges(server) == [None, f"bytes={ARRIVED}-"]


def test_a_file_that_changed_meanwhile_is_fetched_anew(server, partial, patient):
    server.file(b"an older state" * 20_000, cut=CUT, ETag='"old"')
    server.content = CONTENT
    patient.fetch(server.address, partial)
    assert partial.path.read_bytes() == CONTENT
    assert server.asked[1].headers["If-Range"] == '"old"'


def test_google_drive_is_continued_too(server, partial):
    server.file(CONTENT, cut=CUT, ETag=ETAG)
    rest(server, ARRIVED)
    Patient(GoogleDrive(f"{server.address}/uc?id={{}}"), waits=(0.01,)).fetch("abc", partial)
    assert partial.path.read_bytes() == CONTENT
    assert ranges(server) == [None, f"bytes={ARRIVED}-"]


def test_a_whole_file_that_never_got_its_name_is_not_fetched_again(server, partial):
    server.content = CONTENT
    Web().fetch(server.address, partial)
    Web().fetch(server.address, partial)
    assert partial.path.read_bytes() == CONTENT
    assert ranges(server) == [None, f"bytes={len(CONTENT)}-"]


def test_more_than_the_file_is_thrown_away(server, partial, patient):
    server.content = CONTENT
    Web().fetch(server.address, partial)
    partial.path.write_bytes(CONTENT + b"more")
    patient.fetch(server.address, partial)
    assert partial.path.read_bytes() == CONTENT
    assert ranges(server) == [None, f"bytes={len(CONTENT) + 4}-", None]


def test_another_part_than_the_wanted_one_is_refused_and_the_whole_asked_for(server, partial, patient, caplog):
    server.file(CONTENT, cut=CUT, ETag=ETAG)
    rest(server, 7)
    server.file(CONTENT, ETag=ETAG)
    with caplog.at_level(logging.INFO):
        patient.fetch(server.address, partial)
    assert f"another part of the file than the one after {ARRIVED} bytes" in caplog.text
    assert partial.path.read_bytes() == CONTENT
    assert ranges(server) == [None, f"bytes={ARRIVED}-", None]


def test_a_server_that_is_overloaded_twice_is_asked_three_times(server, partial, patient):
    server.page(b"busy", 503)
    server.page(b"busy", 503)
    server.file(CONTENT)
    patient.fetch(server.address, partial)
    assert partial.path.read_bytes() == CONTENT
    assert len(server.asked) == 3


def test_a_server_that_stays_overloaded_is_given_up(server, partial, patient):
    for _ in range(4):
        server.page(b"busy", 503)
    with pytest.raises(Unavailable, match="HTTP 503"):
        patient.fetch(server.address, partial)
    assert server.replies == []


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(form, server, partial, patient):
    server.page(b"slower", 429, Retry_After="1" if form == "seconds" else formatdate(time.time() + 2, usegmt=True))
    server.file(CONTENT)
    start = time.monotonic()
    patient.fetch(server.address, partial)
    assert 1 <= time.monotonic() - start < 10


@pytest.mark.parametrize("text", ["soon", "-1", "", "Wed, 21 Oct 99999999999 07:28:00 GMT"])
def test_a_retry_after_that_says_nothing_is_passed_over(text, server, partial, patient):
    server.page(b"slower", 429, Retry_After=text)
    server.file(CONTENT)
    patient.fetch(server.address, partial)
    assert partial.path.read_bytes() == CONTENT


def test_a_wait_that_is_too_long_is_not_waited_for(server, partial, patient):
    server.page(b"tomorrow", 429, Retry_After="86400")
    with pytest.raises(Unavailable, match="HTTP 429"):
        patient.fetch(server.address, partial)
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_no_is_not_asked_again(status, server, partial, patient):
    server.page(b"no", status, Retry_After="1")
    with pytest.raises(Unavailable, match=f"HTTP {status}") as caught:
        patient.fetch(server.address, partial)
    assert not caught.value.transient
    assert len(server.asked) == 1
    assert not partial.path.exists()


def test_a_compressed_body_is_not_measured_by_its_packed_length(server, partial, patient):
    server.file(gzip.compress(CONTENT), Content_Encoding="gzip")
    patient.fetch(server.address, partial)
    assert partial.path.read_bytes() == CONTENT
