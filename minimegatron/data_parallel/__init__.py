"""Every rank a copy of the model and other sequences; gradients averaged. `gradients.py`."""
