"""The names of the candidates in the results.

Apart from the candidates, because a training whose start is measured must not import what it does not use.
"""

from __future__ import annotations

FLOOR = "SerializeIterator"
OURS = "ours"
OURS_S3 = "ours on slow S3"
TF_HOOK = "TensorFlow's hook"
TF_PUT = "TensorFlow's hook + s3fs.put"
TF_CHECKPOINT = "tf.train.Checkpoint"
TF_ASYNC = "tf.train.Checkpoint, async"
