"""Self-supervised pretraining: multi-block masks, the masked objective, and the program each rank runs."""
