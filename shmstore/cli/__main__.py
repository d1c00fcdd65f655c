"""`python -m shmstore.cli`."""

from shmstore.cli.main import main

if __name__ == "__main__":
    main(prog_name="shmstore")
