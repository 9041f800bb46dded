"""From snippets to an embedding: augmentation, encoder, contrastive loss, training."""
