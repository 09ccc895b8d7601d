"""`python -m viapt`, and with several processes `accelerate launch -m viapt`."""

from __future__ import annotations

from viapt.cli import main

if __name__ == "__main__":
    main()
