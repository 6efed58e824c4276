"""``python -m benchmarks`` makes all measurements; ``--help`` says how to make fewer."""

from benchmarks.suite import main

if __name__ == "__main__":
    main()
