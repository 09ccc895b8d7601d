"""Images of every troublesome kind, made on the spot: read as they should look, or refused by name."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, features

from viapt.data.images import MAX_ASPECT, MAX_PIXELS, looks_like_image, read_image
from viapt.errors import DataError


def photo(height: int = 40, width: int = 56) -> np.ndarray:
    """A smooth picture without symmetries, with enough detail that its files have bytes to cut off."""
    rng = np.random.Generator(np.random.PCG64(0))
    rows, columns = np.mgrid[0:height, 0:width]
    base = np.stack([255 * rows / height, 255 * columns / width, 255 * (rows + columns) / (height + width)], axis=2)
    return np.clip(base + rng.normal(0, 12, base.shape), 0, 255).astype(np.uint8)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, pixels: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG written by hand, of kinds that Pillow does not write; `pixels` are rows without filter bytes."""
    row = len(pixels) // height if pixels else 0
    raw = b"".join(b"\0" + pixels[i * row : (i + 1) * row] for i in range(height)) if pixels else b""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = b"".join(chunk(*extra) for extra in chunks) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


def pixels_of(source: object, **options: object) -> np.ndarray:
    image = read_image(source, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("PPM", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_keep_every_pixel(tmp_path: Path, kind: str, options: dict[str, object]) -> None:
    content = encode(Image.fromarray(photo()), kind, **options)
    path = tmp_path / "x.dat"
    path.write_bytes(content)
    for source in (content, path, str(path)):
        np.testing.assert_array_equal(pixels_of(source), photo())


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", *(["AVIF"] if features.check("avif") else [])])
def test_lossy_formats_come_close(kind: str) -> None:
    found = pixels_of(encode(Image.fromarray(photo()), kind, quality=95)).astype(int)
    assert np.abs(found - photo()).mean() < 8


def test_content_decides_whatever_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encode(Image.fromarray(photo()), "PNG"))
    np.testing.assert_array_equal(pixels_of(path), photo())


SIXTEEN = np.array([[0, 1, 128, 129], [256, 257, 32767, 32768], [65278, 65279, 65534, 65535]], np.uint16)


@pytest.mark.parametrize("source", ["png", "tiff", "tiff big-endian", "pgm", "array", "pillow"])
def test_sixteen_bit_grey_is_scaled_not_clipped(source: str) -> None:
    expected = np.rint(SIXTEEN.astype(np.float64) / 65535 * 255)
    height, width = SIXTEEN.shape
    image = {
        "png": lambda: png(width, height, 16, 0, SIXTEEN.astype(">u2").tobytes()),
        "tiff": lambda: encode(Image.fromarray(SIXTEEN), "TIFF"),
        "tiff big-endian": lambda: encode(
            Image.frombytes("I;16B", (width, height), SIXTEEN.astype(">u2").tobytes()), "TIFF"
        ),
        "pgm": lambda: f"P5 {width} {height} 65535\n".encode() + SIXTEEN.astype(">u2").tobytes(),
        "array": lambda: SIXTEEN,
        "pillow": lambda: Image.fromarray(SIXTEEN),
    }[source]()
    found = pixels_of(image)
    assert (found == found[:, :, :1]).all()
    np.testing.assert_array_equal(found[:, :, 0], expected)


def test_sixteen_bit_colour_and_grey_with_alpha() -> None:
    colour = np.stack([SIXTEEN, SIXTEEN[::-1], SIXTEEN[:, ::-1]], axis=2)
    found = pixels_of(png(4, 3, 16, 2, colour.astype(">u2").tobytes()))
    assert np.abs(found - colour / 257).max() <= 1
    opaque = np.stack([SIXTEEN, np.full_like(SIXTEEN, 65535)], axis=2)
    assert np.abs(pixels_of(png(4, 3, 16, 4, opaque.astype(">u2").tobytes()))[:, :, 1] - SIXTEEN / 257).max() <= 1


@pytest.mark.parametrize("value", [0, 40_000, 65_535])
def test_integers_of_32_bits_count_as_16(value: int) -> None:
    content = encode(Image.fromarray(np.full((2, 3), value, np.int32)), "TIFF")
    assert (pixels_of(content) == round(value / 257)).all()


@pytest.mark.parametrize("value", [-1, 65_536])
def test_integers_beyond_16_bits_are_refused(value: int) -> None:
    with pytest.raises(DataError, match="32-bit"):
        read_image(encode(Image.fromarray(np.full((2, 3), value, np.int32)), "TIFF"))


def test_float_tiff_lies_in_the_unit_range() -> None:
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    found = pixels_of(encode(Image.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(found[:, :, 1], np.rint(values * 255))


@pytest.mark.parametrize("bad", [-0.01, 1.01, 200.0, np.nan, np.inf])
def test_other_floats_are_refused_with_their_range(tmp_path: Path, bad: float) -> None:
    values = np.full((3, 4), 0.5, np.float32)
    values[1, 2] = bad
    path = tmp_path / "f.tif"
    path.write_bytes(encode(Image.fromarray(values), "TIFF"))
    with pytest.raises(DataError, match=r"f\.tif: has floating-point values from"):
        read_image(path)


@pytest.mark.parametrize(
    ("inks", "colour"),
    [
        ((0, 0, 0, 0), (255, 255, 255)),
        ((0, 0, 0, 255), (0, 0, 0)),
        ((255, 0, 0, 0), (0, 255, 255)),
        ((0, 0, 255, 0), (255, 255, 0)),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind: str, inks: tuple[int, ...], colour: tuple[int, ...]) -> None:
    found = pixels_of(encode(Image.new("CMYK", (16, 16), inks), kind))
    assert np.abs(found.astype(int) - colour).max() <= 3


AS_SEEN = {  # the EXIF standard: where row 0 and column 0 of the stored picture are, as seen
    1: lambda a: a,  # top, left
    2: lambda a: a[:, ::-1],  # top, right
    3: lambda a: a[::-1, ::-1],  # bottom, right
    4: lambda a: a[::-1],  # bottom, left
    5: lambda a: a.transpose(1, 0, 2),  # left, top
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],  # right, top
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],  # right, bottom
    8: lambda a: a.transpose(1, 0, 2)[::-1],  # left, bottom
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    found = pixels_of(encode(Image.fromarray(photo()), kind, exif=exif, **options))
    expected = AS_SEEN[orientation](photo())
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= (8 if kind == "JPEG" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_sixteen_bits(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = pixels_of(encode(Image.fromarray(SIXTEEN), "PNG", exif=exif))
    expected = AS_SEEN[orientation]((SIXTEEN[:, :, None].astype(int) + 128) // 257)
    np.testing.assert_array_equal(found[:, :, :1], expected)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[:, :, None] / 255
    return colour * share + 255 * (1 - share)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_lies_on_white(kind: str) -> None:
    alpha = np.tile(np.linspace(0, 255, 56).astype(np.uint8), (40, 1))
    content = encode(
        Image.fromarray(np.dstack([photo(), alpha])), kind, **({"lossless": True} if kind == "WEBP" else {})
    )
    found = pixels_of(content)
    assert np.abs(found - on_white(photo(), alpha)).max() <= 1
    np.testing.assert_array_equal(found[alpha == 255], photo()[alpha == 255])
    assert (found[alpha == 0] == 255).all()


def test_grey_with_alpha_lies_on_white() -> None:
    alpha = np.tile(np.linspace(0, 255, 56).astype(np.uint8), (40, 1))
    grey = photo()[:, :, 0]
    found = pixels_of(encode(la(grey, alpha), "PNG"))
    assert np.abs(found - on_white(np.dstack([grey] * 3), alpha)).max() <= 1


def la(grey: np.ndarray, alpha: np.ndarray) -> Image.Image:
    return Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])


def palette_image() -> Image.Image:
    image = Image.new("P", (4, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 10, 20, 30])
    image.putdata([0, 1, 2, 3])
    return image


def test_palette_with_alpha_for_each_entry() -> None:
    found = pixels_of(encode(palette_image(), "PNG", transparency=bytes([255, 0, 128, 255])))
    expected = on_white(
        np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]]]), np.array([[255, 0, 128, 255]])
    )
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_with_one_transparent_entry(kind: str) -> None:
    found = pixels_of(encode(palette_image(), kind, transparency=1))
    np.testing.assert_array_equal(found, [[[255, 0, 0], [255, 255, 255], [0, 0, 255], [10, 20, 30]]])


