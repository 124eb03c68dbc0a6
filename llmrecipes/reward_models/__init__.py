"""Reward models: how a response is fed to one and scored, and whether it is fit to train against."""
