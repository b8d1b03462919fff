"""Texts with a class each, through a pretrained model's own tokenizer."""
