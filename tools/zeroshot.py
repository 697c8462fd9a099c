"""`python tools/zeroshot.py ...` in a clone is `mmzoo zeroshot ...`; see its --help."""

import sys

from mmzoo.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["zeroshot", *sys.argv[1:]]))
