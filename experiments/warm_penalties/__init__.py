"""Does a better reward model need a smaller KL penalty?"""
