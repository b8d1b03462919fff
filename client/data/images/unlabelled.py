"""Images without their labels, as a prediction needs them: files, a folder or .zip of them, a table, or an .npz."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ....blocks.settings import ImageSettings
from ....errors import InputError
from ....settings.contract import ImageContract
from ..findings import Findings
from ..tables.frames import is_table
from .arrays import images_of
from .file_tables import read_files, read_pixels
from .folders import File, is_picture, listing
from .load import built_in_or_set, fitted, is_tree, read_pictures
from .tally import Target


def load_unlabelled(
    field: str,
    source: str,
    model: ImageSettings,
    match_contrast: bool,
    contract: ImageContract | None,
    findings: Findings,
) -> tuple[list[str], Tensor]:
    """The images' names (of files, or "image 1", "row 1" of arrays and tables) and (N, C, S, S) float32 in [0, 1].

    Raises: InputError naming the file or the image that cannot be used.
    """
    contract = (contract or ImageContract()).model_copy(update={"labels": None})
    names, images = _read(field, source, model, contract, findings)
    if len(images) == 0:
        raise InputError(field, source, "no image here")
    return names, fitted(field, source, images, model, match_contrast, contract, findings)


def _read(
    field: str, source: str, model: ImageSettings, contract: ImageContract, findings: Findings
) -> tuple[list[str], npt.NDArray[np.generic]]:
    path, target = Path(source), Target.of(model, contract)
    if path.is_file() and path.suffix.lower() == ".npz":
        return _numbered("image", images_of(field, path))
    if path.is_file() and is_table(path) and contract.path is None and contract.image is None:
        return _numbered("row", read_pixels(field, source, contract, target.channels, findings, False)[0])
    with ExitStack() as stack:
        if path.is_file() and is_table(path):
            files = [file for file, _ in read_files(field, source, contract, findings, False)]
        elif path.is_file() and is_picture(path.name):
            files = [File(path.name, lambda: path.open("rb"))]
        elif is_tree(path):
            files = list(_inside(stack, field, path))
        else:
            return _numbered("image", built_in_or_set(field, source)[0])
        numbered = ((file, i) for i, file in enumerate(files))
        images, read = read_pictures(field, source, numbered, target, contract, findings)
    return [files[i].name for i in read], images


def _inside(stack: ExitStack, field: str, path: Path) -> Iterator[File]:
    """Every image of a folder or .zip, in class folders or not, in the order of their names."""
    found = stack.enter_context(listing(field, path)).files
    yield from sorted((file for _, file in found if is_picture(file.name)), key=lambda file: file.name)


def _numbered(thing: str, images: npt.NDArray[np.generic]) -> tuple[list[str], npt.NDArray[np.generic]]:
    return [f"{thing} {i + 1}" for i in range(len(images))], images
