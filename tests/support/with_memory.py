"""dglaunch, and then the most memory that this process had: python -m support.with_memory plan t2i ..."""

import resource
import sys

from dglaunch.cli.main import main

if __name__ == "__main__":
    code = main(sys.argv[1:])
    print("MEMORY", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    sys.exit(code)
