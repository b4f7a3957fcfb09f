"""``python -m hpm_robustbench`` is ``hpm-bench``."""

from hpm_robustbench.cli import main

if __name__ == "__main__":
    main()
