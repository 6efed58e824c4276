"""The demo: real training, killed again and again, that loses no example and sees none twice.

Run it with ``python -m demo``. It compares four ways to run the same training: uninterrupted, with this
library on a local folder, with this library on S3, and with TensorFlow's own hook.
"""
