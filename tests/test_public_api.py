"""The public names: listed, documented, loaded on first use."""

import importlib
import inspect
import subprocess
import sys
from importlib.metadata import version

import pytest

import pellucid


def modules_after(code: str) -> set[str]:
    """The top-level packages that a fresh interpreter holds after running ``code``."""
    report = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", f"{code}\n{report}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_all_is_sorted_and_complete() -> None:
    assert pellucid.__all__ == sorted(set(pellucid.__all__))
    assert set(pellucid.__all__) == set(pellucid._HOMES)


@pytest.mark.parametrize("name", pellucid.__all__)
def test_a_name_is_the_object_of_its_home(name: str) -> None:
    home = importlib.import_module(pellucid._HOMES[name])
    assert getattr(pellucid, name) is getattr(home, name)
    assert getattr(pellucid, name).__module__ == pellucid._HOMES[name]


@pytest.mark.parametrize("name", pellucid.__all__)
def test_a_name_is_documented(name: str) -> None:
    """A dataclass without a docstring is given its signature as one, which says nothing."""
    doc = inspect.getdoc(getattr(pellucid, name)) or ""
    assert len(doc.split()) > 3
    assert not doc.startswith(f"{name}(")


@pytest.mark.parametrize("name", pellucid.__all__)
def test_public_methods_are_documented(name: str) -> None:
    """Dataclass fields and methods inherited from object aside."""
    members = vars(getattr(pellucid, name)) if inspect.isclass(getattr(pellucid, name)) else {}
    methods = {key: value for key, value in members.items() if inspect.isfunction(value)}
    bare = [key for key, value in methods.items() if key[0] != "_" and not value.__doc__]
    assert bare == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Codex'"):
        _ = pellucid.Codex  # pyright: ignore[reportAttributeAccessIssue]


def test_importing_the_package_loads_no_torch() -> None:
    loaded = modules_after("import pellucid")
    assert "pellucid" in loaded
    assert not {"torch", "numpy", "transformers"} & loaded


def test_the_first_use_of_a_name_loads_it() -> None:
    """The counterpart: without it, the test above would pass on an empty package."""
    assert "torch" in modules_after("import pellucid; pellucid.Code")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["trian"]])
def test_the_command_line_answers_without_torch(arguments: list[str]) -> None:
    code = f"import pellucid.cli; pellucid.cli.main({arguments!r})"
    assert not {"torch", "numpy", "transformers", "tyro"} & modules_after(code)


def test_the_version_is_that_of_the_project() -> None:
    assert pellucid.__version__ == version("pellucid")
