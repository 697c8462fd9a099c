"""One file over a network that misbehaves: resumed, checked, whole or not there, once for all processes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from loopback import Server, cut, from_the_start, part_of, redirect, stall, status, unmarked

from mmzoo.errors import ZooError
from mmzoo.weights import download as module
from mmzoo.weights.download import DownloadError, NoSuchFile, download

BODY = bytes(range(256)) * 1000  # 256,000 bytes
SHA = hashlib.sha256(BODY).hexdigest()
OTHER = BODY[::-1]
CHILD = """
import sys
from pathlib import Path
from mmzoo.weights.download import download
print(download(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3] or None, timeout=20))
"""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.001)
    with Server() as server:
        server.files["/w.bin"] = BODY
        yield server


@pytest.fixture
def url(server):
    return f"{server.base}/w.bin"


@pytest.fixture
def target(tmp_path):
    return tmp_path / "cache" / "w.bin"


def names(target):
    """What lies in the target's folder."""
    return sorted(p.name for p in target.parent.iterdir())


def test_a_file_arrives_whole_and_alone(url, target, server):
    umask = os.umask(0o022)
    try:
        assert download(url, target, sha256=SHA, size=len(BODY)) == SHA
    finally:
        os.umask(umask)
    assert target.read_bytes() == BODY
    assert names(target) == ["w.bin"]
    assert target.stat().st_mode & 0o777 == 0o644
    assert download(url, target, sha256=SHA) == SHA  # it is there
    assert len(server.requests) == 1


def test_a_cut_connection_is_resumed_where_it_broke(url, target, server):
    server.script = [cut(100_000), cut(50_000)]
    assert download(url, target) == SHA
    assert target.read_bytes() == BODY
    assert server.ranges() == [None, "bytes=100000-", "bytes=150000-"]
    assert all("If-Range" in headers for _, _, headers in server.requests[1:])
    assert names(target) == ["w.bin"]


def test_tries_that_bring_something_do_not_count(url, target, server):
    server.script = [cut(20_000) for _ in range(12)]
    assert len(server.script) > 2 * module.ATTEMPTS
    assert download(url, target, sha256=SHA) == SHA
    assert target.read_bytes() == BODY


def test_a_server_without_ranges_is_asked_from_the_start(url, target, server):
    server.script = [cut(100_000), from_the_start]
    assert download(url, target) == SHA
    assert target.read_bytes() == BODY


def test_a_server_that_always_cuts_at_the_same_place_is_given_up(url, target, server):
    server.script = [cut(1000, ranges=False) for _ in range(50)]
    with pytest.raises(DownloadError, match=r"broke off after 1,000 of 256,000 bytes"):
        download(url, target, sha256=SHA)
    assert len(server.requests) == module.ATTEMPTS
    assert not target.exists()


def test_content_that_changes_in_between_is_not_glued(url, target, server):
    def change(handler, body):
        server.files["/w.bin"] = OTHER
        handler.answer(*part_of(handler, OTHER))

    server.script = [cut(100_000), change]
    download(url, target)
    assert server.ranges() == [None, "bytes=100000-"]
    assert target.read_bytes() == OTHER


def test_without_a_version_or_a_hash_nothing_is_gone_on_from(url, target, server):
    server.script = [cut(100_000, validators=False), unmarked]
    download(url, target)
    assert server.ranges() == [None, None]
    assert target.read_bytes() == BODY


def test_with_a_hash_a_wrong_continuation_is_found_and_mended(url, target, server):
    server.files["/w.bin"] = OTHER  # the part will be of this, the rest and the hash of BODY

    def changed(handler, body):
        server.files["/w.bin"] = BODY
        unmarked(handler, BODY)

    server.script = [cut(100_000, validators=False), changed]
    assert download(url, target, sha256=SHA) == SHA
    assert server.ranges() == [None, "bytes=100000-", None]
    assert target.read_bytes() == BODY


def test_a_later_call_goes_on(url, target, server):
    server.script = [cut(100_000), status(403)]
    with pytest.raises(DownloadError, match=r"127.0.0.1 refuses it: 403 Forbidden"):
        download(url, target)
    assert not target.exists()
    assert download(url, target) == SHA
    assert server.ranges() == [None, "bytes=100000-", "bytes=100000-"]
    assert names(target) == ["w.bin"]


def test_giving_up_says_what_is_kept(url, target, server):
    server.script = [cut(100_000), *[status(503)] * 20]
    with pytest.raises(
        DownloadError, match=r"503 Service Unavailable; 100,000 bytes are kept, and the next try goes"
    ):
        download(url, target)
    assert len(server.requests) == 1 + module.ATTEMPTS - 1


