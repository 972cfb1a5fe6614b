"""``python -m langmem_stack`` is the command ``langmem-stack``."""

import sys

from langmem_stack.cli import main

if __name__ == "__main__":
    sys.exit(main())
