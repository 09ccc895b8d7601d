"""Resisc45, smallNORB, dSprites, KITTI, CLEVR, DMLab and Retinopathy in the formats in which they were published."""

from __future__ import annotations

import gzip
import json
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from miniatures.pictures import encoded, save, text

RESISC = ("airplane", "baseball_diamond", "wetland")
NORB = {
    "train": "smallnorb-5x46789x9x18x6x2x96x96-training",
    "test": "smallnorb-5x01235x9x18x6x2x96x96-testing",
}


def resisc45(root: Path, per_class: int = 10, classes: Sequence[str] = RESISC) -> list[tuple[str, int]]:
    """The folder `NWPU-RESISC45`; returns keys and labels in order of name."""
    rows = [(f"{name}/{name}_{k + 1:03d}.jpg", c) for c, name in enumerate(classes) for k in range(per_class)]
    for which, (key, _) in enumerate(rows):
        save(root / "NWPU-RESISC45" / key, which)
    return rows


def resisc45_zip(root: Path, per_class: int = 10) -> list[tuple[str, int]]:
    """The same in `NWPU-RESISC45.zip`, as another system packs it."""
    rows = [(f"{name}/{name}_{k + 1:03d}.jpg", c) for c, name in enumerate(RESISC) for k in range(per_class)]
    with zipfile.ZipFile(root / "NWPU-RESISC45.zip", "w") as archive:
        archive.mkdir("NWPU-RESISC45")
        for which, (key, _) in reversed(list(enumerate(rows))):
            archive.writestr(f"NWPU-RESISC45/{key}", encoded(which))
            archive.writestr(f"__MACOSX/NWPU-RESISC45/{key}", b"resource fork")
    return rows


def matrix(array: np.ndarray) -> bytes:
    """NORB's binary matrix: magic number, number of dimensions, at least three sizes, elements."""
    magic = {"uint8": 0x1E3D4C55, "int32": 0x1E3D4C54}[str(array.dtype)]
    sizes = [*array.shape, *([1] * (3 - array.ndim))]
    return struct.pack(f"<{2 + len(sizes)}i", magic, array.ndim, *sizes) + array.tobytes()


def smallnorb(root: Path, rows: int = 36, *, packed: bool = False) -> dict[str, dict[str, np.ndarray]]:
    """The six files in `smallnorb`; left images are filled with their number, right ones with 255."""
    folder, content = root / "smallnorb", {}
    folder.mkdir(parents=True)
    for part, stem in NORB.items():
        number = np.arange(rows)
        images = np.full((rows, 2, 96, 96), 255, np.uint8)
        images[:, 0] = number[:, None, None]
        info = np.stack([number % 10, number % 9, 2 * (number % 18), number % 6], 1).astype(np.int32)
        for kind, array in (("dat", images), ("cat", (number % 5).astype(np.int32)), ("info", info)):
            data = matrix(array)
            path = folder / f"{stem}-{kind}.mat"
            if packed:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(data, 1))
            else:
                path.write_bytes(data)
        content[part] = {"info": info}
    return content


class Explosive:
    """What a pickle must never be allowed to do."""

    def __reduce__(self) -> tuple:
        return exec, ("raise SystemExit('unpickled')",)


def dsprites(root: Path, rows: int = 80) -> np.ndarray:
    """The .npz file in `dsprites`, with the pickled `metadata`; image k shows k in binary in its first row."""
    folder = root / "dsprites"
    folder.mkdir(parents=True)
    number = np.arange(rows)
    images = np.zeros((rows, 64, 64), np.uint8)
    images[:, 0, :16] = number[:, None] >> np.arange(16) & 1
    classes = np.stack([0 * number, number % 3, number % 6, number % 40, number % 32, number * 7 % 32], 1)
    np.savez_compressed(
        folder / "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz",
        metadata=np.array(Explosive(), object),
        imgs=images,
        latents_classes=classes.astype(np.int64),
        latents_values=classes.astype(np.float64),
    )
    return classes


KITTI_LINE = "{kind} 0.00 0 -1.57 599.41 156.40 629.75 189.25 2.85 2.63 12.34 0.47 1.49 {z} -1.56"


def kitti(root: Path, objects: list[list[tuple[str, float]]], videos: list[str]) -> None:
    """`kitti/training` and `kitti/mapping`, with the objects and the video of each image."""
    folder = root / "kitti"
    for k, own in enumerate(objects):
        save(folder / f"training/image_2/{k:06d}.png", k)
        text(folder / f"training/label_2/{k:06d}.txt", *(KITTI_LINE.format(kind=kind, z=z) for kind, z in own))
    lines = [f"2011_09_26 {video} {k:010d}" for k, video in enumerate(videos)]
    order = np.random.default_rng(5).permutation(len(lines))  # the images are in another order than the frames
    shuffled = [""] * len(lines)
    for k, place in enumerate(order):
        shuffled[place] = lines[k]
    text(folder / "mapping/train_mapping.txt", *shuffled)
    text(folder / "mapping/train_rand.txt", ", ".join(str(place + 1) for place in order))


def clevr(root: Path, depths: dict[str, list[list[float]]]) -> None:
    """`CLEVR_v1.0`: scenes in another order than the names of the images."""
    folder = root / "CLEVR_v1.0"
    for part, scenes in depths.items():
        described = []
        for k, own in enumerate(scenes):
            name = f"CLEVR_{part}_{k:06d}.png"
            save(folder / "images" / part / name, k)
            objects = [
                {"shape": "cube", "size": "large", "rotation": 1.5, "3d_coords": [0.1, 0.2, 0.7],
                 "pixel_coords": [10 * j, 20, depth], "color": "red", "material": "rubber"}
                for j, depth in enumerate(own)
            ]  # fmt: skip
            described.append(
                {"split": part, "image_index": k, "image_filename": name, "objects": objects,
                 "relationships": {"left": [[1], []]}, "directions": {"left": [0.0, 1.0, 0.0]}}
            )  # fmt: skip
        content = {"info": {"version": "1.0", "split": part, "license": "CC BY 4.0"}, "scenes": described[::-1]}
        path = folder / f"scenes/CLEVR_{part}_scenes.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))


