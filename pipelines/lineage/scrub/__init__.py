"""Does a store agree with itself?"""