def test_colour_key_in_rgb_and_grey() -> None:
    key = struct.pack(">HHH", 1, 2, 3)
    found = pixels_of(png(2, 1, 8, 2, bytes([1, 2, 3, 1, 2, 4]), (b"tRNS", key)))
    np.testing.assert_array_equal(found, [[[255] * 3, [1, 2, 4]]])
    found = pixels_of(png(2, 1, 8, 0, bytes([7, 8]), (b"tRNS", struct.pack(">H", 7))))
    np.testing.assert_array_equal(found, [[[255] * 3, [8] * 3]])


def test_one_bit() -> None:
    bits = np.array([[True, False, True], [False, False, True]])
    expected = np.dstack([bits * 255] * 3)
    for source in (encode(Image.fromarray(bits), "PNG"), encode(Image.fromarray(bits), "TIFF"), bits):
        np.testing.assert_array_equal(pixels_of(source), expected)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_give_their_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    content = encode(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    assert Image.open(io.BytesIO(content)).n_frames == 3
    np.testing.assert_array_equal(pixels_of(content), np.tile(np.uint8([255, 0, 0]), (8, 8, 1)))


def test_what_is_given_is_left_as_it_was() -> None:
    image = Image.fromarray(photo())
    found = read_image(image)
    found.putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(np.asarray(image), photo())
    array = photo()
    read_image(array).putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(array, photo())


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_arrays(shape: tuple[int, ...], dtype: type) -> None:
    top = {np.uint8: 255, np.uint16: 65535}.get(dtype, 1)
    array = np.full(shape, top, dtype)
    array[0] = 0
    if shape[2:] == (4,):
        array[:, :, 3] = top
    found = pixels_of(array)
    assert found.shape == (5, 7, 3)
    assert (found[0] == 0).all()
    assert (found[1:] == 255).all()


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 8, 9), np.uint8),
        np.zeros(5, np.uint8),
        np.zeros((0, 4), np.uint8),
        np.zeros((4, 4), np.int64),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.full((4, 4, 3), 2.0),
        np.full((4, 4), np.nan),
        np.zeros((4, 4), complex),
    ],
)
def test_arrays_that_are_no_images(array: np.ndarray) -> None:
    with pytest.raises(DataError, match="array"):
        read_image(array)


