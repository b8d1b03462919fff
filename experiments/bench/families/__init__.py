"""One bench row a model family: ours, end to end, and end to end with one block's layers."""
