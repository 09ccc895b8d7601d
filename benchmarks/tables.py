"""Results as the Markdown tables of docs/performance.md: python benchmarks/tables.py RESULTS.json ..."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FORMATS = {
    "variant": "",
    "vary": "",
    "value": "",
    "method": "",
    "batch": "",
    "task": "",
    "seed": "",
    "initial_std": "",
    "images": "",
    "passes": ".2f",
    "changed": "",
    "changed by mean": "",
    "accuracy, mean": ".3f",
    "accuracy, all rounds": ".3f",
    "accuracy, adaptive": ".3f",
    "images_per_second": ".1f",
    "seconds": ".3f",
    "fastest": ".3f",
    "slowest": ".3f",
    "x floor": ".2f",
    "x vpt-deep plain": ".2f",
    "x default": ".2f",
    "x vpt-deep": ".3f",
    "x bare": ".3f",
    "allowed": ".3f",
    "share": ".2%",
    "refresh": ".3%",
    "peak_memory_mib": ",.0f",
}


def markdown(rows: list[dict[str, Any]]) -> str:
    names = [name for name in FORMATS if any(name in row for row in rows)]
    lines = [names, [":--" if FORMATS[name] == "" else "--:" for name in names]]
    lines += [[f"{row[name]:{FORMATS[name]}}" if name in row else "" for name in names] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    for path in map(Path, sys.argv[1:]):
        found = json.loads(path.read_text())
        print(f"\n`{path}`: {json.dumps(found['settings'])}; {json.dumps(found['machine'])}\n")
        for result in found.get("results", [found]):
            if "share_of_matmul" in result:
                print(
                    f"\n{result['backbone']}, {result['precision']}, batch {result['batch']}: "
                    f"{result['step_gflop']:.0f} GFLOP a step of viapt, {result['step_gflops']:.0f} GFLOP/s, "
                    f"{result['share_of_matmul']:.0%} of the best matrix product ({result['matmul_gflops']:.0f})\n"
                )
            print(markdown(result["rows"]))


if __name__ == "__main__":
    main()
