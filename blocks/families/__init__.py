"""The model families, a file each: a classifier, an image generator, three language models, a forecaster."""