KINDS = {
    "jpeg": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "ppm": ("PPM", {}),
    "tiff": ("TIFF", {}),
    "tiff lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "webp": ("WEBP", {}),
} | ({"avif": ("AVIF", {})} if features.check("avif") else {})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", range(0, 100, 10))
def test_truncated_files_are_refused_by_name(tmp_path: Path, kind: str, share: int) -> None:
    content = encode(Image.fromarray(photo()), KINDS[kind][0], **KINDS[kind][1])
    read_image(content)
    path = tmp_path / "half a photo.jpg"
    path.write_bytes(content[: len(content) * share // 100])
    with pytest.raises(DataError, match=r"half a photo\.jpg: "):
        read_image(path)


@pytest.mark.parametrize("kind", KINDS)
def test_cut_at_any_byte_a_file_is_refused_or_whole(kind: str) -> None:
    """Some formats end with bytes that carry no pixels."""
    content = encode(Image.fromarray(photo(12, 10)), KINDS[kind][0], **KINDS[kind][1])
    whole = pixels_of(content)
    for length in range(len(content)):
        try:
            found = pixels_of(content[:length])
        except DataError:
            continue
        np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=8))
def test_flipped_bits_give_an_image_or_a_data_error(kind: str, flips: list[tuple[float, int]]) -> None:
    content = bytearray(encode(Image.fromarray(photo(16, 12)), KINDS[kind][0], **KINDS[kind][1]))
    for place, bit in flips:
        content[int(place * len(content))] ^= 1 << bit
    try:
        image = read_image(bytes(content), max_pixels=100_000)
    except DataError:
        return
    assert image.mode == "RGB"
    assert image.width * image.height <= 100_000


