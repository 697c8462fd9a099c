"""Pack a folder of captioned or classified pictures into tar shards with an index beside each.

    python tools/pack_shards.py data/photos shards/photos --samples 10000 --shuffle 0

writes `shards/photos-00000.tar`, ... Each sample is `key.<picture's extension>` and `key.json`
(`{"captions": [...], "id": ..., "key": "img/1.jpg"}`). Pictures are copied byte by byte; one that cannot be
opened is left out and named. mmzoo reads the result as `shards/photos-*.tar`, indexed or streamed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mmzoo.data.open import open_source
from mmzoo.data.sample import Source
from mmzoo.data.sources.tar import load_index
from mmzoo.errors import UsageError, ZooError
from mmzoo.processing.image import BadImage, decode_image


def pack(
    source: Source,
    target: Path,
    *,
    samples: int = 10_000,
    order: Sequence[int] | None = None,
    check: bool = True,
) -> tuple[list[Path], list[str]]:
    """Write the shards `<target>-00000.tar`, ...

    Args:
        source: What to pack.
        target: Path and beginning of the shards' names.
        samples: Samples per shard.
        order: Which samples, in which order; all of them in the source's order if left out.
        check: Decode each picture first and leave broken ones out.

    Returns:
        The shards, and the keys that were left out with the reason.

    Raises:
        UsageError: A shard of that name exists, or `samples` is not positive.
    """
    if samples < 1:
        raise UsageError(f"--samples is {samples}; it must be at least 1.")
    if old := sorted(target.parent.glob(f"{target.name}-[0-9]*.tar*")):
        raise UsageError(f"{old[0]} exists already; remove the old shards or choose another name.")
    target.parent.mkdir(parents=True, exist_ok=True)
    shards: list[Path] = []
    left_out: list[str] = []
    indices = range(len(source)) if order is None else order
    for number, start in enumerate(range(0, len(indices), samples)):
        shard = target.with_name(f"{target.name}-{number:05}.tar")
        partial = shard.with_name(shard.name + ".part")
        try:
            with tarfile.open(partial, "w") as tar:
                left_out += filter(
                    None, (_add(tar, source, i, check) for i in indices[start : start + samples])
                )
            os.replace(partial, shard)  # a shard that is there is whole
        finally:
            partial.unlink(missing_ok=True)
        load_index(shard)
        shards.append(shard)
    return shards, left_out


def _add(tar: tarfile.TarFile, source: Source, index: int, check: bool) -> str | None:
    """Add one sample; returns why not, or None."""
    try:
        sample = source[index]
    except OSError as error:
        return f"{error.filename} ({error.strerror})"
    if any(about != sample.image_ids[0] for about in sample.text_ids):
        raise UsageError(f"{sample.key} has captions about a group, which a shard cannot express.")
    if not any(text.strip() for text in sample.texts):
        return f"{sample.key} (no caption)"
    try:
        if check:
            decode_image(sample.image)
    except BadImage as error:
        return f"{sample.key} ({error})"
    if isinstance(sample.image, bytes):
        data, extension = sample.image, Path(sample.key).suffix.lstrip(".").lower() or "jpg"
    else:
        data, extension = _png(sample.image), "png"
    record = {"captions": list(sample.texts), "id": sample.image_ids[0], "key": sample.key}
    for name, content in (
        (f"{index:09}.{extension}", data),
        (f"{index:09}.json", json.dumps(record, ensure_ascii=False).encode()),
    ):
        info = tarfile.TarInfo(name)  # no times and no owner: the same pictures give the same shard
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return None


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments, pack, report on stderr; returns the exit status."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("source", help="folder, captions.jsonl or Karpathy JSON")
    parser.add_argument("target", type=Path, help="path and beginning of the shards' names")
    parser.add_argument("--split", help="split of the source")
    parser.add_argument("--samples", type=int, default=10_000, help="samples per shard (default 10000)")
    parser.add_argument(
        "--shuffle", type=int, metavar="SEED", help="shuffle with this seed; good for streaming"
    )
    parser.add_argument("--no-check", action="store_true", help="do not decode pictures to find broken ones")
    args = parser.parse_args(argv)
    try:
        source = open_source(args.source, split=args.split)
        order = list(range(len(source)))
        if args.shuffle is not None:
            random.Random(args.shuffle).shuffle(order)
        shards, left_out = pack(
            source, args.target, samples=args.samples, order=order, check=not args.no_check
        )
    except ZooError as error:
        print(f"pack_shards: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    print(f"{len(order) - len(left_out)} samples in {len(shards)} shards: {shards[0]} ...", file=sys.stderr)
    if left_out:
        print(f"left out {len(left_out)}: {'; '.join(left_out[:10])}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
