"""``python -m benchmarks`` runs all of them."""

from benchmarks import incremental

incremental.main()
