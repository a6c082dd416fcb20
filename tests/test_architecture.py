"""The shape of the code, checked: who may import whom, who may do what, and how big things may get.

Each rule is a function from modules (name below `histfs` -> syntax tree) to a list of sentences, one a violation. Each
rule is tested twice: the package keeps it, and planted violations are noticed. Only the standard library is needed;
`make check` looks at the layers once more with import-linter.
"""

import ast
import builtins
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "histfs"
MAX_FILE_LINES, MAX_FUNCTION_LINES = 450, 60

# From the top; imports point down, modules on one line do not know each other.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"mount", "remote"},
    {"fs"},
    {"_fs_answers", "_fs_flights", "_fs_listing", "_fs_open_files", "_fs_read_ahead"},
    {"_fs_ahead"},
    {"fuse"},
    {"vfs"},
    {"_vfs_tree"},
    {"_vfs_rights"},
    {"store"},
    {"rsync"},
    {"_rsync_reading", "_rsync_small"},
    {"_rsync_maps"},
    {"_rsync_codec"},
    {"_rsync_files"},
    {"_rsync_types"},
    {"errors"},
]
# The same inside of the store; here modules on one line may know each other (in a circle for types only), except for
# the operations.
OPERATIONS = {
    "backup",
    "explain",
    "restore",
    "compare",
    "verify",
    "verify_all",
    "repair",
    "remove",
    "regress",
    "prune",
    "status",
    "usable",
    "calculate",
    "inventory",
}
STORE_LAYERS = [
    OPERATIONS,
    {
        "begun",
        "clearing",
        "dress",
        "emptying",
        "groups",
        "held",
        "increments",
        "kept_progress",
        "long_names",
        "mirror",
        "moved",
        "naming",
        "ordered",
        "reach",
        "rebuilding",
        "records",
        "recovery",
        "repairing",
        "steps",
        "sweep",
        "target",
        "target_place",
        "touched",
        "undoing",
        "writing",
    },
    {"read_ahead", "recorded", "repository", "snapshot", "extras", "listing", "versions", "content", "catalog"},
    {
        "accounts",
        "aside",
        "barrier",
        "batch",
        "cloned",
        "compression",
        "copying",
        "delta",
        "direct",
        "files",
        "growing",
        "layout",
        "ledger",
        "lock",
        "logs",
        "look",
        "mounts",
        "source",
        "special",
        "strangers",
        "sums",
        "tree",
        "unfinished",
        "unreadable",
        "walk",
        "xattrs",
    },
    {"owners", "plan", "rights", "selection", "when", "format"},
    {"entry"},
]
BUILD_SCRIPTS = {"_fuse_build", "_rsync_build", "_tree_build"}  # not part of the running program
PURE = {
    "store.format",
    "store.entry",
    "store.owners",
    "store.plan",
    "store.rights",
    "store.selection",
    "store.when",
    "remote.protocol",
}
IMPURE = re.compile(
    "asyncio|cffi|gzip|io|isal|logging|os|pathlib|pyfuse3|random|select|shutil|signal|socket|sqlite3|subprocess|sys|tempfile"
    "|threading|time|trio|zlib"
)
EDGE_ONLY = {"trio", "pyfuse3", "argparse"}  # not for what lies below the mount
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "common", "misc", "constants", "types", "base"}
MAY_CATCH_EVERYTHING = {"_fs_answers", "mount", "cli"}
PARTS_OF_RSYNC = {
    "rsync",
    "_rsync_codec",
    "_rsync_files",
    "_rsync_maps",
    "_rsync_reading",
    "_rsync_small",
    "_rsync_types",
}
MAY_USE_C = {"rsync", "_rsync_maps", "_rsync_reading", "_rsync_small"}
MAY_CHANGE_THE_DISK = {"store.files", "store.xattrs", "store.lock"}  # the lock: its own text, in the lock file
OWN_EXCEPTIONS = {
    "rsync",
    "_rsync_types",
    "store.tree",
}  # librsync's results; the system's errors, which the store translates
CHANGES_TO_THE_DISK = re.compile(
    r"os\.([fl]?chown|[fl]?chmod|f?(data)?sync|f?truncate|link|makedirs|mkdir|mkfifo|mknod|remove(dirs|xattr)?"
    r"|renames?|replace|rmdir|setxattr|symlink|unlink|utime)|shutil\..*"
)

