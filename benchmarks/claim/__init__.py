"""The claim of the paper, measured: all else being equal, does a GEBM outperform the GAN?"""
