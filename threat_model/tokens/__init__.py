"""Tokens of a text from the gradient of the linear maps that they enter: which there are, and in which order.

`span`: how far a direction lies from what a gradient shows. `levels`: noise levels, where they modulate the tokens.
`presence`: which values occur. `order`: the text, from its start. `extraction`: how well a model has learnt a secret.
"""