def crc32c(data: bytes) -> int:
    """By polynomial division, to check the reader's."""
    rest = 0xFFFFFFFF
    for byte in data:
        rest ^= int(f"{byte:08b}"[::-1], 2) << 24
        for _ in range(8):
            rest = rest << 1 ^ (0x11EDC6F41 if rest >> 31 else 0)
    return int(f"{rest:032b}"[::-1], 2) ^ 0xFFFFFFFF


def record(content: bytes) -> bytes:
    """A record of a TFRecord file."""

    def masked(data: bytes) -> bytes:
        crc = crc32c(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)

    length = struct.pack("<Q", len(content))
    return length + masked(length) + content + masked(content)


def example(**features: list) -> bytes:
    """A serialised tf.train.Example, written by the protobuf library from its published definition."""
    message = _example_class()()
    for name, values in features.items():
        feature = message.features.feature[name.replace("__", "/")]
        kind = {bytes: "bytes_list", float: "float_list", int: "int64_list"}[type(values[0]) if values else int]
        getattr(feature, kind).value.extend(values)
    return message.SerializeToString(deterministic=True)


def _example_class() -> type:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    pool = descriptor_pool.DescriptorPool()
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tensorflow", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto
    for name, kind in (
        ("BytesList", field.TYPE_BYTES),
        ("FloatList", field.TYPE_FLOAT),
        ("Int64List", field.TYPE_INT64),
    ):
        file.message_type.add(name=name).field.add(name="value", number=1, type=kind, label=field.LABEL_REPEATED)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, kind) in enumerate(
        (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List")), start=1
    ):
        feature.field.add(name=name, number=number, type=field.TYPE_MESSAGE, type_name=f".tensorflow.{kind}",
                          label=field.LABEL_OPTIONAL, oneof_index=0)  # fmt: skip
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=field.TYPE_MESSAGE, type_name=".tensorflow.Feature",
                    label=field.LABEL_OPTIONAL)  # fmt: skip
    features.field.add(name="feature", number=1, type=field.TYPE_MESSAGE, label=field.LABEL_REPEATED,
                       type_name=".tensorflow.Features.FeatureEntry")  # fmt: skip
    file.message_type.add(name="Example").field.add(
        name="features", number=1, type=field.TYPE_MESSAGE, type_name=".tensorflow.Features", label=field.LABEL_OPTIONAL
    )
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


def dmlab(root: Path, rows: int = 12) -> None:
    """TFRecord files in `dmlab`; the training part is in two shards."""
    folder = root / "dmlab"
    folder.mkdir(parents=True)
    for name, shards in (("train", 2), ("validation", 1), ("test", 1)):
        records = [
            record(example(image=[encoded(k)], filename=[f"{name}-{k:03d}.jpg".encode()], label=[k % 6]))
            for k in range(rows)
        ]
        for shard in range(shards):
            suffix = f"-{shard:05d}-of-{shards:05d}" if shards > 1 else ""
            own = records[shard * rows // shards : (shard + 1) * rows // shards]
            (folder / f"dmlab-{name}.tfrecord{suffix}").write_bytes(b"".join(own))


def retinopathy(root: Path, rows: int = 12) -> None:
    """Kaggle's two tables and the photos in `diabetic_retinopathy`."""
    folder = root / "diabetic_retinopathy"
    for k in range(rows):
        save(folder / f"train/{k // 2}_{'left' if k % 2 == 0 else 'right'}.jpeg", k)
        save(folder / f"test/{100 + k}_left.jpeg", k)
    text(
        folder / "trainLabels.csv",
        "image,level",
        *(f"{k // 2}_{'left' if k % 2 == 0 else 'right'},{k % 5}" for k in range(rows)),
    )
    text(
        folder / "retinopathy_solution.csv",
        "image,level,Usage",
        *(f"{100 + k}_left,{k % 5},{'Public' if k % 3 == 0 else 'Private'}" for k in range(rows)),
    )


def tfds_cache(
    root: Path, path: str, version: str, splits: dict[str, list[list[bytes]]], *, file_format: str = "tfrecord"
) -> Path:
    """A version's folder as TensorFlow Datasets writes it: shards of examples by split, and their description."""
    name, folder = path.split("/")[0], root / path / version
    folder.mkdir(parents=True)
    described = []
    for split, shards in splits.items():
        for k, own in enumerate(shards):
            file = folder / f"{name}-{split}.{file_format}-{k:05d}-of-{len(shards):05d}"
            if file_format == "tfrecord":
                file.write_bytes(b"".join(map(record, own)))
            else:
                from array_record.python.array_record_module import ArrayRecordWriter

                writer = ArrayRecordWriter(str(file), "group_size:1")
                for content in own:
                    writer.write(content)
                writer.close()
        described.append(
            {
                "name": split,
                "numBytes": str(sum(len(content) for own in shards for content in own)),
                "shardLengths": [str(len(own)) for own in shards],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        )
    info = {"name": name, "version": version, "fileFormat": file_format, "splits": described}
    if "/" in path:
        info["configName"] = path.split("/")[1]
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2))
    return folder
