"""`python -m fastai_gradcam`: the command `fastai-gradcam`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
