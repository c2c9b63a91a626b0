"""What a pass over the data is made of. It imports torch alone, knows no paper, and everything else stands on it.

    batches.py     batches of D_tr, in training order or plain      updates.py    one update, one pass of updates
    scores.py      cross-entropy and accuracy of a network          reference.py  the frozen network of Eq. 2
    modes.py       training and evaluation mode, BatchNorm          streams.py    random numbers
    ranks.py       several processes                                checks.py     refusals, with what was found
    admission.py   which networks can be expanded                   ending.py     when REM ends, and what it returns
    features.py    what a network computes of every image
"""
