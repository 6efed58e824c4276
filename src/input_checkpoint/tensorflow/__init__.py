"""The integrations with TensorFlow. The only package that imports it."""
