"""Does reading images keep up with training? Images a second of each stage, beside those of a training step.

    python benchmarks/input_pipeline.py --json benchmarks/results/input_pipeline.json

JPEGs of the sizes that VTAB's tasks have, resized straight to 224 x 224:

    first pass     a data set is built: decode, hash, resize, keep as 8-bit pixels (once before training)
    from memory    an image of it: normalise to float32 (every epoch, where pixels are kept)
    from disk      an image decoded, resized and normalised anew (every epoch, where they do not fit into memory)

`x training` is the rate beside that of ViaPT on ViT-B/16 in bfloat16, taken from the results of benchmarks/training.py:
the fastest of its batch sizes. The first pass uses a thread for each core; the others one process, without workers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import measure
from viapt.backbones.base import Preprocessing
from viapt.data import ImageDataset, eval_transform, read_source

SIZES = {
    "cifar, svhn (32 x 32)": (32, 32),
    "resisc45 (256 x 256)": (256, 256),
    "caltech101, pets (500 x 375)": (500, 375),
}
TARGET = 3


def write_photos(folder: Path, size: tuple[int, int], count: int) -> None:
    """JPEGs of quality 90 with smooth areas, edges and some noise, in two classes."""
    rng = np.random.default_rng(0)
    for i in range(count):
        place = folder / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (max(2, size[1] // 24), max(2, size[0] // 24), 3), np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), np.float32)
        noisy = np.clip(pixels + rng.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(place / f"{i}.jpg", quality=90)


def stages(folder: Path, count: int, turns: int) -> dict[str, list[float]]:
    source = read_source(folder)
    transform = eval_transform(Preprocessing(image_size=(224, 224), crop_mode="squash"))
    kept = ImageDataset(source, transform)
    fresh = ImageDataset(source, transform, cache_bytes=0)
    assert kept.cached and not fresh.cached

    def fetch(dataset: ImageDataset) -> measure.Step:
        return lambda: [dataset[index] for index in range(count)]

    steps = {
        "first pass": lambda: ImageDataset(source, transform),
        "from memory": fetch(kept),
        "from disk": fetch(fresh),
    }
    return measure.in_turns(steps, turns)


def training_rate(path: Path) -> float:
    """Images a second of ViaPT on ViT-B/16 in bfloat16."""
    results = json.loads(path.read_text())["results"]
    return max(
        row["images_per_second"]
        for result in results
        if (result["backbone"], result["precision"]) == ("vit_base_patch16_224", "bfloat16")
        for row in result["rows"]
        if row["variant"] == "viapt"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--training", type=Path, default=Path(__file__).parent / "results" / "training.json")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    training = training_rate(args.training)
    rows = []
    for name, size in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            write_photos(Path(folder), size, args.images)
            for stage, times in stages(Path(folder), args.images, args.turns).items():
                row = {"variant": stage, "vary": name} | measure.summary(times, args.images)
                rows.append(row | {"x training": row["images_per_second"] / training})
    print(f"\ntraining: {training:.1f} images/s; target: {TARGET} times that")
    measure.table(rows, {"variant": "", "vary": "", "images_per_second": ",.0f", "seconds": ".3f", "x training": ".1f"})
    settings = {"images": args.images, "turns": args.turns, "training_images_per_second": training, "target": TARGET}
    measure.write(args.json, settings, rows=rows)


if __name__ == "__main__":
    main()
