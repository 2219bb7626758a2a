"""`python -m ostrack_ros.cli`."""

import sys

from ostrack_ros.cli.main import main

sys.exit(main())
