"""How good a model is: image-text retrieval, zero-shot classification, linear probe.

features.py     images and texts -> vectors, of whatever they lie in
retrieval.py    which of all texts belongs to an image, and the other way around
zero_shot.py    which class's description is nearest to an image
linear_probe.py a linear classifier on the frozen image encoder
checkpoints.py  all of these on what a run saves, while it goes on
"""
