"""`python -m psp.pipeline`: see `psp.pipeline.commands`."""

from psp.pipeline.commands import main

main()
