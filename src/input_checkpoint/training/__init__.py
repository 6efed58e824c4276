"""What every integration shares. Nothing here imports TensorFlow."""
