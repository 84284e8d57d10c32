"""Sources of images: published data sets."""
