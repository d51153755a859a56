"""Write requirements.lock: the closure of pyproject's dependencies at the versions in this venv.

Run with the venv whose versions are wanted: `.venv/bin/python scripts/lock.py > requirements.lock`.
Registry hosts are left out on purpose: pip's own configuration says where packages come from.
"""

import tomllib
from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def closure(roots: list[str]) -> dict[str, str]:
    """Each needed distribution's name with its installed version; PackageNotFoundError when one is absent."""
    found: dict[str, str] = {}
    todo = [Requirement(root) for root in roots]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in found:
            continue
        found[name] = version(requirement.name)
        extras = [*requirement.extras, ""]
        for text in requires(requirement.name) or []:
            below = Requirement(text)
            if below.marker is None or any(below.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(below)
    return found


def main() -> None:
    """Print the lock file."""
    path = Path(__file__).resolve().parent.parent / "pyproject.toml"
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    roots = [*project["dependencies"], *project["optional-dependencies"]["dev"], "setuptools"]
    print("# Every dependency at its exact version, dev ones included. Written by scripts/lock.py.")
    for name, number in sorted(closure(roots).items()):
        print(f"{name}=={number}")


if __name__ == "__main__":
    main()
