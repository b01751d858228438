"""The older README's name of `mflux-mask`.

python -m tools.fill_mask_tool /path/to/your/image.jpg
"""

import sys

from mflux.cli.commands import BY_NAME
from mflux.cli.main import main

if __name__ == "__main__":
    sys.exit(main(BY_NAME["mflux-mask"]))
