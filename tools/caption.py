"""`python tools/caption.py ...` in a clone is `mmzoo caption ...`; see its --help."""

import sys

from mmzoo.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["caption", *sys.argv[1:]]))
