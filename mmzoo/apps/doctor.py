"""`mmzoo doctor`: what this machine has and what mmzoo makes of it; what to paste into a bug report."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch

from mmzoo import __version__
from mmzoo.files import cache_dir
from mmzoo.ops.attention import CAUSAL, FULL, AttnMask, Packed, explain_choice
from mmzoo.paths import share_dirs

__all__ = ["Backend", "Case", "Diagnosis", "Extra", "doctor", "versions"]


class Backend(NamedTuple):
    """An attention backend, and why it is not taken (None: it could be)."""

    name: str
    refusal: str | None


class Case(NamedTuple):
    """A kind of attention that the models do, the backend taken for it, and what the others say."""

    name: str
    taken: str
    backends: tuple[Backend, ...]


class Extra(NamedTuple):
    """An optional part: what it needs, what of it is missing, and how to get it."""

    name: str
    needs: tuple[str, ...]
    missing: tuple[str, ...]
    install: str


class Diagnosis(NamedTuple):
    """Everything that `doctor` looks at.

    Attributes:
        versions: Version by package; `"not installed"` for a missing base dependency.
        machine: Operating system, processor, cores.
        devices: Devices that torch sees, the one that verbs use by default first.
        threads: torch's threads, and the environment variables that set them.
        attention: Which backend computes what here, and why.
        extras: Optional parts.
        folders: Where mmzoo's files, its carried configs and data, its cache and the hub's downloads lie.
    """

    versions: dict[str, str]
    machine: dict[str, str]
    devices: list[str]
    threads: dict[str, str]
    attention: list[Case]
    extras: list[Extra]
    folders: dict[str, str]


def doctor() -> Diagnosis:
    """Look at versions, devices, attention backends, extras and folders. Nothing is changed or downloaded."""
    needs = _requirements()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Diagnosis(
        versions=versions(*needs.get("", ())),
        machine={
            "system": platform.platform(),
            "processor": _processor(),
            "cores": str(os.cpu_count()),
            "instructions": torch.backends.cpu.get_cpu_capability(),
        },
        devices=_devices(),
        threads={"torch": str(torch.get_num_threads())}
        | {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ},
        attention=_attention(device),
        extras=[_extra(name, packages) for name, packages in needs.items() if name],
        folders=_folders(),
    )


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, mmzoo and `packages`, read from their metadata without importing them."""
    return {"python": platform.python_version(), "mmzoo": __version__} | {p: _version(p) for p in packages}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _requirements() -> dict[str, list[str]]:
    """Packages that mmzoo's metadata asks for, by extra; the base ones under an empty name."""
    try:
        lines = metadata.requires("mmzoo") or []
    except metadata.PackageNotFoundError:  # run from a clone that was never installed
        return {"": ["torch", "torchvision", "lightning"]}
    needs: dict[str, list[str]] = {"": []}
    for line in lines:
        found = re.match(r"([\w.-]+)", line)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if found and found[1] != "mmzoo":
            needs.setdefault(extra[1] if extra else "", []).append(found[1])
    return needs


def _extra(name: str, packages: list[str]) -> Extra:
    missing = tuple(package for package in packages if _version(package) == "not installed")
    return Extra(name, tuple(packages), missing, f"pip install 'mmzoo[{name}]'")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _devices() -> list[str]:
    found = []
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        memory = card.total_memory / 2**30
        found.append(f"cuda:{index} {card.name}, {memory:.0f} GiB, compute {card.major}.{card.minor}")
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def _attention(device: torch.device) -> list[Case]:
    def tensors(batch: int, length: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(batch, 8, length, 64, dtype=dtype, device=device)

    # Half precision where a GPU is, since that is what its kernels are for; float32 is the CPU's own.
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    keep = torch.arange(16, device=device) < torch.tensor([[16], [9]], device=device)
    offsets = torch.tensor([0, 9, 25], device=device)
    cases: list[tuple[str, int, int, AttnMask, float]] = [
        ("images", 1, 197, FULL, 0.0),
        ("texts, causal", 1, 77, CAUSAL, 0.0),
        ("texts, padded", 2, 16, AttnMask(keep=keep), 0.0),
        ("texts, packed", 1, 25, AttnMask(causal=True, packed=Packed(offsets, offsets, 16, 16)), 0.0),
        ("with dropout", 1, 77, FULL, 0.1),
    ]
    rows = []
    for name, batch, length, mask, dropout in cases:
        x = tensors(batch, length, dtype)
        choice = [Backend(*pair) for pair in explain_choice(x, x, x, mask=mask, dropout_p=dropout)]
        taken = next((backend.name for backend in choice if backend.refusal is None), "none")
        rows.append(Case(name, taken, tuple(choice)))
    return rows


def _folders() -> dict[str, str]:
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", cache / "huggingface")) / "hub"
    return {
        "mmzoo": str(Path(__file__).resolve().parent.parent),
        "configs and data": ", ".join(map(str, share_dirs())) or "none found",
        "cache": str(cache_dir()),
        "downloads": str(hub),
        "python": sys.executable,
    }
