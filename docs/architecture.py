"""Draws docs/architecture.svg from the package's own imports, and says where they leave the layers.

    python docs/architecture.py            # writes the drawing
    python docs/architecture.py --check    # prints each import that the table below does not allow, and each circle

A room is a module or a folder of `rlhf_loop`. An import within a function counts as one at the top does.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "rlhf_loop"


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """Rooms that know as much as one another."""

    name: str
    says: str
    rooms: tuple[str, ...]
    may_import: tuple[str, ...]  # layers, beside its own
    torch: bool = False
    apart: bool = False  # none of its rooms imports another


LAYERS = (
    Layer(
        name="ground",
        says="files, locks, processes, errors: all may use it (no lines are drawn)",
        rooms=(
            "batches", "errors", "files", "machine", "near", "ngrams", "processes", "progress", "resampling",
            "settings",
        ),
        may_import=(),
    ),
    Layer(
        name="words",
        says="what flows, and every setting: all may use them (no lines are drawn)",
        rooms=(
            "algorithms", "annotators", "cluster", "critique_methods", "endpoints", "engines", "lora", "model_checks",
            "recipe", "record_files", "records", "reward_columns", "reward_function", "reward_spec", "reward_values",
            "rows", "strategies", "trainer_fields",
        ),
        may_import=("ground",),
    ),
    Layer(
        name="memory",
        says="the store, and a run's files",
        rooms=("feedback", "kept_recipe", "run_dir", "runs"),
        may_import=("ground", "words"),
    ),
    Layer(
        name="steps",
        says="store and files in, files and store out",
        rooms=("plan", "report", "steps"),
        may_import=("ground", "words", "memory", "stages.arguments"),
    ),
    Layer(
        name="models",
        says="loaded, trained, saved; which tokens they read and write",
        rooms=("models", "tracking"),
        may_import=("ground", "words"),
        torch=True,
    ),
    Layer(
        name="work",
        says="none of these knows another",
        rooms=("evaluation", "generation", "retrieval", "rewards", "updates"),
        may_import=("ground", "words", "models"),
        torch=True,
        apart=True,
    ),
    Layer(
        name="stages",
        says="files in, work, files out",
        rooms=("stages",),
        may_import=("ground", "words", "models", "work", "run_dir"),
        torch=True,
    ),
    Layer(
        name="loop",
        says="the order of a round; stages are started by name",
        rooms=("launch", "loop"),
        may_import=("ground", "words", "memory", "steps", "stages.arguments"),
    ),
    Layer(
        name="doors",
        says="the command line, the service",
        rooms=("cli", "comparison", "copies", "doctor", "policies", "server", "watch"),
        may_import=("ground", "words", "memory", "steps", "loop", "stages.arguments"),
    ),
)  # fmt: skip

EXCEPTIONS = {
    ("launch.inline", "stages"): "the way that runs a stage in this process",
    ("launch.inline", "models"): "gives its memory back",
    ("launch.ranks", "stages"): "the way in which all ranks run a stage",
    ("launch.ranks", "models"): "who this rank is",
    ("cli", "stages"): "`rlhf-loop stage`",
    ("comparison.results", "evaluation"): "who won a comparison, as an evaluation counts (numpy alone)",
    ("updates.rollouts", "generation"): "an online trainer, used by hand too, samples as candidates are written",
    ("plan.hardware", "models"): "as many threads as stages have",
    ("plan.shape", "models"): "where the configuration of a model is",
    ("plan.implied", "models"): "how many tokens a prompt has",
    ("policies", "models"): "`rlhf-loop policy export` merges weights and writes a card",
}
"""A module and the room that it may import beside its layer's, and why."""


