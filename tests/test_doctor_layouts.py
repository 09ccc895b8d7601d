"""The doctor on miniatures of original releases, whole and damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from miniatures import fine_grained, originals, torchvision_forms
from viapt.data.benchmarks.diagnosis import Diagnosis
from viapt.data.benchmarks.doctor import check_tasks
from viapt.data.benchmarks.layouts import layout_named
from viapt.data.benchmarks.registry import TASKS

RELEASES: dict[str, Callable[[Path], object]] = {
    "hta/dtd": torchvision_forms.dtd,
    "vtab-1k/pets": torchvision_forms.pets,
    "hta/cifar10": lambda root: torchvision_forms.cifar_binary(root, False),
    "hta/svhn": torchvision_forms.svhn,
    "fgvc/cub200": fine_grained.cub,
    "vtab-1k/resisc45": originals.resisc45_zip,
    "vtab-1k/smallnorb-azimuth": originals.smallnorb,
}


def check(task: str, root: Path) -> Diagnosis:
    return next(check_tasks([TASKS[task]], root, lambda *_: None))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIAPT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("task", RELEASES)
def test_small_releases_are_counted_and_read(tmp_path: Path, task: str) -> None:
    RELEASES[task](tmp_path)
    found = check(task, tmp_path)
    assert found.state == "partly"  # miniatures have too few images, and nothing else wrong
    assert {remark.kind for remark in found.problems} <= {"count", "classes"}
    parts = layout_named(found.layout).read(tmp_path, TASKS[task])
    assert {part: len(source) for part, source in parts.items()} == {
        part: check.images for part, check in found.parts.items()
    }
    assert all(check.content_hash.startswith("sha256:") for check in found.parts.values())


@pytest.mark.parametrize(
    ("task", "pattern"),
    [
        ("vtab-1k/resisc45", "*.zip"),
        ("hta/cifar10", "**/test_batch.bin"),
        ("hta/svhn", "**/test_32x32.mat"),
        ("vtab-1k/smallnorb-azimuth", "**/*training-dat.mat*"),
    ],
)
def test_truncated_archives_are_named(tmp_path: Path, task: str, pattern: str) -> None:
    RELEASES[task](tmp_path)
    path = next(tmp_path.glob(pattern))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    found = check(task, tmp_path)
    assert found.state == "partly"
    assert any(path.name in remark.text or str(path.parent) in remark.text for remark in found.problems), found
    assert found.next_step
