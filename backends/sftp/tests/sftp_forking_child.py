"""A process that uses a backend and then forks. Arguments: URI, storage_options as JSON."""

import json
import os
import signal
import sys

from input_checkpoint import open_backend

if __name__ == "__main__":
    uri, options = sys.argv[1:]
    backend = open_backend(uri, json.loads(options))
    backend.put("key", b"data")
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        assert backend.get("key") == b"data"
        backend.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert backend.get("key") == b"data"
