"""What users bring: checkpoints, folders of images, lists of bad ones. repair.py alone reads through it."""
