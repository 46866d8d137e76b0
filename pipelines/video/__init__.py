"""Video files: probing, decoding, fingerprinting and encoding."""
