"""Action-conditioned post-training: a predictor of the next frame's representation, on a frozen encoder."""
