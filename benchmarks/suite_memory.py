"""How much memory a task of VTAB-1k takes from its files to its number: the most that any process held.

    python benchmarks/suite_memory.py --json benchmarks/results/suite_memory.json

Writes synthetic tasks of full size in the formats of their publishers, and runs `viapt bench --suite vtab-1k` on each:
listing, decoding of the 1,000 training images, one epoch, and the whole test part. The backbone is so small that it
takes no memory to speak of: what is measured is Python, torch and the data. "libraries" is a process that only loads
the former two and creates the model.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import timm
from PIL import Image
from scipy.io import savemat

import measure
from viapt.data.benchmarks import find_task

ROWS = 4096  # that are written at once
MODEL: dict[str, Any] = {"img_size": 224, "patch_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 3}
SETTINGS = {"batch": 64, "image_size": 224, "epochs": 1, "backbone": MODEL}
LISTS = {"train": "train800.txt", "val": "val200.txt", "test": "test.txt"}


def dsprites(root: Path) -> None:
    """737,280 images of 64 x 64, 3 GB unpacked."""
    count = 737_280
    number = np.arange(count)
    latents = np.stack([0 * number, number % 3, number % 6, number % 40, number % 32, number % 32], 1)
    blocks = np.zeros((ROWS, 64, 64), np.uint8)
    blocks[:, 20:30, 20:30] = 1
    (root / "dsprites").mkdir()
    path = root / "dsprites/dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("imgs.npy", "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, 64, 64)}
            np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
            for _ in range(count // ROWS):
                file.write(blocks.tobytes())
        with archive.open("latents_classes.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, latents)  # type: ignore[arg-type]


def smallnorb(root: Path) -> None:
    """Twice 24,300 pairs of 96 x 96, 448 MB each."""
    folder, count = root / "smallnorb", 24_300
    folder.mkdir()
    number = np.arange(count, dtype=np.int32)
    info = np.stack([number % 10, number % 9, 2 * (number % 18), number % 6], 1).astype(np.int32)
    pair = np.random.default_rng(0).integers(0, 256, 2 * 96 * 96, np.uint8).tobytes()
    for stem in ("5x46789x9x18x6x2x96x96-training", "5x01235x9x18x6x2x96x96-testing"):
        with (folder / f"smallnorb-{stem}-dat.mat").open("wb") as file:
            file.write(struct.pack("<6i", 0x1E3D4C55, 4, count, 2, 96, 96))
            for _ in range(count):
                file.write(pair)
        for kind, array in (("cat", number % 5), ("info", info)):
            sizes = [*array.shape, *[1] * (3 - array.ndim)]
            head = struct.pack(f"<{2 + len(sizes)}i", 0x1E3D4C54, array.ndim, *sizes)
            (folder / f"smallnorb-{stem}-{kind}.mat").write_bytes(head + array.tobytes())


def svhn(root: Path) -> None:
    """73,257 and 26,032 images of 32 x 32 in MATLAB's files."""
    (root / "svhn").mkdir()
    for part, count in (("train", 73_257), ("test", 26_032)):
        images = np.broadcast_to(np.arange(count, dtype=np.uint8), (32, 32, 3, count))
        labels = np.arange(count, dtype=np.uint8)[:, None] % 10 + 1
        savemat(root / f"svhn/{part}_32x32.mat", {"X": images, "y": labels}, do_compression=True)


def cifar100(root: Path) -> None:
    """50,000 and 10,000 images of 32 x 32 in the binary version."""
    folder = root / "cifar-100-binary"
    folder.mkdir()
    (folder / "fine_label_names.txt").write_text("".join(f"class {number}\n" for number in range(100)))
    for part, count in (("train", 50_000), ("test", 10_000)):
        records = np.random.default_rng(0).integers(0, 256, (count, 3074), np.uint8)
        records[:, 1] = np.arange(count) % 100
        records.tofile(folder / f"{part}.bin")


def photos(root: Path) -> None:
    """The community's folder of DTD: 2,880 JPEGs of 640 x 640."""
    task, folder, rng = find_task("vtab-1k/dtd"), root / "dtd", np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    for part, file in LISTS.items():
        lines = []
        for i in range(task.counts[part]):
            small = Image.fromarray(rng.integers(0, 256, (80, 80, 3), np.uint8))
            small.resize((640, 640), Image.Resampling.BICUBIC).save(folder / f"images/{part}{i}.jpg")
            lines.append(f"images/{part}{i}.jpg {i % task.classes}\n")
        (folder / file).write_text("".join(lines))


TASKS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "dtd": ("community folder, JPEGs of 640 x 640", photos),
    "cifar100": ("binary version", cifar100),
    "svhn": ("MATLAB files", svhn),
    "smallnorb-azimuth": ("matrix files, 2 x 448 MB", smallnorb),
    "dsprites-location": ("npz, 3 GB unpacked", dsprites),
}


def write_backbone(folder: Path) -> str:
    """What `--backbone` takes for a ViT of depth 1 with random weights."""
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, **MODEL)
    safetensors.torch.save_file(vit.state_dict(), folder / "model.safetensors")
    pixels = {"input_size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    config = {"architecture": "vit_tiny_patch16_224", "num_features": 24, "model_args": MODEL, "num_classes": 0}
    config |= {"pretrained_cfg": pixels | {"crop_pct": 1.0, "num_classes": 0}}
    (folder / "config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}"


CREATE = "import sys, viapt; viapt.create_model(sys.argv[1], method='linear', classes=10)"
MEASURED = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.stderr if done.returncode else 0)
"""


def peak_mib(command: list[str], cache: Path) -> float:
    """The most that a process of a command, or of its children, held."""
    whole = [sys.executable, "-c", MEASURED, sys.executable, *command]
    done = subprocess.run(whole, capture_output=True, text=True, env=os.environ | {"VIAPT_CACHE": str(cache)})
    if done.returncode:
        sys.exit(done.stderr)
    return int(done.stdout) / (2**20 if sys.platform == "darwin" else 2**10)


def job(task: str, root: Path, out: Path, backbone: str) -> list[str]:
    """The command for one training with the whole test part."""
    command = f"-m viapt bench --suite vtab-1k --tasks {task} --root {root} --out {out} --backbone {backbone}"
    return f"{command} --methods linear --trials 0 --seeds 42 --epochs 1 --precision float32 --threads 1".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "vit").mkdir()
        backbone = write_backbone(folder / "vit")
        alone = peak_mib(["-c", CREATE, backbone], folder / "cache")
        rows.append({"variant": "libraries", "layout": "", "test images": 0, "peak MiB": alone, "seconds": 0.0})
        for task in args.tasks:
            layout, write = TASKS[task]
            root = folder / task
            root.mkdir()
            write(root)
            started = time.perf_counter()
            peak = peak_mib(job(task, root, folder / f"{task}-out", backbone), folder / "cache")
            count = find_task(f"vtab-1k/{task}").counts["test"]
            seconds = time.perf_counter() - started
            rows.append({"variant": task, "layout": layout, "test images": count, "peak MiB": peak, "seconds": seconds})
            measure.write(args.json, SETTINGS, rows=rows)  # a later task may take long
    measure.table(rows, {"variant": "", "layout": "", "test images": ",", "peak MiB": ",.0f", "seconds": ".0f"})


if __name__ == "__main__":
    main()