def test_a_part_longer_than_the_file_is_thrown_away(url, target, server):
    target.parent.mkdir()
    part = target.with_name(".w.bin.part")
    part.write_bytes(b"x" * 300_000)
    part.with_name(".w.bin.part.json").write_text(json.dumps({"url": url, "validator": None}))
    server.script = [unmarked]
    assert download(url, target, sha256=SHA) == SHA
    assert server.ranges() == ["bytes=300000-", None]


@pytest.mark.parametrize("about", ["{", "[]", '{"url": "http://127.0.0.1/other", "validator": "\\"1\\""}'])
def test_a_part_of_unknown_origin_is_not_used(url, target, server, about):
    target.parent.mkdir()
    target.with_name(".w.bin.part").write_bytes(b"x" * 1000)
    target.with_name(".w.bin.part.json").write_text(about)
    assert download(url, target, sha256=SHA) == SHA
    assert server.ranges() == [None]


def test_a_wrong_hash_leaves_nothing(url, target, server):
    wrong = "0" * 64
    with pytest.raises(DownloadError, match=f"sha256 is {SHA} where {wrong} is expected"):
        download(url, target, sha256=wrong)
    assert names(target) == []
    assert len(server.requests) == 1


def test_a_wrong_file_that_is_there_is_replaced_only_by_the_right_one(url, target, server):
    target.parent.mkdir()
    target.write_bytes(OTHER)
    with pytest.raises(DownloadError, match="is expected"):
        download(url, target, sha256="0" * 64)
    assert target.read_bytes() == OTHER
    assert download(url, target, sha256=SHA) == SHA
    assert target.read_bytes() == BODY


def test_a_wrong_size_is_seen_before_anything_is_written(url, target):
    with pytest.raises(DownloadError, match="it has 256,000 bytes where 300,000 are expected"):
        download(url, target, size=300_000)
    assert names(target) == []


def test_a_length_that_the_server_does_not_tell_is_checked_all_the_same(url, target, server):
    def silent(body):
        return lambda handler, _: handler.answer(200, body, length=-1)

    server.script = [silent(BODY)]
    assert download(url, target, size=len(BODY)) == SHA
    target.unlink()
    server.script = [silent(BODY + b"more")]
    with pytest.raises(DownloadError, match="it has more than the 256,000 bytes"):
        download(url, target, size=len(BODY))
    server.script = [silent(BODY[:1000])]  # and then a good server
    assert download(url, target, size=len(BODY)) == SHA


def web_page(handler, body):
    handler.answer(200, b"<html>log in", {"Content-Type": "text/html; charset=utf-8"})


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (status(404), NoSuchFile, "127.0.0.1 has no such file .404 Not Found."),
        (status(401), DownloadError, "refuses it: 401 Unauthorized"),
        (status(400), DownloadError, "answered 400 Bad Request"),
        (redirect("http://example.com/w"), DownloadError, "redirects to http://example.com/w, which is not https"),
        (redirect("file:///etc/passwd"), DownloadError, "answered 302 Found"),
        (redirect("ftp://example.com/w.bin"), DownloadError, "redirects to ftp://example.com/w.bin"),
        (web_page, DownloadError, "a web page came instead of the file"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_sentence_and_is_not_tried_again(url, target, server, answer, kind, words):
    server.script = [answer]
    with pytest.raises(kind, match=words) as caught:
        download(url, target)
    assert str(caught.value).startswith(f"{url} could not be downloaded: ")
    assert "\n" not in str(caught.value)
    assert len(server.requests) == 1
    assert names(target) == []


def test_a_passing_fault_is_tried_again_after_the_time_that_the_server_asks(url, target, server):
    server.script = [status(500), status(429, {"Retry-After": "1"})]
    start = time.monotonic()
    assert download(url, target) == SHA
    assert 1.0 <= time.monotonic() - start < 5
    server.script = [status(500)] * 50
    target.unlink()
    with pytest.raises(DownloadError, match="answered 500 Internal Server Error"):
        download(url, target)
    assert len(server.requests) == 3 + module.ATTEMPTS


def test_redirects_on_this_machine_are_followed_and_keep_the_range(url, target, server):
    server.files["/elsewhere.bin"] = BODY
    there = redirect(f"{server.base}/elsewhere.bin")
    server.script = [there, cut(1000), there]
    assert download(url, target) == SHA
    assert [path for _, path, _ in server.requests] == ["/w.bin", "/elsewhere.bin"] * 2
    assert server.ranges()[-1] == "bytes=1000-"


def test_a_stalled_body_is_broken_off_and_resumed(url, target, server):
    server.script = [stall(100_000)]
    start = time.monotonic()
    assert download(url, target, timeout=0.3) == SHA
    assert time.monotonic() - start < 5
    assert server.ranges() == [None, "bytes=100000-"]
    target.unlink()
    server.script = [stall(0)] * 50
    with pytest.raises(DownloadError, match=r"127.0.0.1 stopped sending"):
        download(url, target, timeout=0.05)


@pytest.mark.parametrize(
    "address", ["http://example.com/w.bin", "ftp://example.com/w", "https:///w", "w.bin", "data:,x"]
)
def test_only_https_is_fetched(target, address):
    with pytest.raises(DownloadError, match="only https addresses are fetched"):
        download(address, target)
    assert not target.parent.exists()


def test_no_network_is_said_at_once(target, monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.001)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        start = time.monotonic()
        with pytest.raises(DownloadError, match=r"127.0.0.1 cannot be reached \(Connection refused\)\.$"):
            download(f"http://127.0.0.1:{closed.getsockname()[1]}/w.bin", target)
    assert time.monotonic() - start < 2
    assert names(target) == []


def test_a_file_of_this_machine_is_copied(tmp_path, target):
    source = tmp_path / "with space.bin"
    source.write_bytes(BODY)
    assert download(source.as_uri(), target, sha256=SHA) == SHA
    assert target.read_bytes() == BODY
    with pytest.raises(NoSuchFile, match="no such file"):
        download((tmp_path / "none").as_uri(), tmp_path / "x")


# --- other processes ----------------------------------------------------------------------------------------------


def child(url, target, sha=""):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, url, str(target), sha],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_download_once(url, target, server):
    both = threading.Barrier(2)

    def slow(handler, body):
        both.wait(20)
        time.sleep(0.3)  # the other process is at the lock by now
        handler.answer(*part_of(handler, body))

    server.script = [slow]
    first = child(url, target)
    both.wait(20)
    second = child(url, target)
    for process in (first, second):
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        assert out.strip() == SHA
    assert [method for method, _, _ in server.requests] == ["GET"]
    assert names(target) == ["w.bin"]


