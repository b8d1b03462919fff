"""What block-wise training is compared with; `training` is the one way in which all of them are trained."""
