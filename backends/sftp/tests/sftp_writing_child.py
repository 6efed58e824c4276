"""A process that writes an object. Arguments: URI, key, megabytes, storage_options as JSON."""

import json
import sys

from input_checkpoint import open_backend

if __name__ == "__main__":
    uri, key, megabytes, options = sys.argv[1:]
    open_backend(uri, json.loads(options)).create(key, bytes(int(megabytes) << 20))
