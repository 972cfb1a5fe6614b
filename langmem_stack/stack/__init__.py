"""`MemoryStack`: the front door. It owns the connections and composes the parts.

A file for each group of its methods: they share the life of the object, in ``lifetime.py``.
"""

from langmem_stack.stack.stack import MemoryStack

__all__ = ["MemoryStack"]
