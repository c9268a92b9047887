"""Claims of "Mitigating the Alignment Tax of RLHF" (Lin et al. 2024, arXiv 2309.06256), measured in a small world."""
