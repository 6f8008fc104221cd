import torch

# From Delta most weights' first products are subnormal, which CPUs compute twenty times slower: in
# this thread, and in those that it starts from now on, they are 0.
torch.set_flush_denormal(True)
