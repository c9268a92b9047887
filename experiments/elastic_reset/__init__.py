"""Does going back to the moving average keep reward at less drift than a KL penalty?"""
