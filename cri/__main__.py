"""`python -m cri` is `podwright`."""

from cri.cli import main

if __name__ == "__main__":
    main()
