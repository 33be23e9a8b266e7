"""``python -m anomalib_msacl``: the command line of the package, or, with a name, the path of a configuration."""

import sys

from anomalib_msacl.cli import config_paths, main

if __name__ == "__main__":
    words = sys.argv[1:]
    # As in version 0.1: no word lists the configurations, the name of one prints its path.
    names = {name for path in config_paths() for name in (path.name, path.stem)}
    main(["configs", *words] if not words or words[0] in names else words)