Modules = dict[str, ast.Module]
Rule = Callable[[Modules], list[str]]


def read_modules() -> Modules:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text())
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "__init__.py"
    }


MODULES = read_modules()


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of what is imported, also in functions and for types only: `from a import b` is "a.b"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ("." * node.level + f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(module: str, modules: Modules, *, types_only: bool = True) -> Iterator[str]:
    """The modules of `modules` that `module` imports, by the names used there; perhaps without `if TYPE_CHECKING:`."""
    blocks = [
        node
        for node in modules[module].body
        if types_only or not (isinstance(node, ast.If) and dotted(node.test).endswith("TYPE_CHECKING"))
    ]
    for name in (name for block in blocks for name in imports(block)):
        head, _, rest = name.partition(".")
        if head != "histfs":
            continue
        while rest and rest not in modules:
            rest = rest.rpartition(".")[0]
        if rest and rest != module:
            yield rest


def is_in(module: str, names: set[str]) -> bool:
    """Whether `module` is one of `names` or lies in one of these packages."""
    return any(module == name or module.startswith(name + ".") for name in names)


def rank(name: str, layers: list[set[str]]) -> int:
    return next((number for number, names in enumerate(layers) if name in names), -1)


def dotted(node: ast.expr) -> str:
    """`a.b.c` as written; "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (value := dotted(node.value)):
        return f"{value}.{node.attr}"
    return ""


# --- the rules ---------------------------------------------------------------------------------------------------


def every_module_has_a_layer(modules: Modules) -> list[str]:
    tops = {module.split(".")[0] for module in modules} - BUILD_SCRIPTS
    below = {module.split(".")[1] for module in modules if module.startswith("store.")}
    return [
        *(f"histfs.{name}: give it a line in LAYERS" for name in tops if rank(name, LAYERS) < 0),
        *(f"histfs.store.{name}: give it a line in STORE_LAYERS" for name in below if rank(name, STORE_LAYERS) < 0),
    ]


def imports_are_absolute(modules: Modules) -> list[str]:
    return [f"{module} imports {name}" for module in modules for name in imports(modules[module]) if name[0] == "."]


def imports_point_down(modules: Modules) -> list[str]:
    return [
        f"{module} imports {other}"
        for module in modules
        for other in own_imports(module, modules)
        if not may_import(module.split("."), other.split("."))
    ]


def may_import(own: list[str], other: list[str]) -> bool:
    if own[0] != other[0]:
        return rank(own[0], LAYERS) < rank(other[0], LAYERS)
    if own[0] != "store" or len(own) == 1 or len(other) == 1 or own[1] == other[1]:
        return True
    upper, lower = rank(own[1], STORE_LAYERS), rank(other[1], STORE_LAYERS)
    return upper < lower or (upper == lower and own[1] not in OPERATIONS)


def no_import_circles(modules: Modules) -> list[str]:
    uses = {module: set(own_imports(module, modules, types_only=False)) for module in modules}
    while ends := [m for m in uses if not uses[m] & uses.keys() or not any(m in used for used in uses.values())]:
        for module in ends:
            del uses[module]
    return [f"{module} is part of a circle, or between two" for module in uses]


def pure_modules_are_pure(modules: Modules) -> list[str]:
    found = []
    for module in filter(lambda module: is_in(module, PURE), modules):
        found += [
            f"{module} imports {name}" for name in imports(modules[module]) if IMPURE.fullmatch(name.split(".")[0])
        ]
        found += [
            f"{module} imports {other}" for other in own_imports(module, modules) if not is_in(other, PURE | {"errors"})
        ]
        found += [
            f"{module}:{node.lineno} opens a file"
            for node in ast.walk(modules[module])
            if isinstance(node, ast.Call) and dotted(node.func) == "open"
        ]
    return found


def fuse_and_trio_stay_at_the_edge(modules: Modules) -> list[str]:
    return [
        f"{module} imports {name}"
        for module in modules
        if is_in(module, {"store", "vfs", "errors"} | PARTS_OF_RSYNC)
        for name in imports(modules[module])
        if name.split(".")[0] in EDGE_ONLY
    ]


def only_rsync_uses_the_compiled_module(modules: Modules) -> list[str]:
    return [
        f"{module} imports {name}"
        for module in modules
        for name in imports(modules[module])
        if (name.split(".")[:2] == ["histfs", "_rsync"] and module not in MAY_USE_C)
        or (name.startswith("histfs._rsync_") and module not in PARTS_OF_RSYNC)
    ]


def only_output_prints(modules: Modules) -> list[str]:
    return [
        f"{module}:{node.lineno} prints"
        for module in modules
        if module != "cli.output"
        for node in ast.walk(modules[module])
        if (isinstance(node, ast.Call) and dotted(node.func) == "print")
        or (isinstance(node, ast.Attribute) and dotted(node) in ("sys.stdout", "sys.stderr"))
    ]


def only_files_changes_the_disk(modules: Modules) -> list[str]:
    return [
        f"{module}:{node.lineno} calls {dotted(node)}"
        for module in modules
        if module.startswith("store.") and module not in MAY_CHANGE_THE_DISK
        for node in ast.walk(modules[module])
        if isinstance(node, ast.Attribute) and CHANGES_TO_THE_DISK.fullmatch(dotted(node))
    ]


def few_may_catch_everything(modules: Modules) -> list[str]:
    found = []
    for module in modules:
        for node in ast.walk(modules[module]):
            if not isinstance(node, ast.ExceptHandler):
                continue
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            catches_all = {dotted(kind) for kind in kinds if kind} & {"Exception", "BaseException"}
            goes_on = not (isinstance(last := node.body[-1], ast.Raise) and last.exc is None)  # else it only tidies up
            if None in kinds or (catches_all and goes_on and module not in MAY_CATCH_EVERYTHING):
                found.append(f"{module}:{node.lineno} catches everything")
    return found


def exceptions_derive_from_ours(modules: Modules) -> list[str]:
    return [
        f"{module}:{node.lineno} {node.name} does not derive from HistfsError"
        for module in modules
        if module not in OWN_EXCEPTIONS
        for node in ast.walk(modules[module])
        if isinstance(node, ast.ClassDef) and node.name != "HistfsError" and not node.name.startswith("_")
        for base in node.bases
        if isinstance(kind := getattr(builtins, dotted(base), None), type) and issubclass(kind, BaseException)
    ]


def the_store_is_synchronous(modules: Modules) -> list[str]:
    return [
        f"{module}:{node.lineno} is asynchronous"
        for module in modules
        if is_in(module, {"store"} | PARTS_OF_RSYNC)
        for node in ast.walk(modules[module])
        if isinstance(node, ast.AsyncFunctionDef)
    ]


def no_global_state(modules: Modules) -> list[str]:
    return [
        f"{module}:{node.lineno} changes the module's {', '.join(node.names)}"
        for module in modules
        for node in ast.walk(modules[module])
        if isinstance(node, ast.Global)
    ]


def names_say_something(modules: Modules) -> list[str]:
    return [f"{module} says nothing" for module in modules if set(module.split(".")) & NAMES_THAT_SAY_NOTHING]


def every_module_has_a_docstring(modules: Modules) -> list[str]:
    return [f"{module} has no docstring" for module in modules if not ast.get_docstring(modules[module])]


def files_are_short(modules: Modules) -> list[str]:
    lengths = {module: max((node.end_lineno or 0 for node in modules[module].body), default=0) for module in modules}
    return [f"{module} has {lines} lines" for module, lines in lengths.items() if lines > MAX_FILE_LINES]


def functions_are_short(modules: Modules) -> list[str]:
    found = []
    for module in modules:
        for node in ast.walk(modules[module]):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0]
                docstring = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(node) else 0
                lines = (node.end_lineno or 0) - node.lineno + 1 - docstring
                if lines > MAX_FUNCTION_LINES:
                    found.append(f"{module}.{node.name} has {lines} lines")
    return found


VIOLATIONS: list[tuple[Rule, dict[str, str]]] = [
    (every_module_has_a_layer, {"newcomer": ""}),
    (every_module_has_a_layer, {"store.newcomer": ""}),
    (imports_are_absolute, {"store.layout": "from . import entry"}),
    (imports_are_absolute, {"cli": "from .output import show"}),
    (imports_point_down, {"errors": "from histfs.store.entry import Entry", "store.entry": ""}),
    (imports_point_down, {"mount": "import histfs.remote.client", "remote.client": ""}),
    (imports_point_down, {"store.backup": "def f():\n    from histfs.store import regress", "store.regress": ""}),
    (imports_point_down, {"store.layout": "import histfs.store.snapshot as s", "store.snapshot": ""}),
    (no_import_circles, {"store.tree": "import histfs.store.files", "store.files": "import histfs.store.tree"}),
    (pure_modules_are_pure, {"store.plan": "import os.path"}),
    (pure_modules_are_pure, {"store.format.times": "from time import time"}),
    (pure_modules_are_pure, {"store.when": "from histfs.store.files import write", "store.files": ""}),
    (pure_modules_are_pure, {"store.entry": "text = open('x').read()"}),
    (fuse_and_trio_stay_at_the_edge, {"vfs": "import pyfuse3"}),
    (fuse_and_trio_stay_at_the_edge, {"store.lock": "from trio import sleep"}),
    (only_rsync_uses_the_compiled_module, {"vfs": "from histfs._rsync import lib"}),
    (only_rsync_uses_the_compiled_module, {"fs": "from histfs import _rsync"}),
    (only_rsync_uses_the_compiled_module, {"store.plan": "from histfs._rsync_types import Magic"}),
    (only_output_prints, {"cli": "print('hello')"}),
    (only_output_prints, {"mount": "import sys\nsys.stderr.write('hello')"}),
    (only_files_changes_the_disk, {"store.source": "import os\nos.unlink('x')"}),
    (only_files_changes_the_disk, {"store.restore": "import os\nf(os.lchown)"}),
    (few_may_catch_everything, {"vfs": "try:\n    f()\nexcept (ValueError, Exception):\n    g()"}),
    (few_may_catch_everything, {"vfs": "try:\n    f()\nexcept Exception as exc:\n    raise ValueError from exc"}),
    (few_may_catch_everything, {"fs": "try:\n    f()\nexcept:\n    g()"}),
    (exceptions_derive_from_ours, {"vfs": "class Trouble(Exception): ..."}),
    (exceptions_derive_from_ours, {"fs": "class Gone(OSError): ..."}),
    (the_store_is_synchronous, {"store.lock": "async def f(): ..."}),
    (no_global_state, {"vfs": "def f():\n    global x\n    x = 1"}),
    (names_say_something, {"store.utils": ""}),
    (every_module_has_a_docstring, {"vfs": "x = 1"}),
    (files_are_short, {"vfs": "x = 1\n" * (MAX_FILE_LINES + 1)}),
    (functions_are_short, {"vfs": "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES}),
    (functions_are_short, {"vfs": "async def f():\n    'One.'\n" + "    x = 1\n" * MAX_FUNCTION_LINES}),
]
RULES = list(dict.fromkeys(rule for rule, _ in VIOLATIONS))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: Rule) -> None:
    assert rule(MODULES) == []


@pytest.mark.parametrize(("rule", "planted"), VIOLATIONS, ids=[f"{r.__name__}-{next(iter(p))}" for r, p in VIOLATIONS])
def test_a_violation_is_noticed(rule: Rule, planted: dict[str, str]) -> None:
    assert rule({module: ast.parse(text) for module, text in planted.items()})


def test_the_package_was_found() -> None:
    assert {"errors", "store", "store.entry"} <= MODULES.keys()


@pytest.mark.parametrize("place", ["fs.py", "_rsync_build.py", "store/__init__.py", "../tests", "../contrib"])
def test_what_everybody_looks_for_is_in_its_place(place: str) -> None:
    assert (PACKAGE / place).exists()