def test_a_killed_process_leaves_what_can_be_gone_on_from(url, target, server):
    server.script = [stall(100_000)]
    process = child(url, target)
    part = target.with_name(".w.bin.part")
    deadline = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size == 100_000):
        assert time.monotonic() < deadline
        time.sleep(0.01)
        if part.exists() and part.stat().st_size:  # the last chunk waits in the child's buffer
            break
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    left = part.stat().st_size
    assert 0 < left <= 100_000
    assert not target.exists()
    assert target.with_name(".w.bin.lock").exists()  # and holds nobody up
    assert download(url, target) == SHA
    assert server.ranges() == [None, f"bytes={left}-"]
    assert names(target) == ["w.bin"]


# --- disks --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_one_sentence_and_leaves_nothing(url, target):
    target.parent.mkdir()
    target.with_name(".w.bin.part").symlink_to("/dev/full")
    with pytest.raises(
        ZooError, match=r"the disk is full: the download into .* was given up and removed"
    ) as caught:
        download(url, target)
    assert not isinstance(caught.value, DownloadError)  # another source would not help
    assert names(target) == []


def test_too_little_space_is_seen_before_anything_is_written(url, target, server, monkeypatch):
    def free(count):
        monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=count))

    free(200_000)
    with pytest.raises(
        ZooError, match=r"has 0.2 MB free and 0.3 MB are to come: free some space, or set MMZOO_CACHE"
    ):
        download(url, target)
    assert names(target) == []
    server.script = [cut(100_000), status(403)]
    free(256_000)
    with pytest.raises(DownloadError):
        download(url, target)
    free(156_000)  # just enough for the rest
    assert download(url, target) == SHA


def test_a_folder_that_cannot_be_written_is_one_sentence(url, tmp_path, server):
    (tmp_path / "file").write_text("")
    with pytest.raises(ZooError, match=r"cannot be written \(.*\): set MMZOO_CACHE") as caught:
        download(url, tmp_path / "file" / "w.bin")
    assert not isinstance(caught.value, DownloadError)
    assert server.requests == []


def test_a_read_only_folder_is_one_sentence(url, target, server, monkeypatch):
    target.parent.mkdir()

    def refuse(path, *args, **kwargs):  # permissions do not bind the superuser, so the refusal is made here
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr("mmzoo.files.os.open", refuse)
    with pytest.raises(ZooError, match=r"cannot be written \(Read-only file system\)"):
        download(url, target)
    assert server.requests == []


# --- the bar ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terminal", "progress", "shown"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_the_bar_is_for_terminals(url, target, capsys, monkeypatch, terminal, progress, shown):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    download(url, target, progress=progress)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("w.bin: 0 of 0 MB, 100 %" in err) is shown
    assert bool(err) is shown
