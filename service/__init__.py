"""The BentoML service: sort, fine-tune, embed and stream from a container."""
