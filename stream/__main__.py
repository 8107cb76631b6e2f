"""`python -m stream` is `mtgr-stream`."""

from stream.cli import main

main()
