"""The house rules that a machine can hold: imports point one way, packages are silent and safe."""

import ast
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("runtime", "data", "models", "metrics", "report", "quiz")
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).glob("*.py"))
ALL = [*MODULES, *(ROOT / f"{script}.py" for script in SCRIPTS)]


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path):
    """Return the top-level names that a file imports."""
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_packages_import_runtime_and_themselves_only(path):
    own = {path.parent.name, "runtime"}
    assert not imported(path) & ({*PACKAGES, *SCRIPTS} - own)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_import_no_script(script):
    assert not imported(ROOT / f"{script}.py") & set(SCRIPTS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_packages_print_nothing_and_document_what_is_public(path):
    tree = tree_of(path)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not [call for call in calls if getattr(call.func, "id", "") == "print"]
    public = [
        node
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
    ]
    assert not [node.name for node in public if not ast.get_docstring(node)]


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_nothing_is_unpickled_and_no_error_is_swallowed_whole(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names)
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None
            caught = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)}
            assert not caught & {"Exception", "BaseException"}
        if isinstance(node, ast.keyword) and node.arg in ("weights_only", "allow_pickle"):
            assert node.value.value == (node.arg == "weights_only")
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in ("pickle.load", "pickle.loads")


def command_lines():
    """Return the `python3 X.py ...` lines of README and demo, shell variables replaced."""
    found = []
    for name in ("README.md", "demo.sh"):
        text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
        found += re.findall(r"^\s*(python3 \w+\.py[^#\n]*)", text, flags=re.MULTILINE)
    return found


def test_every_command_of_readme_and_demo_is_one_its_script_understands():
    lines = command_lines()
    assert len(lines) > 30
    replaced = {
        "$L": "--config a.json", "$B": "--config a.json", "$V": "--vae --vae_checkpoint a.pt",
        "$real": "a.csv", "$generated": "a.csv", '"$@"': "a.json",
    }  # fmt: skip
    for line in lines:
        for variable, value in replaced.items():
            line = line.replace(f"{variable} ", f"{value} ")
        line = re.sub(r"\s+> \S+ 2>&1 &\s*$", "", line)  # in the background, messages to a file
        line = re.sub(r"\$\{?\w+\}?", "x", line.replace('"$@"', "a.json --config a.json"))
        script, *arguments = shlex.split(line)[1:]
        module = __import__(script.removesuffix(".py"))
        module.build_parser().parse_args(arguments)
