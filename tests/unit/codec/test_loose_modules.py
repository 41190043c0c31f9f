"""Modules that a worker cannot import by their names are known as such."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from procbus.codec.loose_modules import is_loose


@pytest.fixture(autouse=True)
def no_module_left_behind() -> Iterator[None]:
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        del sys.modules[name]


def loaded_from(file: Path, name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name", ["sys", "json", "json.decoder", "posixpath", "__main__", "procbus.core.handler"]
)
def test_module_that_can_be_imported_is_not_loose(name: str) -> None:
    importlib.import_module(name)

    assert not is_loose(name)


def test_module_made_by_hand_is_loose() -> None:
    sys.modules["shop_made_by_hand"] = types.ModuleType("shop_made_by_hand")

    assert is_loose("shop_made_by_hand")


def test_module_made_within_a_package_is_not_loose() -> None:
    sys.modules["json.made_by_hand"] = types.ModuleType("json.made_by_hand")

    assert not is_loose("json.made_by_hand")


def test_module_loaded_from_a_path_is_loose(tmp_path: Path) -> None:
    file = tmp_path / "plugin.py"
    file.write_text("")
    loaded_from(file, "shop_plugin")
    loaded_from(file, "shop_plugins.first")

    assert is_loose("shop_plugin")
    assert is_loose("shop_plugins.first")


def test_module_whose_name_finds_another_file_is_loose(tmp_path: Path) -> None:
    file = tmp_path / "colorsys.py"
    file.write_text("")
    loaded_from(file, "colorsys")  # Python has a module of this name

    assert is_loose("colorsys")


def test_module_whose_folder_left_the_path_is_loose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop_left_the_path.py").write_text("")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        importlib.import_module("shop_left_the_path")

    assert is_loose("shop_left_the_path")


@pytest.mark.parametrize("name", [None, 3, "shop_that_is_not_loaded"])
def test_name_without_a_loaded_module_is_not_loose(name: object) -> None:
    assert not is_loose(name)


def test_finder_that_raises_makes_no_module_loose(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name: str, path: object) -> None:
            raise RuntimeError("broken")

    sys.modules["shop_of_broken_finder"] = types.ModuleType("shop_of_broken_finder")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])

    assert not is_loose("shop_of_broken_finder")
