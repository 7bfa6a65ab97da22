"""`python -m polytask`, the same as the command `polytask`; what `torchrun -m polytask` starts."""

from polytask.cli import main

if __name__ == "__main__":
    main()
