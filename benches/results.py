"""What every bench does with its figures: a JSON file, and the rows that fall short."""

import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def write(content: Mapping[str, Any], *, prefix: str = "", root: Path = ROOT) -> Path:
    """Write bench-results/PREFIX-TIME.json, the machine beside the content; its path."""
    target = root / "bench-results"
    target.mkdir(exist_ok=True)
    path = target / f"{prefix}{time.strftime('%Y%m%d-%H%M%S')}.json"
    machine = {
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
    path.write_text(json.dumps({"machine": machine, **content}, indent=2) + "\n", encoding="utf-8")
    return path


def short_ratios(ratios: Mapping[str, float], wanted: Mapping[str, float]) -> list[str]:
    """A line for each row whose median is below the ratio wanted; a row without one cannot be."""
    return [
        f"{name}: ratio {ratio:.2f} of {wanted[name]:.1f}"
        for name, ratio in ratios.items()
        if ratio < wanted.get(name, 0.0)
    ]
