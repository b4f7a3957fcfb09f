"""Bring one file from the web: by its address, or by its Google Drive id.

A transfer that breaks off leaves what has arrived, and the next one asks for the rest only, where the server has told
how to recognise that the file is still the same (an ETag, or the time of its last change).
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from itertools import islice
from urllib.parse import quote

import requests
from tqdm import tqdm
from urllib3.exceptions import NewConnectionError

from hpm_robustbench.weights.transfer import Partial, Unavailable

GOOGLE_DRIVE = "https://drive.google.com/uc?id={}"
_CHUNK = 1 << 16
"""Bytes written at a time; as many may be lost when a line breaks."""
_PAGE = 1 << 20
"""The first megabyte of a web page is read, no more."""
_MOST_PAGES = 3
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
_PARTIAL_CONTENT, _NOTHING_MORE = 206, 416


class Web:
    """Fetches files by their address."""

    def __init__(self, timeout: float = 60.0) -> None:
        """``timeout``: seconds without a byte after which a transfer counts as broken off."""
        self._timeout = timeout

    def fetch(self, locator: str, partial: Partial) -> None:
        """See ``Fetcher``."""
        with _http_errors(), requests.Session() as session, _ask(session, locator, partial, self._timeout) as response:
            _save(response, partial)


class GoogleDrive:
    """Fetches files by their Google Drive id, past the page that asks whether to go on without a virus scan."""

    def __init__(self, address: str = GOOGLE_DRIVE, timeout: float = 60.0) -> None:
        """``address``: of a file, with ``{}`` for its id; ``timeout``: as for ``Web``."""
        self._address, self._timeout = address, timeout

    def fetch(self, locator: str, partial: Partial) -> None:
        """See ``Fetcher``; Google refuses with a web page, for example over its download quota."""
        url = self._address.format(quote(locator, safe=""))
        with _http_errors(), requests.Session() as session:
            session.headers["User-Agent"] = "Mozilla/5.0"  # Google answers scripts differently
            for _ in range(_MOST_PAGES):
                with _ask(session, url, partial, self._timeout) as response:
                    if "Content-Disposition" in response.headers or response.status_code == _NOTHING_MORE:
                        _save(response, partial)
                        return
                    url = _confirmed(response)
        raise Unavailable("one web page after another instead of the file")


@contextmanager
def _ask(session: requests.Session, url: str, partial: Partial, timeout: float) -> Iterator[requests.Response]:
    headers = {"Accept-Encoding": "identity", **partial.request_headers()}
    with session.get(url, headers=headers, stream=True, timeout=timeout) as response:
        if not response.ok and response.status_code != _NOTHING_MORE:
            transient = response.status_code in _TRANSIENT
            said = f"HTTP {response.status_code} {response.reason}"
            raise Unavailable(said, transient=transient, wait=_retry_after(response) if transient else 0.0)
        yield response


def _save(response: requests.Response, partial: Partial) -> None:
    """Write the body, after what is there if it is the rest of that."""
    arrived = partial.path.stat().st_size if partial.can_continue else 0
    if response.status_code == _NOTHING_MORE:
        _check_whole(response, partial, arrived)
        return
    if not _is_rest(response, arrived, partial):
        partial.begin(_mark(response))
        arrived = 0
    body = response.headers.get("Content-Length", "")
    whole = arrived + int(body) if body.isdigit() and "Content-Encoding" not in response.headers else None
    shown = {"unit": "B", "unit_scale": True, "disable": not sys.stderr.isatty()}
    with partial.path.open("ab") as stream, tqdm(initial=arrived, total=whole, **shown) as bar:
        for chunk in response.iter_content(_CHUNK):
            stream.write(chunk)
            bar.update(len(chunk))
    if whole is not None and partial.path.stat().st_size != whole:
        raise Unavailable(f"{partial.path.stat().st_size} of {whole} bytes", transient=True)


def _check_whole(response: requests.Response, partial: Partial, arrived: int) -> None:
    """Nothing is missing from a transfer that was cut off just before its file was given its name."""
    if response.headers.get("Content-Range") != f"bytes */{arrived}":
        partial.discard()
        raise Unavailable(f"nothing after {arrived} bytes", transient=True)


def _is_rest(response: requests.Response, arrived: int, partial: Partial) -> bool:
    if response.status_code != _PARTIAL_CONTENT:
        return False
    if response.headers.get("Content-Range", "").startswith(f"bytes {arrived}-"):
        return True
    partial.discard()
    raise Unavailable(f"another part of the file than the one after {arrived} bytes", transient=True)


def _mark(response: requests.Response) -> str:
    """What the server compares before it sends only the rest; a weak ETag does not promise equal bytes."""
    etag = response.headers.get("ETag", "")
    return response.headers.get("Last-Modified", "") if not etag or etag.startswith("W/") else etag


def _confirmed(response: requests.Response) -> str:
    """The address behind a page of Google's.

    Raises:
        Unavailable: the page says no.
    """
    from gdown.download import get_url_from_gdrive_confirmation  # noqa: PLC0415 - only a download needs it
    from gdown.exceptions import FileURLRetrievalError  # noqa: PLC0415

    page = b"".join(islice(response.iter_content(_CHUNK), _PAGE // _CHUNK)).decode(errors="replace")
    try:
        url: str = get_url_from_gdrive_confirmation(page)
    except FileURLRetrievalError as error:
        raise Unavailable(re.sub(r"\s+", " ", str(error)).rstrip(". ")) from error
    return url


@contextmanager
def _http_errors() -> Iterator[None]:
    try:
        yield
    except requests.RequestException as error:
        raise Unavailable(f"{type(error).__name__}: {error}", transient=_passes(error)) from error


def _passes(error: requests.RequestException) -> bool:
    """Whether a fault is one of those that pass; that nobody listens, or that a certificate is wrong, is not."""
    if isinstance(error, (requests.Timeout, requests.exceptions.ChunkedEncodingError)):
        return True
    if not isinstance(error, requests.ConnectionError):
        return False
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    lasting = (requests.exceptions.SSLError, requests.exceptions.ProxyError)
    return not isinstance(reason, NewConnectionError) and not isinstance(error, lasting)


def _retry_after(response: requests.Response) -> float:
    """Seconds that ``Retry-After`` asks for, as a number or as a date (RFC 9110, section 10.2.3)."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
