"""What block-wise training is compared with, trained with the same optimiser on the same batches."""
