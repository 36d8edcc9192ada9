"""Who imports whom, as rooms: ``python tests/imports.py [ROOT]`` prints the arrows, the circles and the floors.

It reads any checkout of the project, an old one too. A room is a folder of ``stages/`` with everything in it, all of
``cache``, or a single module beside them. Imports inside functions count; imports for the type checker alone do not.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

Graph = dict[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """The project's modules by their dotted names, such as ``stages.heads.head``."""
    paths = [*root.glob("*.py"), *root.glob("cache/**/*.py"), *root.glob("stages/**/*.py")]
    return {".".join(path.relative_to(root).with_suffix("").parts): path for path in sorted(paths)}


def imported(name: str, path: Path) -> Iterator[str]:
    """Every module that a module imports, by its absolute name; those of the project without the project's own name.

    ``from . import x`` gives ``x``'s name, whether that is a module or not.
    """
    package = name.split(".")[:-1]  # of a module as of a package's __init__
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *([node.module] if node.module else [])]
            yield ".".join(module)
            yield from (".".join([*module, alias.name]) for alias in node.names)


def module_graph(root: Path) -> Graph:
    """Each module's imports of other modules of the project."""
    known = modules(root)
    return {name: {other for other in imported(name, path) if other in known} - {name} for name, path in known.items()}


def room(name: str) -> str:
    """The room that a module lies in."""
    parts = name.split(".")
    return parts[0] if parts[0] != "stages" or len(parts) == 1 else ".".join(parts[:2])


def room_graph(graph: Mapping[str, set[str]]) -> Graph:
    """The same between rooms."""
    rooms: Graph = {}
    for name, others in graph.items():
        rooms.setdefault(room(name), set()).update({room(other) for other in others} - {room(name)})
    return rooms


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The groups of two or more that import each other, directly or not."""
    reach = {name: _reachable(graph, name) for name in graph}
    groups = {frozenset({other for other in reach[name] if name in reach[other]} | {name}) for name in graph}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def floors(graph: Mapping[str, set[str]]) -> int:
    """The length of the longest way down, from importer to imported; a circle counts as one floor."""
    group = {name: min(ring) for ring in circles(graph) for name in ring}
    below: Graph = {}
    for name, others in graph.items():
        own = group.get(name, name)
        below.setdefault(own, set()).update({group.get(other, other) for other in others} - {own})
    heights: dict[str, int] = {}

    def height(name: str) -> int:
        if name not in heights:
            heights[name] = 1 + max(map(height, below[name]), default=0)
        return heights[name]

    return max(map(height, below))


def _reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += graph[name]
    return found


def main(root: Path) -> None:
    """Print what there is to know of a checkout."""
    graph = module_graph(root)
    direct = sum(1 for path in (root / "stages").glob("*.py") if path.stem != "__init__")
    lines = sum(
        len(p.read_text(encoding="utf-8").splitlines())
        for n, p in modules(root).items()
        if n.split(".")[0] in ("stages", "cli", "options")
    )
    print(f"modules directly in stages/: {direct}; lines in stages/ and cli.py: {lines:,}")
    for what, one in (("modules", graph), ("rooms", room_graph(graph))):
        arrows = sum(map(len, one.values()))
        print(f"{what}: {len(one)}, {arrows} arrows, {len(circles(one))} circles, {floors(one)} floors")
        for ring in circles(one):
            print(f"  circle: {', '.join(ring)}")
    for name, others in sorted(room_graph(graph).items()):
        print(f"  {name} -> {', '.join(sorted(others)) or 'nothing'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent))
