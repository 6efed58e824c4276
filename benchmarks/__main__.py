"""``python -m benchmarks`` runs all of them."""

from benchmarks import full_save, incremental

incremental.main()
full_save.main()
