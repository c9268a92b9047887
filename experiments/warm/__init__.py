"""Which claims of WARM hold where the true reward is known?"""
