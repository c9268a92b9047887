"""Is a reward model of more pairs over-optimised later?"""