def modules() -> dict[str, Path]:
    """Each module of the package, without its name, and its file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts if len(parts) == 1 else [p for p in parts if p != "__init__"])] = path
    return found


def imports(among: Mapping[str, Path], types: bool = True) -> Iterator[tuple[str, str]]:
    """Pairs of a module and one that it imports; without `types` those that it imports to run."""
    for module, path in among.items():
        tree = ast.parse(path.read_text())
        for_types = set() if types else {id(node) for block in _type_blocks(tree) for node in ast.walk(block)}
        for node in ast.walk(tree):
            if id(node) in for_types:
                continue
            if isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                named = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in named:
                target = _module(name, among)
                if target is not None and target != module:
                    yield module, target


def _type_blocks(tree: ast.Module) -> list[ast.stmt]:
    return [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]


def _module(name: str, among: Mapping[str, Path]) -> str | None:
    """The module that `name`, of a module or of something in one, is in."""
    if name.split(".")[0] != "rlhf_loop":
        return None
    parts = name.split(".")[1:]
    while parts and ".".join(parts) not in among:
        parts.pop()
    return ".".join(parts) or "__init__"


def violations(found: Iterable[tuple[str, str]]) -> list[str]:
    """Each import that the table does not allow, in words."""
    layer_of = {room: layer for layer in LAYERS for room in layer.rooms}
    wrong = []
    for importer, imported in sorted(set(found)):
        a, b = importer.split(".")[0], imported.split(".")[0]
        if {a, b} & {"__init__", "__main__"}:  # the names that the package offers, each imported when it is asked for
            continue
        if a not in layer_of or b not in layer_of:
            wrong.append(f"{a if a not in layer_of else b} is in no layer")
        elif a != b:
            of_a, of_b = layer_of[a], layer_of[b]
            same = of_a is of_b and not of_a.apart
            allowed = same or not {of_b.name, b, imported}.isdisjoint(of_a.may_import)
            if not allowed and (importer, b) not in EXCEPTIONS:
                wrong.append(f"{importer} ({of_a.name}) imports {imported} ({of_b.name})")
    return wrong


def circle(found: Iterable[tuple[str, str]], folders: bool = False) -> list[str]:
    """Modules, or folders, that import each other in a ring; empty if there are none.

    A folder and one within it are one room of two parts: the outer puts together what the inner hold."""
    graph: dict[str, set[str]] = {}
    for importer, imported in found:
        a, b = (_folder(importer), _folder(imported)) if folders else (importer, imported)
        if a != b and not (folders and (a.startswith(f"{b}.") or b.startswith(f"{a}."))):
            graph.setdefault(a, set()).add(b)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def _folder(module: str) -> str:
    return module.rpartition(".")[0] or module


def drawing(found: Iterable[tuple[str, str]]) -> str:
    """The rooms by layer, and a line from each to the rooms that it imports, as SVG; none to what all import."""
    rooms = {(a.split(".")[0], b.split(".")[0]) for a, b in found}
    rows = [[layer for layer in LAYERS if layer.name in names] for names in _FLOORS]
    places: dict[str, tuple[float, float, float]] = {}  # centre, top, width
    boxes = []
    for number, layers in enumerate(reversed(rows)):
        top = 14 + number * _FLOOR
        width = (_WIDTH - 20 * (len(layers) + 1)) / len(layers)
        for column, layer in enumerate(layers):
            left = 20 + column * (width + 20)
            boxes.append(
                f'<rect class="layer{" torch" if layer.torch else ""}" x="{left:.0f}" y="{top}" width="{width:.0f}" '
                f'height="{_FLOOR - 34}" rx="8"/><text class="name" x="{left + 10:.0f}" y="{top + 17}">{layer.name}'
                f'<tspan class="says" dx="8">{layer.says}</tspan></text>'
            )
            shown = [room for room in layer.rooms if (PACKAGE / room).exists() or (PACKAGE / f"{room}.py").exists()]
            each = (width - 16 - _LETTER * sum(map(len, shown))) / len(shown)  # beside the room for its name
            x = left + 8
            for room in shown:
                wide = each + _LETTER * len(room)
                places[room] = (x + wide / 2, top + 26, wide - 6)
                x += wide
    lines = []
    used_by_all = {room for layer in LAYERS if layer.name in ("ground", "words") for room in layer.rooms}
    for importer, imported in sorted(rooms):
        if importer in places and imported in places and importer != imported and imported not in used_by_all:
            (x, y, _), (to, below, _) = places[importer], places[imported]
            start, end = (y + 24, below) if below > y else (y + 24, below + 24)
            bend = (start + end) / 2 if below > y else start + 14
            lines.append(f'<path d="M{x:.0f} {start} C{x:.0f} {bend:.0f} {to:.0f} {bend:.0f} {to:.0f} {end}"/>')
    for room, (x, y, width) in places.items():
        boxes.append(
            f'<rect class="room" x="{x - width / 2:.0f}" y="{y}" width="{width:.0f}" height="24" rx="5"/>'
            f'<text class="room" x="{x:.0f}" y="{y + 16}">{room}</text>'
        )
    height = 14 + len(rows) * _FLOOR
    layers, named = [box for box in boxes if "layer" in box], [box for box in boxes if 'class="room"' in box]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
            "<title>The layers of rlhf-loop and what each room imports</title>",
            f"<style>{_STYLE}</style>",
            *layers,
            *lines,
            *named,
            "</svg>",
            "",
        ]
    )


_FLOORS = (("ground",), ("words",), ("memory", "models"), ("steps", "work"), ("loop", "stages"), ("doors",))
_WIDTH, _FLOOR, _LETTER = 1180, 104, 5.5
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 } text.room { text-anchor: middle; font-size: 11px }
text.name { font-weight: 600 } .says { font-weight: 400; fill: #59636e }
rect.layer { fill: #f6f8fa; stroke: #d1d9e0 } rect.torch { fill: #fff8ec; stroke: #e5cf9f }
rect.room { fill: #fff; stroke: #8c959f } path { fill: none; stroke: #0969da; stroke-opacity: .22 }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc } .says { fill: #9198a1 } rect.layer { fill: #151b23; stroke: #3d444d }
rect.torch { fill: #2a2216; stroke: #5c4a22 } rect.room { fill: #0d1117; stroke: #656c76 }
path { stroke: #4493f8; stroke-opacity: .3 } }
"""


def main() -> None:
    """Draws, or checks."""
    found = list(imports(modules()))
    if "--check" not in sys.argv[1:]:
        (ROOT / "docs" / "architecture.svg").write_text(drawing(found))
        return
    wrong, to_run = violations(found), list(imports(modules(), types=False))
    for name, of_folders in (("modules", False), ("folders", True)):
        if ring := circle(to_run, of_folders):
            wrong.append(f"circle of {name}: " + " -> ".join(ring))
    sys.exit("\n".join(wrong) or 0)


if __name__ == "__main__":
    main()
