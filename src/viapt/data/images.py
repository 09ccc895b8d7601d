"""One image, safely: whatever is in the file becomes 8-bit RGB, or an error says which file and why.

The content decides, never the suffix. Decisions where formats leave a choice:

- EXIF orientation is applied, so that pixels stand as the photographer saw them; colour profiles are not.
- Transparent parts (alpha channel, palette or colour key) lie on white, as on a page; what hides below is not shown.
- Integers of 16 bits are divided by 257, so that 65535 becomes 255: the full range of the format, never the range that
  one image happens to use, because equal values must stay equal across images. Integers of 32 bits must fit into 16.
- Floating-point images must lie in [0, 1]; any other range is a guess, and therefore an error.
- Of an animation the first frame counts.
- Only formats are opened that Pillow decodes itself and that show when they are cut short: no PostScript interpreter is
  ever started, and JPEG 2000 is refused because its decoder turns a truncated file into a grey or black picture.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from viapt.errors import DataError

ImageLike = str | Path | bytes | Image.Image | np.ndarray

MAX_PIXELS = 89_478_485  # where Pillow begins to warn of a decompression bomb: 268 MB as RGB
MAX_ASPECT = 100  # longer side to shorter: a resize of the short side blows thinner strips up beyond all bounds

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF")
SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".bmp", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif"),
    *(".heic", ".heif", ".jp2", ".j2k"),  # cannot be read: better an error by name than a photo left out in silence
}


def read_image(source: ImageLike, *, name: str = "", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one image to RGB with 8 bits a channel, a copy that holds no open file.

    Args:
        source: a path, the bytes of a file, a Pillow image, or an array of shape (height, width) or
            (height, width, 1 | 3 | 4): uint8, uint16, bool, or floating point in [0, 1].
        name: what errors call it; by default the path.
        max_pixels: height times width that is allowed; the header is checked before any pixel is decoded. Pillow itself
            refuses more than 2 * `PIL.Image.MAX_IMAGE_PIXELS`.

    Raises:
        DataError: missing, empty, truncated, damaged, too large, or no image at all.
    """
    name = name or _describe(source)
    try:
        if isinstance(source, np.ndarray):
            return _rgb(Image.fromarray(_array_to_uint8(source, max_pixels)))
        if isinstance(source, Image.Image):
            _check_size(source.size, max_pixels)
            return _rgb(source)
        with Image.open(_stream(source), formats=_formats()) as image:
            _check_size(image.size, max_pixels)
            return _rgb(image)
    except Exception as error:  # decoders raise whatever they like on damaged files
        raise DataError(
            f"{name}: {_cause(error)}",
            expected=f"an array (height, width, 3), or {', '.join(FORMATS)}, of at most {max_pixels:,} pixels",
            remedy="repair, convert (to PNG or JPEG) or remove it",
        ) from error


def looks_like_image(path: Path) -> bool:
    """Whether a file claims to be an image, by its suffix or, failing that, by its first bytes. Nothing is decoded."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8")) or (head[:4], head[8:]) == (
        b"RIFF",
        b"WEBP",
    )


class _RefusedError(ValueError):
    """A reason of ours, in words for the user."""


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # older Pillows lack AVIF


def _describe(source: object) -> str:
    if isinstance(source, str | Path):
        return str(source)
    return f"{len(source)} bytes" if isinstance(source, bytes) else f"an image given as {type(source).__name__}"


def _stream(source: str | Path | bytes) -> io.BytesIO | Path:
    """What Pillow opens, once it is sure that there is something to read: a pipe would block for ever."""
    if isinstance(source, bytes):
        size, stream = len(source), io.BytesIO(source)
    else:
        stream = Path(source)
        if not stream.is_file():
            raise _RefusedError("is not a file" if stream.exists() else "does not exist")
        size = stream.stat().st_size
    if size == 0:
        raise _RefusedError("is empty (zero bytes)")
    return stream


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height == 0:
        raise _RefusedError("has no pixels")
    if width * height > max_pixels:
        raise _RefusedError(f"is too large, {width} x {height} = {width * height:,} pixels")
    if max(size) > MAX_ASPECT * min(size):
        raise _RefusedError(f"is a strip of {width} x {height} pixels, thinner than 1 : {MAX_ASPECT}")


def _rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)  # always a loaded copy
    if image.mode == "I" or image.mode == "F" or image.mode.startswith("I;16"):
        return Image.fromarray(_to_uint8(_narrow(np.asarray(image)))).convert("RGB")
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(page, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _array_to_uint8(array: Shaped[np.ndarray, "..."], max_pixels: int) -> UInt8[np.ndarray, "..."]:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise _RefusedError(f"is an array of shape {array.shape}")
    _check_size((array.shape[1], array.shape[0]), max_pixels)
    return _to_uint8(array[:, :, 0] if array.shape[2:] == (1,) else array)


def _narrow(array: Shaped[np.ndarray, "h w"]) -> Shaped[np.ndarray, "h w"]:
    """Pillow keeps some 16-bit files as 32-bit integers."""
    if array.dtype != np.int32:
        return array
    if array.min() < 0 or array.max() > 65535:
        raise _RefusedError(f"has 32-bit integers from {array.min()} to {array.max()}, not in [0, 65535]")
    return array.astype(np.uint16)


def _to_uint8(array: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if array.dtype.kind == "f":
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 1):  # also catches NaN
            raise _RefusedError(f"has floating-point values from {low:g} to {high:g}, not in [0, 1]")
        return np.rint(array * 255).astype(np.uint8)
    raise _RefusedError(f"has values of type {array.dtype}, not uint8, uint16, bool or floating point")


def _cause(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "is not an image in a format that can be read"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"is too large: {error}"
    if isinstance(error, _RefusedError | PermissionError):
        return str(error)
    return f"is damaged or truncated ({type(error).__name__}: {error})"
