"""Does a moving-average anchor reach the same reward as a periodic one, at a lower KL?"""
