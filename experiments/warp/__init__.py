"""Which claims of WARP hold in a small world with an imperfect reward model?"""
