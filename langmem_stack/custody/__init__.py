"""Custody: erasing what is kept of a user, handing it out, taking it in, rebuilding and retiring it."""

from langmem_stack.custody.importing import Imported
from langmem_stack.custody.rebuilding import Rebuilt
from langmem_stack.custody.retention import Ages, Retired
from langmem_stack.custody.target import Receipt, Target

__all__ = ["Ages", "Imported", "Rebuilt", "Receipt", "Retired", "Target"]
