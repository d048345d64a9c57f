"""`python -m finallyse`: the `finallyse` command, for where scripts of packages are not on the PATH."""

from finallyse.cli import main

if __name__ == "__main__":
    main()
