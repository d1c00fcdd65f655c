"""The command `shmstore` (extra "cli": click and rich). One file a command; `main.py` gathers them."""
