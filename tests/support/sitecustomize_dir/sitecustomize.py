"""Put this folder and tests/ on PYTHONPATH of a test's subprocess: see support/small_images.py."""

from support import small_images

small_images.install()
