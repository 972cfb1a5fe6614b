from __future__ import annotations

import subprocess
import sys

import pytest

import langmem_stack
from langmem_stack import errors


@pytest.mark.parametrize("name", langmem_stack.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    """Each lazy name leads to an object of that name."""
    assert getattr(langmem_stack, name).__name__ == name
    assert name in dir(langmem_stack)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """The lazy module answers like any other one."""
    with pytest.raises(AttributeError, match="has no attribute 'Memory'"):
        _ = langmem_stack.Memory


def test_all_errors_are_one_family() -> None:
    """Catching the base catches them all, and each has a sentence of its own."""
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, errors.LangmemStackError)
        assert kind.__doc__


def test_import_loads_no_driver_and_no_framework() -> None:
    """``import langmem_stack`` brings neither psycopg nor redis, nor LangGraph, nor LangChain."""
    script = (
        "import sys, langmem_stack\n"
        "heavy = ('psycopg', 'psycopg_pool', 'redis', 'langgraph', 'langchain_core', 'pydantic')\n"
        "print([name for name in heavy if name in sys.modules])"
    )

    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert loaded.stdout.strip() == "[]"
