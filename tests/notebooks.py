"""Run notebooks in place: ``python -m tests.notebooks [FILE ...]``, by default all in ``notebooks/``.

Each runs in an empty directory, in a kernel of this very Python, and sees no settings and no keys of whoever
runs it. What is saved says nothing about the machine or the time.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "notebooks"
_SECONDS = 100  # for one cell
_PRIVATE = ("LANGCHAIN_", "LANGMEM_STACK_", "LANGSMITH_", "MPLBACKEND", "OPENAI_", "PG", "PYTHONWARNINGS")


async def run_notebook(path: Path, directory: str) -> None:
    """Run one notebook in a directory, and write it back with its outputs.

    Raises:
        CellExecutionError: A cell raised.
    """
    # Imported here: what Jupyter reads at import is set by `main`.
    import nbformat
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    # Without installed kernels to choose from it takes the native one: this Python, whatever else there is.
    here = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        km=here,
        timeout=_SECONDS,
        coalesce_streams=True,
        record_timing=False,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        resources={"metadata": {"path": directory}},
    )
    await client.async_execute(cleanup_kc=True)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, path)


def main(names: list[str]) -> None:
    """Run the notebooks of these names, one after the other."""
    for name in [name for name in os.environ if name.startswith(_PRIVATE)]:
        del os.environ[name]
    # A font cache that is made only now would be announced in a cell.
    subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], check=True, capture_output=True)
    for path in map(Path, names) if names else sorted(FOLDER.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as own, tempfile.TemporaryDirectory() as directory:
            os.environ |= {
                "IPYTHONDIR": own,
                "JUPYTER_CONFIG_DIR": own,
                "JUPYTER_PLATFORM_DIRS": "1",
                "JUPYTER_RUNTIME_DIR": own,
            }
            asyncio.run(run_notebook(path, directory))


if __name__ == "__main__":
    main(sys.argv[1:])
