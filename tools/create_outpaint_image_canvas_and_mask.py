"""The older README's name of `mflux-outpaint-canvas`.

python -m tools.create_outpaint_image_canvas_and_mask room.png --image-outpaint-padding "0,25%,0,25%"
"""

import sys

from mflux.cli.commands import BY_NAME
from mflux.cli.main import main

if __name__ == "__main__":
    sys.exit(main(BY_NAME["mflux-outpaint-canvas"]))
