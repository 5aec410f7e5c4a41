"""`python -m autog`, and what `accelerate launch -m autog` runs."""

from autog.cli import main

if __name__ == "__main__":
    main()
