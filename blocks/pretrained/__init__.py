"""Pretrained models, adapted block by block: conversion from a Hugging Face checkpoint and back.

`checkpoint` reads a checkpoint's folder and refuses what it cannot use, `convert` cuts it into blocks, `card` says
what a converted folder holds and has its digest, `places` knows those of this machine, `trunk` builds the model of
one, `architectures` has a file for each kind of model, `export` writes a checkpoint again, `lora` are adapters.

Only `card` and `places` can be imported without transformers (`pip install "fedblocks[pretrained]"`).
"""
