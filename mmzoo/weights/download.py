"""Downloading one file: resumed where it broke off, checked, written whole or not at all, once for all processes.

Standard library only. Beside the target stand, while it is under way, `.NAME.part` (what has come so far),
`.NAME.part.json` (which version of it, so that another is never glued to it) and `.NAME.lock`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import ipaddress
import json
import logging
import os
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmzoo.errors import ZooError
from mmzoo.files import locked

__all__ = ["DownloadError", "NoSuchFile", "download", "sha256_of", "translate_disk_errors"]

log = logging.getLogger(__name__)

CHUNK = 1 << 20
TIMEOUT = 30.0  # seconds without a byte until a connection counts as broken
ATTEMPTS = 5  # tries in a row that bring nothing new
PAUSE = 0.5  # seconds before the second try, doubled before each further one
PATIENCE = 60.0  # longest Retry-After that is waited for
PASSING = {408, 425, 429, 500, 502, 503, 504}  # answers that may be better next time


class DownloadError(ZooError):
    """The file could not be had from there; another source may have it."""

    def __init__(self, url: str, reason: str):
        super().__init__(f"{url} could not be downloaded: {reason}.")
        self.url, self.reason = url, reason


class NoSuchFile(DownloadError):  # noqa: N818 - reads as what it says
    """The source answers, and has no such file."""


class _Broken(Exception):  # noqa: N818 - never leaves this file
    """A try that failed in a way that the next one may not."""

    def __init__(self, reason: str, *, wait: float = 0.0, unreachable: bool = False, stale: bool = False):
        super().__init__(reason)
        self.reason, self.wait = reason, wait
        self.unreachable = unreachable  # there was no connection at all
        self.stale = stale  # what is left of an earlier try is of no use


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    progress: bool = True,
    timeout: float = TIMEOUT,
) -> str:
    """Download a file to `target`, or take the one that is there.

    A broken connection is taken up again where it broke, also by a later call, as long as the server says that the
    content is still the same or `sha256` can tell. A second process waits for the first and takes its file.

    Args:
        url: `https:`, `file:`, or `http:` on this machine. Redirects may lead to `https:` only.
        target: Where to put it; its folder is made.
        sha256: Expected hash in hexadecimal digits; a file with another is removed.
        size: Expected bytes; checked before anything is written.
        progress: Show a bar on stderr where that is a terminal.
        timeout: Seconds without a byte until a connection counts as broken.

    Returns:
        The file's SHA-256 in hexadecimal digits.

    Raises:
        NoSuchFile: The source has no such file.
        DownloadError: It cannot be reached, refuses, or sends something else; nothing is at `target` that was not.
        ZooError: The folder cannot be written or the disk is full; nothing half-written is left.
    """
    if not _allowed(url):
        raise DownloadError(url, "only https addresses are fetched")
    with contextlib.ExitStack() as stack:
        with translate_disk_errors(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            alone = stack.enter_context(locked(target))
        if target.is_file():
            found = sha256_of(target)
            if sha256 in (None, found):
                return found
        # without a lock another process may be at it too: each writes its own part
        part = _Part(target.with_name(f".{target.name}{'' if alone else f'.{os.getpid()}'}.part"))
        bar = _Bar(target.name, progress)
        try:
            found = _pull(url, part, bar, sha256, size, timeout)
        finally:
            bar.close()
        with translate_disk_errors(target.parent):
            part.path.replace(target)
            part.drop()
    return found


def _pull(url: str, part: _Part, bar: _Bar, sha256: str | None, size: int | None, timeout: float) -> str:
    """Try until the part is whole and right; its SHA-256."""
    failures, most = 0, part.size()
    while True:
        try:
            found, resumed = _try(url, part, bar, sha256, size, timeout)
        except _Broken as broken:
            if broken.stale:
                part.drop()
            if part.size() > most:  # a try that brought something is no failure
                failures, most = 0, part.size()
            failures += 1
            # a machine without a network should hear of it at once, not after many tries
            if failures >= (2 if broken.unreachable and not most else ATTEMPTS):
                kept = part.left(url, checked=sha256 is not None)[0]
                more = f"; {kept:,} bytes are kept, and the next try goes on from there" if kept else ""
                raise DownloadError(url, broken.reason + more) from None
            time.sleep(min(max(broken.wait, PAUSE * 2 ** (failures - 1)), PATIENCE))
            continue
        if sha256 in (None, found):
            return found
        part.drop()
        # what was left of an earlier try may have been of another version: once more from the start
        if not resumed:
            raise DownloadError(
                url,
                f"its sha256 is {found} where {sha256} is expected; it was damaged or is another file, and was removed",
            )
        most = 0


def _try(
    url: str, part: _Part, bar: _Bar, sha256: str | None, size: int | None, timeout: float
) -> tuple[str, bool]:
    """One connection. Returns the whole part's SHA-256 and whether it began with an earlier try's bytes."""
    start, validator = part.left(url, checked=sha256 is not None)
    headers = {"User-Agent": "mmzoo", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if validator:
            headers["If-Range"] = validator
    digest = hashlib.sha256()
    with _open(url, headers, timeout) as reply:
        if start and not _continues(reply, start):
            start = 0
        total = _total(reply, start)
        if total is not None and size is not None and total != size:
            raise DownloadError(url, f"it has {total:,} bytes where {size:,} are expected")
        if reply.headers.get_content_type() == "text/html":
            raise DownloadError(url, "a web page came instead of the file (a login page in between?)")
        declared, total = total is not None, size if total is None else total
        with translate_disk_errors(part.path.parent):
            _check_space(part.path.parent, (total or 0) - start)
            if start:
                with part.path.open("rb") as file:
                    while chunk := file.read(CHUNK):
                        digest.update(chunk)
            out = part.begin(url, reply.headers, append=bool(start))
        received = start
        try:
            while total is None or received < total:
                chunk = _read(reply, CHUNK if total is None else min(CHUNK, total - received), url)
                if not chunk:
                    break
                digest.update(chunk)
                out.write(chunk)
                received += len(chunk)
                bar.at(received, total)
            if not declared and received == size and _read(reply, 1, url):
                raise DownloadError(url, f"it has more than the {size:,} bytes that are expected")
            out.flush()
            os.fsync(out.fileno())
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):  # a full disk is a burden to all: free it again
                out.close()
                part.drop()
            raise _disk_error(error, part.path.parent) from None
        finally:
            with contextlib.suppress(OSError):
                out.close()
    if total is not None and received < total:
        raise _Broken(f"the connection broke off after {received:,} of {total:,} bytes")
    return digest.hexdigest(), bool(start)


# --- the network --------------------------------------------------------------------------------------------------


def _is_loopback(host: str | None) -> bool:
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host or "").is_loopback
    return False


def _allowed(url: str, *, redirected_from: str | None = None) -> bool:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https":
        return bool(parts.hostname)
    if parts.scheme == "http" and _is_loopback(parts.hostname):
        return redirected_from is None or _is_loopback(urllib.parse.urlsplit(redirected_from).hostname)
    return parts.scheme == "file" and redirected_from is None


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not _allowed(newurl, redirected_from=req.full_url):
            raise DownloadError(req.full_url, f"it redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, headers: dict[str, str], timeout: float) -> Any:
    """A reply with a body to read, or the reason why there is none."""
    parts = urllib.parse.urlsplit(url)
    where = parts.hostname or "this machine"
    direct = [urllib.request.ProxyHandler({})] if _is_loopback(parts.hostname) else []
    opener = urllib.request.build_opener(_Redirects, *direct)
    try:
        return opener.open(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        answer = f"{error.code} {http.client.responses.get(error.code, '')}".strip()
        if error.code == 416:
            raise _Broken(
                f"{where} cannot go on from where an earlier try ended ({answer})", stale=True
            ) from None
        if error.code in PASSING:
            raise _Broken(f"{where} answered {answer}", wait=_retry_after(error.headers)) from None
        if error.code in (404, 410):
            raise NoSuchFile(url, f"{where} has no such file ({answer})") from None
        refused = error.code in (401, 403)
        raise DownloadError(url, f"{where} {'refuses it: ' if refused else 'answered '}{answer}") from None
    except urllib.error.URLError as error:
        if parts.scheme == "file":
            raise NoSuchFile(url, "there is no such file") from None
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise DownloadError(
                url, f"the certificate of {where} cannot be verified ({error.reason.verify_message})"
            ) from None
        raise _Broken(f"{where} cannot be reached ({_words(error.reason)})", unreachable=True) from None
    except TimeoutError:
        raise _Broken(f"{where} does not answer", unreachable=True) from None
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(f"{where} broke the connection off ({_words(error)})") from None


def _read(reply: Any, count: int, url: str) -> bytes:
    try:
        return bytes(reply.read1(count))
    except TimeoutError:
        raise _Broken(f"{urllib.parse.urlsplit(url).hostname} stopped sending") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Broken(f"the connection broke off ({_words(error)})") from None


def _words(error: object) -> str:
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


def _continues(reply: Any, start: int) -> bool:
    """Whether a reply goes on from byte `start`, rather than from the beginning."""
    return reply.status == 206 and str(reply.headers.get("Content-Range", "")).startswith(f"bytes {start}-")


def _total(reply: Any, start: int) -> int | None:
    length = reply.headers.get("Content-Length", "")
    return start + int(length) if length.isdigit() else None


def _retry_after(headers: Any) -> float:
    seconds = str(headers.get("Retry-After", ""))
    return float(seconds) if seconds.isdigit() else 0.0


# --- the disk -----------------------------------------------------------------------------------------------------


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Part:
    """What has come so far, and of which version of which address it is."""

    def __init__(self, path: Path):
        self.path = path
        self.about = path.with_name(path.name + ".json")

    def size(self) -> int:
        with contextlib.suppress(OSError):
            return self.path.stat().st_size
        return 0

    def left(self, url: str, *, checked: bool) -> tuple[int, str | None]:
        """Bytes that can be gone on from, and the server's word for their version.

        Args:
            url: Where the rest would come from.
            checked: Whether a hash will tell in the end, so that the server's word is not needed.
        """
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            about = json.loads(self.about.read_text(encoding="utf-8"))
            if about["url"] == url and (about["validator"] or checked):
                return self.size(), about["validator"]
        return 0, None

    def begin(self, url: str, headers: Any, *, append: bool) -> Any:
        """Open the part for what comes now."""
        tag = str(headers.get("ETag", ""))
        # a weak tag does not promise equal bytes
        validator = tag if tag.startswith('"') else headers.get("Last-Modified")
        if not append:
            self.about.write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")
        return self.path.open("ab" if append else "wb")

    def drop(self) -> None:
        for path in (self.path, self.about):
            path.unlink(missing_ok=True)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ZooError(
            f"{folder} has {free / 1e6:,.1f} MB free and {needed / 1e6:,.1f} MB are to come: free some space, or set "
            "MMZOO_CACHE to a folder on another disk."
        )


def _disk_error(error: OSError, folder: Path) -> ZooError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ZooError(
            f"the disk is full: the download into {folder} was given up and removed. Free some space, or set "
            "MMZOO_CACHE to a folder on another disk."
        )
    return ZooError(
        f"{folder} cannot be written ({_words(error)}): set MMZOO_CACHE to a folder that can, or give a path to the "
        "weights."
    )


@contextlib.contextmanager
def translate_disk_errors(folder: Path) -> Iterator[None]:
    """Say in one sentence what is wrong with a folder that cannot be written.

    Raises:
        ZooError: In place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise _disk_error(error, folder) from None


class _Bar:
    """One line on a terminal; nothing elsewhere."""

    def __init__(self, label: str, shown: bool):
        self.label, self.shown = label, shown and sys.stderr.isatty()
        self.began, self.last, self.first = time.monotonic(), 0.0, -1

    def at(self, received: int, total: int | None) -> None:
        if not self.shown:
            return
        now = time.monotonic()
        self.first = received if self.first < 0 else self.first
        if now - self.last < 0.1 and received != total:
            return
        self.last = now
        rate = (received - self.first) / max(now - self.began, 1e-9) / 1e6
        share = f" of {total / 1e6:,.0f} MB, {100 * received // total} %" if total else " MB"
        sys.stderr.write(f"\r{self.label}: {received / 1e6:,.0f}{share}, {rate:.1f} MB/s \033[K")
        sys.stderr.flush()

    def close(self) -> None:
        if self.shown and self.first >= 0:
            sys.stderr.write("\n")
