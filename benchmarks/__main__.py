"""Entry point of ``python -m benchmarks``, which runs all measurements. ``--help`` shows how to run fewer."""

from benchmarks.suite import main

if __name__ == "__main__":
    main()
