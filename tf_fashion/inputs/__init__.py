"""Records to tensors: one definition of image and text preprocessing for training, evaluation and serving."""
