"""``python -m ckfs``."""

import sys

from ckfs.cli.main import main

sys.exit(main())
