"""How labels come about where a release has none: the rules of VTAB (Zhai et al., arXiv 1910.04867, and its code).

Bins are open below: a value on a threshold belongs to the bin under it. Distances are compared in single precision, as
the published labels were.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from viapt.errors import DataError

CLEVR_LEAST, CLEVR_MOST = 3, 10
CLEVR_DEPTHS = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
KITTI_DISTANCES = (-100.0, 8.0, 20.0, 999.0)
KITTI_VEHICLES = ("Car", "Van", "Truck")
NO_VEHICLE = 1000.0
DSPRITES_CLASSES = 16
DSPRITES_POSITIONS, DSPRITES_ORIENTATIONS = 32, 40
NORB_AZIMUTHS, NORB_ELEVATIONS = 18, 9


def clevr_count(objects: int) -> int:
    """Of 3 to 10 objects in a scene: 0 to 7.

    Raises:
        DataError: fewer or more objects.
    """
    if not CLEVR_LEAST <= objects <= CLEVR_MOST:
        raise DataError(f"a scene of {objects} objects", expected=f"{CLEVR_LEAST} to {CLEVR_MOST}")
    return objects - CLEVR_LEAST


def clevr_distance(depths: Sequence[float]) -> int:
    """Of the depths of a scene's objects (third pixel coordinate): the bin, 0 to 5, of the smallest.

    Raises:
        DataError: no objects, or a depth outside (0, 100].
    """
    return _bin(min(depths, default=0.0), CLEVR_DEPTHS)


def kitti_distance(objects: Sequence[tuple[str, float]]) -> int:
    """Of the types and distances in metres (z) of a picture's objects: the bin of the closest vehicle, 3 for none.

    Raises:
        DataError: a vehicle further behind than 100 m.
    """
    return _bin(min([z for kind, z in objects if kind in KITTI_VEHICLES], default=NO_VEHICLE), KITTI_DISTANCES)


def dsprites_label(value: int, values: int) -> int:
    """Of the index of a position (32 values) or orientation (40 values): one of 16 equal groups.

    Raises:
        DataError: the index is out of range.
    """
    if not 0 <= value < values:
        raise DataError(f"the latent index {value}", expected=f"0 to {values - 1}")
    return int(value // (values / DSPRITES_CLASSES))


def norb_azimuth(value: int) -> int:
    """Of an azimuth as the release has it, 0, 2, ..., 34 in units of 10 degrees: 0 to 17.

    Raises:
        DataError: another value.
    """
    if value not in range(0, 2 * NORB_AZIMUTHS, 2):
        raise DataError(f"the azimuth {value}", expected=f"an even number, 0 to {2 * NORB_AZIMUTHS - 2}")
    return value // 2


def norb_elevation(value: int) -> int:
    """Of an elevation as the release has it, 0 to 8 from 30 in steps of 5 degrees: the same.

    Raises:
        DataError: another value.
    """
    if value not in range(NORB_ELEVATIONS):
        raise DataError(f"the elevation {value}", expected=f"0 to {NORB_ELEVATIONS - 1}")
    return value


def _bin(value: float, thresholds: Sequence[float]) -> int:
    """The last threshold below a value; the topmost is no upper bound where values beyond it have a meaning."""
    number = int(np.searchsorted(np.array(thresholds, np.float32), np.float32(value), side="left")) - 1
    if not number >= 0:
        raise DataError(f"the distance {value:g}", expected=f"above {thresholds[0]:g}")
    return number
