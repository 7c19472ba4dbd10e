"""Registries: names of this package, and those that installed packages add."""

import warnings

import pytest

from lsm_probe.registry import Registry

GROUP = "lsm_probe.test_registry"


@pytest.fixture
def registry():
    registry = Registry(GROUP, "greeting", lambda name, found: callable(found))

    @registry.register("hello")
    def hello():
        return "hello"

    return registry


def test_holds_what_is_registered(registry):
    assert registry["hello"]() == "hello"
    assert list(registry) == ["hello"]
    with pytest.raises(ValueError, match="the greeting 'hello' is registered already"):
        registry.register("hello")(print)


def test_holds_what_an_installed_package_adds(registry, install_package):
    install_package(GROUP, {"moin": "other_package:moin"}, "def moin():\n    return 'moin'\n")
    assert registry["moin"]() == "moin"
    assert list(registry) == ["hello", "moin"]
    assert len(registry) == 2
    assert "ahoy" not in registry


def test_reads_no_entry_point_for_a_built_in_name(registry, install_package):
    install_package(GROUP, {"moin": "other_package:moin"}, "raise RuntimeError('imported')")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert registry["hello"]() == "hello"
        assert "hello" in registry


@pytest.mark.parametrize(
    ("name", "source", "reason"),
    [
        ("moin", "raise RuntimeError('a\\nb')", r"it cannot be imported \(RuntimeError: a b\)"),
        ("moin", "", "it cannot be imported .AttributeError"),
        ("moin", "moin = 3", "it is not a greeting"),
        ("hello", "moin = print", "its name is taken"),
    ],
)
def test_leaves_out_what_cannot_be_used_with_one_line(registry, install_package, name, source, reason):
    install_package(GROUP, {name: "other_package:moin"}, source)
    with pytest.warns(UserWarning, match=reason) as warned:
        assert list(registry) == ["hello"]
    assert len(warned) == 1
    line = str(warned[0].message)
    assert line.startswith(f"the greeting '{name}' (other_package:moin) of other_package is left out: ")
    assert "\n" not in line
    assert registry["hello"]() == "hello"


def test_a_name_that_two_packages_add_is_the_firsts(registry, install_package):
    install_package(GROUP, {"moin": "other_package:one"}, "def one():\n    return 1\n")
    install_package(GROUP, {"moin": "other_package_2:two"}, "def two():\n    return 2\n", package="other_package_2")
    with pytest.warns(UserWarning, match=r"other_package_2:two\) of other_package_2 is left out: its name is taken"):
        assert registry["moin"]() == 1