def test_formats_whose_decoder_hides_truncation_are_refused() -> None:
    with pytest.raises(DataError, match="not an image in a format that can be read"):
        read_image(encode(Image.fromarray(photo()), "JPEG2000"))


def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("certainly no photo\n" * 50)
    (tmp_path / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    causes = {"empty.jpg": "empty", "text.jpg": "not an image", "script.png": "not an image"}
    causes |= {"folder.png": "not a file", "pipe.png": "not a file", "missing.png": "does not exist"}
    for name, cause in causes.items():
        with pytest.raises(DataError, match=rf"{name}: .*{cause}"):
            read_image(tmp_path / name)
    with pytest.raises(DataError, match="empty"):
        read_image(b"")


def test_errors_can_be_given_a_name() -> None:
    with pytest.raises(DataError, match="upload 3: is not an image"):
        read_image(b"nothing", name="upload 3")


def bombs() -> dict[str, bytes]:
    """Headers that promise 65,000 x 65,000 pixels, with next to nothing behind."""
    side = 65_000
    gif = bytearray(encode(Image.new("P", (2, 2)), "GIF"))
    gif[6:10] = struct.pack("<HH", side, side)
    bmp = bytearray(encode(Image.new("RGB", (2, 2)), "BMP"))
    bmp[18:26] = struct.pack("<ii", side, side)
    return {
        "png": png(side, side, 8, 2, b""),
        "gif": bytes(gif),
        "bmp": bytes(bmp),
        "ppm": f"P6 {side} {side} 255\n".encode() + bytes(100),
    }


@pytest.mark.parametrize("kind", ["png", "gif", "bmp", "ppm"])
@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("pixels were decoded"))
    path = tmp_path / "bomb.png"
    path.write_bytes(bombs()[kind])
    with pytest.raises(DataError, match=r"bomb\.png: is too large"):
        read_image(path)


def test_the_limit_on_pixels_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode(Image.fromarray(photo(40, 50)), "PNG")
    assert read_image(content, max_pixels=2000).size == (50, 40)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("pixels were decoded"))
    for source in (content, photo(40, 50), Image.open(io.BytesIO(content))):
        with pytest.raises(DataError, match="2,000 pixels"):
            read_image(source, max_pixels=1999)
    assert Image.MAX_IMAGE_PIXELS is None or MAX_PIXELS <= Image.MAX_IMAGE_PIXELS


def test_strips_are_refused() -> None:
    assert read_image(np.zeros((MAX_ASPECT, 1), np.uint8)).size == (1, MAX_ASPECT)
    with pytest.raises(DataError, match="strip"):
        read_image(np.zeros((MAX_ASPECT + 1, 1), np.uint8))


def test_what_looks_like_an_image(tmp_path: Path) -> None:
    for kind in ("JPEG", "PNG", "GIF", "WEBP"):
        path = tmp_path / f"{kind}.unknown"
        path.write_bytes(encode(Image.fromarray(photo()), kind))
        assert looks_like_image(path)
    (tmp_path / "notes.txt").write_text("PNG")
    (tmp_path / "riff.wav").write_bytes(b"RIFF\0\0\0\0WAVEfmt ")
    (tmp_path / "empty").touch()
    assert not any(looks_like_image(tmp_path / name) for name in ("notes.txt", "riff.wav", "empty"))
    assert looks_like_image(tmp_path / "not there.JPEG")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("length", [8, 12, 20, 30])
def test_broken_exif_does_not_cost_the_pixels(length: int) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "somebody's camera"
    content = encode(Image.fromarray(photo()), "JPEG", exif=exif.tobytes()[:length])
    assert set(read_image(content).size) == {40, 56}
