"""What all tests share."""

import torch

# Test problems are small: one thread is fastest, above all when several workers run side by side.
torch.set_num_threads(1)
