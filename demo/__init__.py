"""The demo: training that is killed again and again, and neither loses nor repeats an example.

Run it with ``python -m demo``. It runs the same training four times: uninterrupted, with this
library on a local folder, with this library on S3, and with TensorFlow's own hook.
"""
