"""Which claims of Rewarded Soups hold for two rewards that can both be had?"""
