"""The measurements behind the performance claims."""
