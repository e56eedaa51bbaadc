"""A stand-in of Dassl, written for the tests: what CoOp's train.py and our trainer use of it, with the same contract.

Where Dassl is awkward, so is this: it imports packages that nobody here needs and mutes logging, replaces and closes
`sys.stdout`, lists folders in no useful order, takes seed 0 and no seed for the same, and wants values of exact type.
"""
