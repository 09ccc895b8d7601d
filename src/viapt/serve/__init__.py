"""Many tasks on one backbone as a service over HTTP: `viapt serve`. Needs the extra `serve`; see docs/serving.md."""

from __future__ import annotations
