"""Which claims of Rewarded Soups hold in a small world with conflicting rewards?"""
