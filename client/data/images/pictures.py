"""One image file of any size and mode, as the pixels that a model reads.

An image is turned as its EXIF data say, laid on the contract's background where it is transparent, made grey or
coloured, made square as the contract says, and resized by the mean of the pixels that fall together. Every step
depends on this one image alone, and every step that changes what a person would see is counted.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .tally import Tally, Target

if TYPE_CHECKING:
    from PIL.Image import Image, Transpose

Pixels = npt.NDArray[np.float32]

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm",
    ".pbm", ".pnm", ".avif", ".jp2",
)  # fmt: skip
# No format that runs a program (EPS) or fetches anything.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "WEBP", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000")
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 258


class Unreadable(Exception):
    """A file that is broken, cut off, or no image."""


class Unfit(Exception):
    """An image that the contract does not say how to read."""


def picture(file: IO[bytes], target: Target, tally: Tally) -> Pixels:
    """(channels, size, size) float32 in [0, 1]. Raises: Unreadable; Unfit."""
    from PIL import Image

    opened, done, turn = _loaded(file, target.channels)
    if is_transparent(opened):
        done.append(f"transparent parts are laid on {target.background}")
    image = _levels(opened, target)
    if turn is not None:
        image = image.transpose(turn)
    size = image.size
    image = _square(image, target).resize((target.size, target.size), Image.Resampling.BOX)
    values = np.asarray(image)
    if image.mode != "F":
        values = values.astype(np.float64) / 255
    pixels = values.astype(np.float32)
    # (S, S) or (S, S, 3) -> (channels, S, S)
    pixels = (
        pixels.transpose(2, 0, 1) if pixels.ndim == 3 else np.repeat(pixels[None], target.channels, axis=0)
    )
    tally.changed.update(done)
    tally.sizes[size] += 1
    return pixels


def _loaded(file: IO[bytes], channels: int) -> tuple[Image, list[str], Transpose | None]:
    """An image in memory, what reading it changes, and how it is still to be turned. Raises: Unreadable."""
    _refuse_stand_ins(file)
    with reading(), look(file) as opened:
        if opened.format == "PNG":
            opened.verify()  # its checksums, which loading does not compare
    file.seek(0)
    with reading(), look(file) as opened:
        done = changes(opened, channels)
        opened.load()
        return opened, done, _turns().get(orientation(opened))  # Pillow has turned a TIFF already


def look(file: IO[bytes]) -> Image:
    """The header of an image; its pixels are not read yet."""
    from PIL import Image

    Image.init()
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


@contextmanager
def reading() -> Iterator[None]:
    """Whatever Pillow raises is Unreadable, and what it would print of damaged data is not printed."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except Image.DecompressionBombError:
            most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
            raise Unreadable(f"has more than {most:,} pixels; make it smaller") from None
        except Exception as error:  # Pillow's readers raise many kinds
            raise Unreadable(_reason(error)) from None


def _refuse_stand_ins(file: IO[bytes]) -> None:
    head = file.read(40)
    file.seek(0)
    if not head:
        raise Unreadable("an empty file")
    if head.startswith(b"version https://git-lfs"):
        raise Unreadable("a pointer of Git LFS; fetch the image itself with git lfs pull")


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "of no format that is read, or damaged at its beginning"
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "damaged or cut off"


def changes(opened: Image, channels: int) -> list[str]:
    """What reading this image changes of it beside its size; before its pixels are loaded."""
    done = []
    mode = opened.mode
    depth = ";16" in repr(getattr(opened, "tile", "")) and not mode.startswith("I")
    if getattr(opened, "is_animated", False) and opened.format != "MPO":
        done.append("only the first frame or page is read")
    if orientation(opened) != 1:
        done.append("turned as its EXIF data say")
    if is_deep(mode):
        done.append("scaled from more than 8 bits a pixel")
    elif depth:
        done.append("read with 8 of its 16 bits a colour")
    if mode in ("P", "PA"):
        done.append("colours are taken from its palette")
    elif mode in ("CMYK", "YCbCr"):
        done.append(f"converted from {mode}, without a colour profile")
    grey = mode in ("1", "L", "LA", "La") or is_deep(mode)
    if channels == 1 and not grey:
        done.append("made grey")
    elif channels == 3 and grey:
        done.append("grey, becomes three equal colours")
    return done


def is_deep(mode: str) -> bool:
    """Whether a pixel of this mode has more than 8 bits."""
    return mode.startswith(("I", "F"))


def is_transparent(opened: Image) -> bool:
    """Whether any pixel of a loaded image of 8 bits is."""
    if is_deep(opened.mode) or not opened.has_transparency_data:
        return False
    darkest, _ = opened.convert("RGBA").getchannel("A").getextrema()
    return darkest != 255


def orientation(opened: Image) -> int:
    """EXIF's: 1 is upright."""
    try:
        found = opened.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data say nothing; the pixels may still be whole
        return 1
    return found if found in _turns() else 1


def _turns() -> dict[object, Transpose]:
    from PIL.Image import Transpose

    return {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
    }  # fmt: skip


def _levels(opened: Image, target: Target) -> Image:
    """Grey ("L"), coloured ("RGB"), or grey values in [0, 1] ("F")."""
    from PIL import Image

    if is_deep(opened.mode):
        return Image.fromarray(_deep(opened, target.bits))
    if opened.mode in ("LAB", "HSV"):
        raise Unfit(f"colours of mode {opened.mode} are not read; save it as RGB")
    image: Image.Image = opened
    if is_transparent(opened):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, target.background), image)
    return image.convert("L" if target.channels == 1 else "RGB")


def _deep(opened: Image, bits: int | None) -> Pixels:
    """Values (H, W) in [0, 1] of pixels with 9 to 32 bits, by the range of the type and never of the values."""
    values = np.asarray(opened).astype(np.float64)
    if opened.mode == "F":
        if not np.isfinite(values).all():
            raise Unfit("holds NaN or infinite values")
        if values.min() < 0 or values.max() > 1:
            raise Unfit("holds fractions outside 0 to 1; scale them first")
        return values.astype(np.float32)
    own = {"PPM": 16, "PNG": 16}.get(opened.format or "") or (16 if opened.mode.startswith("I;16") else None)
    tags = getattr(opened, "tag_v2", {})
    if own is not None and tags.get(_BITS_PER_SAMPLE):
        own = int(next(iter(tags[_BITS_PER_SAMPLE])))
    bits = bits or own
    if bits is None:
        raise Unfit("holds whole numbers of 32 bits; say in a contract how many of them are used: bits = 16")
    if values.min() < 0 or values.max() > 2**bits - 1:
        raise Unfit(f"holds values outside the 0 to {2**bits - 1} of {bits} bits")
    scaled: Pixels = (values / (2**bits - 1)).astype(np.float32)
    return scaled


def _square(image: Image, target: Target) -> Image:
    from PIL import Image

    width, height = image.size
    if width == height or target.fit == "stretch":
        return image
    if target.fit == "refuse":
        raise Unfit(not_square(width, height))
    if target.fit == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return image.crop((left, top, left + side, top + side))
    side = max(width, height)
    colour: float | str = target.background
    if image.mode == "F":
        colour = float(target.background == "white")
    padded = Image.new(image.mode, (side, side), colour)
    padded.paste(image, ((side - width) // 2, (side - height) // 2))
    return padded


def not_square(width: int, height: int) -> str:
    return (
        f"{width}x{height} pixels, not square; say in a contract how it becomes so: "
        'fit = "crop", "pad" or "stretch"'
    )
