"""Which claims of WARP hold for a pre-trained model whose updates are mostly noise?"""
