"""Pictures in class folders: `cat/1.jpg`, `dog/2.jpg`."""

from __future__ import annotations

import os
from pathlib import Path

from mmzoo.data.sample import Sample
from mmzoo.data.sources.common import IMAGE_SUFFIXES, read_inside, subfolders
from mmzoo.errors import ZooError

__all__ = ["ImageFolderSource"]


class ImageFolderSource:
    """One subfolder per class, sorted by name; pictures may lie deeper inside.

    The class's name, underscores as spaces, is the text of each of its pictures, so the same folders serve
    classification and image-text training; pictures of one class are never each other's negatives.

    Args:
        folder: Folder that holds the class folders.

    Raises:
        ZooError: No such folder, no class folders, or a class without pictures.
    """

    def __init__(self, folder: str | Path) -> None:
        given = Path(folder)
        if not given.is_dir():
            raise ZooError(f"no folder {folder}.")
        self.root = given.resolve()
        self.name = given.name
        names = [f.name for f in subfolders(self.root)]
        if not names:
            raise ZooError(f"{folder} holds no class folders; expected {given.name}/<class>/<picture>.")
        self.classes: tuple[str, ...] | None = tuple(names)
        self._files: list[tuple[str, int]] = []
        empty = []
        for label, name in enumerate(names):
            found = _pictures(self.root, name)
            self._files += [(file, label) for file in found]
            if not found:
                empty.append(name)
        if empty:
            more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
            raise ZooError(
                f"{folder}: no pictures in the class folders {', '.join(empty[:3])}{more}; "
                f"remove them or fill them (suffixes {', '.join(sorted(IMAGE_SUFFIXES))})."
            )

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        file, label = self._files[index]
        assert self.classes is not None
        text = self.classes[label].replace("_", " ")
        return Sample(file, read_inside(self.root, file), (text,), (label,), (label,), label)


def _pictures(root: Path, name: str) -> list[str]:
    """Paths of a class folder's pictures relative to the root, sorted; links to folders are not followed."""
    found = []
    for folder, _, files in os.walk(root / name):
        inner = Path(folder).relative_to(root)
        found += [
            str(inner / f)
            for f in files
            if not f.startswith(".") and os.path.splitext(f)[1].lower() in IMAGE_SUFFIXES
        ]
    return sorted(found)
