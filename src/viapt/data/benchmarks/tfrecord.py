"""TFRecord files and the `tf.train.Example` messages in them, read without TensorFlow.

A record is its length (8 bytes, little-endian), the masked CRC-32C of these bytes, its content, and the masked CRC-32C
of the content. The first check sum is verified, so that a damaged length is found before anything is allocated; damage
inside an image is found when it is decoded. Format: tensorflow/core/lib/io/record_writer.h and
tensorflow/core/example/{example,feature}.proto; wire format: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from viapt.errors import DataError

MAX_RECORD_BYTES = 2**28

Feature = list[bytes] | list[float] | list[int]
Example = dict[str, Feature]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def crc32c(data: bytes) -> int:
    """The Castagnoli check sum, 32 bits; for a few bytes, as it goes bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked_crc32c(data: bytes) -> int:
    """As TFRecord files store it: rotated by 15 bits, plus a constant."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def read_records(path: Path) -> Iterator[tuple[int, bytes]]:
    """Offset and content of each record, one after another.

    Raises:
        DataError: truncated, damaged, or no TFRecord file.
    """
    with path.open("rb") as file:
        while head := file.read(12):
            offset = file.tell() - len(head)
            if len(head) < 12 or struct.unpack("<I", head[8:])[0] != masked_crc32c(head[:8]):
                raise _damaged(path, offset, "no record begins there")
            (length,) = struct.unpack("<Q", head[:8])
            if length > MAX_RECORD_BYTES:
                raise _damaged(path, offset, f"the record has {length:,} bytes, more than {MAX_RECORD_BYTES:,}")
            content = file.read(length + 4)
            if len(content) < length + 4:
                raise _damaged(path, offset, "the record ends early")
            yield offset, content[:-4]


def read_record_at(path: Path, offset: int) -> bytes:
    """The content of the record that begins at `offset`, which `read_records` gave."""
    with path.open("rb") as file:
        file.seek(offset)
        (length,) = struct.unpack("<Q", file.read(8))
        file.read(4)
        return file.read(min(length, MAX_RECORD_BYTES))


def _damaged(path: Path, offset: int, reason: str) -> DataError:
    return DataError(
        f"{path} is damaged or truncated at byte {offset:,}: {reason}",
        expected="a whole TFRecord file",
        remedy="compare its size with the publisher's and download it again",
    )


def parse_example(content: bytes) -> Example:
    """The features of a `tf.train.Example` by name, each a list of bytes, floats or integers.

    Raises:
        ValueError: it is no such message.
    """
    features: Example = {}
    for features_message in _submessages(content, 1):
        for entry in _submessages(features_message, 1):
            name, feature = b"", b""
            for number, value in _fields(entry):
                if number == 1 and isinstance(value, bytes):
                    name = value
                elif number == 2 and isinstance(value, bytes):
                    feature = value
            features[name.decode("utf-8")] = _parse_feature(feature)
    return features


def _parse_feature(content: bytes) -> Feature:
    """A list of one of three kinds; protobuf's last-one-wins rule decides if there are several."""
    result: Feature = []
    for number, value in _fields(content):
        if not isinstance(value, bytes):
            raise ValueError("a feature holds no list")
        if number == 1:
            result = _submessages(value, 1)
        elif number == 2:
            result = [item for part in _values(value) for item in _floats(part)]
        elif number == 3:
            result = [item for part in _values(value) for item in _integers(part)]
    return result


def _values(content: bytes) -> list[bytes | int]:
    return [value for number, value in _fields(content) if number == 1]


def _submessages(content: bytes, wanted: int) -> list[bytes]:
    found = []
    for number, value in _fields(content):
        if number == wanted:
            if not isinstance(value, bytes):
                raise ValueError(f"field {number} is no message")
            found.append(value)
    return found


def _floats(value: bytes | int) -> list[float]:
    """One float or a packed list of them."""
    if isinstance(value, int):
        raise ValueError("an integer among floats")
    if len(value) % 4:
        raise ValueError("a list of floats ends early")
    return list(struct.unpack(f"<{len(value) // 4}f", value))


def _integers(value: bytes | int) -> list[int]:
    """One integer or a packed list of them, signed, 64 bits."""
    if isinstance(value, int):
        return [_signed(value)]
    numbers, position = [], 0
    while position < len(value):
        number, position = _varint(value, position)
        numbers.append(_signed(number))
    return numbers


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _varint(content: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(content) and shift < 70:
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value % 2**64, position
        shift += 7
    raise ValueError("a number ends early or is too long")


def _fields(content: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Number and value of each field of a message: an integer for a varint, else its bytes."""
    position = 0
    while position < len(content):
        tag, position = _varint(content, position)
        kind = tag & 7
        if kind == _VARINT:
            value, position = _varint(content, position)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            length, position = _varint(content, position)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field of the unknown kind {kind}")
        if length > len(content) - position:
            raise ValueError("a field ends early")
        yield tag >> 3, content[position : position + length]
        position += length
