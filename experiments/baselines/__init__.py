"""What the blocks are compared with: the same task learnt end to end."""
