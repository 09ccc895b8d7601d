"""CLEVR v1.0: `images/{train,val}` and `scenes/CLEVR_{train,val}_scenes.json`, from which both tasks' labels come.

The scenes of 70,000 images are a long file; what the labels need is kept while it is parsed, all else is dropped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viapt.data.benchmarks.labels import clevr_count, clevr_distance
from viapt.data.benchmarks.layouts import Finding, Parts, Release
from viapt.data.benchmarks.listed import below, by_part, missing_in, read_text
from viapt.data.sources import Item
from viapt.errors import DataError

if TYPE_CHECKING:
    from viapt.data.benchmarks.registry import BenchmarkTask

SCENES = "scenes/CLEVR_{}_scenes.json"
PARTS = ("train", "val")
MAX_SCENES_BYTES = 2**30

Scene = tuple[str, list[float]]
"""The name of an image, and the depth of each of its objects."""


class Clevr(Release):
    """The folder `CLEVR_v1.0` of the publisher's archive."""

    name = "clevr"

    def look(self, root: Path, task: BenchmarkTask) -> Finding:
        names = [name for part in PARTS for name in (f"images/{part}", SCENES.format(part))]
        return self.nearest(root, task, lambda folder: missing_in(folder, names))

    def official(self, folder: Path, task: BenchmarkTask) -> Parts:
        counting = task.name.endswith("count")
        items = []
        for part in PARTS:
            path = folder / SCENES.format(part)
            for name, depths in sorted(read_scenes(path)):
                key, image = below(folder / "images" / part, name, path)
                label = clevr_count(len(depths)) if counting else clevr_distance(depths)
                items.append(Item(f"{part}/{key}", label, part, image))
        classes = tuple(str(number) for number in range(task.classes))
        return by_part(items, classes, folder / "images", f"{task.title}, original release")


def read_scenes(path: Path) -> list[Scene]:
    """All scenes of a file, in its order.

    Raises:
        DataError: missing, truncated, or not of this form.
    """
    text = read_text(path, MAX_SCENES_BYTES)
    try:
        scenes = json.loads(text, object_hook=_reduced)["scenes"]
        if not isinstance(scenes, list) or not all(isinstance(scene, tuple) for scene in scenes):
            raise TypeError("scenes without image_filename and objects")
        if len({name for name, _ in scenes}) < len(scenes):
            raise ValueError("two scenes of one image")
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged or truncated ({type(error).__name__}: {error})",
            expected='{"scenes": [{"image_filename": ..., "objects": [{"pixel_coords": [x, y, depth]}]}]}',
            remedy="extract it again",
        ) from error
    return scenes


def _reduced(content: dict[str, Any]) -> Any:
    """Of an object its depth, of a scene its name and its objects' depths, of all else nothing."""
    if "pixel_coords" in content:
        return float(content["pixel_coords"][2])
    if "image_filename" in content:
        return str(content["image_filename"]), [float(depth) for depth in content["objects"]]
    return {"scenes": content["scenes"]} if "scenes" in content else None
