"""`python -m tf_fashion.cli`."""

import sys

from tf_fashion.cli import main

if __name__ == "__main__":
    sys.exit(main())
