"""``python -m mhe_core.cli``."""

from mhe_core.cli import main

if __name__ == "__main__":
    main()
